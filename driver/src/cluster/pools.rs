//! Pools that belong to no node.

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::ClusterError;

/// Slices of pools for the whole cluster. They are written as those of nodes are.
#[async_trait]
pub trait Pools: Send + Sync {
    /// All slices of this driver that belong to no node.
    async fn pool_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError>;
}
