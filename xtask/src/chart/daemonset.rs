//! The DaemonSet of the chart.

use anyhow::{Context, Result};
use serde_yaml_ng::{Mapping, Value};

use super::{get, put, strings, template::Template};

/// Where the base has the kubelet's folder and the runtime's socket.
pub(crate) const KUBELET: &str = "/var/lib/kubelet";
pub(crate) const NRI: &str = "/var/run/nri";

/// The container of the daemon.
const DAEMON: &str = "netferry";

const IMAGE: &str = "{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:\
                     {{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}";

/// Flags that are left out while the value is the daemon's default.
const FLAGS: &str = r#"{{- if ne .Values.kubeletRootDir "/var/lib/kubelet" }}
- {{ printf "--kubelet-root-dir=%s" .Values.kubeletRootDir | quote }}
{{- end }}
{{- if ne .Values.nriSocket "/var/run/nri/nri.sock" }}
- {{ printf "--nri-socket=%s" .Values.nriSocket | quote }}
{{- end }}
{{- with .Values.publish }}
- {{ printf "--publish=%s" . | quote }}
{{- end }}
{{- with .Values.share }}
- {{ printf "--share=%s" . | quote }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}"#;

/// Puts the chart's expressions where values may differ.
pub(crate) fn edit(object: &mut Value, template: &mut Template) -> Result<()> {
    strings(object, &|text| {
        if text == NRI {
            "{{ dir .Values.nriSocket }}".into()
        } else {
            text.replace(&format!("{KUBELET}/"), "{{ .Values.kubeletRootDir }}/")
        }
    });
    let strategy = map(template, "updateStrategy", ".Values.updateStrategy");
    swap(get_mut(object, &["spec"])?, "updateStrategy", &strategy)?;
    let metadata = get_mut(object, &["spec", "template", "metadata", "annotations"])?;
    let more = template.block("{{- with .Values.podAnnotations }}\n{{- toYaml . | nindent %0 }}\n{{- end }}");
    metadata.insert(more, Value::Null);

    let pod = get_mut(object, &["spec", "template", "spec"])?;
    for name in ["tolerations", "nodeSelector"] {
        let block = map(template, name, &format!(".Values.{name}"));
        swap(pod, name, &block)?;
    }
    for name in ["affinity", "imagePullSecrets"] {
        let block = map(template, name, &format!(".Values.{name}"));
        pod.insert(block, Value::Null);
    }
    pod.insert("priorityClassName".into(), "{{ .Values.priorityClassName }}".into());
    pod.insert("dnsPolicy".into(), "{{ .Values.dnsPolicy }}".into());
    let containers: Vec<&mut Value> = pod
        .iter_mut()
        .filter(|(name, _)| matches!(name.as_str(), Some("containers" | "initContainers")))
        .filter_map(|(_, list)| list.as_sequence_mut())
        .flatten()
        .collect();
    for container in containers {
        put(container, &["image"], IMAGE.into())?;
        put(container, &["imagePullPolicy"], "{{ .Values.image.pullPolicy }}".into())?;
        if container["name"] == DAEMON {
            daemon(container, template)?;
        }
    }
    Ok(())
}

fn daemon(container: &mut Value, template: &mut Template) -> Result<()> {
    let port = http_port(container)?;
    let arguments = container["args"].as_sequence_mut().context("the daemon has no arguments")?;
    for argument in arguments.iter_mut() {
        if let Some(text) = argument.as_str().filter(|text| text.starts_with("--http-address=")) {
            let host = text.rsplit_once(':').context("an address without a port")?.0;
            *argument = format!("{host}:{{{{ .Values.httpPort }}}}").into();
        }
    }
    arguments.push(template.block(FLAGS));
    let env = container["env"].as_sequence_mut().context("the daemon has no env")?;
    env.push(template.block("{{- with .Values.extraEnv }}\n{{- toYaml . | nindent %0 }}\n{{- end }}"));
    ports(container, port, &template.block("{{ .Values.httpPort }}"));
    let resources = map(template, "resources", ".Values.resources");
    swap(container.as_mapping_mut().context("a container")?, "resources", &resources)
}

/// The port of the daemon's `--http-address`.
fn http_port(container: &Value) -> Result<u64> {
    let arguments = container["args"].as_sequence().context("the daemon has no arguments")?;
    let address =
        arguments.iter().filter_map(Value::as_str).find_map(|text| text.strip_prefix("--http-address="));
    let port = address.and_then(|address| address.rsplit_once(':')).context("no --http-address")?.1;
    port.parse().with_context(|| format!("--http-address: port {port:?}"))
}

/// Puts a block where the port is, in probes and wherever else.
fn ports(value: &mut Value, port: u64, block: &Value) {
    match value {
        Value::Number(number) if number.as_u64() == Some(port) => *value = block.clone(),
        Value::Sequence(items) => items.iter_mut().for_each(|item| ports(item, port, block)),
        Value::Mapping(fields) => fields.values_mut().for_each(|field| ports(field, port, block)),
        _ => {}
    }
}

/// The values of the chart that are the base's.
pub(crate) fn defaults(object: &Value) -> Result<Vec<(&'static str, Value)>> {
    let pod = get(object, &["spec", "template", "spec"])?;
    let containers = pod["containers"].as_sequence().context("no containers")?;
    let daemon = containers.iter().find(|one| one["name"] == DAEMON).context("no container of the daemon")?;
    Ok(vec![
        ("updateStrategy", get(object, &["spec", "updateStrategy"])?.clone()),
        ("resources", get(daemon, &["resources"])?.clone()),
        ("tolerations", get(pod, &["tolerations"])?.clone()),
        ("nodeSelector", get(pod, &["nodeSelector"])?.clone()),
        ("priorityClassName", get(pod, &["priorityClassName"])?.clone()),
        ("dnsPolicy", get(pod, &["dnsPolicy"])?.clone()),
        ("httpPort", http_port(daemon)?.into()),
    ])
}

/// A field that is there if its value is not empty.
fn map(template: &mut Template, field: &str, value: &str) -> Value {
    template.block(&format!(
        "{{{{- with {value} }}}}\n{field}:\n  {{{{- toYaml . | nindent %2 }}}}\n{{{{- end }}}}"
    ))
}

/// Puts a block where a field is, in its place.
fn swap(fields: &mut Mapping, field: &str, block: &Value) -> Result<()> {
    let old = std::mem::take(fields);
    anyhow::ensure!(old.contains_key(field), "the base has no {field}");
    for (name, value) in old {
        if name == field {
            fields.insert(block.clone(), Value::Null);
        } else {
            fields.insert(name, value);
        }
    }
    Ok(())
}

fn get_mut<'a>(value: &'a mut Value, path: &[&str]) -> Result<&'a mut Mapping> {
    let found = path.iter().try_fold(value, |value, name| value.get_mut(*name));
    found.and_then(Value::as_mapping_mut).with_context(|| format!("no {}", path.join(".")))
}
