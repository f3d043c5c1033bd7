//! Events on their way to the driver: one at a time for each sandbox, never cut short, answered in time.
//!
//! A runtime that gets no answer within its limit, or whose connection breaks, closes the plugin and lets the
//! pod start *without* it (`isFatalError` in `pkg/adaptation/plugin.go` of containerd/nri). An answer, even a
//! refusal, must therefore always leave before the limit.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{
    sync::{OwnedMutexGuard, RwLock, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use super::{PodEvents, PodSandbox};
use crate::claim::PodRef;

/// Part of the runtime's limit that is kept back, so that the answer is there in time.
const RESERVE_DIVISOR: u32 = 10;

/// When an event must have been answered, given the runtime's `limit` for it.
pub(super) fn answer_by(limit: Duration) -> Instant {
    let reserve = (limit / RESERVE_DIVISOR).clamp(Duration::from_millis(20), Duration::from_millis(500));
    Instant::now() + limit.saturating_sub(reserve).max(limit / 2)
}

/// Outlives the sessions with the runtime: work begun under one goes on under the next.
#[derive(Clone)]
pub(super) struct Dispatch {
    events: Arc<dyn PodEvents>,
    /// Held shared by events of sandboxes, and alone by a synchronization.
    world: Arc<RwLock<()>>,
    turns: Turns,
    work: TaskTracker,
}

impl Dispatch {
    pub(super) fn new(events: Arc<dyn PodEvents>) -> Self {
        Self { events, world: Arc::default(), turns: Turns::default(), work: TaskTracker::new() }
    }

    /// Hand over the runtime's sandboxes. Returns whether that was done by `answer_by`; it goes on in any case, and
    /// `done` hears at its end whether it succeeded.
    pub(super) async fn synchronize(
        &self,
        sandboxes: Vec<PodSandbox>,
        answer_by: Instant,
        done: impl FnOnce(bool) + Send + 'static,
    ) -> bool {
        let this = self.clone();
        let work = self.work.spawn(async move {
            let _world = this.world.write().await;
            let result = AssertUnwindSafe(this.events.synchronize(sandboxes)).catch_unwind().await;
            done(result.is_ok());
        });
        timeout_at(answer_by, work).await.is_ok()
    }

    /// Attach a sandbox. Whatever is not done by `answer_by` is refused; an attach that succeeds after its refusal is
    /// taken back by a stop event.
    pub(super) async fn run(&self, sandbox: PodSandbox, answer_by: Instant) -> Result<(), String> {
        let (answer, mut answered) = oneshot::channel();
        let refused = Arc::new(AtomicBool::new(false));
        let this = self.clone();
        let is_refused = Arc::clone(&refused);
        let started = Instant::now();
        self.work.spawn(async move {
            let _world = this.world.read().await;
            let _turn = this.turns.wait(&sandbox.id).await;
            if is_refused.load(Ordering::SeqCst) {
                return;
            }
            let result = this.events.run_pod_sandbox(sandbox.clone()).await;
            // Not delivered without a refusal: the connection broke, and the runtime lets the pod start.
            if let Err(Ok(())) = answer.send(result)
                && is_refused.load(Ordering::SeqCst)
            {
                warn!(pod = %sandbox.pod, sandbox = sandbox.id, "attached after the runtime's limit: taking it back");
                this.events.stop_pod_sandbox(sandbox).await;
            }
        });
        let result = if let Ok(result) = timeout_at(answer_by, &mut answered).await {
            result.ok()
        } else {
            refused.store(true, Ordering::SeqCst);
            answered.close();
            // The answer may have come between the limit and here.
            let Ok(result) = answered.try_recv() else {
                let waited = started.elapsed().as_millis();
                return Err(format!("netferry: the pod's network was not ready after {waited} ms"));
            };
            Some(result)
        };
        result.unwrap_or_else(|| Err("netferry: the attach failed unexpectedly, see the driver's log".into()))
    }

    /// Return a stopped sandbox's links. Answered by `answer_by`, done or not; it goes on in any case.
    pub(super) async fn stop(&self, sandbox: PodSandbox, answer_by: Instant) {
        let events = Arc::clone(&self.events);
        let (pod, id) = (sandbox.pod.clone(), sandbox.id.clone());
        self.finish("stop", pod, id, answer_by, async move { events.stop_pod_sandbox(sandbox).await }).await;
    }

    /// Forget a removed sandbox. Answered by `answer_by`, done or not; it goes on in any case.
    pub(super) async fn remove(&self, sandbox: PodSandbox, answer_by: Instant) {
        let events = Arc::clone(&self.events);
        let (pod, id) = (sandbox.pod.clone(), sandbox.id.clone());
        self.finish("remove", pod, id, answer_by, async move { events.remove_pod_sandbox(sandbox).await })
            .await;
    }

    async fn finish(
        &self,
        event: &'static str,
        pod: PodRef,
        id: String,
        answer_by: Instant,
        handle: impl Future<Output = ()> + Send + 'static,
    ) {
        let this = self.clone();
        let sandbox = id.clone();
        let work = self.work.spawn(async move {
            let _world = this.world.read().await;
            let _turn = this.turns.wait(&sandbox).await;
            handle.await;
        });
        match timeout_at(answer_by, work).await {
            Ok(Ok(())) => {}
            Ok(Err(panic)) => error!(%pod, sandbox = id, event, error = %panic, "event failed"),
            Err(_) => warn!(%pod, sandbox = id, event, "answered at the runtime's limit; the work goes on"),
        }
    }

    /// Wait for the work under way, at most for `limit`. Returns whether all is done.
    pub(super) async fn drain(&self, limit: Duration) -> bool {
        self.work.close();
        timeout(limit, self.work.wait()).await.is_ok()
    }
}

/// One event at a time for a sandbox.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>);

impl Turns {
    async fn wait(&self, sandbox: &str) -> Turn {
        let lock = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(sandbox.to_owned()).or_default())
        };
        Turn { held: Some(lock.lock_owned().await), turns: self.clone(), sandbox: sandbox.to_owned() }
    }
}

struct Turn {
    held: Option<OwnedMutexGuard<()>>,
    turns: Turns,
    sandbox: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.held.take());
        // Only the table knows it still: nobody waits.
        if turns.get(&self.sandbox).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            turns.remove(&self.sandbox);
        }
    }
}
