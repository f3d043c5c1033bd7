use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use netferry_common::Direction;
use proptest::prelude::*;

use super::*;

const ROOM: Room = Room { peers: 1_000_000, rules: 1_000_000 };

/// What the programs do with the entries: longest prefix, then longest block.
fn look_up(compiled: &Compiled, otherwise: Otherwise, peer: IpAddr, protocol: u8, port: u16) -> Decision {
    let host = Prefix::host(peer);
    let class = compiled
        .peers
        .iter()
        .filter(|(prefix, _)| prefix.covers(host))
        .max_by_key(|(prefix, _)| prefix.length());
    let entry = class.and_then(|(_, class)| {
        let matching = compiled.rules.iter().filter(|entry| {
            entry.class == *class
                && entry.block.is_none_or(|(own, first, len)| {
                    own == protocol && (u32::from(first ^ port) >> (16 - len)) == 0
                })
        });
        matching.max_by_key(|entry| entry.block.map(|(_, _, len)| len))
    });
    entry.map_or(Decision::Otherwise(otherwise), |entry| Decision::Rule(entry.action, entry.rule))
}

/// Few addresses and few ports, so that rules meet.
fn some_peer() -> impl Strategy<Value = Option<Prefix>> {
    let v4 = (any::<u32>(), prop_oneof![0_u8..=8, 28_u8..=32]).prop_map(|(bits, len)| {
        let ip = Ipv4Addr::from_bits(bits & 0xc000_0003 | 0x0a00_0000);
        Some(Prefix::from(IpNetwork::new(ip.into(), len).unwrap()))
    });
    let v6 = (any::<u128>(), prop_oneof![0_u8..=4, 78_u8..=82, 94_u8..=95, 126_u8..=128]).prop_map(
        |(bits, len)| {
            let near_v4 = bits & 4 == 0;
            let ip = Ipv6Addr::from_bits(bits & 3 | if near_v4 { 0 } else { 0x2001 << 112 });
            Some(Prefix::from(IpNetwork::new(ip.into(), len).unwrap()))
        },
    );
    prop_oneof![1 => Just(None), 4 => v4, 4 => v6]
}

fn some_ports() -> impl Strategy<Value = (Option<u8>, RangeInclusive<u16>)> {
    let bound = prop_oneof![0_u16..8, 76_u16..84, 65530_u16..=65535, any::<u16>()];
    let range = (bound.clone(), bound).prop_map(|(one, other)| one.min(other)..=one.max(other));
    prop_oneof![
        2 => Just((None, 0..=u16::MAX)),
        1 => Just((Some(1), 0..=u16::MAX)),
        3 => (prop_oneof![Just(Some(6)), Just(Some(17))], range),
    ]
}

fn some_rules() -> impl Strategy<Value = Vec<FlatRule>> {
    let rule = (1_u32..6, any::<bool>(), some_peer(), some_ports()).prop_map(
        |(rule, deny, peer, (protocol, ports))| {
            let action = if deny { Action::Deny } else { Action::Allow };
            FlatRule { rule, action, peer, protocol, ports }
        },
    );
    prop::collection::vec(rule, 0..12)
}

