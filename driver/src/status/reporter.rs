//! Writes claim status and Events behind the driver's back: its callers (a prepare, the sandbox hook) never
//! wait for the API server, and what they said is written in the end.

mod queue;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::AllocatedDeviceStatus;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{Failure, Observed, Stage, device_statuses, reported};
use crate::{
    claim::{Checkpoint, ClaimRef, PodRef, service, store::Store},
    cluster::{Cluster, ClusterError, Event, EventType, Subject},
    telemetry::chain,
};
use queue::{Queue, Work};

/// The checkpoints, as the reporter reads them.
pub trait Checkpoints: Send + Sync + 'static {
    /// The checkpoint of the claim with this UID; `None` if it is not prepared here.
    fn get(&self, uid: &str) -> Option<Checkpoint>;
    /// Every checkpoint.
    fn all(&self) -> Vec<Checkpoint>;
}

impl Checkpoints for Store {
    fn get(&self, uid: &str) -> Option<Checkpoint> {
        Self::get(self, uid)
    }

    fn all(&self) -> Vec<Checkpoint> {
        Self::all(self)
    }
}

/// How long to wait after a failed write: `base` doubled with each attempt up to `cap`, with a jitter of a
/// quarter so that the nodes of a cluster do not come back at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub base: Duration,
    /// At most.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), cap: Duration::from_mins(1) }
    }
}

impl Backoff {
    pub(super) fn after(self, attempt: u32) -> Duration {
        use std::hash::{BuildHasher as _, RandomState};
        let whole = self.base.saturating_mul(1 << attempt.min(16)).min(self.cap);
        let quarter = u64::try_from(whole.as_nanos() / 4).unwrap_or(u64::MAX);
        // Each RandomState is seeded anew: that is random enough for a jitter.
        let jitter = RandomState::new().hash_one(attempt) % quarter.saturating_add(1);
        whole.saturating_sub(Duration::from_nanos(jitter))
    }
}

/// The handle: cheap to clone, and no call on it waits.
#[derive(Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Arc<dyn Cluster>,
    checkpoints: Arc<dyn Checkpoints>,
    driver: String,
    backoff: Backoff,
    queue: Queue,
    wake: Notify,
    stop: watch::Sender<bool>,
}

impl service::Reporter for Reporter {
    fn claim_changed(&self, claim: &ClaimRef) {
        Self::claim_changed(self, claim);
    }

    fn prepare_failed(&self, claim: &ClaimRef, why: &str) {
        Self::prepare_failed(self, claim, why);
    }
}

impl Reporter {
    /// Start the writing task. Every claim that has a checkpoint is reported again: what was said before a
    /// crash may not have been written.
    #[must_use]
    pub fn start(
        cluster: Arc<dyn Cluster>,
        checkpoints: Arc<dyn Checkpoints>,
        driver: &str,
        backoff: Backoff,
    ) -> (Self, JoinHandle<()>) {
        let shared = Arc::new(Shared {
            cluster,
            checkpoints,
            driver: driver.to_owned(),
            backoff,
            queue: Queue::default(),
            wake: Notify::new(),
            stop: watch::Sender::new(false),
        });
        let reporter = Self { shared: Arc::clone(&shared) };
        for checkpoint in shared.checkpoints.all() {
            reporter.claim_changed(&checkpoint.claim);
        }
        let task = tokio::spawn(async move { shared.run().await });
        (reporter, task)
    }

    /// A claim's checkpoint was written or removed.
    pub fn claim_changed(&self, claim: &ClaimRef) {
        self.shared.queue.claim(claim, None);
        self.shared.wake.notify_one();
    }

    /// A prepare was refused: told in the claim's conditions and in an Event on it.
    pub fn prepare_failed(&self, claim: &ClaimRef, message: &str) {
        self.failed(claim, Stage::Prepare, message);
        self.event(Event {
            subject: Subject::Claim(claim.clone()),
            event_type: EventType::Warning,
            reason: Stage::Prepare.reason(),
            action: "Prepare",
            note: message.to_owned(),
        });
    }

    /// An attach failed and was rolled back: told in the claim's conditions, and in an Event on claim and pod.
    pub fn attach_failed(&self, claim: &ClaimRef, pod: &PodRef, message: &str) {
        self.failed(claim, Stage::Attach, message);
        for subject in [Subject::Claim(claim.clone()), Subject::Pod(pod.clone())] {
            self.event(Event {
                subject,
                event_type: EventType::Warning,
                reason: Stage::Attach.reason(),
                action: "Attach",
                note: message.to_owned(),
            });
        }
    }

    /// Record an Event. The oldest waiting one makes room if there are too many.
    pub fn event(&self, event: Event) {
        self.shared.queue.event(event);
        self.shared.wake.notify_one();
    }

