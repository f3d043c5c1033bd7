use std::net::Ipv4Addr;

use serde_json::json;

use super::*;
use crate::{device::Device as Link, network::validate::parse};

fn network(id: NetworkId, name: &str, transport: &serde_json::Value) -> Arc<Network> {
    Arc::new(Network {
        reference: reference(id, name),
        id,
        spec: parse(&json!({"subnets": ["10.1.0.0/16"], "transport": transport})).expect("a spec"),
    })
}

fn reference(id: NetworkId, name: &str) -> NetworkRef {
    NetworkRef { name: name.to_owned(), uid: format!("u{id}") }
}

fn link(ifindex: u32, ifname: &str, mtu: u32, address: &str) -> Link {
    Link {
        ifindex,
        name: ifname.to_owned(),
        ifname: ifname.to_owned(),
        mtu,
        addresses: vec![address.parse().expect("a prefix")],
        ..Link::default()
    }
}

fn inventory() -> Inventory {
    let mut inventory = Inventory::default();
    for link in [link(2, "eth0", 1500, "192.0.2.7/24"), link(3, "eth1", 9000, "2001:db8::7/64")] {
        inventory.devices.insert(link.name.clone(), link);
    }
    inventory
}

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const AT: TunnelSettings =
    TunnelSettings { port: 4789, address: Some(IpAddr::V4(ADDRESS)), headers: Headers::Programs };

