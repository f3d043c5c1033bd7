//! What the driver may change of a Network, by the admission policy, evaluated as an API server does.

use std::collections::BTreeMap;

use kube::core::cel::{AdmissionRequest, VapEvaluator};
use netferry::network::in_use::FINALIZER;
use serde_json::{Value, json};

use super::manifests::policy_of;

/// The messages of what is refused.
fn refused(before: &Value, after: &Value) -> Vec<String> {
    let request = AdmissionRequest { operation: "UPDATE".to_owned(), ..AdmissionRequest::default() };
    let evaluator =
        VapEvaluator::builder().object(after.clone()).old_object(before.clone()).request(request).build();
    let expressions = policy_of("base/network-driver-admission.yaml", &BTreeMap::new());
    let results = evaluator.evaluate_compiled(&evaluator.compile_expressions(&expressions));
    assert_eq!(results.len(), 3);
    results.into_iter().filter(|result| !result.passed).map(|it| it.message.unwrap_or_default()).collect()
}

fn network(metadata: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "netferry.dev/v1alpha1", "kind": "Network", "metadata": {"name": "blue"},
        "spec": {"subnets": ["10.1.0.0/16"], "transport": {"local": {}}, "policy": {"ingress": {"rules": []}}},
    });
    let fields = object["metadata"].as_object_mut().expect("fields");
    fields.extend(metadata.as_object().expect("fields").clone());
    object
}

#[test]
fn the_driver_may_change_its_finalizer_and_nothing_else() {
    let with = |finalizers: &[&str]| network(&json!({ "finalizers": finalizers }));
    for (before, after) in [
        (network(&json!({})), with(&[FINALIZER])),
        (with(&[FINALIZER]), network(&json!({}))),
        (with(&["a/b"]), with(&["a/b", FINALIZER])),
        (with(&[FINALIZER, "a/b"]), with(&["a/b"])),
    ] {
        assert_eq!(refused(&before, &after), [""; 0], "{before} -> {after}");
    }
    let metadata = json!({"labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["a/b"]});
    let before = network(&metadata);
    let changed = |path: &str, value: Value| {
        let mut after = before.clone();
        *after.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
        after
    };
    let mut owned = before.clone();
    owned["metadata"]["ownerReferences"] = json!([{"kind": "Node", "name": "n"}]);
    for (after, words) in [
        (changed("/metadata/finalizers", json!([])), "its own finalizer"),
        (changed("/metadata/finalizers", json!(["a/b", "c/d"])), "its own finalizer"),
        (changed("/spec/policy/ingress", json!({"otherwise": "deny"})), "what a network is to be"),
        (changed("/spec/subnets", json!(["10.2.0.0/16"])), "what a network is to be"),
        (changed("/metadata/labels", json!({})), "the labels"),
        (changed("/metadata/annotations/c", "e".into()), "annotations"),
        (owned, "owners"),
    ] {
        let messages = refused(&before, &after);
        assert!(messages.len() == 1 && messages[0].contains(words), "{after}: {messages:?}");
    }
}
