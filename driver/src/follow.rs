//! Ports that are in use follow their networks, from the moment in which a network says something else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    attach::{Attacher, follow::Followed},
    network::{
        Networks,
        known::{AllInForce, InForce, Snapshot},
    },
};

/// Pause before what could not be put in force is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Changes of checkpoints that come within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(20);

/// Has the ports of this node follow.
pub struct PortFollow {
    /// Does it.
    pub attacher: Arc<Attacher>,
    /// What networks say.
    pub networks: Arc<Networks>,
    /// Wakes when a checkpoint has changed: a port that was prepared meanwhile may say what its network said before.
    pub checkpoints: watch::Receiver<()>,
}

impl PortFollow {
    /// Put in force what is known from before, and then what the cluster says now, if it says so within `wait`: before
    /// anything is served, no port is behind.
    pub async fn catch_up(&self, wait: Duration) {
        if !self.follow().await {
            return;
        }
        let mut declared = self.networks.declared();
        if timeout(wait, declared.wait_for(Option::is_some)).await.is_err() {
            info!("ports are as their networks last said; the cluster has not told what they say now");
        }
        self.follow().await;
    }

    /// Follow until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.networks.changes();
        let mut again: Option<Instant> = None;
        loop {
            let due = again.unwrap_or_else(Instant::now).into();
            tokio::select! {
                () = stop.cancelled() => return,
                () = changes.next() => {}
                Ok(()) = self.checkpoints.changed() => tokio::time::sleep(TOGETHER).await,
                () = sleep_until(due), if again.is_some() => {}
            }
            changes.mark_seen();
            self.checkpoints.mark_unchanged();
            again = self.once().await.again.then(|| Instant::now() + AGAIN);
        }
    }

    /// Returns whether this node has ports.
    async fn follow(&self) -> bool {
        !self.once().await.networks.is_empty()
    }

    async fn once(&self) -> Followed {
        let snapshot = self.networks.snapshot();
        let started = Instant::now();
        let followed = self.attacher.follow(&Arc::new(snapshot.networks.clone())).await;
        if followed.changed > 0 {
            info!(ports = followed.changed, took = ?started.elapsed(), "ports follow their networks");
        }
        let now = in_force(&snapshot, &followed);
        let before = Arc::clone(&self.networks.in_force().borrow());
        for (network, of) in &now {
            let known = before.get(network).map(|of| of.problems.as_slice()).unwrap_or_default();
            for problem in of.problems.iter().filter(|problem| !known.contains(problem)) {
                warn!(network = network.name, "not in force as the network says: {problem}");
            }
        }
        self.networks.set_in_force(now);
        followed
    }
}

fn in_force(snapshot: &Snapshot, followed: &Followed) -> AllInForce {
    let of = |(network, problems): (&crate::network::NetworkRef, &Vec<String>)| {
        let generation = snapshot.generations.get(&network.uid).copied().filter(|_| problems.is_empty());
        (network.clone(), InForce { generation, problems: problems.clone() })
    };
    followed.networks.iter().map(of).collect()
}
