//! A folder's objects have no finalizers: a document that is deleted is gone.

use async_trait::async_trait;
use k8s_openapi::{
    api::{coordination::v1::Lease, resource::v1::ResourceSlice},
    apimachinery::pkg::apis::meta::v1::Condition,
};

use super::{Shared, Standalone};
use crate::{
    cluster::{ClusterError, in_use::NetworkUse},
    network::{Declared, NetworkRef, spec::InForceStatus},
};

#[async_trait]
impl NetworkUse for Standalone {
    async fn networks_now(&self) -> Result<Vec<Declared>, ClusterError> {
        self.turn(Shared::networks).await
    }

    async fn set_finalizers(&self, _: &Declared, _: &[String]) -> Result<(), ClusterError> {
        Ok(())
    }

    async fn apply_waiting(&self, _: &NetworkRef, _: Option<&Condition>) -> Result<(), ClusterError> {
        Ok(())
    }

    async fn apply_in_force(&self, _: &NetworkRef, _: &InForceStatus) -> Result<(), ClusterError> {
        Ok(())
    }

    /// The one node needs no report.
    async fn reports(&self) -> Result<Vec<Lease>, ClusterError> {
        Ok(Vec::new())
    }

    async fn all_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        self.turn(Shared::every_slice).await
    }
}
