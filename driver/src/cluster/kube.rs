//! The cluster as an API server.

mod errors;
mod events;

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::Node,
    resource::v1::{AllocatedDeviceStatus, ResourceClaim, ResourceSlice},
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Cluster, ClusterError, Event, NodeRef,
    versions::{self, ApiVersion},
};
use crate::claim::ClaimRef;
use errors::{Object, refused, unavailable};
use events::Series;

/// Longest one request may take, connection included. Kubelet gives a prepare call far longer, so a retry
/// still fits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Objects asked for in one page of a list.
const PAGE: u32 = 500;

/// An API server, spoken to in the newest version of resource.k8s.io that it serves.
pub struct KubeCluster {
    client: Client,
    version: ApiVersion,
    driver: String,
    node: String,
    timeout: Duration,
    series: Series,
}

impl KubeCluster {
    /// Connect with the kubeconfig at `kubeconfig`, or with the pod's service account, and discover which
    /// version of resource.k8s.io the server serves. `driver` is also the field manager of claim status.
    pub async fn connect(kubeconfig: Option<&Path>, driver: &str, node: &str) -> Result<Self, ClusterError> {
        let config = match kubeconfig {
            Some(path) => {
                let what = || format!("read the kubeconfig {}", path.display());
                let file = Kubeconfig::read_from(path).map_err(|error| unavailable(what(), error))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| unavailable(what(), error))?
            }
            None => Config::incluster().map_err(|error| {
                unavailable("use the pod's service account (outside a pod, give --kubeconfig)", error)
            })?,
        };
        Self::with_config(config, driver, node).await
    }

    /// Connect as `config` says.
    pub async fn with_config(mut config: Config, driver: &str, node: &str) -> Result<Self, ClusterError> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // The callers retry, with a backoff and a view of what is still worth writing.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| unavailable("set up the API client", error))?;
        let mut cluster = Self {
            client,
            version: ApiVersion::V1,
            driver: driver.to_owned(),
            node: node.to_owned(),
            timeout: REQUEST_TIMEOUT,
            series: Series::default(),
        };
        cluster.version = cluster.discover().await?;
        tracing::info!(version = %cluster.version, "resource.k8s.io version chosen");
        Ok(cluster)
    }

    /// Change how long one request may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The version of resource.k8s.io spoken with the server.
    #[must_use]
    pub const fn version(&self) -> ApiVersion {
        self.version
    }

    async fn discover(&self) -> Result<ApiVersion, ClusterError> {
        let object = Object::new("APIGroup", versions::GROUP, "discover the versions of");
        let groups = self.request(&object, self.client.list_api_groups()).await?;
        let served: Vec<String> = groups
            .groups
            .into_iter()
            .filter(|group| group.name == versions::GROUP)
            .flat_map(|group| group.versions)
            .map(|version| version.version)
            .collect();
        ApiVersion::choose(served.iter().map(String::as_str)).ok_or_else(|| {
            let served = if served.is_empty() { "none".to_owned() } else { served.join(", ") };
            refused(&object, 404, format!("served: {served}; this driver speaks v1, v1beta2 and v1beta1"))
        })
    }

    /// Run one request with the time-out, and put its error into the terms of the seam.
    async fn request<T>(
        &self,
        object: &Object,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(errors::from_kube(object, error)),
            Err(_) => Err(unavailable(
                object.to_string(),
                std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    format!("no answer within {:?}", self.timeout),
                ),
            )),
        }
    }

    fn resource(&self, kind: &str, plural: &str) -> ApiResource {
        ApiResource {
            group: versions::GROUP.to_owned(),
            version: self.version.version().to_owned(),
            api_version: self.version.api_version().to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }

    fn slice_api(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &self.resource("ResourceSlice", "resourceslices"))
    }

    fn claim_api(&self, namespace: &str) -> Api<DynamicObject> {
        let resource = self.resource("ResourceClaim", "resourceclaims");
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    /// From v1 to what the server wants.
    fn encode(&self, object: &Object, value: &impl Serialize) -> Result<DynamicObject, ClusterError> {
        serde_json::to_value(value)
            .map(|value| versions::to_wire(self.version, value))
            .and_then(serde_json::from_value)
            .map_err(|error| refused(object, 400, format!("cannot be encoded: {error}")))
    }

    /// From what the server sent to v1. Items of a list come without `kind`, hence `object`'s.
    fn decode<T: DeserializeOwned>(&self, object: &Object, sent: DynamicObject) -> Result<T, ClusterError> {
        serde_json::to_value(sent)
            .and_then(|mut value| {
                if let Some(map) = value.as_object_mut() {
                    map.insert("kind".to_owned(), object.kind.into());
                }
                serde_json::from_value(versions::from_wire(self.version, value))
            })
            .map_err(|error| unavailable(format!("understand the server's {object}"), error))
    }

    /// The body of an apply: identity, and our devices alone. Fields that are not in it stay whose they are.
    fn status_body(&self, claim: &ClaimRef, devices: &[AllocatedDeviceStatus]) -> Value {
        let status = if devices.is_empty() { json!({}) } else { json!({ "devices": devices }) };
        json!({
            "apiVersion": self.version.api_version(),
            "kind": "ResourceClaim",
            "metadata": {"name": claim.name, "namespace": claim.namespace, "uid": claim.uid},
            "status": status,
        })
    }
}

