//! What goes with the kubelet's calls: numbers, protection ahead of the sandbox, and word to discovery.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;

use crate::{
    attach::Attacher,
    claim::ClaimRef,
    device::watch::Watcher,
    dra::plugin::{Caller, ClaimService, PreparedDevice},
    metrics::Metrics,
};

/// A [`ClaimService`] around another.
pub struct Measured<S> {
    /// Does the work.
    pub claims: S,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Protects links ahead of their sandbox.
    pub attacher: Arc<Attacher>,
    /// Which devices are held decides what discovery keeps.
    pub watcher: Watcher,
}

#[async_trait]
impl<S: ClaimService> ClaimService for Measured<S> {
    async fn prepare(&self, claim: &ClaimRef, caller: &mut Caller) -> Result<Vec<PreparedDevice>, String> {
        let start = Instant::now();
        let result = self.claims.prepare(claim, caller).await;
        self.metrics.prepared(result.is_ok(), start.elapsed());
        if result.is_ok() {
            // Not waited for: the kubelet has its answer, and an attach that comes sooner takes its turn.
            let (attacher, uid) = (Arc::clone(&self.attacher), claim.uid.clone());
            tokio::spawn(async move { attacher.protect(&uid).await });
        }
        result
    }

    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), String> {
        let result = self.claims.unprepare(claim).await;
        self.watcher.refresh();
        result
    }
}
