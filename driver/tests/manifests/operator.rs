//! Objects of the Prometheus operator (monitoring.coreos.com/v1), whose types are in no crate: the fields that are used here
//! are compared with those that its CustomResourceDefinitions publish.

use serde_json::{Value, json};

/// Fields by the path of their parent; `[]` is an item of a list.
const KNOWN: [(&str, &[&str]); 11] = [
    ("PodMonitor", &["apiVersion", "kind", "metadata", "spec"]),
    ("PodMonitor.metadata", &["name", "namespace", "labels"]),
    ("PodMonitor.spec", &["selector", "namespaceSelector", "podMetricsEndpoints", "jobLabel"]),
    ("PodMonitor.spec.selector", &["matchLabels", "matchExpressions"]),
    (
        "PodMonitor.spec.podMetricsEndpoints[]",
        &["port", "path", "interval", "scheme", "relabelings", "metricRelabelings"],
    ),
    (
        "PodMonitor.spec.podMetricsEndpoints[].relabelings[]",
        &["sourceLabels", "separator", "targetLabel", "regex", "replacement", "action"],
    ),
    ("PrometheusRule", &["apiVersion", "kind", "metadata", "spec"]),
    ("PrometheusRule.metadata", &["name", "namespace", "labels"]),
    ("PrometheusRule.spec", &["groups"]),
    ("PrometheusRule.spec.groups[]", &["name", "interval", "rules", "labels", "limit"]),
    (
        "PrometheusRule.spec.groups[].rules[]",
        &["alert", "record", "expr", "for", "labels", "annotations", "keep_firing_for"],
    ),
];

/// Maps whose keys are free.
const MAPS: [&str; 3] = ["matchLabels", "labels", "annotations"];

/// What is wrong with an object.
pub(crate) fn wrong(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if object["apiVersion"] != "monitoring.coreos.com/v1" {
        found.push(format!("apiVersion {}", object["apiVersion"]));
    }
    look(object["kind"].as_str().unwrap_or_default(), object, &mut found);
    let groups = object["spec"]["groups"].as_array().into_iter().flatten();
    for rule in groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        for field in ["alert", "expr"] {
            if !rule[field].is_string() {
                found.push(format!("{rule} has no {field}"));
            }
        }
    }
    found
}

fn look(path: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let last = path.rsplit('.').next().unwrap_or_default();
            if MAPS.contains(&last) {
                found.extend(
                    fields
                        .iter()
                        .filter(|(_, value)| !value.is_string())
                        .map(|(name, _)| format!("{path}.{name}")),
                );
                return;
            }
            let known =
                KNOWN.iter().find(|(known, _)| *known == path).map_or(&[] as &[&str], |(_, fields)| fields);
            for (name, value) in fields {
                if !known.contains(&name.as_str()) {
                    found.push(format!("{path}.{name} is unknown"));
                }
                look(&format!("{path}.{name}"), value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| look(&format!("{path}[]"), item, found)),
        _ => {}
    }
}

#[test]
fn an_unknown_field_of_the_operator_is_found() {
    let object = json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "a"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "podMetricsEndpoints": [{"ports": "http"}]}});
    assert_eq!(wrong(&object), ["PodMonitor.spec.podMetricsEndpoints[].ports is unknown"]);
}
