use serde_json::{Value, json};

use super::*;
use crate::{link::Scope, network::validate::parse};

#[expect(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]
fn spec(more: Value) -> NetworkSpec {
    let mut spec = json!({"subnets": ["10.0.0.0/24"], "gateways": ["10.0.0.1"], "transport": {"local": {}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    parse(&spec).unwrap()
}

/// A port whose class and claim ask for this.
#[expect(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]
fn port(asked: Value) -> InterfacePlan {
    serde_json::from_value(json!({
        "request": "net", "pool": "node-1", "device": "port-blue", "hostLink": "nf0", "name": "blue",
        "hardwareAddr": "02:00:00:00:00:07", "mtu": 1400, "addresses": ["10.0.0.7/24"], "routes": [],
        "isolation": "strict",
        "made": {"port": {"network": {"name": "blue", "uid": "u"}, "id": 1, "asked": asked}},
    }))
    .unwrap()
}

fn policy(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap()
}

fn said(terms: &Terms) -> Value {
    serde_json::to_value(&terms.policy).unwrap()
}

#[test]
fn a_port_says_what_its_network_and_its_claim_say_together() {
    let of_claim = policy("ingress: {rules: [{action: deny, peers: [{cidr: 10.0.0.9/32}]}]}");
    let plan = port(json!({"policy": of_claim, "limits": {"openFlows": 10}}));
    // Without the network's there is the claim's alone.
    let terms_of = |more: Value| terms(&spec(more), &plan).unwrap();
    let alone = terms_of(json!({}));
    assert_eq!(alone.policy.as_ref().unwrap().ingress.rules.len(), 1);
    assert_eq!(alone.limits.unwrap().open_flows, Some(10));
    // The network's comes, changes and goes: nothing of what it said before is left.
    let closed = terms_of(json!({"policy": {"ingress": {"otherwise": "deny"}}, "limits": {"openFlows": 5}}));
    assert_eq!(said(&closed)["ingress"], json!({"otherwise": "deny", "rules": []}));
    assert_eq!(closed.limits.unwrap().open_flows, Some(5));
    let mut after = plan.clone();
    closed.write(&mut after, true);
    assert!(after.port().unwrap().unapplied);
    let allows =
        policy("ingress: {rules: [{action: allow, ports: [{protocol: TCP, port: 80}]}]}\negress: {}");
    let opened = terms(&spec(json!({"policy": allows})), &after).unwrap();
    let ingress = &opened.policy.as_ref().unwrap().ingress;
    assert_eq!(ingress.rules.iter().map(|rule| rule.ports.is_some()).collect::<Vec<_>>(), [true, false]);
    let back = terms(&spec(json!({})), &after).unwrap();
    assert_eq!(back, alone);
    // An address, a hardware address and an MTU that are in a pod stay.
    let mut back_again = after.clone();
    back.write(&mut back_again, false);
    assert_eq!((back_again.mtu, &back_again.addresses), (Some(1400), &plan.addresses));
    assert!(alone.are_those_of(&back_again) && !alone.are_those_of(&after));
}

#[test]
fn sides_that_rules_cannot_say_together_are_closed_and_it_is_said() {
    let allow = |port: u16| json!([{"action": "allow", "ports": [{"protocol": "TCP", "port": port}]}]);
    let own = json!({"ingress": {"rules": allow(80)}, "egress": {"rules": []}});
    let plan = port(json!({"policy": own, "policyOfClass": true}));
    let network = spec(json!({"policy": {"ingress": {"rules": allow(81)}, "egress": {"rules": allow(53)}}}));
    let terms = terms(&network, &plan).unwrap();
    assert_eq!(said(&terms)["ingress"], json!({"otherwise": "deny", "rules": []}));
    assert_eq!(said(&terms)["egress"]["rules"].as_array().map(Vec::len), Some(1), "this side can be said");
    assert!(terms.closed.unwrap().contains("policy.ingress"));
}

#[test]
fn routes_go_through_the_gateway_that_the_network_has_now() {
    let route = |destination: &str, gateway: Option<&str>| Route {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        source: None,
        scope: if gateway.is_some() { Scope::Universe } else { Scope::Link },
        table: 254,
        protocol: 4,
        metric: 0,
        onlink: false,
    };
    let asked = [
        route("198.51.100.0/24", None),
        route("203.0.113.0/24", Some("10.0.0.99")),
        route("10.0.0.128/25", None),
    ];
    let mut plan = port(json!({ "routes": asked }));
    let first = terms(&spec(json!({})), &plan).unwrap();
    let inside = route("10.0.0.128/25", None);
    let own = route("203.0.113.0/24", Some("10.0.0.99"));
    assert_eq!(first.routes, [inside.clone(), route("198.51.100.0/24", Some("10.0.0.1")), own.clone()]);
    first.write(&mut plan, false);
    let moved = terms(&spec(json!({"gateways": ["10.0.0.2"]})), &plan).unwrap();
    assert_eq!(moved.routes, [inside.clone(), route("198.51.100.0/24", Some("10.0.0.2")), own.clone()]);
    moved.write(&mut plan, false);
    // Without one it stays where it is: a pod is not cut off from what it reached.
    let gone = terms(&spec(json!({"gateways": []})), &plan).unwrap();
    assert_eq!(gone.routes, [inside, route("198.51.100.0/24", Some("10.0.0.2")), own]);
}

#[test]
fn what_was_asked_for_must_be_known() {
    let mut plan = port(json!({}));
    assert!(terms(&spec(json!({})), &plan).is_some());
    if let Some(Made::Port(port)) = &mut plan.made {
        port.asked = None;
    }
    assert_eq!(terms(&spec(json!({})), &plan), None);
    plan.made = None;
    assert_eq!(terms(&spec(json!({})), &plan), None);
}
