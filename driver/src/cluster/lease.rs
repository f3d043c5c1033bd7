//! Leases, by which nodes elect one of them.

use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::Lease;

use super::ClusterError;

/// The Leases (coordination.k8s.io/v1) of the namespace the driver runs in.
#[async_trait]
pub trait Leases: Send + Sync {
    /// The Lease of a name, if there is one.
    async fn lease(&self, name: &str) -> Result<Option<Lease>, ClusterError>;
    /// Create a Lease, or replace the one whose `metadata.resourceVersion` it carries. If somebody else wrote first,
    /// this fails with [`ClusterError::Conflict`].
    async fn write_lease(&self, lease: &Lease) -> Result<Lease, ClusterError>;
}