fn some_flow() -> impl Strategy<Value = (IpAddr, u8, u16)> {
    let v4 =
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits & 0xc000_0003 | 0x0a00_0000)));
    let v6 = any::<u128>().prop_map(|bits| {
        IpAddr::from(Ipv6Addr::from_bits(bits & 3 | if bits & 4 == 0 { 0 } else { 0x2001 << 112 }))
    });
    let port = prop_oneof![0_u16..8, 76_u16..84, 65530_u16..=65535, any::<u16>()];
    (prop_oneof![v4, v6], prop_oneof![Just(1), Just(6), Just(17), Just(132)], port)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn entries_mean_what_the_rules_mean(rules in some_rules(), flows in prop::collection::vec(some_flow(), 32)) {
        let compiled = compile(&rules, ROOM).unwrap();
        for (peer, protocol, port) in flows {
            let said = look_up(&compiled, Otherwise::Network, peer, protocol, port);
            let meant = evaluate(&rules, Otherwise::Network, peer, protocol, port);
            prop_assert_eq!(said, meant, "{} {} {}: {:?}", peer, protocol, port, compiled);
        }
    }

    #[test]
    fn no_entry_is_repeated_or_useless(rules in some_rules()) {
        let compiled = compile(&rules, ROOM).unwrap();
        for pair in compiled.peers.windows(2) {
            prop_assert!(pair[0].0 < pair[1].0);
        }
        for pair in compiled.rules.windows(2) {
            prop_assert!((pair[0].class, pair[0].block) < (pair[1].class, pair[1].block));
        }
        for (at, (prefix, class)) in compiled.peers.iter().enumerate() {
            let outer = compiled.peers[..at].iter().rev().find(|(outer, _)| outer.covers(*prefix));
            prop_assert!(outer.is_none_or(|(_, outer)| outer != class));
            prop_assert!(*class > 0);
        }
    }

    #[test]
    fn a_policy_survives_its_own_text(text in "[a-z]{1,8}", port in 1_u16..) {
        let policy = Policy {
            egress: Rules {
                otherwise: Some(Otherwise::Deny),
                rules: vec![Rule {
                    action: Action::Allow,
                    peers: Some(vec![Peer { network: Some(text), ..Peer::default() }]),
                    ports: Some(vec![Port { protocol: Protocol::Tcp, port: Some(port), end_port: None }]),
                }],
            },
            ..Policy::default()
        };
        let back: Policy = serde_json::from_str(&serde_json::to_string(&policy).unwrap()).unwrap();
        prop_assert_eq!(back, policy);
    }

    #[test]
    fn arbitrary_text_is_no_panic(text in ".{0,200}") {
        if let Ok(policy) = serde_yaml_ng::from_str::<Policy>(&text) {
            let _ = policy.validate();
        }
    }
}

struct Named(BTreeMap<String, Vec<IpAddr>>);

impl Peers for Named {
    fn network(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.0.get(name).cloned()
    }

    fn selected(&self, labels: &BTreeMap<String, String>, _: Action) -> Option<Vec<IpAddr>> {
        self.network(labels.values().next()?)
    }
}

fn parse(text: &str) -> Policy {
    serde_yaml_ng::from_str(text).unwrap()
}

#[test]
fn yaml_to_decisions() {
    let policy = parse(
        "
ingress:
  rules:
  - action: deny
    peers: [{cidr: 10.0.0.0/8}]
egress:
  rules:
  - action: allow
    peers: [{cidr: 10.0.0.0/8}, {network: blue}]
    ports: [{protocol: TCP, port: 80, endPort: 90}, {protocol: ICMP}]
  - action: deny
    peers: [{podSelector: {app: bad}}]
",
    );
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let named = Named(BTreeMap::from([
        ("blue".to_owned(), vec![ip("2001:db8::5")]),
        ("bad".to_owned(), vec![ip("10.1.1.1")]),
    ]));
    let (rules, otherwise) = flatten(&policy, Direction::FromPod, &named).unwrap();
    assert_eq!(otherwise, Otherwise::Deny);
    let compiled = compile(&rules, ROOM).unwrap();
    let decide = |peer: &str, protocol, port| look_up(&compiled, otherwise, ip(peer), protocol, port);
    assert_eq!(decide("10.2.3.4", 6, 85), Decision::Rule(Action::Allow, 2));
    assert_eq!(decide("10.2.3.4", 6, 91), Decision::Otherwise(Otherwise::Deny));
    assert_eq!(decide("10.2.3.4", 1, 2048), Decision::Rule(Action::Allow, 2));
    assert_eq!(decide("10.1.1.1", 6, 85), Decision::Rule(Action::Deny, 3));
    assert_eq!(decide("2001:db8::5", 58, 0), Decision::Rule(Action::Allow, 2));
    assert_eq!(decide("2001:db8::6", 6, 80), Decision::Otherwise(Otherwise::Deny));
    assert_eq!(policy.rule_name(1).unwrap(), "ingress.rules[0]");
    assert_eq!(policy.rule_name(3).unwrap(), "egress.rules[1]");
    assert_eq!(policy.rule_name(0), None);
    assert_eq!(policy.rule_name(4), None);
    let (rules, otherwise) = flatten(&policy, Direction::ToPod, &named).unwrap();
    assert_eq!((rules.len(), otherwise), (1, Otherwise::Network));
}

