use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::{Value, json};

use super::*;
use crate::{
    claim::{Checkpoint, InterfaceRecord, Plan, config::API_VERSION},
    device::Inventory,
    network::spec::NetworkSpec,
};

const DRIVER: &str = "netferry.dev";

fn network(name: &str, id: u32, more: &Value) -> Offer {
    let mut spec = json!({
        "subnets": ["10.0.0.0/24", "fd00::/64"], "gateways": ["10.0.0.1"], "transport": {"local": {}},
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let spec: NetworkSpec = serde_json::from_value(spec).unwrap();
    let reference = NetworkRef { name: name.into(), uid: format!("uid-{name}") };
    Offer { network: Arc::new(Network { reference, id, spec }), refused: None, mtu: 1400 }
}

fn named(uid: &str) -> ClaimRef {
    ClaimRef { namespace: "default".into(), name: format!("claim-{uid}"), uid: uid.into() }
}

fn port(request: &str, network: &str, share: &str) -> Value {
    let device = format!("port-{network}");
    json!({"request": request, "driver": DRIVER, "pool": "node-1", "device": device, "shareID": share})
}

fn address(request: &str, network: &str, device: &str) -> Value {
    json!({"request": request, "driver": DRIVER, "pool": format!("networks/{network}"), "device": device})
}

/// What the plans of a test are made against.
struct Case {
    networks: BTreeMap<String, Offer>,
    members: BTreeMap<(NetworkRef, IpAddr), ClaimRef>,
    prepared: Vec<Checkpoint>,
    leases: BTreeMap<crate::claim::InterfaceKey, Lease>,
}

impl Case {
    /// Networks `blue` and `red` with the same subnets.
    fn new() -> Self {
        Self::with(&json!({}))
    }

    fn with(blue: &Value) -> Self {
        let networks = [network("blue", 1, blue), network("red", 2, &json!({}))];
        Self {
            networks: networks.map(|asked| (asked.network.reference.name.clone(), asked)).into(),
            members: BTreeMap::new(),
            prepared: Vec::new(),
            leases: BTreeMap::new(),
        }
    }

    fn plan_from(&self, source: &str, uid: &str, results: &[Value], fields: &Value) -> Result<Plan, String> {
        let mut parameters = json!({"apiVersion": API_VERSION, "kind": "InterfaceConfig"});
        parameters.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let config = json!([{"source": source, "opaque": {"driver": DRIVER, "parameters": parameters}}]);
        let claim: ResourceClaim = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": format!("claim-{uid}"), "uid": uid},
            "spec": {},
            "status": {
                "allocation": {"devices": {"results": results, "config": config}},
                "reservedFor": [{"resource": "pods", "name": "web", "uid": format!("pod-{uid}")}],
            },
        }))
        .unwrap();
        let place = Place {
            driver: DRIVER,
            pool: "node-1",
            inventory: &Inventory::default(),
            prepared: &self.prepared,
            networks: &self.networks,
            uplinks: &BTreeMap::new(),
            members: &self.members,
            leases: &self.leases,
        };
        super::super::plan(&claim, &named(uid), &place)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    fn plan(&self, uid: &str, results: &[Value], fields: &Value) -> Result<Plan, String> {
        self.plan_from("FromClaim", uid, results, fields)
    }

    fn prepare(&mut self, uid: &str, results: &[Value], fields: &Value) {
        let plan = self.plan(uid, results, fields).unwrap();
        let interfaces = plan.interfaces.into_iter().map(InterfaceRecord::planned).collect();
        self.prepared.push(Checkpoint::new(plan.claim, plan.pods, interfaces));
    }
}

