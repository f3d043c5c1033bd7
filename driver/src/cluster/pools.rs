//! Pools that the elected node writes: those of no node, and those of other nodes.

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::ClusterError;

/// Slices of pools that are not this node's own. They are written as those are.
#[async_trait]
pub trait Pools: Send + Sync {
    /// All slices of this driver that belong to no node.
    async fn pool_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError>;
    /// All slices of this driver that are of a node, of whichever pool.
    async fn slices_of_node(&self, node: &str) -> Result<Vec<ResourceSlice>, ClusterError>;
}
