//! Blocks of nodes under churn: claims come and go, a scheduler allocates by what it saw earlier and writes it down later
//! still, leaders change, nodes and their slices go and come back, calls fail.
//!
//! What is bounded is what is bounded in a cluster: how old a scheduler's view is, how long it takes to write down what it
//! chose, and how far a leader's watch is behind. Together that is less than the quarantine of blocks.

mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::resource::v1::ResourceSlice;
use netferry::network::Network;
use proptest::prelude::*;
use world::{BIND, LEADERS, NODES, STEP, World, name, network};

use crate::cluster::Fault;

#[derive(Clone, Debug)]
enum Op {
    Publish(usize),
    Wipe(usize),
    Remove(usize),
    Choose(usize, usize),
    Bind(u64),
    Release(usize, usize),
    Fix(usize, u8),
    Refresh,
    DeliverClaims,
    DeliverSlices,
    Round,
    Elect(usize),
    Pass(u64),
    /// Many steps of time: what lingers goes, and what waits is given again.
    Wait(u32),
    Fail(Fault),
}

fn op() -> impl Strategy<Value = Op> {
    let fault = prop_oneof![Just(Fault::None), Just(Fault::Unavailable), Just(Fault::Lost)];
    prop_oneof![
        6 => (0..NODES).prop_map(Op::Publish),
        1 => (0..NODES).prop_map(Op::Wipe),
        1 => (0..NODES).prop_map(Op::Remove),
        8 => (0..NODES, 1_usize..70).prop_map(|(node, count)| Op::Choose(node, count)),
        4 => (0_u64..BIND).prop_map(Op::Bind),
        4 => (0_usize..200, 1_usize..150).prop_map(|(from, count)| Op::Release(from, count)),
        1 => (0..NODES, 0_u8..=255).prop_map(|(node, host)| Op::Fix(node, host)),
        3 => Just(Op::Refresh),
        2 => Just(Op::DeliverClaims),
        2 => Just(Op::DeliverSlices),
        5 => Just(Op::Round),
        1 => (0..LEADERS).prop_map(Op::Elect),
        5 => (1_u64..STEP).prop_map(Op::Pass),
        2 => (2_u32..14).prop_map(Op::Wait),
        2 => fault.prop_map(Op::Fail),
    ]
}

