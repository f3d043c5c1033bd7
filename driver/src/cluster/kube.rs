//! The cluster as an API server.

mod errors;
mod events;
pub mod examine;
mod in_use;
mod lease;
mod networks;
mod nodes;
mod pools;
mod reach;
mod watch;

use std::{collections::BTreeMap, path::Path, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    resource::v1::{AllocatedDeviceStatus, ResourceClaim, ResourceSlice},
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{
    Cluster, ClusterError, Event, NodeRef,
    versions::{self, ApiVersion},
};
use crate::{
    claim::{ClaimRef, PodRef},
    network::{Declared, NetworkRef, nodes::NodePace, spec::NetworkStatus},
};
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
    /// Host and port of the server, as the configuration names them.
    server: (String, u16),
    /// Chosen at the first request that needs it: the daemon must start, and serve what was prepared, also while
    /// the API server is away.
    version: OnceCell<ApiVersion>,
    driver: String,
    node: String,
    timeout: Duration,
    node_pace: NodePace,
    series: Series,
}

impl KubeCluster {
    /// Set up with the kubeconfig at `kubeconfig`, or with the pod's service account. The server is not asked
    /// anything yet. `driver` is also the field manager of claim status.
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
        Self::with_config(config, driver, node)
    }

    /// Set up as `config` says.
    pub fn with_config(mut config: Config, driver: &str, node: &str) -> Result<Self, ClusterError> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // The callers retry, with a backoff and a view of what is still worth writing.
        config.default_retry = false;
        let url = &config.cluster_url;
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let server =
            (host, url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 }));
        let client = Client::try_from(config).map_err(|error| unavailable("set up the API client", error))?;
        Ok(Self {
            client,
            server,
            version: OnceCell::new(),
            driver: driver.to_owned(),
            node: node.to_owned(),
            timeout: REQUEST_TIMEOUT,
            node_pace: NodePace::default(),
            series: Series::default(),
        })
    }

    /// Change how long one request may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Change how nodes are asked for.
    #[must_use]
    pub fn with_node_pace(mut self, pace: NodePace) -> Self {
        self.node_pace = pace;
        self
    }

    /// The version of resource.k8s.io spoken with the server. The server is asked until it has answered once.
    pub async fn version(&self) -> Result<ApiVersion, ClusterError> {
        self.version.get_or_try_init(|| self.discover()).await.copied()
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
        let version = ApiVersion::choose(served.iter().map(String::as_str)).ok_or_else(|| {
            let served = if served.is_empty() { "none".to_owned() } else { served.join(", ") };
            refused(&object, 404, format!("served: {served}; this driver speaks v1, v1beta2 and v1beta1"))
        })?;
        tracing::info!(%version, "resource.k8s.io version chosen");
        Ok(version)
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

    /// Every slice that a field selector selects, page by page.
    async fn list_slices(&self, object: &Object, selector: &str) -> Result<Vec<ResourceSlice>, ClusterError> {
        let version = self.version().await?;
        let api = self.slice_api(version);
        let mut page = ListParams::default().fields(selector).limit(PAGE);
        let mut slices = Vec::new();
        loop {
            let list = self.request(object, api.list(&page)).await?;
            for item in list.items {
                slices.push(decode(version, object, item)?);
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(slices),
            }
        }
    }

    /// A pod, unless it is gone or was made again.
    async fn pod(&self, pod: &PodRef) -> Result<Option<Pod>, ClusterError> {
        let object = Object::new("Pod", pod.to_string(), "read");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let found = self.request(&object, api.get_opt(&pod.name)).await?;
        Ok(found.filter(|found| found.metadata.uid.as_deref() == Some(&pod.uid)))
    }

    fn slice_api(&self, version: ApiVersion) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(version, "ResourceSlice", "resourceslices"))
    }

    fn claim_api(&self, version: ApiVersion, namespace: &str) -> Api<DynamicObject> {
        let resource = resource(version, "ResourceClaim", "resourceclaims");
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }
}

