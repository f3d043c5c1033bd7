//! Nodes, claims, a scheduler that is behind, and who may lead.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::{
    api::resource::v1::{Device, ResourcePool, ResourceSlice, ResourceSliceSpec},
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use netferry::{
    DRIVER_NAME,
    cluster::{Cluster, pools::Pools},
    link::MacAddr,
    network::{
        Network,
        block_pools::{BlockPools, uses},
        blocks::{condition::condition, ledger::Pace},
        facts::{ClaimFacts, PortFacts, Seen},
        members::MemberTable,
        names::{block_pool, device_address},
        published::{PublishedSlices, whole_slice},
        spec::AddressSource,
    },
    publish::publisher::PublishStats,
};
use proptest::prelude::*;

use crate::cluster::Memory;

pub(crate) const LEADERS: usize = 3;
pub(crate) const NODES: usize = 7;
/// A scheduler's view is no older, in seconds.
const VIEW: u64 = 300;
/// What it chose is written down after no longer, in seconds.
pub(crate) const BIND: u64 = 1_000;
/// Time passes in such steps, in seconds, and the leader's watch is no further behind.
pub(crate) const STEP: u64 = 200;

pub(crate) fn network(subnets: &[&str], gateways: &[&str]) -> Arc<Network> {
    let mut network = (*crate::network(subnets, gateways)).clone();
    network.spec.addresses = AddressSource::Blocks;
    Arc::new(network)
}

pub(crate) fn name(node: usize) -> String {
    format!("n{node}")
}

pub(crate) struct Leader {
    pools: BlockPools,
    seen: PublishedSlices,
    table: MemberTable,
}

/// What a claim has.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) node: usize,
    device: String,
    pub(crate) address: IpAddr,
}

pub(crate) struct World {
    pub(crate) memory: Arc<Memory>,
    pub(crate) network: Arc<Network>,
    leader: usize,
    leaders: Vec<Leader>,
    runtime: tokio::runtime::Runtime,
    start: Instant,
    seconds: u64,
    next: u32,
    /// Written down.
    pub(crate) claims: BTreeMap<u32, Held>,
    /// Chosen, and when.
    pub(crate) chosen: BTreeMap<u32, (Held, u64)>,
    pub(crate) fixed: BTreeMap<u32, (usize, IpAddr)>,
    /// What the scheduler sees, and since when.
    view: (Vec<ResourceSlice>, u64),
    pub(crate) told: Option<Condition>,
}

impl World {
    pub(crate) fn new(network: Arc<Network>) -> Self {
        let memory = Memory::new();
        let leader = |number: usize| Leader {
            pools: BlockPools::new(
                Arc::clone(&memory) as Arc<dyn Cluster>,
                Arc::clone(&memory) as Arc<dyn Pools>,
                DRIVER_NAME,
                Arc::new(PublishStats::default()),
            ),
            seen: PublishedSlices::default(),
            table: MemberTable::new(&format!("leader-{number}")),
        };
        let mut world = Self {
            leaders: (0..LEADERS).map(leader).collect(),
            leader: 0,
            network,
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
            start: Instant::now(),
            seconds: 0,
            next: 0,
            claims: BTreeMap::new(),
            chosen: BTreeMap::new(),
            fixed: BTreeMap::new(),
            view: (Vec::new(), 0),
            told: None,
            memory,
        };
        world.elect(0);
        world
    }

    /// The slices that are there.
    pub(crate) fn slices(&self) -> Vec<ResourceSlice> {
        self.memory.state().slices.values().cloned().collect()
    }

    pub(crate) fn ports(&self, node: usize) -> bool {
        let node = name(node);
        self.slices().iter().any(|slice| slice.spec.pool.name == node)
    }

    /// A node publishes its ports.
    pub(crate) fn publish(&mut self, node: usize) {
        if self.ports(node) {
            return;
        }
        let node = name(node);
        let spec = ResourceSliceSpec {
            driver: DRIVER_NAME.to_owned(),
            node_name: Some(node.clone()),
            pool: ResourcePool { name: node.clone(), generation: 1, resource_slice_count: 1 },
            devices: Some(vec![Device { name: "port-blue".to_owned(), ..Device::default() }]),
            ..ResourceSliceSpec::default()
        };
        let metadata = ObjectMeta { generate_name: Some(format!("00000-{node}-")), ..ObjectMeta::default() };
        let slice = ResourceSlice { metadata, spec };
        let faults = std::mem::take(&mut self.memory.state().faults);
        self.runtime.block_on(self.memory.create_slice(&slice)).expect("created");
        self.memory.state().faults = faults;
    }

