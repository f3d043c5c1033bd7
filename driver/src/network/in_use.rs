//! A Network that claims use is not deleted under them: while this node is elected, it keeps a finalizer on it for as long,
//! and says in its status whom a deletion waits for.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Declared, Networks, follow::SharedTable, members::Users, report};
use crate::{
    cluster::{Cluster, ClusterError, Event, EventType, Subject, in_use::NetworkUse},
    telemetry::chain,
};

/// The finalizer. An admission policy lets the driver change nothing else of a Network but its status.
pub const FINALIZER: &str = "netferry.dev/in-use";

/// Why a network that was deleted is there still.
pub const WAITING: &str = "DeletionWaiting";

/// Changes that come within this time are one.
const TOGETHER: Duration = Duration::from_millis(200);
/// Pause after something could not be written.
const AGAIN: Duration = Duration::from_secs(5);

/// What is to be done about the finalizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is as it is to be.
    Nothing,
    /// These finalizers take the place of those there are.
    Write(Vec<String>),
}

/// What is to be done about the finalizer of a network that claims use, or do not. A server takes no finalizer for an object
/// that is being deleted.
#[must_use]
pub fn step(declared: &Declared, used: bool) -> Step {
    let has = declared.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    match (used, has) {
        (true, false) if !declared.deleting => {
            Step::Write(declared.finalizers.iter().cloned().chain([FINALIZER.to_owned()]).collect())
        }
        (false, true) => Step::Write(without(&declared.finalizers)),
        _ => Step::Nothing,
    }
}

/// All but the driver's.
#[must_use]
pub fn without(finalizers: &[String]) -> Vec<String> {
    finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect()
}

/// What the status of a network that is being deleted says of those who use it; `None` of one that is not, or that nobody
/// uses.
#[must_use]
pub fn condition(declared: &Declared, users: &Users, now: Timestamp) -> Option<Condition> {
    if !declared.deleting || users.count == 0 {
        return None;
    }
    let more = users.count - users.first.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!(
        "{} claims have ports or addresses of it: {}{more}. It is deleted when none has any more; until then its policy, \
         limits and peers stay in force for them, and no other claim can have a port",
        users.count,
        users.first.join(", ")
    );
    let former = declared.status.conditions.iter().find(|condition| condition.type_ == WAITING);
    Some(Condition {
        type_: WAITING.to_owned(),
        status: "True".to_owned(),
        reason: "InUse".to_owned(),
        message,
        observed_generation: declared.generation,
        last_transition_time: former.map_or(Time(now), |former| former.last_transition_time.clone()),
    })
}

/// Keeps the finalizers, while elected.
pub struct InUse {
    /// Where networks are.
    pub uses: Arc<dyn NetworkUse>,
    /// Where Events are recorded.
    pub cluster: Arc<dyn Cluster>,
    /// What is declared.
    pub networks: Arc<Networks>,
    /// Which claims there are.
    pub table: SharedTable,
    /// Whether this node is elected.
    pub leading: watch::Receiver<bool>,
    /// How often reports of nodes are summed up, if a network has not the last generation on all of them.
    pub sum: Duration,
}