fn resource(version: ApiVersion, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: versions::GROUP.to_owned(),
        version: version.version().to_owned(),
        api_version: version.api_version().to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// From v1 to what the server wants.
fn encode(
    version: ApiVersion,
    object: &Object,
    value: &impl Serialize,
) -> Result<DynamicObject, ClusterError> {
    serde_json::to_value(value)
        .map(|value| versions::to_wire(version, value))
        .and_then(serde_json::from_value)
        .map_err(|error| refused(object, 400, format!("cannot be encoded: {error}")))
}

/// From what the server sent to v1. Items of a list come without `kind`, hence `object`'s.
fn decode<T: DeserializeOwned>(
    version: ApiVersion,
    object: &Object,
    sent: DynamicObject,
) -> Result<T, ClusterError> {
    serde_json::to_value(sent)
        .and_then(|mut value| {
            if let Some(map) = value.as_object_mut() {
                map.insert("kind".to_owned(), object.kind.into());
            }
            serde_json::from_value(versions::from_wire(version, value))
        })
        .map_err(|error| unavailable(format!("understand the server's {object}"), error))
}

/// The body of an apply: identity, and our devices alone. Fields that are not in it stay whose they are.
fn status_body(version: ApiVersion, claim: &ClaimRef, devices: &[AllocatedDeviceStatus]) -> Value {
    let status = if devices.is_empty() { json!({}) } else { json!({ "devices": devices }) };
    json!({
        "apiVersion": version.api_version(),
        "kind": "ResourceClaim",
        "metadata": {"name": claim.name, "namespace": claim.namespace, "uid": claim.uid},
        "status": status,
    })
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
        let version = self.version().await?;
        let sent = self.request(&object, self.claim_api(version, namespace).get(name)).await?;
        decode(version, &object, sent)
    }

    async fn uses_host_network(&self, pod: &PodRef) -> Result<bool, ClusterError> {
        let found = self.pod(pod).await?;
        Ok(found.and_then(|found| found.spec?.host_network).unwrap_or(false))
    }

    async fn is_leaving(&self, pod: &PodRef) -> Result<bool, ClusterError> {
        let found = self.pod(pod).await?;
        Ok(found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()))
    }

    async fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        let object = Object::new("ResourceSlice", format!("of node {}", self.node), "list");
        // Both selectors are indexed by the server in every version (pkg/registry/resource/resourceslice).
        let selector = format!("spec.driver={},spec.nodeName={}", self.driver, self.node);
        self.list_slices(&object, &selector).await
    }

    async fn create_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let name = slice.metadata.name.clone().or_else(|| slice.metadata.generate_name.clone());
        let object = Object::new("ResourceSlice", name.unwrap_or_default(), "create");
        let version = self.version().await?;
        let body = encode(version, &object, slice)?;
        let params = PostParams { field_manager: Some(self.driver.clone()), ..PostParams::default() };
        let sent = self.request(&object, self.slice_api(version).create(&params, &body)).await?;
        decode(version, &object, sent)
    }

    async fn update_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let name = slice.metadata.name.clone().unwrap_or_default();
        let object = Object::new("ResourceSlice", &name, "update");
        if slice.metadata.resource_version.is_none() {
            // Without it the server would overwrite whatever is there.
            return Err(refused(&object, 400, "metadata.resourceVersion: must be set".to_owned()));
        }
        let version = self.version().await?;
        let body = encode(version, &object, slice)?;
        let params = PostParams { field_manager: Some(self.driver.clone()), ..PostParams::default() };
        let sent = self.request(&object, self.slice_api(version).replace(&name, &params, &body)).await?;
        decode(version, &object, sent)
    }

    async fn delete_slice(&self, name: &str) -> Result<(), ClusterError> {
        let object = Object::new("ResourceSlice", name, "delete");
        let version = self.version().await?;
        match self.request(&object, self.slice_api(version).delete(name, &DeleteParams::default())).await {
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
        let version = self.version().await?;
        let body = status_body(version, claim, devices);
        // A claim is allocated to one node, so the driver's name alone tells the writers of a claim apart.
        // Force takes over the entries of this driver only: nothing else is in the body.
        let params = PatchParams::apply(&self.driver).force();
        let api = self.claim_api(version, &claim.namespace);
        self.request(&object, api.patch_status(&claim.name, &params, &Patch::Apply(&body)))
            .await
            .map(drop)
            .map_err(errors::recreated)
    }

    async fn event(&self, event: &Event) -> Result<(), ClusterError> {
        self.record(event).await
    }

    async fn namespace_labels(&self, name: &str) -> Result<BTreeMap<String, String>, ClusterError> {
        self.labels_of_namespace(name).await
    }

    fn networks(&self) -> BoxStream<'static, Result<Vec<Declared>, ClusterError>> {
        self.watch_networks()
    }

    async fn apply_network_status(
        &self,
        network: &NetworkRef,
        status: &NetworkStatus,
    ) -> Result<(), ClusterError> {
        self.apply_status_of_network(network, status).await
    }

    async fn apply_network_counts(
        &self,
        network: &NetworkRef,
        nodes: u32,
        members: u32,
    ) -> Result<(), ClusterError> {
        self.apply_counts_of_network(network, nodes, members).await
    }
}
