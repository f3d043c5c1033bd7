//! Keeps the node's map of members as the cluster says it is to be.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    NetworkId, Networks,
    changeover::Pace,
    demand::{Demand, PortsHere},
    members::{Change, MemberTable, Outcome, Remote},
    scope::Situation,
    streams::{News, Streams},
};
use crate::{cluster::watch::Watch, datapath::DatapathError, link::MacAddr, telemetry::chain};

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
    /// Looks at the set of networks, and at the ports on this node, this often.
    pub networks: Duration,
    /// Compares the whole map this often: finds what an earlier process left, what could not be written, and what a
    /// port of this node that is gone had hidden.
    pub compare: Duration,
    /// The members of a network are followed for so long after its last port went, and after a claim that was being
    /// prepared asked for them: pods that come and go, one after the other, do not have them listed each time.
    pub linger: Duration,
    /// How watches over claims take each other's place.
    pub pace: Pace,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self {
            networks: Duration::from_secs(1),
            compare: Duration::from_secs(30),
            linger: Duration::from_mins(5),
            pace: Pace::default(),
        }
    }
}

/// Members whose node was not told yet.
type Awaited = HashSet<(NetworkId, IpAddr, MacAddr)>;

/// The table, shared with who publishes addresses.
pub type SharedTable = Arc<Mutex<MemberTable>>;

/// What follows the cluster.
pub struct Follow {
    /// Who tells of claims, nodes and namespaces.
    pub watch: Arc<dyn Watch>,
    /// The networks that are known.
    pub networks: Arc<Networks>,
    /// The table.
    pub table: SharedTable,
    /// The map.
    pub members: Arc<dyn Members>,
    /// Which networks have ports on this node.
    pub ports: PortsHere,
    /// Who asks for the members of others.
    pub demand: Arc<Demand>,
    /// Whether this node is elected to publish addresses, for which it has to know every claim.
    pub leading: watch::Receiver<bool>,
    /// Counters.
    pub stats: Arc<FollowStats>,
}

impl Follow {
    /// Follow until `stop`. The map stays as it is.
    pub async fn run(self, options: FollowOptions, stop: CancellationToken) {
        let mut streams = Streams::new(Arc::clone(&self.watch), &mut self.table());
        let mut leading = self.leading.clone();
        let mut networks = interval(options.networks);
        let mut compare = interval(options.compare);
        for timer in [&mut networks, &mut compare] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut compared = false;
        loop {
            let other = tokio::select! {
                () = stop.cancelled() => return,
                news = streams.next() => self.hear(&streams, news),
                () = self.demand.next() => true,
                Ok(()) = leading.changed() => true,
                _ = networks.tick() => {
                    let (now, made) = (self.networks.with_members(), self.networks.made());
                    self.take_in(&streams, |table| vec![table.set_networks_made(&now, &made)]);
                    true
                }
                _ = compare.tick() => {
                    compared = self.compare();
                    false
                }
            };
            if self.watch.narrows() {
                if other {
                    self.adapt(&mut streams, options);
                }
                self.tell();
            }
            // What an earlier process left goes as soon as it is known to be nobody's.
            if !compared && self.table().is_complete() {
                compared = self.compare();
            }
        }
    }

    /// Returns whether other claims may have to be watched.
    fn hear(&self, streams: &Streams, news: News) -> bool {
        match news {
            News::Claims(scope, seen) => {
                let apply = |table: &mut MemberTable| {
                    seen.into_iter().map(|seen| table.apply_from(&scope, seen)).collect()
                };
                self.take_in(streams, apply);
            }
            News::Nodes(seen) => {
                let apply =
                    |table: &mut MemberTable| seen.into_iter().map(|seen| table.apply_node(seen)).collect();
                self.take_in(streams, apply);
            }
            News::Namespaces => return true,
        }
        false
    }

    fn adapt(&self, streams: &mut Streams, options: FollowOptions) {
        let ports = (self.ports)();
        self.demand.keep(ports.here.iter().chain(&ports.named).cloned());
        let local: Vec<String> = self.table().local().map(str::to_owned).collect();
        self.demand.keep(local);
        let (networks, made) = (self.networks.with_members(), self.networks.made());
        let outcomes: Vec<Outcome> = {
            let mut table = self.table();
            let known = table.set_networks_made(&networks, &made);
            let situation = Situation {
                networks,
                here: ports.here,
                also: self.demand.since(options.linger),
                namespaces: streams.namespaces(),
                leads: *self.leading.borrow(),
            };
            let adapted = streams.adapt(situation, &mut table, options.pace);
            [known].into_iter().chain(adapted).collect()
        };
        self.put(streams, outcomes);
    }

    /// Tell who waits for it whose members are known.
    fn tell(&self) {
        let table = self.table();
        let ready = table.needed().filter(|network| table.is_ready(network)).map(str::to_owned).collect();
        self.demand.tell(ready);
    }

    fn table(&self) -> MutexGuard<'_, MemberTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, streams: &Streams, apply: impl FnOnce(&mut MemberTable) -> Vec<Outcome>) {
        let outcomes = apply(&mut self.table());
        self.put(streams, outcomes);
    }

    fn put(&self, streams: &Streams, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            streams.need(outcome.nodes);
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
        let (wanted, awaited, has_members, complete) = {
            let table = self.table();
            let (wanted, awaited) = (table.wanted().collect::<Vec<_>>(), table.awaited().collect());
            (wanted, awaited, table.has_members(), table.is_complete())
        };
        let there = match self.members.remote() {
            Ok(there) => there,
            Err(error) => {
                warn!("the map of members cannot be read: {}", chain(&error));
                return false;
            }
        };
        let differences = differences(&wanted, &there, has_members.then_some(&awaited));
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

/// What turns `there` into `wanted`. Nothing goes before all members are known; then what is not of a member whose node
/// is `awaited`.
fn differences(wanted: &[Change], there: &[Change], awaited: Option<&Awaited>) -> Vec<Change> {
    let key = |change: &Change| (change.network, change.address);
    let mut left: HashMap<_, _> = there.iter().map(|change| (key(change), change.member)).collect();
    let mut differences: Vec<Change> =
        wanted.iter().filter(|change| left.remove(&key(change)) != Some(change.member)).copied().collect();
    if let Some(awaited) = awaited {
        let mac = |member: Option<Remote>| member.map(|remote| remote.mac);
        left.retain(|(network, address), member| {
            mac(*member).is_none_or(|mac| !awaited.contains(&(*network, *address, mac)))
        });
        let gone = left.into_keys().map(|(network, address)| Change { network, address, member: None });
        // Room comes before what needs it.
        differences.splice(0..0, gone);
    }
    differences
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
