//! Slices of a folder that belong to no node.

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::{Standalone, unavailable, written};
use crate::cluster::{ClusterError, pools::Pools};

#[async_trait]
impl Pools for Standalone {
    async fn pool_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        self.turn(|shared| {
            let all: Vec<ResourceSlice> =
                written::slices(&shared.root).map_err(|error| unavailable("read the slices", error))?;
            let ours =
                |slice: &ResourceSlice| slice.spec.driver == shared.driver && slice.spec.node_name.is_none();
            Ok(all.into_iter().filter(ours).collect())
        })
        .await
    }
}
