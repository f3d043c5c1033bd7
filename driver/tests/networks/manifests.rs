//! The manifests of networks, evaluated as an API server does.

use std::{collections::BTreeMap, fs, path::PathBuf};

use kube::core::cel::{AdmissionRequest, Validator, VapEvaluator, VapExpression};
use netferry::network::{spec::definition, validate};
use serde::Deserialize as _;
use serde_json::{Value, json};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(name)
}

fn documents(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(file(name)).expect(name);
    serde_yaml_ng::Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect(name)).collect()
}

#[test]
fn the_definition_is_made_from_the_types() {
    let made = serde_json::to_value(definition().expect("a definition")).expect("JSON");
    assert!(documents("base/crd.yaml") == [made], "manifests/base/crd.yaml is old: cargo xtask codegen");
}

/// What a structural schema may not have (`apiextensions/v1` validation).
#[test]
fn the_schema_is_structural() {
    fn look(schema: &Value, path: &str) {
        let Some(fields) = schema.as_object() else { return };
        for name in ["$ref", "definitions", "anyOf", "oneOf", "allOf", "nullable", "const"] {
            assert!(!fields.contains_key(name), "{path}.{name}");
        }
        assert_ne!(fields.get("additionalProperties"), Some(&Value::Bool(false)), "{path}");
        if path != "." {
            assert!(fields.contains_key("type"), "{path} has no type");
        }
        for (name, schema) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
            look(schema, &format!("{path}.{name}"));
        }
        for name in ["items", "additionalProperties"] {
            if let Some(schema) = fields.get(name) {
                look(schema, &format!("{path}.{name}"));
            }
        }
    }
    look(&schema(), "");
}

