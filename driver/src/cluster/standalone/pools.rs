//! Slices of a folder, of no node and of any.

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::Standalone;
use crate::cluster::{ClusterError, pools::Pools};

#[async_trait]
impl Pools for Standalone {
    async fn pool_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        self.turn(|shared| shared.slices_of(None)).await
    }

    async fn slices_of_node(&self, node: &str) -> Result<Vec<ResourceSlice>, ClusterError> {
        let node = node.to_owned();
        self.turn(move |shared| shared.slices_of(Some(&node))).await
    }
}
