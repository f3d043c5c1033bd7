//! Kinds of links that not every kernel can make: dummy, vlan, ipvlan, vrf, netkit. Not part of a plain `cargo test`;
//! `cargo xtask vm` runs it on kernels that have them.
#![allow(missing_docs, reason = "a test binary")]

mod support;
#[path = "attach/world.rs"]
mod world;

use netferry::{
    claim::{Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord},
    datapath::Datapath as _,
    device::{discover::discover, sysfs::Sysfs},
    link::{Links as _, Namespace, Pair, PairKind},
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use support::netns::NetNs;
use world::{MAC, World, plan_of_eth7, pod_ref};

const LINKS: [&str; 5] = [
    "link add dummy0x type dummy",
    "link add link eth7 name vlan5 type vlan id 5",
    "link add link eth7 name ipvlan7 type ipvlan mode l2",
    "link add vrf9 type vrf table 1009",
    "link add link eth8 name macvlan8 type macvlan mode private",
];

#[tokio::test]
async fn every_kind_is_discovered() {
    let Some(world) = World::new("every_kind_is_discovered") else { return };
    for link in LINKS {
        world.host.ip(link);
    }
    let pair = Pair {
        kind: PairKind::Netkit,
        host_name: "netkit0".into(),
        pod: Namespace::at(&world.pod.path),
        pod_name: "net1".into(),
        pod_mac: MAC,
        mtu: 1500,
    };
    world.places.links().make_pair(&pair).await.expect("a netkit pair");
    world.host.ip("link set vlan5 address 02:00:00:00:05:05");
    let inventory = world.host.run(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("private mounts");
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).expect("sysfs");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(discover(&Sysfs::default())).expect("an inventory")
    });
    let kind = |name: &str| {
        let device = inventory.devices.values().find(|device| device.ifname == name);
        device.unwrap_or_else(|| panic!("{name} is not in {inventory:?}")).kind.clone()
    };
    for (name, expected) in [
        ("dummy0x", "dummy"),
        ("vlan5", "vlan"),
        ("ipvlan7", "ipvlan"),
        ("vrf9", "vrf"),
        ("macvlan8", "macvlan"),
        ("netkit0", "netkit"),
        ("eth7", "veth"),
    ] {
        assert_eq!(kind(name).as_deref(), Some(expected), "{name}");
    }
    let vlan = inventory.devices.values().find(|device| device.ifname == "vlan5").expect("vlan5");
    assert_eq!(vlan.mac, "02:00:00:00:05:05".parse().ok());
}

fn claim(world: &World, plan: InterfacePlan) {
    let claim = ClaimRef { namespace: "default".into(), name: "c".into(), uid: "c".into() };
    let interfaces = vec![InterfaceRecord::planned(plan)];
    world.places.store().put(Checkpoint::new(claim, vec![pod_ref()], interfaces)).expect("checkpoint");
}

/// Attaches one link with strict isolation, looks at it from the pod, and brings it home as it was.
async fn there_and_back(world: &World, link: &str, plan: InterfacePlan, look: impl FnOnce(&NetNs)) {
    world.host.settle();
    let before = world.host.snapshot();
    claim(world, InterfacePlan { device: link.into(), host_link: link.into(), ..plan });
    let attacher = world.places.attacher();
    attacher.protect("c").await;
    let outcome = attacher.attach(&world.places.sandbox()).await.expect("attach");
    assert_eq!(outcome.problems, [], "{link}");
    let hooks: Vec<_> = outcome.attached[0].programs.iter().map(|it| it.hook.as_str()).collect();
    assert_eq!(hooks, ["tcx/ingress", "tcx/egress"], "{link}");
    look(&world.pod);
    let id = outcome.attached[0].endpoint.expect("an endpoint");
    let stats = world.places.datapath().stats(id).expect("counters");
    assert!(stats.from_pod.packets > 0, "{link}: {stats:?}");
    assert_eq!(attacher.give_back("s1").await.problems, [], "{link}");
    before.assert_same(&world.host.snapshot_like(&before), link);
    world.assert_nothing_left(link);
}