#[test]
fn what_is_not_allowed_is_named() {
    let refused = |text: &str| parse(text).validate().unwrap_err().to_string();
    let rule = |rest: &str| format!("egress: {{rules: [{{action: allow, {rest}}}]}}");
    let cases = [
        ("peers: [{cidr: 10.0.0.1/8}]", "egress.rules[0].peers[0].cidr: 10.0.0.1/8"),
        ("peers: [{cidr: \"::ffff:10.0.0.0/104\"}]", "written as IPv4"),
        ("peers: [{}]", "exactly one of cidr, network and podSelector"),
        ("peers: [{network: a, cidr: 10.0.0.0/8}]", "2 of its fields"),
        ("peers: []", "egress.rules[0].peers: []"),
        ("ports: []", "egress.rules[0].ports: []"),
        ("ports: [{protocol: ICMP, port: 8}]", "TCP, UDP or SCTP only"),
        ("ports: [{protocol: TCP, port: 0}]", "1 to 65535"),
        ("ports: [{protocol: TCP, port: 8, endPort: 7}]", "egress.rules[0].ports[0].endPort: 7"),
        ("ports: [{protocol: TCP, endPort: 7}]", "with port only"),
        ("peers: [{podSelector: {}}]", "one label or more"),
    ];
    for (given, expected) in cases {
        let said = refused(&rule(given));
        assert!(said.contains(expected), "{given}: {said}");
    }
    for broken in
        ["egress: {rulez: []}", "egress: {rules: [{action: permit}]}", "egress: {rules: [{peers: []}]}"]
    {
        assert!(serde_yaml_ng::from_str::<Policy>(broken).is_err(), "{broken}");
    }
}

#[test]
fn halves_of_one_class_become_one_prefix() {
    let rule = |cidr: &str| FlatRule {
        rule: 1,
        action: Action::Allow,
        peer: Some(Prefix::from(cidr.parse::<IpNetwork>().unwrap())),
        protocol: None,
        ports: 0..=u16::MAX,
    };
    let rules = ["10.0.0.0/25", "10.0.0.128/26", "10.0.0.192/26", "10.0.0.7/32"].map(rule);
    let compiled = compile(&rules, ROOM).unwrap();
    let peers: Vec<String> = compiled.peers.iter().map(|(prefix, _)| prefix.to_string()).collect();
    assert_eq!(peers, ["10.0.0.0/24"]);
    assert_eq!(compiled.rules.len(), 1);
}

#[test]
fn a_range_takes_few_blocks() {
    let blocks_of = |ports: RangeInclusive<u16>| {
        let rule = FlatRule { rule: 1, action: Action::Allow, peer: None, protocol: Some(6), ports };
        compile(&[rule], ROOM).unwrap().rules.len()
    };
    assert_eq!(blocks_of(0..=u16::MAX), 1);
    assert_eq!(blocks_of(80..=80), 1);
    assert_eq!(blocks_of(1024..=u16::MAX), 6);
    assert_eq!(blocks_of(1..=65534), 30, "the worst case");
}

#[test]
fn a_hundred_thousand_rules_compile_quickly_or_are_refused() {
    let rules: Vec<FlatRule> = (0..100_000_u32)
        .map(|nth| FlatRule {
            rule: nth + 1,
            action: if nth % 3 == 0 { Action::Deny } else { Action::Allow },
            peer: Some(Prefix::host(Ipv4Addr::from_bits(0x0a00_0000 + nth * 2).into())),
            protocol: Some(6),
            ports: 443..=443,
        })
        .collect();
    let start = std::time::Instant::now();
    let compiled = compile(&rules, ROOM).unwrap();
    println!("100,000 rules: {:?}", start.elapsed());
    assert_eq!((compiled.peers.len(), compiled.rules.len()), (100_000, 100_000));

    let refused = compile(&rules, Room { peers: 1_000_000, rules: 1000 }).unwrap_err();
    assert_eq!(refused, PolicyError::TooLarge { what: "rule entries or more", needed: 1001, free: 1000 });
    let refused = compile(&rules, Room { peers: 1000, rules: 1_000_000 }).unwrap_err();
    assert_eq!(refused, PolicyError::TooLarge { what: "peer entries", needed: 100_000, free: 1000 });
}