impl InUse {
    /// Keep them until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut declared = self.networks.declared();
        let mut leading = self.leading.clone();
        let mut claims = self.table.lock().unwrap_or_else(PoisonError::into_inner).changes();
        let mut told = BTreeSet::new();
        let mut again: Option<Instant> = None;
        let mut sums = tokio::time::interval(self.sum);
        loop {
            let due = again.unwrap_or_else(Instant::now);
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = declared.changed() => {}
                Ok(()) = leading.changed() => {}
                Ok(()) = claims.changed(), if *self.leading.borrow() => {}
                () = sleep_until(due), if again.is_some() => {}
                _ = sums.tick(), if *self.leading.borrow() => {
                    self.sum_up().await;
                    continue;
                }
            }
            again = None;
            if !*self.leading.borrow() {
                told.clear();
                continue;
            }
            sleep(TOGETHER).await;
            declared.mark_unchanged();
            claims.mark_unchanged();
            let now = declared.borrow().clone();
            for network in now.iter().flat_map(|all| all.iter()) {
                if !self.keep(network, &mut told).await {
                    again = Some(Instant::now() + AGAIN);
                }
            }
        }
    }

    /// Write on which nodes networks are in force, where that is not on record as complete.
    async fn sum_up(&self) {
        let snapshot = self.networks.snapshot();
        let declared = self.networks.declared().borrow().clone();
        let mut open = Vec::new();
        for network in declared.iter().flat_map(|all| all.iter()) {
            let Some(generation) = snapshot.generations.get(&network.reference.uid) else { continue };
            let nodes = {
                let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
                if !table.has_claims() {
                    return;
                }
                table.nodes_with_ports(&network.reference.name)
            };
            let said = network.status.in_force.as_ref();
            let complete = said.is_some_and(|said| {
                said.generation == *generation && said.nodes_behind == 0 && said.nodes as usize == nodes.len()
            });
            // A network without ports has nothing to say, and had nothing.
            let silent = said.is_none() && nodes.is_empty();
            if !complete && !silent {
                open.push((network, *generation, nodes));
            }
        }
        if open.is_empty() {
            return;
        }
        let reports = match self.uses.reports().await {
            Ok(leases) => report::read(&leases),
            Err(error) => return warn!("cannot read what nodes have in force: {}", chain(&error)),
        };
        for (network, generation, nodes) in open {
            let sum = report::sum(&network.reference.uid, generation, &nodes, &reports);
            if network.status.in_force.as_ref() == Some(&sum) {
                continue;
            }
            match self.uses.apply_in_force(&network.reference, &sum).await {
                Ok(()) => {}
                Err(error) if is_over(&error) => {}
                Err(error) => {
                    warn!(network = network.reference.name, "cannot write its status: {}", chain(&error));
                }
            }
        }
    }

    /// Returns whether all is as it is to be.
    async fn keep(&self, network: &Declared, told: &mut BTreeSet<String>) -> bool {
        let name = &network.reference.name;
        let users = {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            // Before every claim has come, nobody is known not to be there.
            if !table.has_claims() {
                return false;
            }
            table.users(name, if network.deleting { 5 } else { 0 })
        };
        if let Some(condition) = condition(network, &users, Timestamp::now()) {
            if !network.status.conditions.contains(&condition)
                && let Err(error) = self.uses.apply_waiting(&network.reference, Some(&condition)).await
                && !is_over(&error)
            {
                warn!(network = name, "cannot say that its deletion waits: {}", chain(&error));
                return false;
            }
            if !told.contains(&network.reference.uid) && self.tell(network, &condition.message).await {
                told.insert(network.reference.uid.clone());
            }
        }
        let Step::Write(finalizers) = step(network, users.count > 0) else { return true };
        match self.uses.set_finalizers(network, &finalizers).await {
            Ok(()) => {
                info!(network = name, claims = users.count, ?finalizers, "finalizers of a network");
                true
            }
            // It has changed meanwhile, of which the watch tells.
            Err(error) if is_over(&error) => true,
            Err(error) => {
                warn!(network = name, "cannot write its finalizers: {}", chain(&error));
                false
            }
        }
    }

    async fn tell(&self, network: &Declared, note: &str) -> bool {
        let event = Event {
            subject: Subject::Network(network.reference.clone()),
            event_type: EventType::Warning,
            reason: "DeletionWaits",
            action: "Delete",
            note: note.to_owned(),
        };
        self.cluster.event(&event).await.is_ok()
    }
}

const fn is_over(error: &ClusterError) -> bool {
    matches!(error, ClusterError::NotFound { .. } | ClusterError::Conflict { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(deleting: bool, finalizers: &[&str]) -> Declared {
        let finalizers = finalizers.iter().map(|finalizer| (*finalizer).to_owned()).collect();
        Declared { deleting, finalizers, ..Declared::default() }
    }

    #[test]
    fn the_finalizer_is_there_while_claims_use_the_network() {
        let write = |finalizers: &[&str]| Step::Write(finalizers.iter().map(|it| (*it).to_owned()).collect());
        for (deleting, has, used, expected) in [
            (false, &["a/b"][..], true, write(&["a/b", FINALIZER])),
            (false, &["a/b", FINALIZER], true, Step::Nothing),
            (false, &[FINALIZER, "a/b"], false, write(&["a/b"])),
            (false, &[], false, Step::Nothing),
            (true, &[FINALIZER], true, Step::Nothing),
            (true, &[FINALIZER], false, write(&[])),
            // Too late for one: the server refuses it.
            (true, &["a/b"], true, Step::Nothing),
        ] {
            assert_eq!(step(&declared(deleting, has), used), expected, "{deleting} {has:?} {used}");
        }
    }

    #[test]
    fn a_deletion_names_whom_it_waits_for() {
        let users = Users { count: 7, first: vec!["shop/a".to_owned(), "shop/b".to_owned()] };
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(condition(&declared(false, &[FINALIZER]), &users, now), None);
        assert_eq!(condition(&declared(true, &[FINALIZER]), &Users::default(), now), None);
        let said = condition(&declared(true, &[FINALIZER]), &users, now).expect("a condition");
        assert!(said.message.contains("7 claims") && said.message.contains("shop/a, shop/b and 5 more"));
        let mut later = declared(true, &[FINALIZER]);
        later.status.conditions.push(said.clone());
        let again = condition(&later, &users, Timestamp::now()).expect("a condition");
        assert_eq!(again, said, "it keeps its time");
    }
}