    /// The kubelet of a node takes its slices away.
    pub(crate) fn wipe(&self, node: usize) {
        let node = name(node);
        self.memory.state().slices.retain(|_, slice| slice.spec.node_name.as_deref() != Some(&node));
    }

    /// A node is gone, with its pods. Its own slices go, too; those of its blocks are the network's.
    pub(crate) fn remove(&mut self, node: usize) {
        self.claims.retain(|_, held| held.node != node);
        self.chosen.retain(|_, (held, _)| held.node != node);
        self.fixed.retain(|_, (on, _)| *on != node);
        let node = name(node);
        self.memory.state().slices.retain(|_, slice| slice.spec.pool.name != node);
    }

    /// A node's free devices in the scheduler's eyes.
    pub(crate) fn free(&self, node: usize) -> Vec<Held> {
        let pool = block_pool("blue", &name(node)).expect("a name");
        let of_pool = |slice: &&ResourceSlice| slice.spec.pool.name == pool;
        let newest = self.view.0.iter().filter(of_pool).map(|slice| slice.spec.pool.generation).max();
        let slices: Vec<_> = self
            .view
            .0
            .iter()
            .filter(of_pool)
            .filter(|slice| Some(slice.spec.pool.generation) == newest)
            .collect();
        let count = slices.first().map_or(0, |slice| slice.spec.pool.resource_slice_count);
        let has_port = self.view.0.iter().any(|slice| slice.spec.pool.name == name(node));
        if !has_port || usize::try_from(count) != Ok(slices.len()) {
            return Vec::new();
        }
        let held = self.claims.values().chain(self.chosen.values().map(|(held, _)| held));
        let taken: BTreeSet<&str> =
            held.filter(|held| held.node == node).map(|held| held.device.as_str()).collect();
        let devices = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
        devices
            .filter(|device| !taken.contains(device.name.as_str()))
            .map(|device| {
                let attributes = device.attributes.as_ref().expect("attributes");
                let text = attributes["address"].string.as_ref().expect("a string");
                let address = text.parse::<IpNetwork>().expect("a prefix").ip();
                assert_eq!(device_address(&device.name), Some(address));
                Held { node, device: device.name.clone(), address }
            })
            .collect()
    }

    pub(crate) fn choose(&mut self, node: usize, count: usize) {
        for held in self.free(node).into_iter().take(count) {
            self.chosen.insert(self.next, (held, self.seconds));
            self.next += 1;
        }
    }

