//! Addresses under churn: claims come and go, leaders change, calls fail, views are old, windows move.

mod blocks;
mod cluster;
mod election;
mod server;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::{Fault, Memory};
use jiff::Timestamp;
use netferry::{
    DRIVER_NAME,
    cluster::{Cluster, lease::Leases, pools::Pools},
    network::{
        Network, NetworkRef,
        addresses::{self, AddressPool},
        facts::Seen,
        leader::{ADDRESSES, Candidate, Step, Timing},
        members::MemberTable,
        pools::AddressPools,
        spec::{AddressSource, NetworkSpec, Transport},
    },
    publish::publisher::PublishStats,
};
use proptest::prelude::*;

const NODES: usize = 3;

fn network(subnets: &[&str], gateways: &[&str]) -> Arc<Network> {
    Arc::new(Network {
        reference: NetworkRef { name: "blue".to_owned(), uid: "u-1".to_owned() },
        id: 1,
        spec: NetworkSpec {
            subnets: subnets.iter().map(|subnet| subnet.parse().expect("a prefix")).collect(),
            gateways: gateways.iter().map(|gateway| gateway.parse().expect("an address")).collect(),
            mtu: None,
            addresses: AddressSource::Allocated,
            transport: Transport::default(),
            namespace_selector: None,
            policy: None,
            limits: None,
        },
    })
}

/// A node that may lead.
struct Node {
    candidate: Candidate,
    pools: AddressPools,
    table: MemberTable,
    /// The change of claims up to which it has seen them.
    seen: u64,
}

struct World {
    memory: Arc<Memory>,
    network: Arc<Network>,
    nodes: Vec<Node>,
    runtime: tokio::runtime::Runtime,
    start: Instant,
    seconds: u64,
    /// Counts the changes of claims.
    changes: u64,
    next: u32,
}

impl World {
    fn new(network: Arc<Network>) -> Self {
        let memory = Memory::new();
        let node = |number: usize| Node {
            candidate: Candidate::new(ADDRESSES, &format!("n{number}"), Timing::default()),
            pools: AddressPools::new(
                Arc::clone(&memory) as Arc<dyn Cluster>,
                Arc::clone(&memory) as Arc<dyn Pools>,
                DRIVER_NAME,
                Arc::new(PublishStats::default()),
            ),
            table: MemberTable::new(&format!("n{number}")),
            seen: 0,
        };
        Self {
            nodes: (0..NODES).map(node).collect(),
            network,
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
            start: Instant::now(),
            seconds: 0,
            changes: 1,
            next: 0,
            memory,
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs(self.seconds)
    }

    fn clock(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + i64::try_from(self.seconds).expect("seconds")).expect("a time")
    }

    fn claim(&mut self, count: u32) {
        for _ in 0..count {
            self.memory.state().claims.insert(self.next, None);
            self.next += 1;
        }
        self.schedule();
    }

    fn schedule(&mut self) {
        self.memory.state().schedule();
        self.changes += 1;
    }

    /// Delete claims, counted from the oldest.
    fn release(&mut self, from: usize, count: usize) {
        let mut state = self.memory.state();
        let gone: Vec<u32> = state.claims.keys().skip(from).take(count).copied().collect();
        state.claims.retain(|number, _| !gone.contains(number));
        drop(state);
        self.changes += 1;
    }

    /// A claim fixes an address. Prepare refuses one that somebody has.
    fn fix(&mut self, host: u8) {
        let mut state = self.memory.state();
        let address = IpAddr::from([10, 0, 0, host]);
        if !state.allocated().contains(&address) && !state.fixed.values().any(|fixed| *fixed == address) {
            let number = self.next;
            self.next += 1;
            state.fixed.insert(number, address);
        }
        drop(state);
        self.changes += 1;
    }

    /// The node's watch catches up.
    fn deliver(&mut self, node: usize) {
        let facts = self.memory.state().facts();
        let node = &mut self.nodes[node];
        node.table.apply(Seen::Listing);
        for facts in facts {
            node.table.apply(Seen::Is(facts));
        }
        node.table.apply(Seen::Listed);
        node.seen = self.changes;
    }

