//! Events on their way to the driver: one at a time for each sandbox, never cut short, answered soon.
//!
//! NRI and containerd each hold one lock of the whole node until a plugin has answered: a hook that waits stops the start and
//! the end of every pod, and what it waits for may be one of them. So hooks are answered soon and the work goes on.
//! A runtime that gets no answer within its own limit, or whose connection breaks, closes the plugin and lets the
//! pod start *without* it (`isFatalError` in `pkg/adaptation/plugin.go` of containerd/nri).

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{
    sync::{OwnedMutexGuard, RwLock, oneshot},
    task::coop::unconstrained,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use super::{PodEvents, PodSandbox};
use crate::claim::PodRef;

/// Part of the runtime's limit that is kept back, so that the answer is there in time.
const RESERVE_DIVISOR: u32 = 10;
/// Longest that the start of a sandbox waits for its links: most are attached by then, and nothing is lost if not.
const SANDBOX_WAIT: Duration = Duration::from_millis(100);
/// Longest that any other hook waits.
const HOOK_WAIT: Duration = Duration::from_millis(500);

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
        timeout_at(answer_by.min(Instant::now() + HOOK_WAIT), work).await.is_ok()
    }

    /// Begin to attach a sandbox, and wait a little for it. The work goes on in any case.
    pub(super) async fn run(&self, sandbox: PodSandbox, answer_by: Instant) {
        let events = Arc::clone(&self.events);
        let (pod, id) = (sandbox.pod.clone(), sandbox.id.clone());
        let answer_by = answer_by.min(Instant::now() + SANDBOX_WAIT);
        self.finish("run", pod, id, answer_by, async move { events.run_pod_sandbox(sandbox).await }).await;
    }

    /// Whether a container may be made now. What is not decided by `answer_by` is refused, and the work goes on.
    pub(super) async fn create_container(
        &self,
        sandbox: PodSandbox,
        container: String,
        answer_by: Instant,
    ) -> Result<(), String> {
        if self.events.is_free(&sandbox) {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        let (this, asked) = (self.clone(), sandbox.clone());
        let turn = self.turns.queue(&sandbox.id);
        self.work.spawn(async move {
            let _turn = turn.await;
            let _world = this.world.read().await;
            // Nobody waits any more after a limit: the work is done all the same.
            let _ = answer.send(this.events.create_container(asked, &container).await);
        });
        let refused = match timeout_at(answer_by.min(Instant::now() + HOOK_WAIT), answered).await {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(why))) => why,
            Ok(Err(_)) => "the attach failed unexpectedly, see the driver's log".to_owned(),
            Err(_) => self
                .events
                .held_by(&sandbox)
                .unwrap_or_else(|| "its interfaces are being attached still".to_owned()),
        };
        Err(format!("netferry: pod {} waits for its network interfaces: {refused}", sandbox.pod))
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
        let turn = self.turns.queue(&id);
        let work = self.work.spawn(async move {
            let _turn = turn.await;
            let _world = this.world.read().await;
            handle.await;
        });
        match timeout_at(answer_by.min(Instant::now() + HOOK_WAIT), work).await {
            Ok(Ok(())) => {}
            Ok(Err(panic)) => error!(%pod, sandbox = id, event, error = %panic, "event failed"),
            Err(_) => debug!(%pod, sandbox = id, event, "answered; the work goes on"),
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
    /// Queue for the sandbox now, whenever the turn is awaited: events come in the order in which the runtime sent them,
    /// also those that wait for a synchronization together.
    fn queue(&self, sandbox: &str) -> impl Future<Output = Turn> + Send + 'static {
        let lock = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(sandbox.to_owned()).or_default())
        };
        let (turns, sandbox) = (self.clone(), sandbox.to_owned());
        let mut locked = Box::pin(unconstrained(lock.lock_owned()));
        // The first poll is what queues.
        let at_once = locked.as_mut().now_or_never();
        async move {
            let held = match at_once {
                Some(held) => held,
                None => locked.await,
            };
            Turn { held: Some(held), turns, sandbox }
        }
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
