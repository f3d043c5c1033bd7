use serde_json::json;

use super::*;

fn of_policy(value: &Value) -> String {
    policy(value).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn of_limits(value: &Value) -> String {
    limits(value).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A policy with one egress rule.
fn rule(rule: &Value) -> Value {
    json!({"egress": {"rules": [rule]}})
}

fn port(port: &Value) -> Value {
    rule(&json!({"action": "allow", "ports": [port]}))
}

fn peer(peer: &Value) -> Value {
    rule(&json!({"action": "allow", "peers": [peer]}))
}

#[test]
fn names_the_path_the_value_and_what_is_allowed() {
    let at = "policy.egress.rules[0]";
    let cases = [
        (json!("deny"), "policy: \"deny\" is not allowed; an object".to_owned()),
        (json!({"ingres": {}}), "policy.ingres: this field is not allowed; ingress, egress".to_owned()),
        (json!({"egress": {"rules": {}}}), "policy.egress.rules: {} is not allowed; a list".to_owned()),
        (
            json!({"egress": {"otherwise": "Deny"}}),
            "policy.egress.otherwise: \"Deny\" is not allowed; \"network\" or \"deny\"".to_owned(),
        ),
        (rule(&json!({})), format!("{at}.action: is missing; it is required")),
        (rule(&json!({"action": 1})), format!("{at}.action: 1 is not allowed; a string")),
        (
            rule(&json!({"action": "allow", "port": 80})),
            format!("{at}.port: this field is not allowed; action, peers, ports"),
        ),
        (
            port(&json!({"protocol": "TCP", "port": 70000})),
            format!("{at}.ports[0].port: 70000 is not allowed; a whole number from 0 to 65535"),
        ),
        (
            port(&json!({"protocol": "TCP", "port": "http"})),
            format!("{at}.ports[0].port: \"http\" is not allowed; a whole number from 0 to 65535"),
        ),
        (
            port(&json!({"protocol": "tcp"})),
            format!(
                "{at}.ports[0].protocol: \"tcp\" is not allowed; \"TCP\", \"UDP\", \"SCTP\", \"ICMP\", \"any\""
            ),
        ),
        (
            port(&json!({"protocol": "TCP", "port": 0})),
            format!("{at}.ports[0].port: 0 is not allowed; 1 to 65535"),
        ),
        (
            peer(&json!({"cidr": "198.51.100.7/24"})),
            format!("{at}.peers[0].cidr: 198.51.100.7/24 is not allowed; a prefix whose host bits are 0"),
        ),
        (peer(&json!({"cidr": 7})), format!("{at}.peers[0].cidr: 7 is not allowed; ")),
        (peer(&json!({"cidr": "here"})), format!("{at}.peers[0].cidr: \"here\" is not allowed; ")),
        (
            rule(&json!({"action": "allow", "peers": []})),
            format!("{at}.peers: [] is not allowed; name peers, or leave it out for every peer"),
        ),
    ];
    for (value, expected) in cases {
        let found = of_policy(&value);
        assert!(found == expected || expected.ends_with("; ") && found.starts_with(&expected), "{found}");
    }
    assert_eq!(
        of_limits(&json!({"egress": {"bitsPerSecond": "1G"}})),
        "limits.egress.bitsPerSecond: \"1G\" is not allowed; a whole number"
    );
    assert_eq!(
        of_limits(&json!({"ingress": {"packetsPerSecond": 0}})),
        "limits.ingress.packetsPerSecond: 0 is not allowed; 1 to 1000000000"
    );
    assert!(of_limits(&json!({"ingress": {"pps": 1}})).starts_with("limits.ingress.pps: this field is not"));
}

#[test]
fn peers_may_have_names() {
    for named in [json!({"network": "blue"}), json!({"podSelector": {"app": "db"}})] {
        let read = policy(&json!({"egress": {"rules": [{"action": "deny", "peers": [named]}]}}));
        assert!(read.expect("a policy").names_peers());
    }
}

#[test]
fn what_would_silently_be_read_as_more_is_refused() {
    // Every peer, every port, no rule: each would let more through than it seems to say.
    let null = "null is not allowed; a value, or leave the field out";
    for (value, path) in [
        (Value::Null, "policy"),
        (json!({"egress": null}), "policy.egress"),
        (json!({"egress": {"otherwise": null}}), "policy.egress.otherwise"),
        (rule(&json!({"action": "allow", "peers": null})), "policy.egress.rules[0].peers"),
        (rule(&json!({"action": {"allow": null}})), "policy.egress.rules[0].action.allow"),
        (port(&json!({"protocol": "TCP", "port": null})), "policy.egress.rules[0].ports[0].port"),
    ] {
        assert_eq!(of_policy(&value), format!("{path}: {null}"));
    }
    let list = "[] is not allowed; an object";
    assert_eq!(of_policy(&json!([])), format!("policy: {list}"));
    assert_eq!(of_policy(&json!({"egress": []})), format!("policy.egress: {list}"));
    assert_eq!(of_policy(&rule(&json!([]))), format!("policy.egress.rules[0]: {list}"));
    assert_eq!(of_limits(&json!({"egress": []})), format!("limits.egress: {list}"));
}

#[test]
fn an_error_stays_short_and_fit_for_a_log() {
    let long = "x\n".repeat(500);
    for value in
        [json!({&long: 1}), port(&json!({"protocol": &long})), peer(&json!({"podSelector": {&long: 1}}))]
    {
        let found = of_policy(&value);
        assert!(found.len() < 400 && !found.contains('\n'), "{found}");
    }
}
