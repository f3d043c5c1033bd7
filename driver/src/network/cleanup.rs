//! What belongs to no node goes with the last one: pools of addresses, and what keeps Networks from being deleted.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;

use super::{
    in_use::{FINALIZER, without},
    leader::ADDRESSES,
    names::pool_of,
};
use crate::cluster::{ClusterError, WholeCluster};

/// What a cleanup came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Slices of networks' addresses that were deleted.
    pub slices: usize,
    /// Networks that lost the driver's finalizer.
    pub networks: usize,
    /// Other nodes that publish devices still; then nothing was done, unless no node is elected any more.
    pub others: BTreeSet<String>,
}

/// Take away what the elected node has written, once this node's own slices are deleted: if no other node publishes devices,
/// or none is elected. As long as one is, it would write everything again.
pub async fn run(cluster: &dyn WholeCluster, now: Timestamp) -> Result<Cleaned, ClusterError> {
    let slices = cluster.all_slices().await?;
    let (of_networks, of_nodes): (Vec<_>, Vec<_>) =
        slices.into_iter().partition(|slice| pool_of(&slice.spec.pool.name).is_some());
    let others: BTreeSet<String> = of_nodes.into_iter().filter_map(|slice| slice.spec.node_name).collect();
    let mut cleaned = Cleaned { others, ..Cleaned::default() };
    if !cleaned.others.is_empty() && is_led(cluster.lease(ADDRESSES).await?.as_ref(), now) {
        return Ok(cleaned);
    }
    for slice in of_networks {
        if let Some(name) = &slice.metadata.name {
            cluster.delete_slice(name).await?;
            cleaned.slices += 1;
        }
    }
    let networks = match cluster.networks_now().await {
        // Their definition is gone, and they with it.
        Err(ClusterError::NotFound { .. }) => Vec::new(),
        networks => networks?,
    };
    for network in networks.iter().filter(|it| it.finalizers.iter().any(|of| of == FINALIZER)) {
        match cluster.set_finalizers(network, &without(&network.finalizers)).await {
            Ok(()) => cleaned.networks += 1,
            Err(ClusterError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(cleaned)
}

/// Whether a node has renewed the Lease within its duration.
fn is_led(lease: Option<&Lease>, now: Timestamp) -> bool {
    let Some(spec) = lease.and_then(|lease| lease.spec.as_ref()) else { return false };
    let held = spec.holder_identity.as_ref().is_some_and(|holder| !holder.is_empty());
    let duration = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(0).into());
    held && spec.renew_time.as_ref().is_some_and(|renewed| now.duration_since(renewed.0) < duration)
}
