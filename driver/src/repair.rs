//! What is on the node is compared with what is wanted, from time to time and when the host's links change; drift is
//! repaired, counted and told.
//!
//! The kernel tells of what changes on the host and, by a socket for each pod, inside of pods. Of guards and of the maps it
//! tells nothing: there the timer looks.

mod pods;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::pods::PodEvents;
use crate::{
    attach::{Attacher, Deviation, Extent, Mended, Problem, Repair},
    cluster::{Event, EventType, Subject},
    findings::{Findings, Supervisor},
    metrics::Metrics,
    status::Reporter,
};

/// At how many ticks of the timer everything is looked into: of guards the kernel tells nothing, and of pods events tell first.
const EVERYWHERE_AT: u32 = 10;

/// Who is told.
pub trait Told: Send + Sync {
    /// Everything that was found in a look, whether or not it was found in the look before.
    fn found(&self, extent: &Extent, repairs: &[Repair]);
    /// What no checkpoint knows, and could not be cleared up.
    fn orphans(&self, problems: &[Problem]);
}

/// Keeps attached interfaces as they were made.
pub struct RepairWatch<T> {
    /// Does the work, in its turn.
    pub attacher: Arc<Attacher>,
    /// Wakes when the host's links have changed.
    pub events: Arc<Notify>,
    /// Pods in which something has changed, by the paths at which their namespaces are held.
    pub pods: mpsc::Receiver<PathBuf>,
    /// Who is told.
    pub told: T,
}

impl<T: Told> RepairWatch<T> {
    /// Look at the host and the maps every so often, into everything at some of these times, and at the host or into a pod
    /// when something has changed there, until `stop`.
    pub async fn watch(mut self, every: Duration, stop: CancellationToken) {
        let mut looks = 0_u32;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, before the runtime has told what lives.
        ticks.tick().await;
        loop {
            let mut timer = false;
            let extent = tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {
                    timer = true;
                    looks = looks.wrapping_add(1);
                    if looks.is_multiple_of(EVERYWHERE_AT) { Extent::Everywhere } else { Extent::Host }
                }
                () = self.events.notified() => Extent::Host,
                Some(hold) = self.pods.recv() => Extent::Pod(hold),
            };
            let repairs = self.attacher.repair(extent.clone()).await;
            self.told.found(&extent, &repairs);
            if timer {
                self.told.orphans(&self.attacher.clear_orphans().await);
            }
        }
    }
}

/// What was told already: it is told again once it has been otherwise.
#[derive(Debug, Default)]
struct Known {
    left: BTreeSet<String>,
    orphans: BTreeSet<String>,
}

impl Known {
    /// Those that are to be told. A repair is one each time; what stays as it is is one once. A look at the host alone
    /// does not tell that what is in pods is over.
    fn news<'a>(&mut self, extent: &Extent, repairs: &'a [Repair]) -> Vec<&'a Repair> {
        let key = |repair: &Repair| format!("{} {}", repair.claim.uid, repair.note());
        let stays = |repair: &&Repair| repair.mended != Mended::Repaired;
        let news = repairs.iter().filter(|repair| !stays(repair) || !self.left.contains(&key(repair)));
        let news = news.collect();
        let now = repairs.iter().filter(stays).map(key);
        match extent {
            Extent::Everywhere => self.left = now.collect(),
            Extent::Host | Extent::Pod(_) => self.left.extend(now),
        }
        news
    }

    fn new_orphans<'a>(&mut self, problems: &'a [Problem]) -> Vec<&'a Problem> {
        let news = problems.iter().filter(|problem| !self.orphans.contains(&problem.note)).collect();
        self.orphans = problems.iter().map(|problem| problem.note.clone()).collect();
        news
    }
}

/// Tells the log, metrics and Events.
pub struct Tell {
    reporter: Reporter,
    metrics: Arc<Metrics>,
    findings: Arc<Findings>,
    known: Mutex<Known>,
}

