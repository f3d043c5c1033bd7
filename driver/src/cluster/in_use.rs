//! Networks that claims use: what keeps their objects until the claims are gone.

use async_trait::async_trait;
use k8s_openapi::{
    api::{coordination::v1::Lease, resource::v1::ResourceSlice},
    apimachinery::pkg::apis::meta::v1::Condition,
};

use super::ClusterError;
use crate::network::{Declared, NetworkRef, spec::InForceStatus};

/// What the elected node writes of a Network's use, and what a cleanup takes away.
#[async_trait]
pub trait NetworkUse: Send + Sync {
    /// Every Network, read once.
    async fn networks_now(&self) -> Result<Vec<Declared>, ClusterError>;
    /// Write the finalizers of a Network in the place of those it has. A network that was changed since it was read is
    /// [`ClusterError::Conflict`]. Without an effect where objects have no finalizers.
    async fn set_finalizers(&self, network: &Declared, finalizers: &[String]) -> Result<(), ClusterError>;
    /// Server-side apply of the condition that says why a Network is not deleted yet; `None` takes it away.
    async fn apply_waiting(
        &self,
        network: &NetworkRef,
        condition: Option<&Condition>,
    ) -> Result<(), ClusterError>;
    /// Server-side apply of the nodes on which a generation of a Network is in force.
    async fn apply_in_force(&self, network: &NetworkRef, status: &InForceStatus) -> Result<(), ClusterError>;
    /// The Leases in which nodes report what is in force.
    async fn reports(&self) -> Result<Vec<Lease>, ClusterError>;
    /// Every slice of this driver, of whichever node and pool.
    async fn all_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError>;
}
