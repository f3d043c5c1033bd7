//! Keeps the node's map of members as the cluster says it is to be.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Networks,
    members::{Change, MemberTable, Outcome},
};
use crate::{cluster::watch::Watch, datapath::DatapathError, telemetry::chain};

/// Events that are taken in at once. The table is locked for that long.
const BATCH: usize = 1024;

/// Where members on other nodes are written.
pub trait Members: Send + Sync {
    /// Write a change. Returns whether it was: an address of this node's own port is left alone.
    fn put(&self, change: &Change) -> Result<bool, DatapathError>;
    /// The members on other nodes that are written there now.
    fn remote(&self) -> Result<Vec<Change>, DatapathError>;
}

/// Counters for those who look.
#[derive(Debug, Default)]
pub struct FollowStats {
    /// Changes that were written.
    pub changes: AtomicU64,
    /// Changes that could not be written; a comparison tries them again.
    pub failures: AtomicU64,
    /// Addresses that two claims said.
    pub conflicts: AtomicU64,
    /// Entries that a comparison found other than they were to be.
    pub repairs: AtomicU64,
}

/// How it is paced.
#[derive(Clone, Copy, Debug)]
pub struct FollowOptions {
    /// Looks at the set of networks this often.
    pub networks: Duration,
    /// Compares the whole map this often: finds what an earlier process left, what could not be written, and what a
    /// port of this node that is gone had hidden.
    pub compare: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self { networks: Duration::from_secs(1), compare: Duration::from_secs(30) }
    }
}

/// The table, shared with who publishes addresses.
pub type SharedTable = Arc<Mutex<MemberTable>>;

/// What follows the cluster.
pub struct Follow {
    /// Who tells of claims and nodes.
    pub watch: Arc<dyn Watch>,
    /// The networks that are known.
    pub networks: Arc<Networks>,
    /// The table.
    pub table: SharedTable,
    /// The map.
    pub members: Arc<dyn Members>,
    /// Counters.
    pub stats: Arc<FollowStats>,
}

impl Follow {
    /// Follow until `stop`. The map stays as it is.
    pub async fn run(self, options: FollowOptions, stop: CancellationToken) {
        let mut claims = Arc::clone(&self.watch).claims().ready_chunks(BATCH);
        let mut nodes = Arc::clone(&self.watch).nodes().ready_chunks(BATCH);
        let mut networks = interval(options.networks);
        let mut compare = interval(options.compare);
        for timer in [&mut networks, &mut compare] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut compared = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(seen) = claims.next() => self.take_in(|table| seen.into_iter().map(|seen| table.apply(seen)).collect()),
                Some(seen) = nodes.next() => {
                    self.take_in(|table| seen.into_iter().map(|seen| table.apply_node(seen)).collect());
                }
                _ = networks.tick() => {
                    let now = self.networks.list();
                    self.take_in(|table| vec![table.set_networks(&now)]);
                }
                _ = compare.tick() => compared = self.compare(),
            }
            // What an earlier process left goes as soon as it is known to be nobody's.
            if !compared && self.table().is_complete() {
                compared = self.compare();
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, MemberTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, apply: impl FnOnce(&mut MemberTable) -> Vec<Outcome>) {
        let outcomes = apply(&mut self.table());
        for outcome in outcomes {
            for conflict in outcome.conflicts {
                self.stats.conflicts.fetch_add(1, Ordering::Relaxed);
                let (network, address) = (&conflict.network, conflict.address);
                let (kept, refused) = (&conflict.kept, &conflict.refused);
                warn!(network, %address, kept, refused, "two claims have one address");
            }
            for change in &outcome.changes {
                self.write(change);
            }
        }
    }

    fn write(&self, change: &Change) -> bool {
        match self.members.put(change) {
            Ok(written) => {
                self.stats.changes.fetch_add(u64::from(written), Ordering::Relaxed);
                written
            }
            Err(error) => {
                // A full map fails for each member; the comparison says it once.
                self.stats.failures.fetch_add(1, Ordering::Relaxed);
                debug!(?change, "a member cannot be written: {}", chain(&error));
                false
            }
        }
    }

    /// Make the map what the table wants. Returns whether it was compared whole.
    fn compare(&self) -> bool {
        let (wanted, complete) = {
            let table = self.table();
            (table.wanted().collect::<Vec<_>>(), table.is_complete())
        };
        let there = match self.members.remote() {
            Ok(there) => there,
            Err(error) => {
                warn!("the map of members cannot be read: {}", chain(&error));
                return false;
            }
        };
        let differences = differences(&wanted, &there, complete);
        let before = self.stats.failures.load(Ordering::Relaxed);
        let written = differences.iter().filter(|change| self.write(change)).count();
        self.stats.repairs.fetch_add(written as u64, Ordering::Relaxed);
        let failed = self.stats.failures.load(Ordering::Relaxed) - before;
        if failed > 0 {
            warn!(
                failed,
                members = wanted.len(),
                "members on other nodes cannot be written; they are not reached"
            );
        }
        complete
    }
}

/// What turns `there` into `wanted`. Before the table is complete nothing goes.
fn differences(wanted: &[Change], there: &[Change], complete: bool) -> Vec<Change> {
    use std::collections::HashMap;

    let key = |change: &Change| (change.network, change.address);
    let mut left: HashMap<_, _> = there.iter().map(|change| (key(change), change.member)).collect();
    let mut differences: Vec<Change> =
        wanted.iter().filter(|change| left.remove(&key(change)) != Some(change.member)).copied().collect();
    if complete {
        let gone = left.into_keys().map(|(network, address)| Change { network, address, member: None });
        // Room comes before what needs it.
        differences.splice(0..0, gone);
    }
    differences
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
