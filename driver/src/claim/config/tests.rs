use proptest::{collection, option, prelude::*};

use super::*;
use crate::datapath::{
    limits::RateLimit,
    policy::{Action, Otherwise, Peer, Port, Protocol, Rule, Rules},
};
use crate::link::{IpvlanFlag, Macvlan, MacvlanMode, Vlan};

mod sub_interface;

fn config(fields: &Value) -> Value {
    let mut object = json!({"apiVersion": API_VERSION, "kind": KIND});
    let map = object.as_object_mut().unwrap();
    map.extend(fields.as_object().unwrap().clone());
    object
}

/// All errors of both passes, one a line.
fn errors(fields: &Value) -> String {
    let found = match InterfaceConfig::parse(&config(fields)) {
        Ok(config) => config.check(),
        Err(errors) => errors,
    };
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn reads_every_field() {
    let value = config(&json!({
        "name": "fast0",
        "addresses": ["192.0.2.7/24", "2001:db8::7/64"],
        "mtu": 9000,
        "hardwareAddr": "02:00:00:00:00:0A",
        "routes": [
            {"destination": "198.51.100.0/24", "gateway": "192.0.2.1", "source": "192.0.2.7"},
            {"destination": "0.0.0.0/0", "gateway": "192.0.2.1", "table": 100},
            {"destination": "2001:db8:1::/48", "gateway": "fe80::1"},
            {"destination": "203.0.113.9/32", "scope": "link"},
        ],
        "isolation": "strict",
        "policy": {
            "ingress": {"otherwise": "deny"},
            "egress": {"rules": [{
                "action": "allow",
                "peers": [{"cidr": "198.51.100.0/24"}, {"cidr": "2001:db8:1::/48"}],
                "ports": [{"protocol": "TCP", "port": 8000, "endPort": 8080}],
            }]},
        },
        "limits": {"egress": {"bitsPerSecond": 100_000_000, "packetsPerSecond": 50_000}},
    }));
    let config = InterfaceConfig::parse(&value).unwrap();
    assert_eq!(config.check(), []);
    assert_eq!(config.name.as_deref(), Some("fast0"));
    assert_eq!(config.mtu, Some(9000));
    assert_eq!(config.hardware_addr, Some(MacAddr([2, 0, 0, 0, 0, 10])));
    assert_eq!(config.isolation, Some(Isolation::Strict));
    let policy = config.policy.as_ref().unwrap();
    assert_eq!(policy.ingress.otherwise, Some(Otherwise::Deny));
    assert_eq!(policy.egress.rules[0].ports.as_ref().unwrap()[0].end_port, Some(8080));
    assert_eq!(config.limits.unwrap().egress.unwrap().packets_per_second, Some(50_000));
    let routes = config.routes.clone().unwrap();
    assert_eq!(
        (routes[0].table, routes[0].scope, routes[0].protocol),
        (TABLE_MAIN, Scope::Universe, PROTOCOL_STATIC)
    );
    assert_eq!((routes[1].table, routes[3].scope), (100, Scope::Link));
    assert_eq!(InterfaceConfig::parse(&config.to_value()), Ok(config));
}

#[test]
fn names_field_value_and_what_is_allowed() {
    let cases = [
        (json!({"mtu": 40}), "mtu: 40 is not allowed; 68 to 65535"),
        (json!({"mtu": "1500"}), "mtu: \"1500\" is not allowed; 68 to 65535"),
        (json!({"mtu": 1500.5}), "mtu: 1500.5 is not allowed; 68 to 65535"),
        (json!({"mtu": null}), "mtu: null is not allowed; 68 to 65535"),
        (json!({"mtu": -1}), "mtu: -1 is not allowed; 68 to 65535"),
        (
            json!({"mtu": 1000, "addresses": ["2001:db8::1/64"]}),
            "mtu: 1000 is not allowed; 1280 to 65535 where IPv6 is configured",
        ),
        (
            json!({"mtus": 1}),
            "mtus: this field is not allowed; apiVersion, kind, name, addresses, mtu, hardwareAddr, routes, isolation, earlyDrop, policy, limits, subInterface",
        ),
        (
            json!({"isolation": "none"}),
            "isolation: \"none\" is not allowed; \"strict\", \"best-effort\" or \"off\"",
        ),
        (
            json!({"routes": [{}]}),
            "routes[0].destination: is missing; an IPv4 or IPv6 network, such as \"198.51.100.0/24\"",
        ),
        (
            json!({"routes": [{"destination": "198.51.100.7/24"}]}),
            "routes[0].destination: \"198.51.100.7/24\" is not allowed; a network without host bits: 198.51.100.0/24",
        ),
        (
            json!({"routes": [{"destination": "10.0.0.0/8", "gateway": "2001:db8::1"}]}),
            "routes[0].gateway: 2001:db8::1 is not allowed; an address of the destination's family",
        ),
        (
            json!({"routes": [{"destination": "10.0.0.0/8", "source": "192.0.2.1"}]}),
            "routes[0].source: 192.0.2.1 is not allowed; one of the interface's addresses",
        ),
        (
            json!({"routes": [{"destination": "10.0.0.0/8", "metric": 1}]}),
            "routes[0].metric: this field is not allowed; destination, gateway, source, scope, table",
        ),
        (
            json!({"addresses": "192.0.2.1/24"}),
            "addresses: \"192.0.2.1/24\" is not allowed; a list of at most 64",
        ),
        (
            json!({"addresses": ["192.0.2.1/24", "192.0.2.1/25"]}),
            "addresses[1]: \"192.0.2.1/25\" is not allowed; each address once",
        ),
    ];
    for (fields, expected) in cases {
        assert_eq!(errors(&fields), expected);
    }
}

#[test]
fn refuses_field_by_field() {
    let refused = [
        (
            "name",
            vec![
                json!(""),
                json!("sixteen-bytes-xx"),
                json!("a b"),
                json!("a/b"),
                json!("a:1"),
                json!("net%d"),
                json!("."),
                json!(".."),
                json!("lo"),
                json!("eth0"),
                json!("all"),
                json!("default"),
                json!("ü"),
                json!("a\0"),
                json!(7),
            ],
        ),
        (
            "hardwareAddr",
            vec![
                json!("00:00:00:00:00:00"),
                json!("01:00:00:00:00:01"),
                json!("02:00:00:00:00"),
                json!("02:00:00:00:00:0"),
                json!("02:00:00:00:00:+1"),
                json!("02-00-00-00-00-01"),
                json!(""),
                json!([2, 0, 0, 0, 0, 1]),
            ],
        ),
        (
            "addresses",
            vec![
                json!(["192.0.2.1"]),
                json!(["192.0.2.1/33"]),
                json!(["192.0.2.1/255.255.255.0"]),
                json!(["192.0.2.0/24"]),
                json!(["192.0.2.255/24"]),
                json!(["224.0.0.1/24"]),
                json!(["0.0.0.0/24"]),
                json!(["0.1.2.3/8"]),
                json!(["127.0.0.1/8"]),
                json!(["255.255.255.255/32"]),
                json!(["192.0.2.1/0"]),
                json!(["::/64"]),
                json!(["::1/128"]),
                json!(["ff02::1/64"]),
                json!(["::ffff:192.0.2.1/96"]),
                json!(["2001:db8::1/129"]),
                json!(["192.0.2.1/+4"]),
                json!([7]),
                json!({}),
            ],
        ),
        (
            "routes",
            vec![
                json!([{"destination": "0.0.0.0/0"}]),
                json!([{"destination": "::/0", "gateway": "fe80::1"}]),
                json!([{"destination": "0.0.0.0/0", "table": 254}]),
                json!([{"destination": "10.0.0.0/8", "table": 255}]),
                json!([{"destination": "10.0.0.0/8", "table": 0}]),
                json!([{"destination": "10.0.0.0/8", "scope": "host"}]),
                json!([{"destination": "10.0.0.0/8", "table": 4_294_967_296_u64}]),
                json!([{"destination": "10.0.0.0/8", "gateway": "192.0.2.1"}]),
                json!([{"destination": "10.0.0.0/8", "gateway": "192.0.2.1/24"}]),
                json!([{"destination": "10.0.0.0/8"}, {"destination": "10.0.0.0/8"}]),
                json!([{"destination": "192.0.2.1/32"}, {"destination": "10.0.0.0/8", "gateway": "192.0.2.1", "scope": "link"}]),
                json!([{"destination": "192.0.2.1/32", "table": 7}, {"destination": "10.0.0.0/8", "gateway": "192.0.2.1"}]),
                json!(["10.0.0.0/8"]),
                json!("10.0.0.0/8"),
            ],
        ),
    ];
    for (field, values) in refused {
        for value in values {
            let found = errors(&json!({field: value}));
            assert!(
                found.starts_with(field) && found.contains("is not allowed;"),
                "{field} {value}: {found:?}"
            );
        }
    }
    let own = json!({"addresses": ["192.0.2.7/24"], "routes": [{"destination": "10.0.0.0/8", "gateway": "192.0.2.7"}]});
    assert!(errors(&own).contains("other than the interface's own"));
    let connected = json!({"addresses": ["192.0.2.7/24"], "routes": [{"destination": "192.0.2.0/24"}]});
    assert!(errors(&connected).contains("which the kernel routes itself"));
}

#[test]
fn a_gateway_can_be_reached_through_a_link_route() {
    let fields = json!({"routes": [
        {"destination": "0.0.0.0/0", "gateway": "169.254.1.1", "table": 100},
        {"destination": "169.254.1.1/32", "table": 100},
        {"destination": "10.0.0.0/8", "gateway": "169.254.2.1", "table": 200},
        {"destination": "169.254.2.1/32"},
    ]});
    assert_eq!(errors(&fields), "");
}

#[test]
fn bounds_lists_and_size() {
    let many: Vec<_> = (0..65).map(|n| format!("192.0.2.{n}/32")).collect();
    assert_eq!(errors(&json!({"addresses": many})), "addresses: 65 items is not allowed; at most 64");
    let many: Vec<_> =
        (0..257).map(|n| json!({"destination": format!("10.0.{}.{}/32", n / 256, n % 256)})).collect();
    assert!(errors(&json!({"routes": many[..200]})).is_empty());
    // 257 routes are above 10 Ki as JSON: the size is met first, and a wrong type is cheaper to send.
    let many = vec![json!(1); 257];
    assert_eq!(errors(&json!({"routes": many})), "routes: 257 items is not allowed; at most 256");
    let found = errors(&json!({"name": "x".repeat(MAX_BYTES)}));
    assert!(found.ends_with("bytes of JSON is not allowed; at most 10240"), "{found}");
    let found = errors(&json!({"name": "x".repeat(1000)}));
    assert!(found.len() < 250, "{found}");
}

#[test]
fn other_versions_and_kinds_are_refused_by_that_alone() {
    let found = |value: Value| InterfaceConfig::parse(&value).unwrap_err()[0].to_string();
    assert_eq!(found(json!({})), "apiVersion: is missing; \"netferry.dev/v1alpha1\"");
    assert_eq!(
        found(json!({"apiVersion": "netferry.dev/v2", "bad": 1})),
        "apiVersion: \"netferry.dev/v2\" is not allowed; \"netferry.dev/v1alpha1\""
    );
    assert_eq!(
        found(json!({"apiVersion": API_VERSION, "kind": "NetworkConfig"})),
        "kind: \"NetworkConfig\" is not allowed; \"InterfaceConfig\""
    );
    assert_eq!(found(json!([])), "[] is not allowed; an object");
}

#[test]
fn later_configurations_override_field_by_field() {
    let parse = |fields: &Value| InterfaceConfig::parse(&config(fields)).unwrap();
    let mut merged = parse(&json!({"mtu": 9000, "addresses": ["192.0.2.1/24"], "isolation": "strict"}));
    merged.merge(parse(&json!({"addresses": [], "name": "net7"})));
    assert_eq!(merged, parse(&json!({"mtu": 9000, "addresses": [], "isolation": "strict", "name": "net7"})));

    let deny = json!({"rules": [{"action": "deny"}]});
    let mut merged = parse(&json!({"policy": {"egress": deny}, "limits": {"openFlows": 9}}));
    merged.merge(parse(&json!({"policy": {"ingress": deny}})));
    assert_eq!(merged, parse(&json!({"policy": {"ingress": deny}, "limits": {"openFlows": 9}})), "whole");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "[0-9a-f.:/]{0,24}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        ".{0,8}",
        proptest::sample::select(vec![
            "name",
            "addresses",
            "mtu",
            "hardwareAddr",
            "routes",
            "isolation",
            "earlyDrop",
            "policy",
            "limits",
            "ingress",
            "egress",
            "rules",
            "otherwise",
            "destination",
            "gateway",
            "source",
            "scope",
            "table",
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            collection::btree_map(key.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_address() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![
        (any::<u32>(), 1_u8..=32)
            .prop_map(|(ip, prefix)| IpNetwork::new(IpAddr::V4(ip.into()), prefix).unwrap()),
        (any::<u128>(), 1_u8..=128)
            .prop_map(|(ip, prefix)| IpNetwork::new(IpAddr::V6(ip.into()), prefix).unwrap()),
    ]
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let cidr = any_address()
        .prop_map(|any| Peer { cidr: IpNetwork::new(any.network(), any.prefix()).ok(), ..Peer::default() });
    let protocol = proptest::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let port = (protocol, option::of(1_u16..=9999), option::of(10_000_u16..))
        .prop_map(|(protocol, port, end)| Port { protocol, port, end_port: port.and(end) });
    let rule = (
        prop_oneof![Just(Action::Allow), Just(Action::Deny)],
        option::of(collection::vec(cidr, 1..3)),
        option::of(collection::vec(port, 1..3)),
    )
        .prop_map(|(action, peers, ports)| Rule { action, peers, ports });
    let otherwise = option::of(prop_oneof![Just(Otherwise::Deny), Just(Otherwise::Network)]);
    let rules = (otherwise, collection::vec(rule, 0..3))
        .prop_map(|(otherwise, rules)| Rules { otherwise, rules })
        .boxed();
    (rules.clone(), rules).prop_map(|(ingress, egress)| Policy { ingress, egress })
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let rate = (option::of(8_000_u64..=80_000_000_000), any::<bool>(), option::of(1_u64..1_000_000))
        .prop_map(|(bits_per_second, burst, rate)| RateLimit {
            bits_per_second,
            burst_bytes: bits_per_second.map(|bits| bits / 8).filter(|_| burst),
            packets_per_second: rate,
            new_flows_per_second: rate,
        })
        .prop_filter("an empty one is refused", |rate| *rate != RateLimit::default());
    (option::of(rate.clone()), option::of(rate)).prop_map(|(ingress, egress)| Limits {
        ingress,
        egress,
        open_flows: if ingress.or(egress).is_none() { Some(7) } else { None },
    })
}

fn any_config() -> impl Strategy<Value = InterfaceConfig> {
    let route = (any_address(), 1_u32..254).prop_map(|(network, table)| Route {
        destination: IpNetwork::new(network.network(), network.prefix()).unwrap(),
        gateway: None,
        source: None,
        scope: Scope::Link,
        table,
        protocol: PROTOCOL_STATIC,
        metric: 0,
        onlink: false,
    });
    (
        option::of("[a-z]{1,3}[0-9]{1,3}".prop_filter("taken", |name| name != "eth0")),
        option::of(collection::vec(any_address(), 0..4)),
        option::of(68_u32..=65535),
        option::of(any::<[u8; 5]>().prop_map(|b| MacAddr([2, b[0], b[1], b[2], b[3], b[4]]))),
        option::of(collection::vec(route, 0..4)),
        option::of(prop_oneof![Just(Isolation::Strict), Just(Isolation::BestEffort), Just(Isolation::Off)]),
        option::of(any::<bool>()),
        option::of(any_policy()),
        option::of(any_limits()),
        option::of(any_sub_interface()),
    )
        .prop_map(
            |(name, addresses, mtu, hardware_addr, routes, isolation, early_drop, policy, limits, made)| {
                InterfaceConfig {
                    name,
                    addresses,
                    mtu,
                    hardware_addr,
                    routes,
                    isolation,
                    early_drop,
                    policy,
                    limits,
                    sub_interface: made,
                }
            },
        )
}

fn any_sub_interface() -> impl Strategy<Value = SubInterface> {
    let macvlan = prop_oneof![Just(MacvlanMode::Bridge), Just(MacvlanMode::Private), Just(MacvlanMode::Vepa)];
    let mode = prop_oneof![Just(IpvlanMode::L2), Just(IpvlanMode::L3), Just(IpvlanMode::L3s)];
    let flag = prop_oneof![Just(IpvlanFlag::Bridge), Just(IpvlanFlag::Private), Just(IpvlanFlag::Vepa)];
    prop_oneof![
        macvlan.prop_map(|mode| SubInterface::Macvlan(Macvlan { mode })),
        (mode, flag).prop_map(|(mode, flag)| SubInterface::Ipvlan(Ipvlan { mode, flag })),
        (1_u16..=4094).prop_map(|id| SubInterface::Vlan(Vlan { id })),
    ]
}

proptest! {
    #[test]
    fn never_panics(value in any_json()) {
        if let Ok(config) = InterfaceConfig::parse(&value) {
            let _ = config.check();
        }
        if value.is_object() {
            let value = config(&value);
            match InterfaceConfig::parse(&value) {
                Ok(parsed) => {
                    let _ = parsed.check();
                    prop_assert_eq!(InterfaceConfig::parse(&parsed.to_value()), Ok(parsed));
                }
                Err(errors) => for error in errors {
                    prop_assert!(error.to_string().len() < 1200, "{}", error);
                }
            }
        }
    }

    #[test]
    fn what_it_accepts_reads_back_the_same(config in any_config()) {
        let value = config.to_value();
        // Addresses are drawn from all there are, hosts or not; nothing else may be refused.
        match InterfaceConfig::parse(&value) {
            Ok(read) => prop_assert_eq!(read, config),
            Err(errors) => for error in errors {
                prop_assert!(
                    ["addresses[", "routes["].iter().any(|field| error.field.starts_with(field))
                        || error.allowed.contains("written as IPv4"),
                    "{}", error
                );
            }
        }
    }
}
