//! Slices of an API server that the elected node writes.

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::{KubeCluster, errors::Object};
use crate::cluster::{ClusterError, pools::Pools};

#[async_trait]
impl Pools for KubeCluster {
    async fn pool_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        let object = Object::new("ResourceSlice", "of no node", "list");
        // An empty value selects slices without a node, as Kubernetes' own controller does it.
        let selector = format!("spec.driver={},spec.nodeName=", self.driver);
        self.list_slices(&object, &selector).await
    }

    async fn slices_of_node(&self, node: &str) -> Result<Vec<ResourceSlice>, ClusterError> {
        let object = Object::new("ResourceSlice", format!("of node {node}"), "list");
        self.list_slices(&object, &format!("spec.driver={},spec.nodeName={node}", self.driver)).await
    }
}
