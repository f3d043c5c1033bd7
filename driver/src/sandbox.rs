//! What happens to claims as sandboxes come and go: the runtime's events, and the kubelet's last word.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    attach::{AttachFailed, AttachedInterface, Attacher, Outcome, Problem, Reason},
    claim::{ClaimRef, InterfacePlan, PodRef, service::Release, store::Store},
    cluster::{Event, EventType, Subject},
    metrics::Metrics,
    nri::{PodEvents, PodSandbox},
    status::Reporter,
};

/// How often sandboxes are looked for that ended without an event.
const SWEEP: Duration = Duration::from_secs(10);

/// Attaches at the start of a sandbox and returns at its end; tells metrics, claim status and Events.
pub struct Sandboxes {
    /// Does the work.
    pub attacher: Arc<Attacher>,
    /// Which claims a pod has.
    pub store: Arc<Store>,
    /// Tells the cluster, later.
    pub reporter: Reporter,
    /// Numbers.
    pub metrics: Arc<Metrics>,
}

impl Sandboxes {
    fn tell_attached(&self, interface: &AttachedInterface) {
        let AttachedInterface { claim, pod, device, name, .. } = interface;
        let protection = match interface.programs.len() {
            0 => "without isolation".to_owned(),
            n => format!("protected by {n} programs"),
        };
        info!(%claim, %pod, device, interface = name, "attached, {protection}");
        let note = format!("device {device} of claim {claim} is {name} in the pod, {protection}");
        for subject in [Subject::Claim(claim.clone()), Subject::Pod(pod.clone())] {
            self.reporter.event(Event {
                subject,
                event_type: EventType::Normal,
                reason: "LinkAttached",
                action: "Attach",
                note: note.clone(),
            });
        }
        self.reporter.claim_changed(claim);
    }

    fn tell_returned(&self, outcome: &Outcome) {
        for claim in &outcome.returned {
            info!(%claim, "links are home");
            self.reporter.claim_changed(claim);
        }
    }

    fn tell_problems(&self, problems: &[Problem]) {
        for problem in problems {
            warn!(reason = %problem.reason, "{}", problem.note);
            let subjects = [problem.claim.clone().map(Subject::Claim), problem.pod.clone().map(Subject::Pod)];
            let mut subjects: Vec<_> = subjects.into_iter().flatten().collect();
            if subjects.is_empty() {
                subjects.push(Subject::Node);
            }
            for subject in subjects {
                self.reporter.event(Event {
                    subject,
                    event_type: EventType::Warning,
                    reason: problem.reason.as_str(),
                    action: "Return",
                    note: problem.note.clone(),
                });
            }
        }
    }

    /// A failed attach concerns every claim of the pod: all of its links are home again.
    fn tell_failed(&self, pod: &PodRef, failed: &AttachFailed) {
        let message = failed.to_string();
        warn!(%pod, "cannot attach: {message}");
        let claims = self.claims_of(pod);
        let concerned = claims.iter().filter(|claim| failed.claim.as_deref().is_none_or(|of| of == *claim));
        for claim in concerned {
            self.reporter.attach_failed(claim, pod, &message);
        }
        self.tell_problems(&failed.problems);
    }

    fn claims_of(&self, pod: &PodRef) -> Vec<ClaimRef> {
        self.store.by_pod(&pod.uid).into_iter().map(|checkpoint| checkpoint.claim).collect()
    }

    async fn give_back(&self, sandbox_id: &str) {
        let outcome = self.attacher.give_back(sandbox_id).await;
        self.after_return(&outcome);
    }

    /// Look from time to time for sandboxes that ended without an event, until `stop`.
    pub async fn sweep_until(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, before the runtime has told what lives.
        ticks.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let outcome = self.attacher.sweep().await;
            self.after_return(&outcome);
        }
    }

    fn after_return(&self, outcome: &Outcome) {
        if !outcome.returned.is_empty() || !outcome.problems.is_empty() {
            self.metrics.returned(outcome.problems.is_empty());
        }
        self.tell_returned(outcome);
        self.tell_problems(&outcome.problems);
    }
}

#[async_trait]
impl PodEvents for Sandboxes {
    async fn synchronize(&self, sandboxes: Vec<PodSandbox>) {
        let outcome = self.attacher.recover(&sandboxes).await;
        for interface in &outcome.attached {
            info!(claim = %interface.claim, pod = %interface.pod, interface = interface.name, "in place");
            self.reporter.claim_changed(&interface.claim);
        }
        self.tell_returned(&outcome);
        self.tell_problems(&outcome.problems);
    }

    async fn run_pod_sandbox(&self, sandbox: PodSandbox) -> Result<(), String> {
        if self.store.by_pod(&sandbox.pod.uid).is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let result = self.attacher.attach(&sandbox).await;
        self.metrics.attached(result.is_ok(), start.elapsed());
        match result {
            Ok(outcome) => {
                outcome.attached.iter().for_each(|interface| self.tell_attached(interface));
                self.tell_problems(&outcome.problems);
                Ok(())
            }
            Err(failed) => {
                self.tell_failed(&sandbox.pod, &failed);
                Err(failed.to_string())
            }
        }
    }

    async fn stop_pod_sandbox(&self, sandbox: PodSandbox) {
        self.give_back(&sandbox.id).await;
    }

    async fn remove_pod_sandbox(&self, sandbox: PodSandbox) {
        // A sandbox that failed to start is removed without a stop.
        self.give_back(&sandbox.id).await;
    }
}

#[async_trait]
impl Release for Sandboxes {
    async fn release(&self, claim_uid: &str) -> Result<(), String> {
        let outcome = self.attacher.give_back_claim(claim_uid).await;
        self.after_return(&outcome);
        let away = outcome
            .problems
            .iter()
            .filter(|p| matches!(p.reason, Reason::NotReturned | Reason::ProgramsLeft));
        let notes: Vec<_> = away.map(|problem| problem.note.as_str()).collect();
        if notes.is_empty() { Ok(()) } else { Err(notes.join("; ")) }
    }

    fn unattachable(&self, plan: &InterfacePlan) -> Option<String> {
        self.attacher.unattachable(plan)
    }
}