fn schema() -> Value {
    documents("base/crd.yaml")[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn network() -> Value {
    json!({
        "apiVersion": "netferry.dev/v1alpha1", "kind": "Network", "metadata": {"name": "blue"},
        "spec": {
            "subnets": ["10.1.0.0/16", "fd00:1::/64"], "gateways": ["10.1.0.1"], "mtu": 1400,
            "transport": {"overlay": {"vni": 7}}, "namespaceSelector": {},
        },
    })
}

fn refused(object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.as_slice().iter().map(|error| error.message.clone()).collect(),
    }
}

type Change = fn(&mut Value);

#[test]
fn a_network_by_dhcp_is_admitted() {
    let mut by_dhcp = network();
    by_dhcp["spec"]["addresses"] = "dhcp".into();
    by_dhcp["spec"]["subnets"] = json!(["10.1.0.0/16"]);
    by_dhcp["spec"]["transport"] = json!({"uplink": {"selector": "true", "vlan": 7}});
    assert_eq!(refused(&by_dhcp, None), [""; 0]);
    assert_eq!(refused(&by_dhcp, Some(&by_dhcp)), [""; 0]);
    let mut otherwise = by_dhcp.clone();
    otherwise["spec"].as_object_mut().expect("fields").remove("addresses");
    assert!(refused(&otherwise, Some(&by_dhcp)).iter().any(|it| it.contains("cannot be changed")));
}

#[test]
fn a_network_of_blocks_is_admitted_with_every_transport() {
    let transports = [
        json!({"local": {}}),
        json!({"overlay": {"vni": 7}}),
        json!({"uplink": {"selector": "true", "vlan": 7}}),
    ];
    for transport in transports {
        let mut blocks = network();
        blocks["spec"]["addresses"] = "blocks".into();
        blocks["spec"]["subnets"] = json!(["10.1.0.0/24", "fd00:1::/120"]);
        blocks["spec"]["transport"] = transport;
        assert_eq!(refused(&blocks, None), [""; 0]);
        assert_eq!(validate::validate("blue", &validate::parse(&blocks["spec"]).expect("a spec")), []);
        let messages = refused(&network(), Some(&blocks));
        assert!(
            messages.iter().any(|it| it.contains("addresses come from cannot be changed")),
            "{messages:?}"
        );
    }
}

#[test]
fn the_rules_refuse_what_the_driver_refuses() {
    assert_eq!(refused(&network(), None), [""; 0]);
    let mut routed = network();
    routed["spec"]["transport"] = json!({"uplink": {"selector": "true", "mode": "routed"}});
    routed["spec"]["gateways"] = json!(["10.1.0.1", "fd00:1::1"]);
    assert_eq!(refused(&routed, None), [""; 0]);
    let cases: [(Change, &str); 16] = [
        (|n| n["metadata"]["name"] = "a".repeat(59).into(), "at most 58"),
        (|n| n["metadata"]["name"] = "a.b".into(), "DNS label"),
        (|n| n["spec"]["subnets"] = json!(["10.1.0.1/16", "fd00:1::/64"]), "host bits"),
        (|n| n["spec"]["subnets"] = json!(["10.1.0.0/16", "10.2.0.0/16"]), "one subnet of each family"),
        (|n| n["spec"]["gateways"] = json!(["10.1.0.1", "10.1.0.2"]), "one gateway of each family"),
        (|n| n["spec"]["gateways"] = json!(["10.2.0.1"]), "in one of the subnets"),
        (|n| n["spec"]["mtu"] = json!(1279), "at least 1280"),
        (|n| n["spec"]["addresses"] = "dhcp".into(), "transport.uplink must be set"),
        (|n| n["spec"]["addresses"] = "dhcp".into(), "there is no DHCPv6"),
        (
            |n| {
                n["spec"]["addresses"] = "blocks".into();
                n["spec"]["subnets"] = json!(["10.1.0.0/25"]);
            },
            "at most 24 bits (IPv4) or 120 (IPv6)",
        ),
        (
            |n| {
                n["spec"]["addresses"] = "blocks".into();
                n["spec"]["subnets"] = json!(["10.1.0.0/24", "fd00:1::/121"]);
            },
            "at most 24 bits (IPv4) or 120 (IPv6)",
        ),
        (|n| n["spec"]["transport"] = json!({}), "exactly one"),
        (|n| n["spec"]["transport"] = json!({"local": {}, "overlay": {"vni": 7}}), "exactly one"),
        (
            |n| {
                n["spec"]["transport"] = json!({"uplink": {"selector": "true", "mode": "routed", "vlan": 7}});
                n["spec"]["gateways"] = json!(["10.1.0.1", "fd00:1::1"]);
            },
            "no VLAN of its own",
        ),
        (
            |n| n["spec"]["transport"] = json!({"uplink": {"selector": "true", "mode": "routed"}}),
            "a gateway in each of its subnets",
        ),
        (
            |n| {
                n["spec"]["addresses"] = "dhcp".into();
                n["spec"]["transport"] = json!({"uplink": {"selector": "true", "mode": "routed"}});
            },
            "a routed network is another one",
        ),
    ];
    for (change, wanted) in cases {
        let mut bad = network();
        change(&mut bad);
        let messages = refused(&bad, None);
        assert!(messages.iter().any(|message| message.contains(wanted)), "{wanted}: {messages:?}");
        let name = bad["metadata"]["name"].as_str().expect("a name");
        let ours = validate::parse(&bad["spec"]).map(|spec| validate::validate(name, &spec));
        assert!(ours.is_ok_and(|errors| !errors.is_empty()), "{wanted}: the driver accepts it");
    }
}

#[test]
fn transport_and_subnets_stay_and_the_rest_may_change() {
    let fixed: [(Change, &str); 4] = [
        (|n| n["spec"]["transport"] = json!({"overlay": {"vni": 8}}), "transport cannot be changed"),
        (|n| n["spec"]["transport"] = json!({"local": {}}), "transport cannot be changed"),
        (|n| n["spec"]["subnets"] = json!(["10.1.0.0/16"]), "subnets cannot be changed"),
        (|n| n["spec"]["addresses"] = "dhcp".into(), "addresses come from cannot be changed"),
    ];
    for (change, wanted) in fixed {
        let mut changed = network();
        changed["spec"]["gateways"] = json!(["10.1.0.1"]);
        change(&mut changed);
        let messages = refused(&changed, Some(&network()));
        assert!(messages.iter().any(|message| message.contains(wanted)), "{wanted}: {messages:?}");
    }
    let free: [Change; 4] = [
        (|n| n["spec"]["mtu"] = json!(1300)),
        (|n| n["spec"]["addresses"] = "allocated".into()),
        (|n| n["spec"]["namespaceSelector"] = json!({"matchLabels": {"a": "b"}})),
        (|n| n["spec"]["gateways"] = json!([])),
    ];
    for change in free {
        let mut changed = network();
        change(&mut changed);
        assert_eq!(refused(&changed, Some(&network())), [""; 0]);
    }
}

/// The policy's one validation, with its variables put in place.
fn policy() -> VapExpression {
    let mut validations = policy_of("base/network-admission.yaml", &BTreeMap::new());
    assert_eq!(validations.len(), 1);
    validations.remove(0)
}

/// A policy's validations, with its variables put in place. Those that are `known` are not evaluated.
pub(super) fn policy_of(file: &str, known: &BTreeMap<String, String>) -> Vec<VapExpression> {
    let policy = documents(file).remove(0);
    assert_eq!(policy["kind"], "ValidatingAdmissionPolicy");
    let mut variables = known.clone();
    let whole = |text: &Value, variables: &BTreeMap<String, String>| {
        let mut text = text.as_str().expect("an expression").to_owned();
        // Longest first: one name may begin another.
        let mut names: Vec<_> = variables.keys().collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        for name in names {
            text = text.replace(&format!("variables.{name}"), &format!("({})", variables[name]));
        }
        assert!(!text.contains("variables."), "{text}");
        text
    };
    for variable in policy["spec"]["variables"].as_array().expect("variables") {
        let name = variable["name"].as_str().expect("a name");
        if !known.contains_key(name) {
            let expression = whole(&variable["expression"], &variables);
            variables.insert(name.to_owned(), expression);
        }
    }
    let validations = policy["spec"]["validations"].as_array().expect("validations");
    let one = |validation: &Value| VapExpression {
        expression: whole(&validation["expression"], &variables),
        message: validation["message"].as_str().map(str::to_owned),
        message_expression: validation["messageExpression"].as_str().map(str::to_owned),
    };
    validations.iter().map(one).collect()
}

fn admitted(object: &Value, selector: Option<&Value>, labels: &Value) -> Result<(), String> {
    let mut network = network();
    network["spec"].as_object_mut().expect("a spec").remove("namespaceSelector");
    if let Some(selector) = selector {
        network["spec"]["namespaceSelector"] = selector.clone();
    }
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
    let request = AdmissionRequest { operation: "CREATE".to_owned(), ..AdmissionRequest::default() };
    let evaluator = VapEvaluator::builder()
        .object(object.clone())
        .request(request)
        .params(network)
        .namespace_object(namespace)
        .build();
    let result = evaluator.evaluate_compiled(&evaluator.compile_expressions(&[policy()])).remove(0);
    if result.passed { Ok(()) } else { Err(result.message.unwrap_or_default()) }
}

#[test]
fn the_policy_admits_whom_the_driver_lets_join() {
    let v1 = |class: &str| {
        json!({"kind": "ResourceClaim", "spec": {"devices": {"requests": [
        {"name": "a", "exactly": {"deviceClassName": "other"}},
        {"name": "b", "exactly": {"deviceClassName": class}}]}}})
    };
    let v1beta1 = |class: &str| {
        json!({"kind": "ResourceClaim",
            "spec": {"devices": {"requests": [{"name": "b", "deviceClassName": class}]}}})
    };
    let sub = |class: &str| {
        json!({"kind": "ResourceClaim", "spec": {"devices": {"requests": [
        {"name": "b", "firstAvailable": [{"name": "c", "deviceClassName": class}]}]}}})
    };
    let template = |class: &str| json!({"kind": "ResourceClaimTemplate", "spec": v1(class)});
    let selectors = [
        json!({}),
        json!({"matchLabels": {"team": "shop"}}),
        json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]}),
        json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["a"]}]}),
        json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
        json!({"matchLabels": {"team": "shop"},
            "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
    ];
    let labels = [
        json!({}),
        json!({"team": "shop"}),
        json!({"team": "shop", "tier": "a"}),
        json!({"tier": "b"}),
        json!({"team": "other", "tier": "c"}),
    ];
    let mut outcomes = [0, 0];
    for make in [&v1 as &dyn Fn(&str) -> Value, &v1beta1, &sub, &template] {
        let (asks, other) = (make("netferry-network-blue"), make("netferry-network-red"));
        for labels in &labels {
            assert_eq!(admitted(&other, None, labels), Ok(()), "another network's class");
            let refused = admitted(&asks, None, labels).expect_err("nobody may join");
            assert!(refused.contains("network 'blue' gives no ports to namespace 'shop'"), "{refused}");
            for selector in &selectors {
                let mut network = network();
                network["spec"]["namespaceSelector"] = selector.clone();
                let spec = validate::parse(&network["spec"]).expect("a spec");
                let map = serde_json::from_value(labels.clone()).expect("labels");
                let joins = netferry::network::join::may_join(&spec, "shop", &map).is_ok();
                let admitted = admitted(&asks, Some(selector), labels);
                assert_eq!(admitted.is_ok(), joins, "{asks} {selector} {labels}: {admitted:?}");
                outcomes[usize::from(joins)] += 1;
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 30), "{outcomes:?}");
}

/// Whether the daemon of a node may write a slice.
fn may_write(token_node: &str, slice: &Value) -> bool {
    let mut spec = json!({"driver": "netferry.dev", "devices": [{"name": "ip-10-1-0-7"}]});
    spec.as_object_mut().expect("fields").extend(slice.as_object().expect("fields").clone());
    let text = |text: &str| text.to_owned();
    let known = [("tokenNode", format!("'{token_node}'")), ("slice", text("object"))];
    // What is optional has a form that the evaluator here does not read.
    let optional = [("nodeName", "''"), ("allNodes", "false"), ("devices", "[]")];
    let expressions: Vec<VapExpression> =
        policy_of("base/admission.yaml", &known.map(|(name, of)| (text(name), of)).into())
            .into_iter()
            .map(|mut validation| {
                for (field, otherwise) in optional {
                    validation.expression = validation.expression.replace(
                        &format!("(object).spec.?{field}.orValue({})", otherwise.replace('\'', "\"")),
                        &format!("(has(object.spec.{field}) ? object.spec.{field} : {otherwise})"),
                    );
                }
                VapExpression { message_expression: None, ..validation }
            })
            .collect();
    let request = AdmissionRequest { operation: "CREATE".to_owned(), ..AdmissionRequest::default() };
    let object = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "spec": spec});
    let evaluator = VapEvaluator::builder().object(object).request(request).build();
    let results = evaluator.evaluate_compiled(&evaluator.compile_expressions(&expressions));
    assert_eq!(results.len(), 3);
    results.iter().all(|result| result.passed)
}