#[async_trait]
impl Cluster for KubeCluster {
    async fn node(&self) -> Result<NodeRef, ClusterError> {
        let object = Object::new("Node", &self.node, "read");
        let api: Api<Node> = Api::all(self.client.clone());
        let node = self.request(&object, api.get(&self.node)).await?;
        Ok(NodeRef { name: self.node.clone(), uid: node.metadata.uid })
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, ClusterError> {
        let object = Object::new("ResourceClaim", format!("{namespace}/{name}"), "read");
        let sent = self.request(&object, self.claim_api(namespace).get(name)).await?;
        self.decode(&object, sent)
    }

    async fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        let object = Object::new("ResourceSlice", format!("of node {}", self.node), "list");
        // Both selectors are indexed by the server in every version (pkg/registry/resource/resourceslice).
        let selector = format!("spec.driver={},spec.nodeName={}", self.driver, self.node);
        let api = self.slice_api();
        let mut page = ListParams::default().fields(&selector).limit(PAGE);
        let mut slices = Vec::new();
        loop {
            let list = self.request(&object, api.list(&page)).await?;
            for item in list.items {
                slices.push(self.decode(&object, item)?);
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(slices),
            }
        }
    }

    async fn create_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let name = slice.metadata.name.clone().or_else(|| slice.metadata.generate_name.clone());
        let object = Object::new("ResourceSlice", name.unwrap_or_default(), "create");
        let body = self.encode(&object, slice)?;
        let params = PostParams { field_manager: Some(self.driver.clone()), ..PostParams::default() };
        let sent = self.request(&object, self.slice_api().create(&params, &body)).await?;
        self.decode(&object, sent)
    }

    async fn update_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let name = slice.metadata.name.clone().unwrap_or_default();
        let object = Object::new("ResourceSlice", &name, "update");
        if slice.metadata.resource_version.is_none() {
            // Without it the server would overwrite whatever is there.
            return Err(refused(&object, 400, "metadata.resourceVersion: must be set".to_owned()));
        }
        let body = self.encode(&object, slice)?;
        let params = PostParams { field_manager: Some(self.driver.clone()), ..PostParams::default() };
        let sent = self.request(&object, self.slice_api().replace(&name, &params, &body)).await?;
        self.decode(&object, sent)
    }

    async fn delete_slice(&self, name: &str) -> Result<(), ClusterError> {
        let object = Object::new("ResourceSlice", name, "delete");
        match self.request(&object, self.slice_api().delete(name, &DeleteParams::default())).await {
            Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn apply_device_status(
        &self,
        claim: &ClaimRef,
        devices: &[AllocatedDeviceStatus],
    ) -> Result<(), ClusterError> {
        let object = Object::new("ResourceClaim", claim.to_string(), "apply the status of");
        let body = self.status_body(claim, devices);
        // A claim is allocated to one node, so the driver's name alone tells the writers of a claim apart.
        // Force takes over the entries of this driver only: nothing else is in the body.
        let params = PatchParams::apply(&self.driver).force();
        let api = self.claim_api(&claim.namespace);
        self.request(&object, api.patch_status(&claim.name, &params, &Patch::Apply(&body)))
            .await
            .map(drop)
            .map_err(errors::recreated)
    }

    async fn event(&self, event: &Event) -> Result<(), ClusterError> {
        self.record(event).await
    }
}
