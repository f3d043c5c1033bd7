//! Writes one pool's slices: the difference between what is there and what is wanted.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use k8s_openapi::{
    api::resource::v1::{Device as ApiDevice, ResourceSlice, ResourceSliceSpec},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use tracing::warn;

use super::{
    pool::{self, Altered},
    publisher::PublishStats,
};
use crate::cluster::{Cluster, ClusterError};

/// What a round of writing came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Whether anything had to be written.
    pub changed: bool,
    /// The pool's generation now.
    pub generation: i64,
    /// The pool's slices now, by name with their resource versions.
    pub slices: BTreeMap<String, String>,
}

/// Keeps one pool.
pub struct PoolWriter {
    cluster: Arc<dyn Cluster>,
    stats: Arc<PublishStats>,
    altered: Altered,
}

impl PoolWriter {
    /// A writer that has not written anything yet.
    #[must_use]
    pub fn new(cluster: Arc<dyn Cluster>, stats: Arc<PublishStats>) -> Self {
        Self { cluster, stats, altered: Altered::new() }
    }

    /// Turn `current` into `desired`. After an error some writes may have been made; the next round reads what is
    /// there and goes on from that.
    pub async fn write(
        &mut self,
        current: &[ResourceSlice],
        desired: &[ResourceSliceSpec],
        owner: Option<&OwnerReference>,
    ) -> Result<Written, ClusterError> {
        let writes = pool::writes(current, desired, owner, &self.altered);
        let changed = !writes.is_empty();
        let mut slices: BTreeMap<_, _> = current.iter().map(named).collect();
        for name in writes.delete {
            self.cluster.delete_slice(&name).await?;
            slices.remove(&name);
            self.stats.deletes.fetch_add(1, Ordering::Relaxed);
        }
        for (index, slice) in writes.update {
            let stored = self.cluster.update_slice(&slice).await?;
            self.stats.updates.fetch_add(1, Ordering::Relaxed);
            slices.extend([named(&stored)]);
            self.remember(index, &desired[index], &stored);
        }
        for (index, slice) in writes.create {
            let stored = self.cluster.create_slice(&slice).await?;
            self.stats.creates.fetch_add(1, Ordering::Relaxed);
            slices.extend([named(&stored)]);
            self.remember(index, &desired[index], &stored);
        }
        Ok(Written { changed, generation: writes.generation, slices })
    }

    fn remember(&mut self, index: usize, desired: &ResourceSliceSpec, stored: &ResourceSlice) {
        let sent = pool::plain(desired.devices.as_deref());
        let kept = pool::plain(stored.spec.devices.as_deref());
        if sent == kept {
            self.altered.remove(&index);
        } else {
            let slice = stored.metadata.name.as_deref().unwrap_or_default();
            let shared = |devices: &[ApiDevice]| {
                devices.iter().filter(|device| device.allow_multiple_allocations == Some(true)).count()
            };
            if shared(&sent) > shared(&kept) {
                warn!(
                    slice,
                    "the server dropped allowMultipleAllocations: of each network this node can give one port only. \
                     Turn on the feature gate DRAConsumableCapacity (Kubernetes 1.34 and later) in API server and \
                     scheduler"
                );
            } else {
                warn!(slice, "the server stored other devices than it was sent; it may not know every field");
            }
            self.altered.insert(index, (sent, kept));
        }
    }
}

fn named(slice: &ResourceSlice) -> (String, String) {
    let metadata = &slice.metadata;
    (metadata.name.clone().unwrap_or_default(), metadata.resource_version.clone().unwrap_or_default())
}
