//! What happens to claims as sandboxes come and go: the runtime's events, and the kubelet's last word.
//!
//! A sandbox is never failed. The attach begins with it, and is tried again until it succeeds or the sandbox ends; a pod is
//! held back where its containers are made ([`PodEvents::create_container`]).

mod known;
mod retry;
mod shared;
mod tell;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::Notify;

pub use self::known::Registry;
use self::known::Standing;
use crate::{
    attach::{Attacher, Reason},
    claim::{InterfacePlan, service::Release, store::Store},
    cluster::Cluster,
    datapath::Isolation,
    metrics::Metrics,
    nri::{PodEvents, PodSandbox},
    status::Reporter,
};

/// Attaches at the start of a sandbox and returns at its end; holds back containers of pods without their interfaces;
/// tells metrics, claim status and Events.
pub struct Sandboxes {
    /// Does the work.
    pub attacher: Arc<Attacher>,
    /// Which claims a pod has.
    pub store: Arc<Store>,
    /// Is asked for whom a claim is reserved.
    pub cluster: Arc<dyn Cluster>,
    /// Tells the cluster, later.
    pub reporter: Reporter,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// The sandboxes that are known.
    pub registry: Arc<Registry>,
    /// Wakes [`Sandboxes::retry_until`].
    pub wake: Arc<Notify>,
}

impl Sandboxes {
    /// Try to attach what the sandbox lacks. The caller has its turn. `Ok` if its containers may be made.
    async fn attempt(&self, id: &str) -> Result<(), String> {
        let Some(known) = self.registry.get(id) else { return Err("the sandbox is not known".to_owned()) };
        if let Standing::Ended(why) = known.standing {
            return Err(why);
        }
        let sandbox = &known.sandbox;
        if !self.store.has_claims(&sandbox.pod.uid) {
            let asked = self.ask(&known).await;
            if !self.store.has_claims(&sandbox.pod.uid) {
                return self.answered(sandbox, asked);
            }
        }
        let had_all = self.store.has_all(&sandbox.pod.uid, &sandbox.id);
        let start = Instant::now();
        let result = self.attacher.attach(sandbox).await;
        let waits_for = self.waits_for(sandbox);
        match result {
            Ok(outcome) => {
                if known.standing != Standing::Attached || !had_all {
                    self.metrics.attached(true, start.elapsed());
                    outcome.attached.iter().for_each(|interface| self.tell_attached(interface));
                }
                self.tell_problems(&outcome.problems);
                self.registry.succeeded(id, Standing::Attached);
                Ok(())
            }
            Err(failed) => {
                let why = failed.to_string();
                // No runtime has reported its stop, and nobody waits.
                if failed.has_ended() {
                    self.registry.end(id);
                    return Err(why);
                }
                if self.registry.failed(id, &why, waits_for) {
                    self.metrics.attached(false, start.elapsed());
                    self.tell_failed(&known, &failed);
                }
                Err(why)
            }
        }
    }

    /// The pod has no claim here, unless the API server has not said.
    fn answered(&self, sandbox: &PodSandbox, asked: Result<(), String>) -> Result<(), String> {
        match asked {
            Ok(()) => self.registry.succeeded(&sandbox.id, Standing::Free),
            Err(ref why) => {
                if self.registry.failed(&sandbox.id, why, self.waits_for(sandbox)) {
                    self.tell_held(&sandbox.pod, why);
                }
            }
        }
        asked
    }

    /// Whether a pod whose containers have run may go on without an interface that it lacks: where nothing promised that it
    /// is held to its claims.
    fn may_run_without(&self, sandbox: &PodSandbox) -> bool {
        let claims = self.store.by_pod(&sandbox.pod.uid);
        let mut lacking = claims.iter().flat_map(|claim| &claim.interfaces).filter(|interface| {
            interface.attachment.as_ref().is_none_or(|attachment| !attachment.is_in(&sandbox.id))
        });
        lacking.all(|interface| interface.plan.isolation != Isolation::Strict)
    }

