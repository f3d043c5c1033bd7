//! Gives blocks of addresses to nodes and publishes them, as long as this node is the elected one.
//!
//! What the cluster has comes by a watch; a pool is read again only when it is to be written. So one node's change is
//! that node's slices: a list of them and what is other.

mod lead;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use k8s_openapi::{
    api::resource::v1::{ResourcePool, ResourceSlice, ResourceSliceSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use tracing::{debug, info};

use super::{
    Network, addresses,
    blocks::{
        Content, Uses,
        condition::Outcome,
        ledger::{Ledger, Pace, Step},
        slices::{Place, slices},
    },
    names::{address_pool, block_pool},
    published::{self, BlockPool, PublishedSlices},
    window::Subnet,
};
use crate::{
    cluster::{Cluster, ClusterError, pools::Pools},
    publish::{publisher::PublishStats, writer::PoolWriter},
};

/// Pools that are written at a time.
const AT_ONCE: usize = 16;
/// The watch may tell of a write this much later. Until then nothing is written again because of what it shows.
const ECHO: Duration = Duration::from_secs(5);

pub use lead::uses;

/// Gives and writes blocks.
pub struct BlockPools {
    cluster: Arc<dyn Cluster>,
    pools: Arc<dyn Pools>,
    driver: String,
    stats: Arc<PublishStats>,
    pace: Pace,
    networks: BTreeMap<String, OfNetwork>,
}

/// What claims have, by network.
pub type AllUses = BTreeMap<String, Uses>;

struct OfNetwork {
    network: Arc<Network>,
    subnets: Vec<Subnet>,
    ledger: Ledger,
    pools: BTreeMap<Arc<str>, Kept>,
    /// The marks on record, and when they were written.
    marks: (Vec<u128>, Option<Instant>),
}

/// A node's pool, as this process knows it.
struct Kept {
    writer: PoolWriter,
    /// What was written, and when; `None` if it has to be looked at.
    written: Option<(Content, Instant)>,
}

/// A pool that is to be written.
struct Due {
    node: Arc<str>,
    content: Content,
    kept: Kept,
}

/// What a round came to.
#[derive(Debug, Default)]
pub struct Round {
    /// By network.
    pub outcomes: BTreeMap<String, Outcome>,
    /// The last error. It does not keep other pools from being written.
    pub failed: Option<ClusterError>,
}

impl BlockPools {
    /// Blocks that are written through `cluster`, and read by `pools`.
    #[must_use]
    pub fn new(
        cluster: Arc<dyn Cluster>,
        pools: Arc<dyn Pools>,
        driver: &str,
        stats: Arc<PublishStats>,
    ) -> Self {
        let (driver, pace) = (driver.to_owned(), Pace::default());
        Self { cluster, pools, driver, stats, pace, networks: BTreeMap::new() }
    }

    /// Forget everything: another may have given blocks since.
    pub fn reset(&mut self) {
        self.networks.clear();
    }

    /// Look at what is in use and published, give and take blocks, and write the pools that are to be other. Nothing more
    /// is written once `leads` says no.
    pub async fn round(
        &mut self,
        networks: &[Arc<Network>],
        seen: &PublishedSlices,
        uses: &AllUses,
        now: Instant,
        leads: &(dyn Fn() -> bool + Sync),
    ) -> Round {
        let mut round = Round::default();
        let nothing = Uses::default();
        for network in networks {
            let name = &network.reference.name;
            let uses = uses.get(name).unwrap_or(&nothing);
            let mut of = match self.networks.remove(name) {
                Some(of) if of.network.reference == network.reference => of,
                // One that was made again is another network, and may find the pools of the former one.
                _ => self.take_over(network, seen, uses, now),
            };
            of.network = Arc::clone(network);
            of.subnets = addresses::subnets(&network.spec);
            of.ledger.set_subnets(of.subnets.clone());
            let (mut ports, mut unnamed) = (BTreeSet::new(), BTreeSet::new());
            for node in seen.ports(name) {
                let named = block_pool(name, &node).is_some();
                if named { &mut ports } else { &mut unnamed }.insert(node);
            }
            let published = seen.blocks(name, &of.subnets);
            of.ledger.see(published.iter().map(|(node, pool)| (node, &pool.content)), now);
            let step = of.ledger.step(uses, &ports, now);
            match self.record(&mut of, seen, &step, now, leads).await {
                Ok(()) => {
                    let due = self.due(&mut of, &published, &step, &ports, now);
                    round.failed = self.publish(&mut of, due, now, leads).await.or(round.failed);
                }
                // What is not on record must not be published.
                Err(error) => round.failed = Some(error),
            }
            round.outcomes.insert(name.clone(), Outcome { subnets: of.subnets.clone(), step, unnamed });
            self.networks.insert(name.clone(), of);
        }
        let named: BTreeSet<&str> = networks.iter().map(|network| network.reference.name.as_str()).collect();
        let gone: Vec<String> =
            self.networks.keys().filter(|name| !named.contains(name.as_str())).cloned().collect();
        for name in gone {
            if let Err(error) = self.withdraw(&name, seen, now, leads).await {
                round.failed = Some(error);
            }
        }
        round
    }

    fn take_over(
        &self,
        network: &Arc<Network>,
        seen: &PublishedSlices,
        uses: &Uses,
        now: Instant,
    ) -> OfNetwork {
        let subnets = addresses::subnets(&network.spec);
        let name = &network.reference.name;
        let published = seen.blocks(name, &subnets);
        let contents = published.into_iter().map(|(node, pool)| (node, pool.content)).collect();
        let marks = seen.marks(name, &subnets);
        let ledger = Ledger::take_over(subnets.clone(), &contents, marks.as_deref(), uses, self.pace, now);
        let marks = marks.unwrap_or_else(|| vec![0; subnets.len()]);
        OfNetwork {
            network: Arc::clone(network),
            subnets,
            ledger,
            pools: BTreeMap::new(),
            marks: (marks, None),
        }
    }

    /// Have on record how far blocks were given, before they are published.
    async fn record(
        &self,
        of: &mut OfNetwork,
        seen: &PublishedSlices,
        step: &Step,
        now: Instant,
        leads: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), ClusterError> {
        let enough = |marks: &[u128]| marks.iter().zip(&step.marks).all(|(mark, wanted)| mark >= wanted);
        let name = &of.network.reference.name;
        let fresh = of.marks.1.is_some_and(|at| now.saturating_duration_since(at) < ECHO);
        let there = fresh || seen.marks(name, &of.subnets).is_some_and(|marks| enough(&marks));
        if step.marks.iter().all(|mark| *mark == 0) || (enough(&of.marks.0) && there) || !leads() {
            return Ok(());
        }
        // Some way ahead, so that not each block is two writes.
        let ahead = step.marks.iter().zip(&of.subnets).map(|(mark, subnet)| {
            let most = super::blocks::blocks(subnet);
            mark.saturating_add(mark / 8).min(most)
        });
        let marks: Vec<u128> = ahead.zip(&of.marks.0).map(|(mark, before)| mark.max(*before)).collect();
        let given = published::given(&of.subnets, &marks);
        let pool = address_pool(name);
        let all = self.pools.pool_slices().await?;
        let ours = |slice: &&ResourceSlice| {
            slice.spec.driver == self.driver && slice.spec.node_name.is_none() && slice.spec.pool.name == pool
        };
        let owner = addresses::owner(&of.network);
        if let Some(slice) = all.iter().find(ours) {
            let metadata = published::with_marks(slice.metadata.clone(), &given, owner);
            if metadata != slice.metadata {
                self.cluster.update_slice(&ResourceSlice { metadata, ..slice.clone() }).await?;
            }
        } else {
            let prefix = format!("00000-{}-{}-", self.driver, pool.replace('/', "."));
            let metadata = ObjectMeta { generate_name: Some(prefix), ..ObjectMeta::default() };
            let spec = ResourceSliceSpec {
                driver: self.driver.clone(),
                all_nodes: Some(true),
                pool: ResourcePool { name: pool, generation: 1, resource_slice_count: 1 },
                devices: Some(Vec::new()),
                ..ResourceSliceSpec::default()
            };
            let metadata = published::with_marks(metadata, &given, owner);
            self.cluster.create_slice(&ResourceSlice { metadata, spec }).await?;
        }
        debug!(network = name, given, "blocks of addresses");
        of.marks = (marks, Some(now));
        Ok(())
    }

    /// The pools that are other than they are to be.
    fn due(
        &self,
        of: &mut OfNetwork,
        published: &BTreeMap<Arc<str>, BlockPool>,
        step: &Step,
        ports: &BTreeSet<Arc<str>>,
        now: Instant,
    ) -> Vec<Due> {
        let nodes = published.keys().chain(step.content.keys()).chain(of.pools.keys());
        let nodes: BTreeSet<Arc<str>> = nodes.cloned().collect();
        let (nothing, none) = (BlockPool { whole: true, ..BlockPool::default() }, Content::new());
        let mut due = Vec::new();
        for node in nodes {
            let there = published.get(&node).unwrap_or(&nothing);
            let mut content = step.content.get(&node).unwrap_or(&none).clone();
            if !ports.contains(&node) {
                // The kubelet of a node takes its slices away when the driver is not there. Nobody can use them then.
                content.retain(|block, mask| {
                    *mask &= there.content.get(block).copied().unwrap_or(0);
                    *mask != 0
                });
            }
            let kept = of.pools.remove(&node);
            let unsettled = kept.as_ref().is_some_and(|kept| kept.written.is_none());
            let echo = kept.as_ref().and_then(|kept| kept.written.as_ref()).is_some_and(|(written, at)| {
                *written == content && now.saturating_duration_since(*at) < ECHO
            });
            let as_it_should_be = there.whole && there.content == content;
            if !unsettled && (as_it_should_be || echo) {
                if let Some(kept) = kept.filter(|_| !content.is_empty() || echo) {
                    of.pools.insert(node, kept);
                }
                continue;
            }
            let kept = kept.unwrap_or_else(|| self.kept());
            due.push(Due { node, content, kept });
        }
        due
    }

    /// Write pools, several at a time. Returns the last error.
    async fn publish(
        &self,
        of: &mut OfNetwork,
        due: Vec<Due>,
        now: Instant,
        leads: &(dyn Fn() -> bool + Sync),
    ) -> Option<ClusterError> {
        let (network, subnets) = (Arc::clone(&of.network), of.subnets.clone());
        let (this, network, subnets) = (self, &*network, &*subnets);
        let mut writes = stream::iter(due)
            .map(|due| async move { this.write(network, subnets, due, now, leads).await })
            .buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some((node, kept, error)) = writes.next().await {
            failed = error.or(failed);
            of.pools.insert(node, kept);
        }
        failed
    }

    fn kept(&self) -> Kept {
        let writer = PoolWriter::new(Arc::clone(&self.cluster), Arc::clone(&self.stats));
        Kept { writer, written: None }
    }

    /// Write one node's pool.
    async fn write(
        &self,
        network: &Network,
        subnets: &[Subnet],
        due: Due,
        now: Instant,
        leads: &(dyn Fn() -> bool + Sync),
    ) -> (Arc<str>, Kept, Option<ClusterError>) {
        let Due { node, content, mut kept } = due;
        kept.written = None;
        let Some(pool) = block_pool(&network.reference.name, &node) else { return (node, kept, None) };
        let current = match self.pools.slices_of_node(&node).await {
            Ok(slices) => slices,
            Err(error) => return (node, kept, Some(error)),
        };
        // Whatever a server answers: never touch what is not ours.
        let ours = |slice: &ResourceSlice| {
            slice.spec.driver == self.driver
                && slice.spec.node_name.as_deref() == Some(&*node)
                && slice.spec.pool.name == pool
        };
        let current: Vec<ResourceSlice> = current.into_iter().filter(ours).collect();
        let place =
            Place { network: &network.reference.name, node: &node, pool: &pool, driver: &self.driver };
        let desired = slices(subnets, &content, &place);
        if !leads() {
            return (node, kept, None);
        }
        let owner = addresses::owner(network);
        let error = match kept.writer.write(&current, &desired, owner.as_ref()).await {
            Ok(outcome) => {
                if outcome.changed {
                    let (network, blocks) = (&network.reference.name, content.len());
                    info!(network, node = &*node, blocks, "published a node's blocks of addresses");
                }
                kept.written = Some((content, now));
                None
            }
            Err(error) => Some(error),
        };
        (node, kept, error)
    }

    /// Take the pools of a network away that is gone. (Deleted while nobody leads, it takes its slices with it: it owns
    /// them.)
    async fn withdraw(
        &mut self,
        name: &str,
        seen: &PublishedSlices,
        now: Instant,
        leads: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), ClusterError> {
        let Some(mut of) = self.networks.remove(name) else { return Ok(()) };
        let nodes: BTreeSet<Arc<str>> =
            seen.blocks(name, &of.subnets).into_keys().chain(of.pools.keys().cloned()).collect();
        let mut failed = None;
        for node in nodes {
            let kept = of.pools.remove(&node).unwrap_or_else(|| self.kept());
            let due = Due { node, content: Content::new(), kept };
            let (node, kept, error) = self.write(&of.network, &of.subnets, due, now, leads).await;
            if error.is_some() {
                of.pools.insert(node, kept);
                failed = error;
            }
        }
        if failed.is_none() && leads() {
            let pool = address_pool(name);
            let ours = |slice: &&ResourceSlice| {
                slice.spec.driver == self.driver
                    && slice.spec.node_name.is_none()
                    && slice.spec.pool.name == pool
                    && slice.metadata.annotations.iter().flatten().any(|(key, _)| key == published::GIVEN)
            };
            for slice in self.pools.pool_slices().await?.iter().filter(ours) {
                self.cluster.delete_slice(slice.metadata.name.as_deref().unwrap_or_default()).await?;
            }
            return Ok(());
        }
        self.networks.insert(name.to_owned(), of);
        failed.map_or(Ok(()), Err)
    }
}