#[tokio::test]
async fn a_dummy_goes_and_comes_back() {
    let Some(world) = World::new("a_dummy_goes_and_comes_back") else { return };
    world.host.ip("link add dummy0x address 02:00:00:00:0d:01 type dummy");
    world.host.ip("addr add 192.0.2.200/24 dev dummy0x");
    world.host.ip("link set dummy0x up");
    there_and_back(&world, "dummy0x", plan_of_eth7(), |pod| {
        pod.ip("neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev net1");
        // Nobody answers: what the pod sends is counted.
        let _ = pod.try_exec("ping -c 1 -W 1 198.51.100.9");
    })
    .await;
}

#[tokio::test]
async fn a_vlan_goes_and_comes_back() {
    let Some(world) = World::new("a_vlan_goes_and_comes_back") else { return };
    world.host.ip("link add link eth7 name vlan5 type vlan id 5");
    world.host.ip("addr add 192.0.2.5/24 dev vlan5");
    world.host.ip("link set vlan5 up");
    world.peer.ip("link add link far7 name far5 type vlan id 5");
    world.peer.ip("link set far5 up");
    world.peer.ip("addr add 203.0.113.1/24 dev far5");
    let plan = InterfacePlan {
        addresses: vec!["203.0.113.5/24".parse().expect("address")],
        routes: Vec::new(),
        mtu: None,
        ..plan_of_eth7()
    };
    there_and_back(&world, "vlan5", plan, |pod| {
        // The tag is the parent's affair: the programs see frames without it.
        pod.exec("ping -c 2 -W 2 203.0.113.1");
    })
    .await;
}

#[tokio::test]
async fn an_ipvlan_goes_and_comes_back() {
    let Some(world) = World::new("an_ipvlan_goes_and_comes_back") else { return };
    world.host.ip("link add link eth7 name ipvlan7 type ipvlan mode l2");
    world.peer.ip("addr add 203.0.113.1/24 dev far7");
    let plan = InterfacePlan {
        // It has its parent's, and no other.
        hardware_addr: None,
        addresses: vec!["203.0.113.7/24".parse().expect("address")],
        routes: Vec::new(),
        mtu: None,
        ..plan_of_eth7()
    };
    there_and_back(&world, "ipvlan7", plan, |pod| {
        pod.exec("ping -c 2 -W 2 203.0.113.1");
    })
    .await;
}

#[tokio::test]
async fn a_dummy_that_died_is_made_anew() {
    let Some(world) = World::new("a_dummy_that_died_is_made_anew") else { return };
    world.host.ip("link add dummy0x address 02:00:00:00:0d:01 mtu 9000 type dummy");
    world.host.ip("addr add 192.0.2.200/25 dev dummy0x");
    world.host.ip("link set dummy0x up");
    world.dies_and_is_made_anew("dummy0x", plan_of_eth7()).await;
}

#[tokio::test]
async fn a_vlan_that_died_is_made_anew() {
    for kind in [
        "id 5",
        "id 6 protocol 802.1ad gvrp on loose_binding on reorder_hdr off",
        "id 7 egress-qos-map 1:2 3:4 ingress-qos-map 6:7",
    ] {
        let Some(world) = World::new("a_vlan_that_died_is_made_anew") else { return };
        world.host.ip(&format!("link add link eth7 name vlan5 type vlan {kind}"));
        world.host.ip("addr add 192.0.2.5/25 dev vlan5");
        world.host.ip("link set vlan5 up");
        let plan = InterfacePlan { mtu: None, ..plan_of_eth7() };
        world.dies_and_is_made_anew("vlan5", plan).await;
    }
}

#[tokio::test]
async fn an_ipvlan_that_died_is_made_anew() {
    let Some(world) = World::new("an_ipvlan_that_died_is_made_anew") else { return };
    world.host.ip("link add link eth7 name ipvlan7 type ipvlan mode l3s vepa");
    world.host.ip("addr add 192.0.2.7/25 dev ipvlan7");
    world.host.ip("link set ipvlan7 up");
    // It has its parent's hardware address, and no other.
    let plan = InterfacePlan { hardware_addr: None, routes: Vec::new(), mtu: None, ..plan_of_eth7() };
    world.dies_and_is_made_anew("ipvlan7", plan).await;
}

#[tokio::test]
async fn a_macvlan_that_died_is_made_anew() {
    let Some(world) = World::new("a_macvlan_that_died_is_made_anew") else { return };
    world.host.ip("link add link eth8 name macvlan8 type macvlan mode passthru nopromisc");
    let plan = InterfacePlan { hardware_addr: None, mtu: None, ..plan_of_eth7() };
    world.dies_and_is_made_anew("macvlan8", plan).await;
}