    /// Wait until the attaches and returns that are under way have ended, but no longer than this.
    pub async fn drain(&self, longest: Duration) {
        let ended = async {
            for known in self.registry.all() {
                drop(known.turn.lock().await);
            }
        };
        if tokio::time::timeout(longest, ended).await.is_err() {
            tracing::warn!("some attaches were cut off; they are finished at the next start");
        }
    }

    async fn give_back(&self, sandbox_id: &str) {
        let outcome = self.attacher.give_back_links(sandbox_id).await;
        self.after_return(&outcome);
        self.wake.notify_one();
        // What fails is tried again by the next attach of its link, and by the sweep, which reports it.
        let attacher = Arc::clone(&self.attacher);
        tokio::spawn(async move { attacher.finish_removals().await });
    }
}

#[async_trait]
impl PodEvents for Sandboxes {
    async fn synchronize(&self, sandboxes: Vec<PodSandbox>) {
        let (outcome, alive) = self.attacher.recover_with(&sandboxes).await;
        self.registry.replace(&sandboxes, &alive);
        let failed = |sandbox: &PodSandbox| {
            let of_pod = |problem: &&crate::attach::Problem| {
                problem.reason == Reason::NotAttached && problem.pod.as_ref() == Some(&sandbox.pod)
            };
            outcome.problems.iter().find(of_pod).map(|problem| problem.note.clone())
        };
        for sandbox in &alive.sandboxes {
            if let Some(why) = failed(sandbox) {
                self.registry.failed(&sandbox.id, &why, self.waits_for(sandbox));
                self.tell_lacking(sandbox, &why);
            } else if self.store.has_claims(&sandbox.pod.uid) {
                self.registry.succeeded(&sandbox.id, Standing::Attached);
            } else if self.open_questions(sandbox).is_empty() {
                self.registry.succeeded(&sandbox.id, Standing::Free);
            }
        }
        self.tell_recovered(&outcome);
        // What is held still is asked about and tried again at once.
        self.wake.notify_one();
    }

    async fn run_pod_sandbox(&self, sandbox: PodSandbox) {
        self.registry.begin(&sandbox);
        let Some(known) = self.registry.get(&sandbox.id) else { return };
        let _turn = known.turn.lock().await;
        let _ = self.attempt(&sandbox.id).await;
    }

    fn is_free(&self, sandbox: &PodSandbox) -> bool {
        !self.store.has_claims(&sandbox.pod.uid) && self.open_questions(sandbox).is_empty()
    }

    async fn create_container(&self, sandbox: PodSandbox, container: &str) -> Result<(), String> {
        let known = self.registry.know(&sandbox);
        let _turn = known.turn.lock().await;
        match self.attempt(&sandbox.id).await {
            Ok(()) => {
                self.registry.change(&sandbox.id, |known| known.opened = true);
                Ok(())
            }
            Err(why) if known.opened && !known.has_ended() && self.may_run_without(&sandbox) => {
                tracing::warn!(pod = %sandbox.pod, container, why, "starts again without an interface of its claims");
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    fn held_by(&self, sandbox: &PodSandbox) -> Option<String> {
        match self.registry.get(&sandbox.id)?.standing {
            Standing::Held(why) | Standing::Ended(why) => Some(why),
            Standing::Free | Standing::Attached => None,
        }
    }

    async fn stop_pod_sandbox(&self, sandbox: PodSandbox) {
        // At once: an attempt that waits for its turn finds it ended.
        self.registry.end(&sandbox.id);
        let turn = self.registry.get(&sandbox.id).map(|known| known.turn);
        let _turn = match &turn {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        self.give_back(&sandbox.id).await;
    }

    async fn remove_pod_sandbox(&self, sandbox: PodSandbox) {
        let id = sandbox.id.clone();
        // A sandbox that failed to start is removed without a stop.
        self.stop_pod_sandbox(sandbox).await;
        self.registry.forget(&id);
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

    async fn not_movable_now(&self, plan: &InterfacePlan) -> Option<String> {
        self.attacher.not_movable_now(plan).await
    }
}