impl Tell {
    /// Nothing was told yet.
    #[must_use]
    pub fn new(reporter: Reporter, metrics: Arc<Metrics>, findings: Arc<Findings>) -> Self {
        Self { reporter, metrics, findings, known: Mutex::default() }
    }

    fn event(&self, subject: Subject, reason: &'static str, note: &str) {
        self.reporter.event(Event {
            subject,
            event_type: EventType::Warning,
            reason,
            action: "Repair",
            note: note.to_owned(),
        });
    }
}

impl Told for Tell {
    fn found(&self, extent: &Extent, repairs: &[Repair]) {
        // What the pod may do with its own interface is no fault of the device; one that is missing is in its record.
        let wrong = repairs.iter().filter(|repair| matches!(repair.mended, Mended::Failed(_)));
        let wrong = wrong.map(|repair| (repair.claim.clone(), repair.interface.clone(), repair.note()));
        self.findings.looked(Supervisor::Interfaces, *extent == Extent::Everywhere, wrong);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for repair in known.news(extent, repairs) {
            let Repair { claim, pod, found, mended, .. } = repair;
            let (result, reason) = match mended {
                Mended::Repaired => ("repaired", "InterfaceRepaired"),
                Mended::Failed(_) => ("failed", "InterfaceDrifted"),
                Mended::Left => ("left", "InterfaceDrifted"),
            };
            if *found == Deviation::Missing {
                self.reporter.claim_changed(claim);
            }
            self.metrics.deviated(found.item(), result);
            let note = repair.note();
            warn!(%claim, %pod, item = found.item(), result, "{note}");
            self.event(Subject::Claim(claim.clone()), reason, &note);
            self.event(Subject::Pod(pod.clone()), reason, &note);
        }
    }

    fn orphans(&self, problems: &[Problem]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in known.new_orphans(problems) {
            warn!(reason = %problem.reason, "{}", problem.note);
            self.event(Subject::Node, problem.reason.as_str(), &problem.note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attach::{Deviation, Reason},
        claim::{ClaimRef, PodRef},
    };

    fn repair(found: Deviation, mended: Mended) -> Repair {
        let claim = ClaimRef { namespace: "default".into(), name: "c".into(), uid: "u".into() };
        let pod = PodRef { namespace: "default".into(), name: "p".into(), uid: "p".into() };
        Repair { claim, pod, interface: "net1".into(), found, mended }
    }

    #[test]
    fn what_stays_as_it_is_is_told_once() {
        let mut known = Known::default();
        let down = [repair(Deviation::Down, Mended::Left)];
        let up = [repair(Deviation::HostDown, Mended::Repaired)];
        assert_eq!(known.news(&Extent::Everywhere, &down).len(), 1);
        assert_eq!(known.news(&Extent::Everywhere, &down).len(), 0);
        // A look at the host sees nothing of the pod.
        assert_eq!(known.news(&Extent::Host, &up).len(), 1);
        assert_eq!(known.news(&Extent::Everywhere, &down).len(), 0);
        assert_eq!(known.news(&Extent::Everywhere, &up).len(), 1, "each repair is one");
        assert_eq!(known.news(&Extent::Everywhere, &down).len(), 1, "it was up between");
        let failed = [repair(Deviation::HostDown, Mended::Failed("no".into()))];
        assert_eq!(known.news(&Extent::Host, &failed).len(), 1);
        assert_eq!(known.news(&Extent::Host, &failed).len(), 0);
    }

    #[test]
    fn an_orphan_is_told_once() {
        let mut known = Known::default();
        let note = "endpoint 3".to_owned();
        let problem = [Problem { claim: None, pod: None, reason: Reason::ProgramsLeft, note }];
        assert_eq!(known.new_orphans(&problem).len(), 1);
        assert_eq!(known.new_orphans(&problem).len(), 0);
        assert_eq!(known.new_orphans(&[]).len(), 0);
        assert_eq!(known.new_orphans(&problem).len(), 1);
    }
}
