//! The call of the kubelet that a claim is worked on for.

use std::{future::Future, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The call that waits for an answer. Work that is under way goes on when the call has ended; work that has not begun does
/// not.
#[derive(Debug)]
pub struct Caller {
    ended: CancellationToken,
    slots: Arc<Semaphore>,
    /// The right to work beside other claims; `None` while the claim waits.
    slot: Option<OwnedSemaphorePermit>,
}

impl Caller {
    /// A call that ends with `ended`, and one of those that share `slots`.
    pub(super) const fn new(ended: CancellationToken, slots: Arc<Semaphore>) -> Self {
        Self { ended, slots, slot: None }
    }

    /// A call that nobody ends, for claims that are prepared without a kubelet.
    #[must_use]
    pub fn patient() -> Self {
        Self::new(CancellationToken::new(), Arc::new(Semaphore::new(1)))
    }

    /// Take one of the slots. Fails when the slots are closed.
    pub(super) async fn begin(&mut self) -> Result<(), String> {
        if self.slot.is_none() {
            let slot = Arc::clone(&self.slots).acquire_owned().await;
            self.slot = Some(slot.map_err(|error| error.to_string())?);
        }
        Ok(())
    }

    /// Wait for something without a slot, so that any number of claims can wait while others are worked on. `None` if the
    /// call ended first: the kubelet hung up or gave up, or the daemon stops.
    pub async fn wait<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        self.slot = None;
        let came = tokio::select! {
            biased;
            () = self.ended.cancelled() => None,
            came = what => Some(came),
        };
        self.begin().await.ok()?;
        came
    }
}
