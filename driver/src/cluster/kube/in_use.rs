//! Finalizers of Networks at an API server.

use async_trait::async_trait;
use k8s_openapi::{api::resource::v1::ResourceSlice, apimachinery::pkg::apis::meta::v1::Condition};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use super::{KubeCluster, errors::Object};
use crate::{
    cluster::{ClusterError, in_use::NetworkUse},
    network::{Declared, NetworkRef, spec},
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

    async fn all_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        let object = Object::new("ResourceSlice", "of the driver", "list");
        self.list_slices(&object, &format!("spec.driver={}", self.driver)).await
    }
}
