use super::*;
use crate::claim::PodRef;

fn end(name: &str, network: &str, address: &str, policy: &str) -> End {
    End {
        holder: Holder {
            pod: PodRef { namespace: "shop".into(), name: name.into(), uid: name.into() },
            interface: "net1".into(),
        },
        network: Some(network.to_owned()),
        addresses: vec![address.parse().expect("an address")],
        policy: Some(serde_yaml_ng::from_str(policy).expect("a policy")),
    }
}

fn ends() -> Ends {
    let deny = "ingress: {rules: [{action: deny, ports: [{protocol: TCP, port: 80}]}]}";
    Ends(BTreeMap::from([
        (
            1,
            end(
                "client",
                "blue",
                "10.0.0.1",
                "egress: {rules: [{action: deny, ports: [{protocol: TCP, port: 81}]}]}",
            ),
        ),
        (2, end("server", "blue", "10.0.0.2", deny)),
        (3, end("stranger", "red", "10.0.0.2", deny)),
    ]))
}

fn event(
    endpoint: EndpointId,
    direction: &'static str,
    reason: &'static str,
    rule: Option<u32>,
) -> FlowEvent {
    FlowEvent {
        time: 0,
        kind: "deny",
        endpoint,
        direction,
        reason: Some(reason),
        rule,
        source: Some("10.0.0.1".parse().expect("an address")),
        destination: Some("10.0.0.2".parse().expect("an address")),
        source_port: 4000,
        destination_port: 80,
        protocol: 6,
    }
}

fn said(event: &FlowEvent, sender_denies: bool) -> String {
    let denies: Denies = Box::new(move |_, _, _, _, _| Some(sender_denies));
    let decision = ends().decision(event, &denies).expect("a decision");
    let pod = decision.holder.map(|holder| holder.pod.name).unwrap_or_default();
    format!("{} of {pod}: {}", decision.by, decision.rule.as_deref().unwrap_or("-"))
}

#[test]
fn what_the_receiver_denies_is_its_own_although_the_sender_reports_it() {
    let of_rule = event(1, "from_pod", "policy_denied", Some(1));
    assert_eq!(said(&of_rule, false), "ingress policy of server: ingress.rules[0]");
    assert_eq!(said(&of_rule, true), "egress policy of client: egress.rules[0]");
    let default = event(1, "from_pod", "policy_default", None);
    assert_eq!(said(&default, false), "ingress policy of server: ingress.otherwise");
    assert_eq!(said(&default, true), "egress policy of client: egress.otherwise");
    assert_eq!(
        said(&event(2, "to_pod", "policy_denied", Some(1)), true),
        "ingress policy of server: ingress.rules[0]"
    );
    assert_eq!(
        said(&event(1, "from_pod", "not_member", None), true),
        "egress membership of client: egress.otherwise"
    );
    assert_eq!(said(&event(1, "from_pod", "source_mac", None), false), "checks of the sender of client: -");
}

#[test]
fn both_ends_are_of_one_network() {
    let ends = ends();
    assert_eq!(ends.both(&event(1, "from_pod", "policy_denied", None)), [Some(1), Some(2)]);
    assert_eq!(ends.both(&event(2, "to_pod", "policy_denied", None)), [Some(1), Some(2)]);
    assert_eq!(
        ends.both(&event(3, "to_pod", "policy_denied", None)),
        [None, Some(3)],
        "another network's client"
    );
    assert_eq!(ends.both(&event(9, "from_pod", "policy_denied", None)), [None, None]);
}
