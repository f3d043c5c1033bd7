use std::net::IpAddr;

use netferry_common::Direction;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::datapath::policy::{Decision, Peers, evaluate, flatten};

struct Nobody;

impl Peers for Nobody {
    fn network(&self, _: &str) -> Option<Vec<IpAddr>> {
        Some(Vec::new())
    }

    fn selected(&self, _: &std::collections::BTreeMap<String, String>, _: Action) -> Option<Vec<IpAddr>> {
        Some(Vec::new())
    }
}

fn parsed(value: &serde_json::Value) -> Policy {
    serde_json::from_value(value.clone()).unwrap()
}

/// Whether a policy lets a flow of the pod pass; `member` says what is done where no rule decides.
fn passes(policy: &Policy, member: bool, peer: IpAddr, port: u16) -> bool {
    let (rules, otherwise) = flatten(policy, Direction::FromPod, &Nobody).unwrap();
    match evaluate(&rules, otherwise, peer, 6, port) {
        Decision::Rule(action, _) => action == Action::Allow,
        Decision::Otherwise(otherwise) => otherwise == Otherwise::Network && member,
    }
}

fn rules() -> impl Strategy<Value = serde_json::Value> {
    let rule = (any::<bool>(), prop::option::of(0_u8..4), prop::option::of(1_u16..4)).prop_map(
        |(allow, peer, port)| {
            let mut rule = json!({"action": if allow { "allow" } else { "deny" }});
            if let Some(peer) = peer {
                rule["peers"] = json!([{"cidr": format!("192.0.2.{peer}/32")}]);
            }
            if let Some(port) = port {
                rule["ports"] = json!([{"protocol": "TCP", "port": port}]);
            }
            rule
        },
    );
    let otherwise = prop::option::of(prop_oneof![Just("deny"), Just("network")]);
    (otherwise, prop::collection::vec(rule, 0..4)).prop_map(|(otherwise, rules)| match otherwise {
        Some(otherwise) => json!({"egress": {"otherwise": otherwise, "rules": rules}}),
        None => json!({"egress": {"rules": rules}}),
    })
}

proptest! {
    #[test]
    fn what_passes_passes_both_sides(
        network in rules(), own in rules(), of_class: bool, member: bool, peer in 0_u8..5, port in 1_u16..5,
    ) {
        let (network, own) = (parsed(&network), parsed(&own));
        let peer = IpAddr::from([192, 0, 2, peer]);
        if let Ok(Some(narrowed)) = policy(Some(&network), Some(own.clone()), of_class) {
            let passed = passes(&narrowed, member, peer, port);
            // A side without allow rules leaves it to the other whether who is no member is let in.
            let open = |it: &Policy| it.egress.otherwise() == Otherwise::Network && first_allow(&it.egress).is_none();
            let lets = |it: &Policy| passes(it, member || open(it), peer, port);
            let nobody_opens = !member && open(&network) && open(&own);
            prop_assert_eq!(passed, lets(&network) && lets(&own) && !nobody_opens);
            // A claim opens nothing that its network does not.
            prop_assert!(of_class || !passed || passes(&network, member, peer, port));
        }
    }
}

#[test]
fn a_claim_has_no_allow_rules_and_a_class_none_beside_the_networks() {
    let allow = parsed(&json!({"egress": {"rules": [
        {"action": "deny", "peers": [{"cidr": "192.0.2.7/32"}]}, {"action": "allow"},
    ]}}));
    let error = policy(None, Some(allow.clone()), false).unwrap_err().to_string();
    assert!(
        error.starts_with("policy.egress.rules[1].action: \"allow\" is not allowed; deny rules only"),
        "{error}"
    );
    assert_eq!(policy(None, Some(allow.clone()), true).unwrap().unwrap().egress.rules.len(), 2);
    let error = policy(Some(&allow), Some(allow.clone()), true).unwrap_err().to_string();
    assert!(error.contains("policy.egress: this policy is not allowed; deny rules only, because"), "{error}");
    assert_eq!(policy(Some(&allow), None, false).unwrap(), Some(allow));
}

#[test]
fn the_lower_limit_holds() {
    let limits_of = |value: serde_json::Value| serde_json::from_value::<Limits>(value).unwrap();
    let network = limits_of(json!({"egress": {"bitsPerSecond": 9000, "burstBytes": 50}}));
    let own = limits_of(json!({
        "egress": {"bitsPerSecond": 8000, "packetsPerSecond": 5}, "ingress": {"packetsPerSecond": 7},
    }));
    let expected = limits_of(json!({
        "egress": {"bitsPerSecond": 8000, "burstBytes": 50, "packetsPerSecond": 5},
        "ingress": {"packetsPerSecond": 7},
    }));
    assert_eq!(limits(Some(network), Some(own)), Some(expected));
    assert_eq!(limits(None, Some(own)), Some(own));
    assert_eq!(limits(None, None), None);
}
