//! Leases of a folder. Only one daemon runs on it, so they are kept in memory: it is elected at once.

use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::Lease;

use super::{Standalone, claims};
use crate::cluster::{ClusterError, lease::Leases};

#[async_trait]
impl Leases for Standalone {
    async fn lease(&self, name: &str) -> Result<Option<Lease>, ClusterError> {
        Ok(self.leases().get(name).cloned())
    }

    async fn write_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let mut leases = self.leases();
        let stored = leases.get(&name).and_then(|stored| stored.metadata.resource_version.clone());
        if stored != lease.metadata.resource_version {
            let message = "metadata.resourceVersion is not the current one".to_owned();
            return Err(ClusterError::Conflict { kind: "Lease", name, message });
        }
        let mut lease = lease.clone();
        lease.metadata.resource_version = Some(claims::next_version(stored.as_deref().unwrap_or_default()));
        leases.insert(name, lease.clone());
        Ok(lease)
    }
}
