//! The chart's values with their schema, and what of the chart has no counterpart in the base.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;
use serde_yaml_ng::Value;

use super::daemonset::{self, KUBELET, NRI};

/// Classes that an administrator adds.
pub(crate) const CLASSES: &str = "{{- range .Values.deviceClasses }}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata:
  name: {{ .name }}
  labels:
    app.kubernetes.io/name: netferry
    app.kubernetes.io/part-of: netferry
    app.kubernetes.io/managed-by: {{ $.Release.Service }}
spec:
  {{- toYaml .spec | nindent 2 }}
{{- end }}
";

/// OpenShift admits privileged pods by a security context constraint.
pub(crate) const OPENSHIFT: &str = "{{- if .Values.openshift.privilegedSCC }}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: netferry-privileged-scc
  namespace: {{ .Release.Namespace }}
  labels:
    app.kubernetes.io/name: netferry
    app.kubernetes.io/part-of: netferry
    app.kubernetes.io/managed-by: {{ .Release.Service }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: system:openshift:scc:privileged
subjects:
  - kind: ServiceAccount
    name: netferry
    namespace: {{ .Release.Namespace }}
{{- end }}
";

/// `Chart.yaml`.
pub(crate) fn chart() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "# Made by `cargo xtask codegen`.\napiVersion: v2\nname: netferry\n\
         description: Kubernetes network driver with DRA claims, NRI attach and eBPF isolation\n\
         type: application\nversion: {version}\nappVersion: \"{version}\"\nkubeVersion: \">=1.32.0-0\"\n\
         home: {repository}\nsources:\n  - {repository}\n",
        repository = env!("CARGO_PKG_REPOSITORY")
    )
}

/// `values.yaml`: the base's values where it has them.
pub(crate) fn values(daemons: &Value) -> Result<String> {
    let mut text = format!(
        "# Made by `cargo xtask codegen` from manifests/base; docs/install.md has values for distributions.
image:
  repository: netferry
  # The chart's appVersion if empty.
  tag: \"\"
  # Instead of a tag, as sha256:….
  digest: \"\"
  pullPolicy: IfNotPresent
imagePullSecrets: []
# The kubelet's --root-dir.
kubeletRootDir: {KUBELET}
# The runtime's NRI socket.
nriSocket: {NRI}/nri.sock
# CEL expression that says which links are published; the driver's own rule if empty.
publish: \"\"
# CEL expression that says which links several claims may share; none if empty.
share: \"\"
# Further flags of `netferry run`, as --ports=netkit.
extraArgs: []
extraEnv: []
# The class netferry.dev, which claims of the documentation use.
defaultDeviceClass: true
# Further classes: name and spec of a DeviceClass.
deviceClasses: []
podMonitor:
  enabled: false
  interval: \"\"
  labels: {{}}
prometheusRule:
  enabled: false
  labels: {{}}
openshift:
  # Binds the daemon's account to the security context constraint `privileged`.
  privilegedSCC: false
podAnnotations: {{}}
affinity: {{}}
"
    );
    for (name, value) in daemonset::defaults(daemons)? {
        let yaml = serde_yaml_ng::to_string(&value)?;
        let nested = matches!(&value, Value::Mapping(_) | Value::Sequence(_));
        if nested {
            let lines: Vec<String> = yaml.lines().map(|line| format!("  {line}")).collect();
            let _ = writeln!(text, "{name}:\n{}", lines.join("\n"));
        } else {
            let _ = write!(text, "{name}: {yaml}");
        }
    }
    Ok(text)
}

/// `values.schema.json`: a name that is no value is an error.
pub(crate) fn schema() -> Result<String> {
    let text = || json!({"type": "string"});
    let path = || json!({"type": "string", "pattern": "^/"});
    let object = || json!({"type": "object"});
    let labels = || json!({"type": "object", "additionalProperties": {"type": "string"}});
    let list = || json!({"type": "array", "items": {"type": "object"}});
    let closed = |properties: serde_json::Value| json!({"type": "object", "additionalProperties": false, "properties": properties});
    let class = json!({"type": "object", "additionalProperties": false, "required": ["name", "spec"],
        "properties": {"name": {"type": "string", "minLength": 1}, "spec": object()}});
    let mut schema = closed(json!({
        // Helm puts it there, for charts that have this one as a part.
        "global": object(),
        "image": closed(json!({
            "repository": {"type": "string", "minLength": 1},
            "tag": text(),
            "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        })),
        "imagePullSecrets": list(),
        "kubeletRootDir": path(),
        "nriSocket": path(),
        "publish": text(),
        "share": text(),
        "extraArgs": {"type": "array", "items": {"type": "string", "pattern": "^--"}},
        "extraEnv": list(),
        "defaultDeviceClass": {"type": "boolean"},
        "deviceClasses": {"type": "array", "items": class},
        "podMonitor": closed(json!({
            "enabled": {"type": "boolean"},
            "interval": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))*$"},
            "labels": labels(),
        })),
        "prometheusRule": closed(json!({"enabled": {"type": "boolean"}, "labels": labels()})),
        "openshift": closed(json!({"privilegedSCC": {"type": "boolean"}})),
        "podAnnotations": labels(),
        "affinity": object(),
        "updateStrategy": object(),
        "resources": object(),
        "tolerations": list(),
        "nodeSelector": labels(),
        "priorityClassName": text(),
        "dnsPolicy": {"enum": ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]},
        "httpPort": {"type": "integer", "minimum": 1, "maximum": 65535},
    }));
    schema["$schema"] = "http://json-schema.org/draft-07/schema#".into();
    Ok(serde_json::to_string_pretty(&schema)? + "\n")
}
