//! Members on other nodes in the real map. Needs root; skips without, and says so.
#![allow(missing_docs, reason = "a test binary")]

#[path = "datapath/world.rs"]
mod world;

use std::net::IpAddr;

use netferry::{
    datapath::{Datapath as _, EndpointSpec, NetworkMember},
    link::MacAddr,
    network::{
        follow::Members as _,
        members::{Change, Remote},
    },
};
use world::{LINK, World, able, ifindex, spec};

const NETWORK: u32 = 7;

fn member(host: u8, node: Option<&str>) -> Change {
    let node = node.map(|node| node.parse().expect("an address"));
    let mac = MacAddr([2, 0, 0, 0, 1, host]);
    Change { network: NETWORK, address: IpAddr::from([192, 0, 2, host]), member: Some(Remote { mac, node }) }
}

fn nobody(host: u8) -> Change {
    Change { member: None, ..member(host, None) }
}

#[test]
fn members_on_other_nodes_come_and_go_beside_those_on_this_one() {
    if !able("members_on_other_nodes_come_and_go_beside_those_on_this_one") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let (tunnelled, wire) = (member(20, Some("198.51.100.1")), member(21, None));
    let tunnelled_v6 =
        Change { address: "2001:db8::20".parse().expect("an address"), ..member(22, Some("2001:db8:1::1")) };
    for change in [&tunnelled, &wire, &tunnelled_v6] {
        assert!(datapath.put(change).expect("written"));
    }
    assert_eq!(datapath.remote().expect("members"), [tunnelled, wire, tunnelled_v6]);
    let moved = member(20, Some("198.51.100.2"));
    assert!(datapath.put(&moved).expect("written"));
    assert_eq!(datapath.remote().expect("members"), [moved, wire, tunnelled_v6]);

    // A port of this node has the address 192.0.2.10: neither written over nor removed, and not called remote.
    let here = EndpointSpec { network: NETWORK, ..spec(5) };
    datapath.attach(ifindex(LINK), &here).expect("attached");
    let own = |member: &&NetworkMember| {
        member.endpoint == Some(5) && member.address == IpAddr::from([192, 0, 2, 10])
    };
    assert!(datapath.members().expect("members").iter().any(|member| own(&member)));
    assert!(!datapath.put(&member(10, Some("198.51.100.1"))).expect("left alone"));
    assert!(!datapath.put(&nobody(10)).expect("left alone"));
    assert!(datapath.members().expect("members").iter().any(|member| own(&member)));
    assert_eq!(datapath.remote().expect("members"), [moved, wire, tunnelled_v6]);

    for change in [nobody(20), nobody(21), nobody(99), Change { member: None, ..tunnelled_v6 }] {
        assert!(datapath.put(&change).expect("removed, or not there"));
    }
    assert_eq!(datapath.remote().expect("members"), []);
    datapath.detach(5).expect("detached");
}