    /// Write down what was chosen so long ago. The prepare of a claim refuses an address that another one fixes.
    pub(crate) fn bind(&mut self, age: u64) {
        let due: Vec<u32> = self
            .chosen
            .iter()
            .filter(|(_, (_, at))| at + age <= self.seconds)
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            let Some((held, _)) = self.chosen.remove(&number) else { continue };
            if self.fixed.values().all(|(_, address)| *address != held.address) {
                self.claims.insert(number, held);
            }
        }
    }

    pub(crate) fn release(&mut self, from: usize, count: usize) {
        let gone: Vec<u32> = self.claims.keys().skip(from).take(count).copied().collect();
        self.claims.retain(|number, _| !gone.contains(number));
    }

    /// A claim fixes an address. Prepare refuses one that somebody has.
    pub(crate) fn fix(&mut self, node: usize, host: u8) {
        let address = IpAddr::from([10, 0, 0, host]);
        let held = self.claims.values().map(|held| held.address);
        if held.chain(self.fixed.values().map(|(_, address)| *address)).all(|it| it != address) {
            self.fixed.insert(self.next, (node, address));
            self.next += 1;
        }
    }

    pub(crate) fn refresh(&mut self) {
        self.view = (self.slices(), self.seconds);
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.deliver_claims();
        self.deliver_slices();
        self.round();
        self.seconds += seconds;
        if self.view.1 + VIEW < self.seconds + STEP {
            self.refresh();
        }
        self.bind(BIND - STEP);
    }

    pub(crate) fn facts(&self) -> Vec<ClaimFacts> {
        let facts = |number: &u32, node: usize, fixed: Option<IpAddr>, given: Option<IpAddr>| ClaimFacts {
            pod: None,
            uid: format!("00000000-0000-4000-8000-{number:012x}"),
            name: format!("a/c{number}"),
            version: 0,
            since: 0,
            block_node: given.map(|_| name(node)),
            ports: vec![PortFacts {
                network: "blue".to_owned(),
                node: name(node),
                told: fixed.map(|address| (MacAddr([2, 0, 0, 0, 0, 1]), vec![address])),
            }],
            addresses: given.into_iter().map(|address| ("blue".to_owned(), address)).collect(),
        };
        let held =
            self.claims.iter().map(|(number, held)| facts(number, held.node, None, Some(held.address)));
        held.chain(
            self.fixed.iter().map(|(number, (node, address))| facts(number, *node, Some(*address), None)),
        )
        .collect()
    }

    /// The leader's watch over claims catches up.
    pub(crate) fn deliver_claims(&mut self) {
        let facts = self.facts();
        let table = &mut self.leaders[self.leader].table;
        table.apply(Seen::Listing);
        for facts in facts {
            table.apply(Seen::Is(facts));
        }
        table.apply(Seen::Listed);
    }

    /// The leader's watch over slices catches up.
    pub(crate) fn deliver_slices(&mut self) {
        let slices = self.slices();
        let seen = &mut self.leaders[self.leader].seen;
        seen.apply(Seen::Listing);
        for slice in &slices {
            seen.apply(Seen::Is(whole_slice(slice)));
        }
        seen.apply(Seen::Listed);
    }

    /// Another one leads. It knows nothing but what it lists now.
    pub(crate) fn elect(&mut self, leader: usize) {
        self.leader = leader;
        self.leaders[leader].pools.reset();
        self.deliver_claims();
        self.deliver_slices();
    }

    /// One round of the leader. Returns whether all was written.
    pub(crate) fn round(&mut self) -> bool {
        let now = self.start + Duration::from_secs(self.seconds);
        let leader = &mut self.leaders[self.leader];
        let networks = [Arc::clone(&self.network)];
        let uses = uses(&leader.table, &networks);
        let round = self.runtime.block_on(leader.pools.round(&networks, &leader.seen, &uses, now, &|| true));
        let at = Timestamp::from_second(i64::try_from(self.seconds).expect("seconds")).expect("a time");
        let quarantine = Pace::default().quarantine;
        if let Some(outcome) = round.outcomes.get("blue") {
            self.told = Some(condition(outcome, quarantine, self.told.as_ref(), at));
        }
        round.failed.is_none()
    }

    /// Everything heals, and time enough passes for every pool to be as it is to be.
    pub(crate) fn settle(&mut self) {
        self.memory.state().faults.clear();
        for _ in 0..4 {
            self.pass(10);
            assert!(self.round(), "nothing fails");
        }
        self.refresh();
    }

    pub(crate) fn published(&self, node: usize) -> BTreeSet<IpAddr> {
        let pool = block_pool("blue", &name(node)).expect("a name");
        let slices = self.slices().into_iter().filter(|slice| slice.spec.pool.name == pool);
        let devices = slices.flat_map(|slice| slice.spec.devices.unwrap_or_default());
        devices.filter_map(|device| device_address(&device.name)).collect()
    }

    pub(crate) fn in_use(&self, node: usize) -> BTreeSet<IpAddr> {
        self.claims.values().filter(|held| held.node == node).map(|held| held.address).collect()
    }

    pub(crate) fn check(&self) -> Result<(), TestCaseError> {
        let mut addresses = BTreeSet::new();
        for held in self.claims.values() {
            prop_assert!(addresses.insert(held.address), "{} is held twice: {:?}", held.address, self.claims);
        }
        for (_, address) in self.fixed.values() {
            prop_assert!(addresses.insert(*address), "{address} is held and fixed");
        }
        let mut of_block: BTreeMap<IpNetwork, usize> = BTreeMap::new();
        for node in 0..NODES {
            for address in self.published(node) {
                let bits = if address.is_ipv4() { 26 } else { 122 };
                let whole = IpNetwork::new(address, bits).expect("a prefix");
                let block = IpNetwork::new(whole.network(), bits).expect("a prefix");
                let owner = *of_block.entry(block).or_insert(node);
                prop_assert_eq!(owner, node, "{} is published by two", block);
                prop_assert!(!self.network.spec.gateways.contains(&address));
                let usable = netferry::network::addresses::subnets(&self.network.spec)
                    .iter()
                    .any(|subnet| subnet.number(address).and_then(|number| subnet.address(number)).is_some());
                prop_assert!(usable, "{} is nobody's to have", address);
            }
        }
        Ok(())
    }
}
