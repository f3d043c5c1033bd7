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
fn the_rules_refuse_what_the_driver_refuses() {
    assert_eq!(refused(&network(), None), [""; 0]);
    let mut routed = network();
    routed["spec"]["transport"] = json!({"uplink": {"selector": "true", "mode": "routed"}});
    routed["spec"]["gateways"] = json!(["10.1.0.1", "fd00:1::1"]);
    assert_eq!(refused(&routed, None), [""; 0]);
    let cases: [(Change, &str); 14] = [
        (|n| n["metadata"]["name"] = "a".repeat(59).into(), "at most 58"),
        (|n| n["metadata"]["name"] = "a.b".into(), "DNS label"),
        (|n| n["spec"]["subnets"] = json!(["10.1.0.1/16", "fd00:1::/64"]), "host bits"),
        (|n| n["spec"]["subnets"] = json!(["10.1.0.0/16", "10.2.0.0/16"]), "one subnet of each family"),
        (|n| n["spec"]["gateways"] = json!(["10.1.0.1", "10.1.0.2"]), "one gateway of each family"),
        (|n| n["spec"]["gateways"] = json!(["10.2.0.1"]), "in one of the subnets"),
        (|n| n["spec"]["mtu"] = json!(1279), "at least 1280"),
        (|n| n["spec"]["addresses"] = "dhcp".into(), "transport.uplink must be set"),
        (|n| n["spec"]["addresses"] = "dhcp".into(), "there is no DHCPv6"),
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
    let policy = documents("base/network-admission.yaml").remove(0);
    assert_eq!(policy["kind"], "ValidatingAdmissionPolicy");
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
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
        let expression = whole(&variable["expression"], &variables);
        variables.insert(variable["name"].as_str().expect("a name").to_owned(), expression);
    }
    let validations = policy["spec"]["validations"].as_array().expect("validations");
    assert_eq!(validations.len(), 1);
    VapExpression {
        expression: whole(&validations[0]["expression"], &variables),
        message: None,
        message_expression: validations[0]["messageExpression"].as_str().map(str::to_owned),
    }
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

#[test]
fn the_examples_are_networks() {
    for (file, name) in [("examples/network.yaml", "blue"), ("examples/routed-network.yaml", "public")] {
        let example = documents(file).remove(0);
        assert_eq!(example["metadata"]["name"], name);
        assert_eq!(refused(&example, None), [""; 0]);
        let spec = validate::parse(&example["spec"]).expect("a spec");
        assert_eq!(validate::validate(name, &spec), []);
    }
}
