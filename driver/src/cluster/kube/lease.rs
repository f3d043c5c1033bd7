//! Leases of an API server.

use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::PostParams};

use super::{KubeCluster, errors::Object};
use crate::cluster::{ClusterError, lease::Leases};

impl KubeCluster {
    /// In the namespace of the service account, or of the kubeconfig's context.
    pub(super) fn lease_api(&self) -> Api<Lease> {
        Api::default_namespaced(self.client.clone())
    }
}

#[async_trait]
impl Leases for KubeCluster {
    async fn lease(&self, name: &str) -> Result<Option<Lease>, ClusterError> {
        let object = Object::new("Lease", name, "read");
        self.request(&object, self.lease_api().get_opt(name)).await
    }

    async fn write_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let params = PostParams { field_manager: Some(self.driver.clone()), ..PostParams::default() };
        let api = self.lease_api();
        if lease.metadata.resource_version.is_some() {
            let object = Object::new("Lease", &name, "update");
            self.request(&object, api.replace(&name, &params, lease)).await
        } else {
            let object = Object::new("Lease", &name, "create");
            self.request(&object, api.create(&params, lease)).await
        }
    }
}