#[test]
fn any_node_may_publish_addresses_and_only_its_own_devices() {
    let pool = |name: &str| json!({"name": name, "generation": 1, "resourceSliceCount": 1});
    let links = json!([{"name": "eth1"}]);
    for (allowed, slice) in [
        (true, json!({"nodeName": "n1", "pool": pool("n1"), "devices": links})),
        (false, json!({"nodeName": "n2", "pool": pool("n2"), "devices": links})),
        (true, json!({"allNodes": true, "pool": pool("networks/blue")})),
        (true, json!({"nodeName": "n2", "pool": pool("networks/blue/n2")})),
        (true, json!({"nodeName": "n2", "pool": pool("networks/blue/n2"), "devices": []})),
        // Other devices of another node, or in another's name.
        (false, json!({"nodeName": "n2", "pool": pool("networks/blue/n2"), "devices": links})),
        (false, json!({"nodeName": "n2", "pool": pool("networks/blue/n3")})),
        (false, json!({"nodeName": "n2", "pool": pool("n2")})),
        (false, json!({"allNodes": true, "pool": pool("n2")})),
        (false, json!({"allNodes": true, "pool": pool("networks/blue"), "devices": links})),
        (false, json!({"pool": pool("networks/blue")})),
        (false, json!({"driver": "gpu.example.com", "nodeName": "n1", "pool": pool("n1")})),
    ] {
        assert_eq!(may_write("n1", &slice), allowed, "{slice}");
        assert!(!may_write("", &slice), "a token that names no node: {slice}");
    }
}

#[test]
fn the_examples_are_networks() {
    for (file, name) in [
        ("examples/network.yaml", "blue"),
        ("examples/routed-network.yaml", "public"),
        ("examples/blocks-network.yaml", "large"),
    ] {
        let example = documents(file).remove(0);
        assert_eq!(example["metadata"]["name"], name);
        assert_eq!(refused(&example, None), [""; 0]);
        let spec = validate::parse(&example["spec"]).expect("a spec");
        assert_eq!(validate::validate(name, &spec), []);
    }
}
