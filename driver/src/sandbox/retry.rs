//! Attempts that nobody asks for: a runtime makes a sandbox once, and reports it once.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Sandboxes, known::Standing};
use crate::{device::Inventory, nri::PodSandbox};

/// How often sandboxes are looked for that ended without an event.
const SWEEP: Duration = Duration::from_secs(10);
/// At how many sweeps what a lost checkpoint has left is looked for.
const CLEAR_AT: u32 = 6;
/// Changes are gathered for this long: one event changes many records.
const GATHER: Duration = Duration::from_millis(50);
/// Longest pause of the loop.
const IDLE: Duration = Duration::from_secs(10);

impl Sandboxes {
    /// Try again to attach what waits, in its time and when something has changed, until `stop`.
    pub async fn retry_until(
        self: Arc<Self>,
        mut inventory: watch::Receiver<Arc<Inventory>>,
        stop: CancellationToken,
    ) {
        let mut changes = self.store.changes();
        loop {
            let due = self.registry.next_try().map_or(IDLE, |due| due.duration_since(Instant::now()));
            let mut links_changed = false;
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = changes.changed() => {}
                Ok(()) = inventory.changed() => links_changed = true,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(due.min(IDLE)) => {}
            }
            tokio::time::sleep(GATHER).await;
            changes.mark_unchanged();
            inventory.mark_unchanged();
            for known in self.registry.all() {
                let sandbox = known.sandbox.clone();
                // A claim of a pod that had none: its checkpoint was lost, and the kubelet has prepared it again. Or an
                // interface that was there is not any more.
                let lacks = match known.standing {
                    Standing::Free => self.store.has_claims(&sandbox.pod.uid),
                    Standing::Attached => !self.store.has_all(&sandbox.pod.uid, &sandbox.id),
                    Standing::Held(_) | Standing::Ended(_) => false,
                };
                let hopes = links_changed && matches!(known.standing, Standing::Held(_));
                let due = lacks || hopes || known.is_due(Instant::now(), self.waits_for(&sandbox));
                if !due {
                    continue;
                }
                // One that an event has its turn with is tried by the event.
                let Ok(turn) = Arc::clone(&known.turn).try_lock_owned() else { continue };
                let this = Arc::clone(&self);
                tokio::spawn(async move {
                    let _ = this.attempt(&sandbox.id).await;
                    drop(turn);
                    this.wake.notify_one();
                });
            }
        }
    }

    /// A number that changes when what may keep the sandbox from its interfaces does: where the interfaces of others are,
    /// and which claims are prepared.
    pub(super) fn waits_for(&self, sandbox: &PodSandbox) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.store.look(|claims| {
            for checkpoint in claims.values() {
                checkpoint.claim.uid.hash(&mut hasher);
                for interface in &checkpoint.interfaces {
                    let other = interface.attachment.as_ref().map(|attachment| &attachment.sandbox.id);
                    other.filter(|id| **id != sandbox.id).hash(&mut hasher);
                }
            }
        });
        hasher.finish()
    }

    /// Look from time to time for sandboxes that ended without an event, until `stop`.
    pub async fn sweep_until(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, before the runtime has told what lives.
        ticks.tick().await;
        let mut sweeps = 0_u32;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let mut outcome = self.attacher.sweep().await;
            sweeps = sweeps.wrapping_add(1);
            if sweeps.is_multiple_of(CLEAR_AT) {
                outcome.problems.extend(self.attacher.clear_unused_holds().await);
            }
            self.after_return(&outcome);
        }
    }
}
