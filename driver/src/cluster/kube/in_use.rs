//! Finalizers of Networks at an API server.

use async_trait::async_trait;
use k8s_openapi::{
    api::{coordination::v1::Lease, resource::v1::ResourceSlice},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use super::{KubeCluster, errors::Object};
use crate::{
    cluster::{ClusterError, in_use::NetworkUse},
    network::{
        Declared, NetworkRef,
        report::{IN_FORCE, LABEL},
        spec::{self, InForceStatus},
    },
};

#[async_trait]
impl NetworkUse for KubeCluster {
    async fn networks_now(&self) -> Result<Vec<Declared>, ClusterError> {
        let object = Object::new(spec::KIND, "", "list");
        let list = self.request(&object, self.network_api().list(&ListParams::default())).await?;
        Ok(list.items.into_iter().map(|item| Declared::new(&item.metadata, &item.data)).collect())
    }

    async fn set_finalizers(&self, network: &Declared, finalizers: &[String]) -> Result<(), ClusterError> {
        let name = &network.reference.name;
        let object = Object::new(spec::KIND, name, "write the finalizers of");
        // A merge patch, not an apply: whoever has come to own the field, what is left out is gone. The list is replaced
        // whole, so it must be of the object that was read.
        let body = json!({"metadata": {
            "uid": network.reference.uid,
            "resourceVersion": network.resource_version,
            "finalizers": finalizers,
        }});
        let params = PatchParams { field_manager: Some(self.driver.clone()), ..PatchParams::default() };
        self.request(&object, self.network_api().patch(name, &params, &Patch::Merge(&body))).await.map(drop)
    }

    async fn apply_waiting(
        &self,
        network: &NetworkRef,
        condition: Option<&Condition>,
    ) -> Result<(), ClusterError> {
        // A manager of its own: what it does not say any more is taken away, and nothing of the others.
        let manager = format!("{}/in-use", self.driver);
        let conditions: Vec<&Condition> = condition.into_iter().collect();
        self.apply_to_network(network, &manager, &json!({"conditions": conditions})).await
    }

    async fn apply_in_force(&self, network: &NetworkRef, status: &InForceStatus) -> Result<(), ClusterError> {
        let manager = format!("{}/in-force", self.driver);
        self.apply_to_network(network, &manager, &json!({ "inForce": status })).await
    }

    async fn reports(&self) -> Result<Vec<Lease>, ClusterError> {
        let object = Object::new("Lease", "of nodes", "list");
        let selected = ListParams::default().labels(&format!("{LABEL}={IN_FORCE}"));
        let list = self.request(&object, self.lease_api().list(&selected)).await?;
        Ok(list.items)
    }

    async fn all_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        let object = Object::new("ResourceSlice", "of the driver", "list");
        self.list_slices(&object, &format!("spec.driver={}", self.driver)).await
    }
}