#[test]
fn a_port_takes_what_its_network_gives() {
    let case = Case::with(&json!({"limits": {"egress": {"packetsPerSecond": 100}}}));
    let results = [
        port("net", "blue", "s1"),
        address("v4", "blue", "ip-10-0-0-7"),
        address("v6", "blue", "ip-fd00-0-0-0-0-0-0-7"),
    ];
    let fields = json!({"routes": [{"destination": "198.51.100.0/24"}]});
    let plan = case.plan("u1", &results, &fields).unwrap();
    let [interface] = plan.interfaces.as_slice() else { panic!("{plan:?}") };
    assert_eq!((interface.name.as_str(), interface.mtu), ("blue", Some(1400)));
    let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.7/24", "fd00::7/64"]);
    assert_eq!(interface.routes[0].gateway, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(interface.routes[0].scope, Scope::Universe);
    assert_eq!(interface.limits.unwrap().egress.unwrap().packets_per_second, Some(100));
    assert_eq!(interface.share_id.as_deref(), Some("s1"));
    let port = interface.port().unwrap();
    assert_eq!((port.network.name.as_str(), port.id, port.given.len()), ("blue", 1, 2));
    assert_eq!(interface.hardware_addr, Some(made::hardware_addr(&named("u1"), &interface.key())));
    assert_eq!(interface.host_link, made::host_name(&named("u1"), &interface.key()));
    // It reads back from its checkpoint.
    let text = serde_json::to_string(interface).unwrap();
    assert_eq!(serde_json::from_str::<crate::claim::InterfacePlan>(&text).unwrap(), *interface);
}

#[test]
fn several_claims_and_requests_share_the_device_of_a_network() {
    let mut case = Case::new();
    case.prepare("u1", &[port("net", "blue", "s1")], &json!({"addresses": ["10.0.0.7/24"]}));
    let results = [
        port("a", "blue", "s2"),
        port("b", "blue", "s3"),
        address("v4", "blue", "ip-10-0-0-8"),
        address("v4", "blue", "ip-10-0-0-9"),
    ];
    let plan = case.plan("u2", &results, &json!({})).unwrap();
    let [a, b] = plan.interfaces.as_slice() else { panic!("{plan:?}") };
    assert_eq!((a.name.as_str(), b.name.as_str()), ("blue", "net1"));
    assert_eq!(a.addresses, ["10.0.0.8/24".parse().unwrap()]);
    assert_eq!(b.addresses, ["10.0.0.9/24".parse().unwrap()]);
    assert_ne!(a.hardware_addr, b.hardware_addr);
    assert_ne!(a.host_link, b.host_link);
    let twice = [port("a", "blue", "s2"), port("a", "blue", "s2")];
    assert!(case.plan("u3", &twice, &json!({})).unwrap_err().contains("each device once"));
}

#[test]
fn an_address_belongs_to_one_port_of_its_network() {
    let case = Case::new();
    let refused = |results: &[Value]| case.plan("u1", results, &json!({})).unwrap_err();
    let error = refused(&[port("net", "blue", "s1"), address("v4", "red", "ip-10-0-0-7")]);
    assert!(
        error.contains("request v4: device: ip-10-0-0-7 is not allowed; one IPv4 address for each port of network red in the claim: it has 1 for 0"),
        "{error}"
    );
    let two = [address("v4", "blue", "ip-10-0-0-7"), address("more", "blue", "ip-10-0-0-8")];
    let error = refused(&[port("net", "blue", "s1"), two[0].clone(), two[1].clone()]);
    assert!(
        error.contains("request more: device: ip-10-0-0-8") && error.contains("it has 2 for 1"),
        "{error}"
    );
    let error = refused(&[port("net", "blue", "s1"), address("v4", "blue", "ip-10-9-0-7")]);
    assert!(
        error.contains("results[1].device: ip-10-9-0-7 is not allowed; a device that stands for"),
        "{error}"
    );
}

#[test]
fn a_port_has_addresses_of_its_node_s_blocks_alone() {
    let in_pool =
        |pool: &str, device: &str| json!({"request": "v4", "driver": DRIVER, "pool": pool, "device": device});
    let plan = |case: &Case, pool: &str, device: &str| {
        case.plan_from("FromClaim", "u1", &[port("net", "blue", "s1"), in_pool(pool, device)], &json!({}))
    };
    let case = Case::with(&json!({"addresses": "blocks"}));
    let planned = plan(&case, "networks/blue/node-1", "ip-10-0-0-7").unwrap();
    assert_eq!(planned.interfaces[0].addresses, ["10.0.0.7/24".parse().unwrap()]);
    assert_eq!(planned.interfaces[0].port().unwrap().given[0].pool, "networks/blue/node-1");
    let own = "networks/blue/node-1, the pool of this node's blocks of network blue";
    for (pool, device, wanted) in [
        ("networks/blue/node-2", "ip-10-0-0-7", own),
        ("networks/blue", "ip-10-0-0-7", own),
        ("networks/red/node-1", "ip-10-0-0-7", "networks/red, the pool of addresses of network red"),
        ("networks/green/node-1", "ip-10-0-0-7", "one of a network that this node knows"),
        ("networks/blue/node-1", "ip-10-9-0-7", "a device that stands for an address of network blue"),
        ("networks/blue/node-1", "ip-10-0-0-1", "other than the gateway of network blue"),
    ] {
        let error = plan(&case, pool, device).unwrap_err();
        assert!(error.contains(wanted), "{pool} {device}: {error}");
    }
    let error = plan(&Case::new(), "networks/blue/node-1", "ip-10-0-0-7").unwrap_err();
    assert!(error.contains("networks/blue, the pool of addresses of network blue"), "{error}");
    let error = case.plan_from("FromClaim", "u1", &[port("net", "blue", "s1")], &json!({})).unwrap_err();
    assert!(error.contains("allocated from pool \"networks/blue/node-1\""), "{error}");
    let mut held = case;
    let reference = held.networks["blue"].network.reference.clone();
    held.members.insert((reference, "10.0.0.7".parse().unwrap()), named("u9"));
    let error = plan(&held, "networks/blue/node-1", "ip-10-0-0-7").unwrap_err();
    assert!(error.contains("an address that is free in network blue"), "{error}");
}

#[test]
fn what_a_network_does_not_allow_is_refused() {
    let cases = [
        (json!({}), "addresses: is missing; a port needs an address: allocated from pool \"networks/blue\""),
        (
            json!({"addresses": ["10.1.0.7/24"]}),
            "10.1.0.7/24 is not allowed; an address in a subnet of network blue (10.0.0.0/24, fd00::/64)",
        ),
        (json!({"addresses": ["10.0.0.7/16"]}), "prefix length 24, that of the network's subnet"),
        (json!({"addresses": ["10.0.0.1/24"]}), "other than the gateway of network blue"),
        (json!({"addresses": ["fd00::/64"]}), "other than the first one of subnet fd00::/64"),
        (json!({"addresses": ["10.0.0.7/24"], "mtu": 1401}), "mtu: 1401 is not allowed; at most 1400"),
        (
            json!({"addresses": ["10.0.0.7/24"], "isolation": "off"}),
            "isolation: \"off\" is not allowed; \"strict\"",
        ),
        (
            json!({"addresses": ["10.0.0.7/24"], "routes": [{"destination": "0.0.0.0/0"}]}),
            "routes[0].destination: 0.0.0.0/0 is not allowed; default routes in tables other than main",
        ),
        (
            json!({"addresses": ["fd00::7/64"], "routes": [{"destination": "2001:db8::/32"}]}),
            "routes[0].gateway: is missing; network blue has no gateway of this family",
        ),
        (
            json!({"addresses": ["10.0.0.7/24"], "policy": {"egress": {"rules": [{"action": "allow"}]}}}),
            "policy.egress.rules[0].action: \"allow\" is not allowed; deny rules only",
        ),
    ];
    let case = Case::new();
    for (fields, expected) in cases {
        let error = case.plan("u1", &[port("net", "blue", "s1")], &fields).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    // A class may say what leaves the network, and a default route may go by a table of its own.
    let allow = json!({
        "addresses": ["10.0.0.7/24"], "policy": {"egress": {"rules": [{"action": "allow"}]}},
        "routes": [{"destination": "0.0.0.0/0", "table": 100}],
    });
    let plan = case.plan_from("FromClass", "u1", &[port("net", "blue", "s1")], &allow).unwrap();
    assert_eq!(plan.interfaces[0].policy.as_ref().unwrap().egress.rules.len(), 1);
    assert_eq!(plan.interfaces[0].routes[0].gateway, Some("10.0.0.1".parse().unwrap()));
}

#[test]
fn networks_must_be_known_and_joined() {
    let mut case = Case::new();
    let fields = json!({"addresses": ["10.0.0.7/24"]});
    let error = case.plan("u1", &[port("net", "green", "s1")], &fields).unwrap_err();
    assert!(error.contains("port-green is not allowed; one of a network that this node knows"), "{error}");
    case.networks.get_mut("blue").unwrap().refused = Some("it lacks a label".into());
    for result in [port("net", "blue", "s1"), address("v4", "blue", "ip-10-0-0-7")] {
        let error = case.plan("u1", &[result], &fields).unwrap_err();
        assert!(error.contains("the claim's namespace may join: it lacks a label"), "{error}");
    }
}

#[test]
fn an_address_has_one_holder_in_its_network() {
    let mut case = Case::new();
    let fields = json!({"addresses": ["10.0.0.7/24"]});
    case.prepare("u1", &[port("net", "blue", "s1")], &fields);
    let error = case.plan("u2", &[port("net", "blue", "s2")], &fields).unwrap_err();
    assert!(error.contains("10.0.0.7/24 is not allowed; an address that is free in network blue; claim default/claim-u1 has this one"), "{error}");
    assert!(case.plan("u1", &[port("net", "blue", "s1")], &fields).is_ok(), "asked again");
    assert!(case.plan("u2", &[port("net", "red", "s2")], &fields).is_ok(), "another network");

    let member = (case.networks["red"].network.reference.clone(), "10.0.0.7".parse().unwrap());
    case.members.insert(member, named("u9"));
    let error = case.plan("u2", &[port("net", "red", "s2")], &fields).unwrap_err();
    assert!(error.contains("claim default/claim-u9 has this one"), "{error}");
    assert!(case.plan("u9", &[port("net", "red", "s2")], &fields).is_ok(), "its own");
}

#[test]
fn hardware_addresses_differ_in_a_network() {
    let mut case = Case::new();
    let fields = |address: &str| json!({"addresses": [address], "hardwareAddr": "02:00:00:00:00:07"});
    case.prepare("u1", &[port("net", "blue", "s1")], &fields("10.0.0.7/24"));
    let error = case.plan("u2", &[port("net", "blue", "s2")], &fields("10.0.0.8/24")).unwrap_err();
    assert!(error.contains("hardwareAddr: 02:00:00:00:00:07 is not allowed"), "{error}");
    assert!(case.plan("u2", &[port("net", "red", "s2")], &fields("10.0.0.8/24")).is_ok());
}

/// Network `blue` by DHCP, and what a server has given to share `s1` of it.
fn by_dhcp(gateways: &Value, address: &str, more: &Value) -> Case {
    let mut case = Case::with(&json!({
        "subnets": ["10.0.0.0/24"], "gateways": gateways, "addresses": "dhcp",
        "transport": {"uplink": {"selector": "true", "vlan": 7}},
    }));
    let mut lease = json!({
        "address": address, "server": "10.0.0.2", "serverMac": "02:00:00:00:00:02", "granted": "2026-01-01T00:00:00Z",
    });
    lease.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let result = serde_json::from_value(port("net", "blue", "s1")).unwrap();
    case.leases.insert(key(&result), serde_json::from_value(lease).unwrap());
    case
}

#[test]
fn a_port_by_dhcp_is_planned_without_its_address_first() {
    let mut case = by_dhcp(&json!([]), "10.0.0.7", &json!({"prefix": 24, "router": "10.0.0.1", "mtu": 1300}));
    let leases = std::mem::take(&mut case.leases);
    let results = [port("net", "blue", "s1")];
    let fields = json!({"routes": [{"destination": "198.51.100.0/24"}]});
    let draft = case.plan("u1", &results, &fields).unwrap();
    assert!(draft.interfaces[0].lacks_address());
    case.leases = leases;
    let plan = case.plan("u1", &results, &fields).unwrap();
    let [interface] = plan.interfaces.as_slice() else { panic!("{plan:?}") };
    assert!(!interface.lacks_address());
    assert_eq!(interface.addresses, ["10.0.0.7/24".parse().unwrap()]);
    assert_eq!(interface.routes[0].gateway, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(interface.mtu, Some(1300));
    // The server is asked for the address that the port has in the end.
    assert_eq!(interface.hardware_addr, draft.interfaces[0].hardware_addr);
    // What the claim and the network say comes first.
    let plan = case.plan("u1", &results, &json!({"mtu": 1200})).unwrap();
    assert_eq!(plan.interfaces[0].mtu, Some(1200));
}

#[test]
fn what_a_server_gives_is_held_to_the_network() {
    let plan = |case: &Case| case.plan("u1", &[port("net", "blue", "s1")], &json!({}));
    let refused = [
        ("10.1.0.7", json!({"prefix": 24}), "an address in a subnet of network blue (10.0.0.0/24)"),
        ("10.1.0.7", json!({}), "an address in a subnet of network blue (10.0.0.0/24)"),
        ("10.0.0.7", json!({"prefix": 16}), "prefix length 24"),
        ("10.0.0.1", json!({}), "other than the gateway"),
        ("10.0.0.255", json!({}), "other than the broadcast address"),
    ];
    for (address, more, allowed) in refused {
        let error = plan(&by_dhcp(&json!(["10.0.0.1"]), address, &more)).unwrap_err();
        for part in [address, allowed, "the DHCP server 10.0.0.2 gave this one"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    // An MTU that is none, and one that is more than the network's.
    for mtu in [100, 9000] {
        let plan = plan(&by_dhcp(&json!([]), "10.0.0.7", &json!({"mtu": mtu}))).unwrap();
        assert_eq!(plan.interfaces[0].mtu, Some(1400));
    }
    // An address that another claim has.
    let mut case = by_dhcp(&json!([]), "10.0.0.7", &json!({}));
    case.prepare("u2", &[port("net", "blue", "s1")], &json!({}));
    let error = plan(&case).unwrap_err();
    assert!(error.contains("claim default/claim-u2 has this one"), "{error}");
    // A router beyond the subnet leads nowhere.
    let case = by_dhcp(&json!([]), "10.0.0.7", &json!({"router": "10.9.0.1"}));
    let routes = json!({"routes": [{"destination": "198.51.100.0/24"}]});
    let error = case.plan("u1", &[port("net", "blue", "s1")], &routes).unwrap_err();
    assert!(error.contains("has no gateway of this family"), "{error}");
}

#[test]
fn with_dhcp_nobody_else_says_the_address() {
    let case = by_dhcp(&json!([]), "10.0.0.7", &json!({}));
    let fixed = case.plan("u1", &[port("net", "blue", "s1")], &json!({"addresses": ["10.0.0.9/24"]}));
    let allocated = [port("net", "blue", "s1"), address("v4", "blue", "ip-10-0-0-9")];
    for refused in [fixed, case.plan("u1", &allocated, &json!({}))] {
        let error = refused.unwrap_err();
        assert!(error.contains("addresses: \"10.0.0.9") || error.contains("addresses: 10.0.0.9"), "{error}");
        assert!(error.contains("none: the ports of network blue have their addresses by DHCP"), "{error}");
    }
}