    /// Write what is waiting, each once more, and stop. What could not be written within `bound` is said again
    /// at the next start (status) or lost (Events).
    pub async fn shutdown(&self, task: JoinHandle<()>, bound: Duration) {
        self.shared.stop.send_replace(true);
        let abort = task.abort_handle();
        if timeout(bound, task).await.is_err() {
            abort.abort();
            let (claims, events) = self.shared.queue.waiting();
            tracing::warn!(claims, events, "stopped before everything was reported");
        }
    }

    fn failed(&self, claim: &ClaimRef, stage: Stage, message: &str) {
        self.shared.queue.claim(claim, Some(Failure { stage, message: message.to_owned() }));
        self.shared.wake.notify_one();
    }
}

impl Shared {
    async fn run(&self) {
        let mut stop = self.stop.subscribe();
        loop {
            let stopping = *stop.borrow_and_update();
            if self.queue.take_overflow() {
                for checkpoint in self.checkpoints.all() {
                    self.queue.claim(&checkpoint.claim, None);
                }
            }
            match self.queue.next(Instant::now(), stopping) {
                Work::Claim { claim, attempt } => self.write_claim(claim, attempt, stopping).await,
                Work::Event { event, attempt } => self.write_event(event, attempt, stopping).await,
                Work::None if stopping => return,
                Work::None => tokio::select! {
                    () = self.wake.notified() => {}
                    _ = stop.changed() => {}
                },
                Work::Wait(until) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(until) => {}
                    _ = stop.changed() => {}
                },
            }
        }
    }

    async fn write_claim(&self, claim: ClaimRef, attempt: u32, stopping: bool) {
        let wait = match self.report(&claim).await {
            Ok(Outcome::Written) => return,
            Ok(Outcome::Gone) => {
                self.queue.forget(&claim);
                return;
            }
            Err(error @ ClusterError::Refused { .. }) => {
                tracing::warn!(%claim, %error, "claim status refused; it is tried again");
                self.backoff.after(u32::MAX)
            }
            Err(error) => {
                tracing::debug!(%claim, attempt, error = %chain(&error), "claim status not written yet");
                self.backoff.after(attempt)
            }
        };
        if !stopping {
            self.queue.again(claim, attempt.saturating_add(1), Instant::now() + wait);
        }
    }

    /// Read the claim, compare, apply. Reading first tells a claim that was made again, keeps the transition
    /// times, and leaves out devices that are no longer allocated, which the server would refuse.
    async fn report(&self, reference: &ClaimRef) -> Result<Outcome, ClusterError> {
        let claim = match self.cluster.claim(&reference.namespace, &reference.name).await {
            Err(ClusterError::NotFound { .. }) => return Ok(Outcome::Gone),
            other => other?,
        };
        if claim.metadata.uid.as_deref() != Some(&reference.uid) {
            return Ok(Outcome::Gone);
        }
        let checkpoint = self.checkpoints.get(&reference.uid);
        let failure = self.queue.failure(reference, checkpoint.as_ref());
        let statuses = device_statuses(&Observed {
            claim: &claim,
            driver: &self.driver,
            checkpoint: checkpoint.as_ref(),
            failure: failure.as_ref(),
            now: Timestamp::now(),
        });
        let written: Vec<_> = reported(&claim, &self.driver).collect();
        let is_written = |status| written.iter().any(|known| same(known, status));
        if written.len() == statuses.len() && statuses.iter().all(is_written) {
            return Ok(Outcome::Written);
        }
        match self.cluster.apply_device_status(reference, &statuses).await {
            Ok(()) => Ok(Outcome::Written),
            Err(ClusterError::NotFound { .. }) => Ok(Outcome::Gone),
            // Deleted or made again in between, or a lost race: the next read tells which.
            Err(error) => Err(error),
        }
    }

    async fn write_event(&self, event: Event, attempt: u32, stopping: bool) {
        const ATTEMPTS: u32 = 6;
        match self.cluster.event(&event).await {
            Ok(()) => {}
            Err(error @ ClusterError::Unavailable { .. }) if attempt < ATTEMPTS && !stopping => {
                tracing::debug!(reason = event.reason, attempt, error = %chain(&error), "Event not written yet");
                let due = Instant::now() + self.backoff.after(attempt);
                self.queue.event_again(event, attempt + 1, due);
            }
            Err(error) => {
                tracing::warn!(reason = event.reason, note = event.note, error = %chain(&error), "Event lost");
            }
        }
    }
}

enum Outcome {
    Written,
    Gone,
}

/// Whether two statuses say the same. The server may keep the conditions, a map by type, in another order.
fn same(a: &AllocatedDeviceStatus, b: &AllocatedDeviceStatus) -> bool {
    let sorted = |status: &AllocatedDeviceStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().for_each(|all| all.sort_by(|a, b| a.type_.cmp(&b.type_)));
        status
    };
    sorted(a) == sorted(b)
}