fn networks() -> impl Strategy<Value = Arc<Network>> {
    prop_oneof![
        2 => Just(network(&["10.0.0.0/24"], &["10.0.0.1"])),
        1 => Just(network(&["10.0.0.0/22"], &[])),
        1 => Just(network(&["10.0.0.0/16", "fd00::/120"], &["10.0.0.254", "fd00::1"])),
        1 => Just(network(&["fd00::/64"], &["fd00::1"])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_held_twice_and_no_block_is_of_two_nodes(
        network in networks(),
        ops in proptest::collection::vec(op(), 1..80),
    ) {
        let mut world = World::new(network);
        for op in ops {
            match op {
                Op::Publish(node) => world.publish(node),
                Op::Wipe(node) => world.wipe(node),
                Op::Remove(node) => world.remove(node),
                Op::Choose(node, count) => world.choose(node, count),
                Op::Bind(age) => world.bind(age),
                Op::Release(from, count) => world.release(from, count),
                Op::Fix(node, host) => world.fix(node, host),
                Op::Refresh => world.refresh(),
                Op::DeliverClaims => world.deliver_claims(),
                Op::DeliverSlices => world.deliver_slices(),
                Op::Round => drop(world.round()),
                Op::Elect(leader) => world.elect(leader),
                Op::Pass(seconds) => world.pass(seconds),
                Op::Wait(steps) => {
                    for _ in 0..steps {
                        world.pass(STEP - 1);
                        world.check()?;
                    }
                }
                Op::Fail(fault) => world.memory.state().faults.push_back(fault),
            }
            world.check()?;
        }

        // When all is quiet: what is in use is published, what is fixed is not, and who has no free address is told.
        world.settle();
        world.check()?;
        let fixed: BTreeSet<IpAddr> = world.fixed.values().map(|(_, address)| *address).collect();
        let mut short = BTreeSet::new();
        for node in (0..NODES).filter(|node| world.ports(*node)) {
            let (published, in_use) = (world.published(node), world.in_use(node));
            prop_assert!(published.is_superset(&in_use), "{}: {:?} of {:?}", name(node), in_use, published);
            prop_assert!(published.is_disjoint(&fixed));
            let free: BTreeSet<IpAddr> = world.free(node).into_iter().map(|held| held.address).collect();
            let chosen = world.chosen.values().map(|(held, _)| held).filter(|held| held.node == node);
            let chosen: BTreeSet<IpAddr> = chosen.map(|held| held.address).collect();
            prop_assert_eq!(&(&(&published - &in_use) - &chosen), &free, "the scheduler sees a whole pool");
            for subnet in &world.network.spec.subnets {
                if (&published - &in_use).iter().all(|address| !subnet.contains(*address)) {
                    short.insert((subnet.to_string(), name(node)));
                }
            }
        }
        let told = world.told.clone().expect("a condition");
        prop_assert_eq!(told.status == "False", !short.is_empty(), "{}: {:?}", told.message, short);
        if let Some((subnet, node)) = short.first() {
            prop_assert_eq!(told.reason.as_str(), "SubnetExhausted");
            prop_assert!(told.message.contains(subnet.as_str()), "{}", told.message);
            prop_assert!(short.len() > 3 || told.message.contains(node.as_str()), "{}", told.message);
        }

        // All goes: a node whose addresses are released has them free, and what is taken back comes to who had none.
        world.claims.clear();
        world.chosen.clear();
        world.fixed.clear();
        for node in 3..NODES {
            world.remove(node);
        }
        for _ in 0..15 {
            world.pass(STEP - 1);
            world.check()?;
        }
        world.settle();
        world.check()?;
        for node in (0..NODES).filter(|node| world.ports(*node)) {
            prop_assert!(world.free(node).len() >= 48, "{} has {}", name(node), world.free(node).len());
        }
        prop_assert_eq!(world.told.as_ref().map(|told| told.status.as_str()), Some("True"));
    }
}

#[test]
fn a_node_without_a_block_is_named_and_has_one_when_another_node_goes() {
    let mut world = World::new(network(&["10.0.0.0/24"], &[]));
    (0..5).for_each(|node| world.publish(node));
    world.settle();
    let told = world.told.clone().expect("a condition");
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", "SubnetExhausted"));
    assert_eq!(
        told.message,
        "10.0.0.0/24: no block is left for node n4, where no address is free; nodes have 4 of 4 blocks"
    );
    world.remove(2);
    for _ in 0..15 {
        world.pass(STEP - 1);
    }
    world.settle();
    assert_eq!(world.told.as_ref().map(|told| told.status.as_str()), Some("True"));
    let addresses = |hosts: std::ops::Range<u8>| hosts.map(|host| IpAddr::from([10, 0, 0, host])).collect();
    assert_eq!(world.published(4), addresses(128..192));
    assert_eq!(world.published(2), BTreeSet::new());
}

#[test]
fn one_node_s_change_is_written_to_that_node_s_slices_alone() {
    let mut world = World::new(network(&["10.0.0.0/16", "fd00::/64"], &[]));
    (0..NODES).for_each(|node| world.publish(node));
    world.settle();
    let versions = |world: &World| -> BTreeMap<String, Option<String>> {
        let slice = |slice: ResourceSlice| (slice.metadata.name, slice.metadata.resource_version);
        world
            .slices()
            .into_iter()
            .map(slice)
            .map(|(name, version)| (name.expect("a name"), version))
            .collect()
    };
    let before = versions(&world);
    assert_eq!(before.len(), 2 * NODES + 1, "a slice of ports and one of blocks for each, and the network's");
    // Claims that come and go within the block write nothing.
    world.choose(3, 40);
    world.bind(0);
    world.settle();
    world.release(10, 5);
    world.settle();
    assert_eq!(versions(&world), before);
    world.choose(3, 30);
    world.bind(0);
    world.settle();
    let after = versions(&world);
    let other: Vec<_> = after.iter().filter(|(name, version)| before.get(*name) != Some(version)).collect();
    let of = |name: &str| world.memory.state().slices[name].spec.node_name.clone();
    assert!(!other.is_empty());
    for (name, _) in other {
        assert!(matches!(of(name).as_deref(), Some("n3") | None), "{name}");
    }
    assert_eq!(world.published(3).len(), 3 * 64);
}

#[test]
fn who_takes_over_gives_on_no_block_whose_slices_are_gone() {
    let mut world = World::new(network(&["10.0.0.0/22"], &[]));
    (0..3).for_each(|node| world.publish(node));
    world.settle();
    let of_the_last = world.published(2);
    // The scheduler chooses an address of a node, whose kubelet takes its slices away; then another leads.
    world.choose(2, 1);
    world.wipe(2);
    world.elect(1);
    world.publish(3);
    world.settle();
    assert_eq!(world.published(2), BTreeSet::new());
    assert_eq!(world.published(3).len(), 64);
    assert!(world.published(3).is_disjoint(&of_the_last));
    // Now it is written down: the block is its node's, and stays.
    world.bind(0);
    world.publish(2);
    world.settle();
    assert_eq!(world.published(2), of_the_last);
    world.check().expect("nothing is held twice");
}
