//! Objects of the Prometheus operator: the alerts as a PrometheusRule, and a PodMonitor that scrapes every daemon.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result};
use serde_yaml_ng::Value;

use super::{NAMESPACE, documents, finish, put, strings, template::Template};
use crate::command::root;

const HEAD: &str = "Made by `cargo xtask codegen` from manifests/monitoring.";

const MONITOR: &str = "
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: netferry
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: netferry
      app.kubernetes.io/component: daemon
  podMetricsEndpoints:
  - path: /metrics
    relabelings:
    # The pods declare no port, so that two can be on a node during an update.
    - sourceLabels: [__meta_kubernetes_pod_container_name]
      regex: netferry
      action: keep
    - sourceLabels: [__meta_kubernetes_pod_ip]
      targetLabel: __address__
      replacement: $1:9177
    - sourceLabels: [__meta_kubernetes_pod_ip]
      regex: (.*:.*)
      targetLabel: __address__
      replacement: '[$1]:9177'
    - sourceLabels: [__meta_kubernetes_pod_node_name]
      targetLabel: instance
";

/// The files of the kustomize component and of the chart.
pub(crate) fn files() -> Result<BTreeMap<PathBuf, String>> {
    let alerts = documents(&root().join("manifests/monitoring/alerts.yaml"))?;
    let mut rule: Value = serde_yaml_ng::from_str(
        "{apiVersion: monitoring.coreos.com/v1, kind: PrometheusRule, metadata: {name: netferry}}",
    )?;
    put(&mut rule, &["spec", "groups"], alerts.first().context("no alerts")?["groups"].clone())?;
    let monitor: Value = serde_yaml_ng::from_str(MONITOR)?;
    let mut made = BTreeMap::new();
    for (name, value, mut object) in
        [("podmonitor", ".Values.podMonitor", monitor), ("prometheusrule", ".Values.prometheusRule", rule)]
    {
        let mut plain = object.clone();
        put(&mut plain, &["metadata", "namespace"], NAMESPACE.into())?;
        let text = format!("# {HEAD}\n{}", serde_yaml_ng::to_string(&plain)?);
        made.insert(format!("manifests/monitoring/{name}.yaml").into(), text);

        let mut template = Template::default();
        // Prometheus has templates of its own.
        strings(&mut object, &|text| {
            text.replace("{{", "{{ \"{{\" }}")
                .replace("$1:9177", "$1:{{ .Values.httpPort }}")
                .replace("[$1]:9177", "[$1]:{{ .Values.httpPort }}")
        });
        put(&mut object, &["metadata", "namespace"], NAMESPACE.into())?;
        finish(&mut object)?;
        let labels = object["metadata"]["labels"].as_mapping_mut().context("no labels")?;
        let more =
            format!("{{{{- with {value}.labels }}}}\n{{{{- toYaml . | nindent %0 }}}}\n{{{{- end }}}}");
        labels.insert(template.block(&more), Value::Null);
        if name == "podmonitor" {
            let lines = "{{- with .Values.podMonitor.interval }}\ninterval: {{ . | quote }}\n{{- end }}";
            let endpoint = object["spec"]["podMetricsEndpoints"].get_mut(0).and_then(Value::as_mapping_mut);
            endpoint.context("no endpoint")?.insert(template.block(lines), Value::Null);
            template.only_if(".Values.podMonitor.enabled");
        } else {
            template.only_if(".Values.prometheusRule.enabled");
        }
        template.object(&object)?;
        made.insert(format!("manifests/chart/templates/{name}.yaml").into(), template.text(HEAD)?);
    }
    Ok(made)
}