fn on(ifname: &str, vlan: Option<u16>) -> serde_json::Value {
    let selector = format!(r#"device.attributes["netferry.dev"].ifName == "{ifname}""#);
    match vlan {
        Some(vlan) => json!({"uplink": {"selector": selector, "vlan": vlan}}),
        None => json!({"uplink": {"selector": selector}}),
    }
}

#[test]
fn each_network_gets_the_way_of_its_transport() {
    let networks = [
        network(1, "here", &json!({"local": {}})),
        network(2, "far", &json!({"overlay": {"vni": 70}})),
        network(3, "wire", &on("eth1", Some(100))),
        network(
            4,
            "plain",
            &json!({"uplink": {"selector": "device.attributes['netferry.dev'].ifName == 'eth0'"}}),
        ),
    ];
    let found = wanted(&networks, &inventory(), AT, "netferry.dev");
    assert_eq!(found.problems, Problems::new());
    assert_eq!(found.remarks, Problems::new());
    let between = Some(NodeLink { ifindex: 2, address: ADDRESS });
    assert_eq!(found.tunnel, Some(TunnelDevice { port: 4789, mtu: 1450, between }));
    let uplink =
        |ifindex, ifname: &str, mtu, how| Way::Uplink { ifindex, ifname: ifname.to_owned(), mtu, how };
    let bridged = |vlan| Transport::Bridged { vlan };
    let ways = [
        (2, (reference(2, "far"), Way::Overlay { vni: 70 })),
        (3, (reference(3, "wire"), uplink(3, "eth1", 9000, bridged(100)))),
        (4, (reference(4, "plain"), uplink(2, "eth0", 1500, bridged(0)))),
    ];
    assert_eq!(found.ways, BTreeMap::from(ways));
    assert_eq!(wanted(&networks[..1], &inventory(), AT, "netferry.dev"), Wanted::default());
}

#[test]
fn a_routed_network_has_its_gateways_and_shares_a_link_with_vlans_alone() {
    let selector = "device.attributes['netferry.dev'].ifName == 'eth0'";
    let routed = |id, name: &str| {
        let mut network =
            (*network(id, name, &json!({"uplink": {"selector": selector, "mode": "routed"}}))).clone();
        network.spec.gateways = vec!["fd00::1".parse().expect("v6"), "10.1.0.1".parse().expect("v4")];
        Arc::new(network)
    };
    let networks = [routed(1, "first"), routed(2, "second"), network(3, "tagged", &on("eth0", Some(5)))];
    let found = wanted(&networks, &inventory(), AT, "netferry.dev");
    let how = Transport::Routed { mac: GATEWAY_MAC, v4: "10.1.0.1".parse().ok(), v6: "fd00::1".parse().ok() };
    let way = |how| Way::Uplink { ifindex: 2, ifname: "eth0".to_owned(), mtu: 1500, how };
    let ways = [
        (1, (reference(1, "first"), way(how))),
        (3, (reference(3, "tagged"), way(Transport::Bridged { vlan: 5 }))),
    ];
    assert_eq!(found.ways, BTreeMap::from(ways));
    let problem = &found.problems[&reference(2, "second")];
    assert!(problem.contains("the untagged wire of link eth0 is that of network first"), "{problem}");
    assert_eq!(found.remarks, Problems::new());

    // IPv6 may leave by a route over another link, which is nothing for IPv4.
    for (link, gateway, remarks) in [("eth0", "fe80::1", 0), ("eth1", "192.0.2.1", 0), ("eth1", "fe80::1", 1)]
    {
        let mut inventory = inventory();
        inventory.devices.get_mut(link).expect(link).gateways = vec![gateway.parse().expect("an address")];
        let found = wanted(&networks[..1], &inventory, AT, "netferry.dev");
        assert_eq!((found.ways.len(), found.remarks.len()), (1, remarks), "{link} {gateway}: {found:?}");
    }
}

#[test]
fn what_cannot_be_is_said() {
    let networks = [
        network(1, "none", &on("eth7", None)),
        network(2, "first", &on("eth0", Some(5))),
        network(3, "second", &on("eth0", Some(5))),
        network(9, "far", &json!({"overlay": {"vni": 70}})),
        network(8, "far", &json!({"overlay": {"vni": 70}})),
    ];
    let elsewhere = TunnelSettings { address: "198.51.100.1".parse().ok(), ..AT };
    let found = wanted(&networks, &inventory(), elsewhere, "netferry.dev");
    assert_eq!(found.ways.keys().copied().collect::<Vec<_>>(), [2, 8]);
    for (id, name, said) in [
        (1, "none", "no link of this node is selected"),
        (3, "second", "VLAN 5 of link eth0 is that of network first"),
        (8, "far", "no link of this node has 198.51.100.1"),
    ] {
        let problem = found.problems.get(&reference(id, name)).unwrap_or_else(|| panic!("{name}: {found:?}"));
        assert!(problem.contains(said), "{problem}");
    }
    let nowhere =
        wanted(&networks[3..4], &inventory(), TunnelSettings { address: None, ..AT }, "netferry.dev");
    assert!(nowhere.problems[&reference(9, "far")].contains("--overlay-address"), "{nowhere:?}");
    assert_eq!(nowhere.ways.len(), 1, "what other nodes drop is not taken down here");
    let twice = wanted(&networks[3..], &inventory(), AT, "netferry.dev");
    assert!(twice.problems[&reference(9, "far")].contains("that was deleted"), "{twice:?}");
}

#[test]
fn programs_make_the_headers_of_tunnels_over_the_link_that_has_the_address() {
    let between = |at: TunnelSettings, change: fn(&mut Link)| {
        let mut inventory = inventory();
        change(inventory.devices.get_mut("eth0").expect("eth0"));
        let far = network(1, "far", &json!({"overlay": {"vni": 1}}));
        wanted(&[far], &inventory, at, "netferry.dev").tunnel.expect("a tunnel").between
    };
    let at = |address: &str| TunnelSettings { address: address.parse().ok(), ..AT };
    assert_eq!(between(AT, |_| {}), Some(NodeLink { ifindex: 2, address: ADDRESS }));
    assert_eq!(between(AT, |link| link.kind = Some("bond".to_owned())).map(|link| link.ifindex), Some(2));
    assert_eq!(between(AT, |link| link.kind = Some("dummy".to_owned())), None);
    assert_eq!(between(AT, |link| link.loopback = true), None);
    assert_eq!(between(TunnelSettings { headers: Headers::Kernel, ..AT }, |_| {}), None);
    assert_eq!(between(at("2001:db8::7"), |_| {}), None);
    assert_eq!(between(at("198.51.100.1"), |_| {}), None);
}

#[test]
fn the_mtu_of_tunnels_is_that_of_the_nodes_own_link() {
    let mtu = |address: &str, change: fn(&mut Inventory)| {
        let mut inventory = inventory();
        change(&mut inventory);
        let at = TunnelSettings { address: address.parse().ok(), ..AT };
        let found =
            wanted(&[network(1, "far", &json!({"overlay": {"vni": 1}}))], &inventory, at, "netferry.dev");
        (found.tunnel.expect("a tunnel").mtu, found.remarks.len())
    };
    assert_eq!(mtu("192.0.2.7", |_| {}), (1450, 0));
    assert_eq!(mtu("2001:db8::7", |_| {}), (8930, 0));
    let routed_by_jumbo: fn(&mut Inventory) = |inventory| {
        inventory.devices.get_mut("eth1").expect("eth1").default_route = true;
    };
    assert_eq!(mtu("192.0.2.7", routed_by_jumbo), (1450, 1), "ports have more than the tunnel");
    assert_eq!(mtu("198.51.100.1", routed_by_jumbo), (8930, 0));
    let on_loopback: fn(&mut Inventory) = |inventory| {
        let mut lo = link(1, "lo", 65536, "203.0.113.1/32");
        lo.loopback = true;
        inventory.devices.insert("lo".to_owned(), lo);
    };
    assert_eq!(mtu("203.0.113.1", on_loopback), (1430, 0));
}