    fn elect(&mut self, node: usize) {
        let (now, clock) = (self.now(), self.clock());
        let memory = Arc::clone(&self.memory);
        let candidate = &mut self.nodes[node].candidate;
        self.runtime.block_on(async {
            let lease = memory.lease(ADDRESSES).await.expect("reading does not fail here");
            if let Step::Write(lease) = candidate.look(lease.as_ref(), now, clock)
                && let Ok(written) = memory.write_lease(&lease).await
            {
                candidate.won(&written, now);
            }
        });
    }

    fn leads(&self, node: usize) -> bool {
        self.nodes[node].candidate.leads(self.now())
    }

    /// One round of a node that leads and knows the claims.
    fn sync(&mut self, number: usize) -> Option<AddressPool> {
        let leads = self.leads(number);
        let node = &mut self.nodes[number];
        if !leads || !node.table.has_claims() {
            return None;
        }
        self.memory.state().fresh = node.seen == self.changes;
        let in_use = node.table.in_use(["blue"]);
        let networks = [Arc::clone(&self.network)];
        let done = self.runtime.block_on(node.pools.sync(&networks, &in_use, || true));
        self.memory.state().fresh = false;
        done.ok().and_then(|mut pools| pools.remove("blue"))
    }

    /// Everything heals: one node is elected, knows all, and publishes.
    fn settle(&mut self) -> AddressPool {
        self.memory.state().faults.clear();
        for _ in 0..10 {
            for node in 0..NODES {
                self.elect(node);
            }
            if let Some(leader) = (0..NODES).find(|node| self.leads(*node)) {
                for _ in 0..5 {
                    self.deliver(leader);
                    if let Some(pool) = self.sync(leader) {
                        return pool;
                    }
                }
            }
            self.seconds += 30;
        }
        panic!("nobody publishes");
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let leaders = (0..NODES).filter(|node| self.leads(*node)).count();
        prop_assert!(leaders <= 1, "{leaders} leaders");
        let state = self.memory.state();
        prop_assert!(state.wrong.is_empty(), "{:?}", state.wrong);
        let allocated = state.allocated();
        let distinct: BTreeSet<_> = allocated.iter().collect();
        prop_assert_eq!(distinct.len(), allocated.len(), "an address is allocated twice: {:?}", allocated);
        let subnets = addresses::subnets(&self.network.spec);
        for address in allocated {
            let usable = subnets
                .iter()
                .any(|subnet| subnet.number(address).and_then(|number| subnet.address(number)).is_some());
            prop_assert!(usable, "{} is nobody's to have", address);
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Claim(u32),
    Schedule,
    Release(usize, usize),
    Fix(u8),
    Deliver(usize),
    Elect(usize),
    /// Catch up and publish at once, as a node whose watch is quick does it.
    Publish(usize),
    Sync(usize),
    Pass(u64),
    Fail(Fault),
}

fn op() -> impl Strategy<Value = Op> {
    let fault = prop_oneof![Just(Fault::None), Just(Fault::Unavailable), Just(Fault::Lost)];
    prop_oneof![
        4 => (1_u32..60).prop_map(Op::Claim),
        3 => Just(Op::Schedule),
        3 => (0_usize..200, 1_usize..120).prop_map(|(from, count)| Op::Release(from, count)),
        1 => (0_u8..40).prop_map(Op::Fix),
        2 => (0..NODES).prop_map(Op::Deliver),
        6 => (0..NODES).prop_map(Op::Elect),
        6 => (0..NODES).prop_map(Op::Publish),
        3 => (0..NODES).prop_map(Op::Sync),
        3 => (1_u64..80).prop_map(Op::Pass),
        2 => fault.prop_map(Op::Fail),
    ]
}

fn subnets() -> impl Strategy<Value = Arc<Network>> {
    prop_oneof![
        Just(network(&["10.0.0.0/27"], &["10.0.0.1"])),
        Just(network(&["10.0.0.0/24"], &["10.0.0.254"])),
        Just(network(&["10.0.0.0/16"], &[])),
        Just(network(&["10.0.0.0/28", "fd00::/64"], &["10.0.0.1", "fd00::1"])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_given_twice_or_taken_away(
        network in subnets(),
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let mut world = World::new(network);
        for op in ops {
            match op {
                Op::Claim(count) => world.claim(count),
                Op::Schedule => world.schedule(),
                Op::Release(from, count) => world.release(from, count),
                Op::Fix(host) => world.fix(host),
                Op::Deliver(node) => world.deliver(node),
                Op::Elect(node) => world.elect(node),
                Op::Publish(node) => {
                    world.deliver(node);
                    world.sync(node);
                }
                Op::Sync(node) => drop(world.sync(node)),
                Op::Pass(seconds) => world.seconds += seconds,
                Op::Fail(fault) => world.memory.state().faults.push_back(fault),
            }
            world.check()?;
        }

        // When all is quiet: what is in use is published, what is fixed is not, and nobody waits while there is room.
        for _ in 0..20 {
            world.settle();
            world.schedule();
            world.check()?;
        }
        let pool = world.settle();
        let (there, allocated, fixed, waiting) = {
            let state = world.memory.state();
            let there: BTreeSet<IpAddr> = state.pool().expect("a whole pool").into_values().collect();
            let allocated: BTreeSet<IpAddr> = state.allocated().into_iter().collect();
            let fixed: BTreeSet<IpAddr> = state.fixed.values().copied().collect();
            (there, allocated, fixed, state.claims.values().filter(|given| given.is_none()).count())
        };
        prop_assert!(there.is_superset(&allocated));
        prop_assert!(there.is_disjoint(&(&fixed - &allocated)));
        let condition = addresses::condition(&pool, None, Timestamp::UNIX_EPOCH);
        let exhausted = pool.windows.iter().any(|(_, window)| window.free == 0);
        prop_assert_eq!(condition.status == "False", exhausted);
        if waiting > 0 {
            // Somebody waits: then nothing at all is free, and that is said.
            prop_assert_eq!((there.len(), condition.reason.as_str()), (allocated.len(), "SubnetExhausted"));
            // What is released is given to who waits, at once: it never left the pool.
            let given = world.memory.state().claims.iter().find_map(|(number, given)| Some((*number, given.clone()?)));
            if let Some((number, (device, _))) = given {
                world.memory.state().claims.remove(&number);
                world.schedule();
                world.check()?;
                let state = world.memory.state();
                prop_assert!(state.claims.values().flatten().any(|(taken, _)| *taken == device));
            }
        }
    }
}

#[test]
fn a_full_subnet_says_so_and_what_is_released_can_be_had_again() {
    let mut world = World::new(network(&["10.0.0.0/28"], &["10.0.0.1"]));
    world.settle();
    world.claim(14);
    let pool = world.settle();
    let condition = addresses::condition(&pool, None, Timestamp::UNIX_EPOCH);
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "SubnetExhausted"));
    assert_eq!(condition.message, "no address is left; 10.0.0.0/28: 13 in use, 0 free in the pool");
    let waiting =
        |world: &World| world.memory.state().claims.values().filter(|given| given.is_none()).count();
    assert_eq!(waiting(&world), 1);
    world.release(4, 1);
    world.schedule();
    assert_eq!(waiting(&world), 0);
    world.release(0, 1);
    let healed = addresses::condition(&world.settle(), Some(&condition), Timestamp::UNIX_EPOCH);
    assert_eq!(healed.status, "True");
}

#[test]
fn a_large_network_grows_and_shrinks_and_writes_little() {
    let mut world = World::new(network(&["fd00::/64"], &["fd00::1"]));
    world.settle();
    let size = |world: &World| world.memory.state().pool().expect("a whole pool").len();
    assert_eq!(size(&world), 128);
    let mut rounds = 0;
    world.claim(2_000);
    while world.memory.state().claims.values().any(Option::is_none) {
        world.settle();
        world.schedule();
        rounds += 1;
        assert!(rounds < 30, "the window does not keep up");
    }
    world.settle();
    assert!((2_064..=2_800).contains(&size(&world)), "{}", size(&world));
    world.release(0, 1_990);
    world.settle();
    assert!(size(&world) <= 138, "{}", size(&world));
    assert_eq!(world.memory.state().allocated().len(), 10);
    world.check().expect("ten addresses are in use, and published");
    // A claim that comes and goes within the window writes nothing.
    let versions = |world: &World| -> Vec<_> {
        let state = world.memory.state();
        state.slices.values().map(|slice| slice.metadata.resource_version.clone()).collect()
    };
    let before = versions(&world);
    world.claim(3);
    world.settle();
    world.release(10, 2);
    world.settle();
    assert_eq!(versions(&world), before);
}
