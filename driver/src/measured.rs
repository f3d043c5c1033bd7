//! The kubelet's calls, counted and timed, with discovery told of what they change.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;

use crate::{
    claim::ClaimRef,
    device::watch::Watcher,
    dra::plugin::{ClaimService, PreparedDevice},
    metrics::Metrics,
};

/// A [`ClaimService`] around another.
pub struct Measured<S> {
    /// Does the work.
    pub claims: S,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Which devices are held decides what discovery keeps.
    pub watcher: Watcher,
}

#[async_trait]
impl<S: ClaimService> ClaimService for Measured<S> {
    async fn prepare(&self, claim: &ClaimRef) -> Result<Vec<PreparedDevice>, String> {
        let start = Instant::now();
        let result = self.claims.prepare(claim).await;
        self.metrics.prepared(result.is_ok(), start.elapsed());
        result
    }

    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), String> {
        let result = self.claims.unprepare(claim).await;
        self.watcher.refresh();
        result
    }
}
