//! What a node shares with the others: it follows their members, and one of them publishes addresses.

use std::{pin::Pin, sync::Arc};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Networks,
    follow::{Follow, FollowOptions, FollowStats, Members, SharedTable},
    leader::{self, ADDRESSES, Candidate, Timing},
    pools::{AddressPools, Conditions, PoolOptions},
};
use crate::{cluster::WholeCluster, publish::publisher::PublishStats};

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
    /// What the status of networks is to say of their addresses; empty on a node that is not elected.
    pub conditions: watch::Receiver<Conditions>,
    /// Whether this node is elected.
    pub leading: watch::Receiver<bool>,
}

impl Sharing {
    /// The parts, which end with `stop`.
    #[must_use]
    pub fn parts(self, stop: &CancellationToken) -> SharingParts {
        let Self { cluster, networks, table, members, stats, driver, node } = self;
        let follow = Follow {
            watch: Arc::clone(&cluster) as _,
            networks: Arc::clone(&networks),
            table: Arc::clone(&table),
            members,
            stats,
        };
        let (leads, leading) = watch::channel(false);
        let candidate = Candidate::new(ADDRESSES, &node, Timing::default());
        let pools = AddressPools::new(
            Arc::clone(&cluster) as _,
            Arc::clone(&cluster) as _,
            &driver,
            Arc::new(PublishStats::default()),
        );
        let (told, conditions) = watch::channel(Conditions::new());
        let token = stop.clone();
        let elected = leading.clone();
        SharingParts {
            follow: once_needed(&networks, stop, follow.run(FollowOptions::default(), stop.clone())),
            election: once_needed(&networks, stop, async move {
                leader::run(&*cluster, candidate, &leads, &token).await;
            }),
            addresses: Box::pin(pools.run(
                Arc::clone(&networks),
                table,
                leading,
                told,
                PoolOptions::default(),
                stop.clone(),
            )),
            conditions,
            leading: elected,
        }
    }
}

/// Run a part as soon as there is a network: a cluster without any is asked nothing.
fn once_needed(
    networks: &Arc<Networks>,
    stop: &CancellationToken,
    part: impl Future<Output = ()> + Send + 'static,
) -> Running {
    let (networks, stop) = (Arc::clone(networks), stop.clone());
    Box::pin(async move {
        while networks.list().is_empty() {
            tokio::select! {
                () = sleep(FollowOptions::default().networks) => {}
                () = stop.cancelled() => return,
            }
        }
        part.await;
    })
}
