//! Keeps [`Networks`] as the cluster has them, and tells what is wrong with an object.
//!
//! A network that is deleted is not given to new claims from that moment. As long as pods of this node have ports on
//! it, it keeps its number and is found by its UID; with the last port it is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Declared, Network, NetworkRef, Networks,
    accept::{Judged, judge},
    conditions::Conditions,
    identity::{Identities, Numbered},
    status::{is_said, wanted, with_troubles},
};
use crate::{
    cluster::{Cluster, ClusterError, Event, EventType, Subject},
    telemetry::chain,
};

/// Whether pods of this node have ports on a network.
pub type Held = Box<dyn Fn(&NetworkRef) -> bool + Send + Sync>;

/// Nodes with ports of a network, and ports, in the cluster; `None` where it is for another node to say.
pub type Counts = Box<dyn Fn(&NetworkRef) -> Option<(u32, u32)> + Send + Sync>;

/// How often it is seen whether a deleted network has lost its last port, and what could not be written is tried
/// again.
const TICK: Duration = Duration::from_secs(10);

/// The watch over Network objects.
pub struct NetworkWatch {
    /// What is to be said of networks' addresses; empty unless this node is elected to publish them.
    pub addresses: watch::Receiver<Conditions>,
    /// Where they are declared.
    pub cluster: Arc<dyn Cluster>,
    /// Where they are made known.
    pub networks: Arc<Networks>,
    /// Their numbers.
    pub identities: Identities,
    /// Who has ports.
    pub held: Held,
    /// What the cluster has of them.
    pub counts: Counts,
    /// Statuses are written a random time up to this after a change: of many nodes one writes, and the others see
    /// it done.
    pub spread: Duration,
}

/// What the watch has seen and said.
#[derive(Default)]
struct Seen {
    /// `None` until the cluster has answered once: until then nothing is taken as deleted.
    declared: Option<Vec<Declared>>,
    judged: Vec<Judged>,
    /// Problems that were told, by UID.
    told: BTreeMap<String, String>,
    /// Statuses that were written, by UID: one that somebody else writes otherwise is not fought over.
    written: BTreeMap<String, String>,
    /// Generations of what counts, by UID.
    generations: BTreeMap<String, i64>,
    /// The last trouble of the watch itself, said once.
    trouble: Option<String>,
    /// When statuses are due.
    due: Option<Instant>,
}

