//! What a node shares with the others: it follows their members, and one of them publishes addresses.

use std::{
    pin::Pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Networks,
    block_pools::BlockPools,
    conditions::{Conditions, Told},
    demand::{Demand, PortsHere},
    follow::{Follow, FollowOptions, FollowStats, Members, SharedTable},
    in_use::InUse,
    leader::{self, ADDRESSES, Candidate, Timing},
    pools::{AddressPools, PoolOptions},
    report,
    watch::Counts,
};
use crate::{
    cluster::{Cluster, WholeCluster, watch::Watch},
    publish::publisher::PublishStats,
};

/// How often the elected node sums up what nodes report.
const SUM: Duration = Duration::from_secs(5);

/// What it is made of.
pub struct Sharing {
    /// The cluster.
    pub cluster: Arc<dyn WholeCluster>,
    /// The networks that are known.
    pub networks: Arc<Networks>,
    /// Who has which address.
    pub table: SharedTable,
    /// The node's map of members.
    pub members: Arc<dyn Members>,
    /// Which networks have ports on this node.
    pub ports: PortsHere,
    /// Counters of what is followed.
    pub stats: Arc<FollowStats>,
    /// The driver.
    pub driver: String,
    /// This node, and its identity in the election.
    pub node: String,
}

/// A part that runs until it is told to stop.
pub type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Its parts, each to be run as a task.
pub struct SharingParts {
    /// Follows members on other nodes.
    pub follow: Running,
    /// Stands for election.
    pub election: Running,
    /// Publishes addresses while elected.
    pub addresses: Running,
    /// Gives blocks of addresses to nodes while elected.
    pub blocks: Running,
    /// Reports what is in force on this node.
    pub report: Running,
    /// Keeps networks that claims use, while elected.
    pub in_use: Running,
    /// What the status of networks is to say of their addresses; empty on a node that is not elected.
    pub conditions: watch::Receiver<Conditions>,
    /// Whether this node is elected.
    pub leading: watch::Receiver<bool>,
    /// For who needs the members of a network; `None` where all are known without asking.
    pub demand: Option<Arc<Demand>>,
}

impl Sharing {
    /// The parts, which end with `stop`.
    #[must_use]
    pub fn parts(self, stop: &CancellationToken) -> SharingParts {
        let Self { cluster, networks, table, members, ports, stats, driver, node } = self;
        let (leads, leading) = watch::channel(false);
        let demand = Arc::new(Demand::default());
        let narrows = cluster.narrows();
        let follow = Follow {
            watch: Arc::clone(&cluster) as _,
            networks: Arc::clone(&networks),
            table: Arc::clone(&table),
            members,
            ports,
            demand: Arc::clone(&demand),
            leading: leading.clone(),
            stats,
        };
        let candidate = Candidate::new(ADDRESSES, &node, Timing::default());
        let pools = AddressPools::new(
            Arc::clone(&cluster) as _,
            Arc::clone(&cluster) as _,
            &driver,
            Arc::new(PublishStats::default()),
        );
        let (told, conditions) = watch::channel(Conditions::new());
        let blocks = BlockPools::new(
            Arc::clone(&cluster) as _,
            Arc::clone(&cluster) as _,
            &driver,
            Arc::new(PublishStats::default()),
        );
        let token = stop.clone();
        let watch: Arc<dyn Watch> = Arc::clone(&cluster) as _;
        let elected = leading.clone();
        let in_use = InUse {
            uses: Arc::clone(&cluster) as _,
            cluster: Arc::clone(&cluster) as _,
            networks: Arc::clone(&networks),
            table: Arc::clone(&table),
            leading: leading.clone(),
            sum: SUM,
        };
        let (reporting, reported) = (Arc::clone(&cluster), Arc::clone(&networks));
        let (alone, until) = (!narrows, stop.clone());
        let report = async move {
            if alone {
                until.cancelled().await;
            } else {
                let cluster: Arc<dyn Cluster> = Arc::clone(&reporting) as _;
                report::run(&*cluster, &*reporting, reported, until).await;
            }
        };
        SharingParts {
            report: Box::pin(report),
            in_use: Box::pin(in_use.run(stop.clone())),
            follow: once_needed(&networks, stop, follow.run(FollowOptions::default(), stop.clone())),
            election: once_needed(&networks, stop, async move {
                leader::run(&*cluster, candidate, &leads, &token).await;
            }),
            addresses: Box::pin(pools.run(
                Arc::clone(&networks),
                Arc::clone(&watch),
                Arc::clone(&table),
                leading.clone(),
                Told::new(told.clone()),
                PoolOptions::default(),
                stop.clone(),
            )),
            blocks: Box::pin(blocks.run(
                Arc::clone(&networks),
                watch,
                table,
                leading,
                Told::new(told),
                PoolOptions::default(),
                stop.clone(),
            )),
            conditions,
            leading: elected,
            demand: narrows.then_some(demand),
        }
    }
}

/// What the cluster has of networks, by what all nodes have told. Only the elected node knows, and says it.
#[must_use]
pub fn counts(table: SharedTable, leading: watch::Receiver<bool>) -> Counts {
    Box::new(move |network| {
        if !*leading.borrow() {
            return None;
        }
        let table = table.lock().unwrap_or_else(PoisonError::into_inner);
        table.has_claims().then(|| table.counts(&network.name))
    })
}

/// Run a part as soon as there is a network: a cluster without any is asked nothing.
fn once_needed(
    networks: &Arc<Networks>,
    stop: &CancellationToken,
    part: impl Future<Output = ()> + Send + 'static,
) -> Running {
    let (networks, stop) = (Arc::clone(networks), stop.clone());
    Box::pin(async move {
        while networks.with_members().is_empty() {
            tokio::select! {
                () = sleep(FollowOptions::default().networks) => {}
                () = stop.cancelled() => return,
            }
        }
        part.await;
    })
}