impl NetworkWatch {
    /// Run until the stop. What was valid before a restart is known at once.
    pub async fn run(self, stop: CancellationToken) {
        let Numbered { networks, retired } = self.identities.list();
        self.networks.replace_all(networks, retired);
        let mut seen = Seen::default();
        let mut stream = self.cluster.networks();
        let mut published = self.networks.published();
        let mut troubles = self.networks.troubles();
        let mut addresses = self.addresses.clone();
        let mut tick = tokio::time::interval(TICK);
        loop {
            let due = seen.due;
            tokio::select! {
                () = stop.cancelled() => return,
                next = stream.next() => match next {
                    Some(Ok(declared)) => {
                        seen.trouble = None;
                        seen.declared = Some(declared);
                        self.decide(&mut seen).await;
                        seen.due = Some(Instant::now() + at_random(self.spread));
                    }
                    Some(Err(error)) => trouble(&mut seen, &error),
                    // A watch does not end by itself; what is known stays.
                    None => stream = futures::stream::pending().boxed(),
                },
                changed = published.changed() => match changed {
                    Ok(()) => seen.due = Some(Instant::now() + at_random(self.spread)),
                    Err(_) => return,
                },
                Ok(()) = troubles.changed() => {
                    troubles.mark_unchanged();
                    seen.due = Some(Instant::now() + at_random(self.spread));
                }
                Ok(()) = addresses.changed() => seen.due = Some(Instant::now() + at_random(self.spread)),
                _ = tick.tick() => {
                    self.decide(&mut seen).await;
                    self.count(&seen).await;
                }
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    let names = Arc::clone(&published.borrow_and_update());
                    seen.due = self.write(&mut seen, &names).await;
                }
            }
        }
    }

    /// Judge what is declared, number what is accepted, and make it known.
    async fn decide(&self, seen: &mut Seen) {
        let Some(declared) = &seen.declared else { return };
        let Numbered { networks: before, retired } = self.identities.list();
        let former =
            before.iter().map(|network| (network.reference.uid.clone(), network.spec.clone())).collect();
        let judged = judge(declared, &former);
        let deleting: BTreeSet<&str> =
            declared.iter().filter(|it| it.deleting).map(|it| it.reference.uid.as_str()).collect();
        for judged in judged.iter().filter(|judged| judged.problem.is_none()) {
            let is = |it: &&Declared| it.reference.uid == judged.reference.uid;
            if let Some(generation) = declared.iter().find(is).and_then(|it| it.generation) {
                seen.generations.insert(judged.reference.uid.clone(), generation);
            }
        }
        // Nothing new may join one that is being deleted. Ports that are there keep it.
        let (deleting, in_force): (Vec<_>, Vec<_>) = judged
            .iter()
            .filter_map(|judged| Some((judged.reference.clone(), judged.in_force.clone()?)))
            .partition(|(reference, _)| deleting.contains(reference.uid.as_str()));
        let held = before.iter().chain(&retired).filter(|network| (self.held)(&network.reference));
        let held = held.map(|network| network.reference.uid.clone()).collect();
        match self.identities.keep_with(&in_force, &deleting, &held) {
            Ok(now) => {
                say_changes(before.iter().chain(&retired), &now);
                let known = now.networks.iter().chain(&now.retired);
                let known: BTreeSet<&String> = known.map(|network| &network.reference.uid).collect();
                seen.generations.retain(|uid, _| known.contains(uid));
                self.networks.replace_at(now.networks, now.retired, seen.generations.clone());
            }
            // Without a number on disk no port can be made; what is known stays as it is.
            Err(error) => error!("networks: {}", chain(&error)),
        }
        self.networks.set_declared(declared.clone());
        seen.judged = judged;
        self.tell(seen).await;
    }

    /// Log and Event for a problem that is new.
    async fn tell(&self, seen: &mut Seen) {
        seen.told.retain(|uid, _| seen.judged.iter().any(|judged| judged.reference.uid == *uid));
        for judged in &seen.judged {
            let uid = &judged.reference.uid;
            let Some(problem) = &judged.problem else {
                seen.told.remove(uid);
                continue;
            };
            let note = problem.to_string();
            if seen.told.get(uid) == Some(&note) {
                continue;
            }
            let kept = if judged.in_force.is_some() { "; what was valid before stays in force" } else { "" };
            warn!(network = judged.reference.name, "not accepted: {note}{kept}");
            let event = Event {
                subject: Subject::Network(judged.reference.clone()),
                event_type: EventType::Warning,
                reason: "NetworkNotAccepted",
                action: "Accept",
                note: note.clone(),
            };
            match self.cluster.event(&event).await {
                Ok(()) => {
                    seen.told.insert(uid.clone(), note);
                }
                Err(error) => {
                    warn!(network = judged.reference.name, "cannot record an Event: {}", chain(&error));
                }
            }
        }
    }

    /// Write the statuses that are not as they should be. Returns when to try again, if one could not be written.
    async fn write(&self, seen: &mut Seen, published: &BTreeSet<String>) -> Option<Instant> {
        let mut again = None;
        let addresses = self.addresses.borrow().clone();
        for judged in &seen.judged {
            let uid = &judged.reference.uid;
            let declared = seen.declared.iter().flatten().find(|declared| declared.reference.uid == *uid);
            let Some(declared) = declared else { continue };
            let status = wanted(declared, judged, published, &addresses, Timestamp::now());
            let troubles = Arc::clone(&self.networks.troubles().borrow());
            let status = with_troubles(status, declared, &troubles, Timestamp::now());
            let meant = says(&status);
            if is_said(&status, &declared.status) || seen.written.get(uid) == Some(&meant) {
                continue;
            }
            match self.cluster.apply_network_status(&judged.reference, &status).await {
                Ok(()) => {
                    seen.written.insert(uid.clone(), meant);
                }
                // Deleted meanwhile, or made again: the watch will say so.
                Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => {}
                Err(error) => {
                    warn!(network = judged.reference.name, "cannot write its status: {}", chain(&error));
                    again = Some(Instant::now() + TICK + at_random(TICK));
                }
            }
        }
        seen.written.retain(|uid, _| seen.judged.iter().any(|judged| judged.reference.uid == *uid));
        again
    }
}

impl NetworkWatch {
    /// Write the counts that have changed. One that cannot be written is written at the next tick.
    async fn count(&self, seen: &Seen) {
        for declared in seen.declared.iter().flatten() {
            let status = &declared.status;
            let Some((nodes, members)) = (self.counts)(&declared.reference) else { continue };
            if (status.nodes, status.members) == (Some(nodes), Some(members)) {
                continue;
            }
            match self.cluster.apply_network_counts(&declared.reference, nodes, members).await {
                Ok(()) | Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => {}
                Err(error) => {
                    warn!(network = declared.reference.name, "cannot write its counts: {}", chain(&error));
                }
            }
        }
    }
}

/// A status without its times.
fn says(status: &super::spec::NetworkStatus) -> String {
    let conditions = status.conditions.iter();
    let words = conditions.map(|c| format!("{} {} {} {}", c.type_, c.status, c.reason, c.message));
    format!("{:?} {}", status.observed_generation, words.collect::<Vec<_>>().join("\n"))
}

fn say_changes<'a>(before: impl Iterator<Item = &'a Network> + Clone, now: &Numbered) {
    for network in &now.networks {
        let (name, id) = (&network.reference.name, network.id);
        match before.clone().find(|other| other.id == id) {
            None => info!(network = name, id, "network known"),
            Some(former) if former.spec != network.spec => info!(network = name, id, "network changed"),
            Some(_) => {}
        }
    }
    for former in before {
        let is = |network: &Network| network.id == former.id;
        if !now.networks.iter().any(is) && !now.retired.iter().any(is) {
            info!(network = former.reference.name, id = former.id, "network forgotten");
        }
    }
}

fn trouble(seen: &mut Seen, error: &ClusterError) {
    let text = match error {
        ClusterError::NotFound { .. } => {
            "the CustomResourceDefinition networks.netferry.dev is not installed; there are no networks until it is"
                .to_owned()
        }
        other => format!("cannot watch networks: {}", chain(other)),
    };
    if seen.trouble.as_ref() != Some(&text) {
        warn!("{text}");
        seen.trouble = Some(text);
    }
}

/// A random part of `time`.
fn at_random(time: Duration) -> Duration {
    // The standard library seeds each hasher at random, which is random enough to spread nodes.
    let random = RandomState::new().build_hasher().finish();
    time.mul_f64(f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX))
}
