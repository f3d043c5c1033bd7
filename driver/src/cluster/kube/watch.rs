//! Watches over an API server's claims, namespaces and pods. Of each object only the facts are kept, so a watch costs what the
//! largest page of a list does, and no copy of the cluster is held.

use std::{fmt::Debug, future::ready, sync::Arc, time::Duration};

use futures::{
    FutureExt as _, Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    resource::v1::{ResourceClaimStatus, ResourcePool},
};
use kube::{
    Api, Resource,
    core::{Object, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::{debug, warn};

use super::{KubeCluster, PAGE, resource};
use crate::{
    cluster::{
        versions::ApiVersion,
        watch::{SliceVersion, SlicesOf, Watch},
    },
    network::{
        facts::{self, ClaimFacts, NamespaceFacts, NodeFacts, PodFacts, Seen},
        nodes::{self, Needs, Question},
        published::{self, SliceFacts},
        scope::Scope,
    },
};

/// A spec that nobody reads.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Unread {}

/// The status of a claim has one shape in all versions of the API.
type Claim = Object<Unread, ResourceClaimStatus>;
type Slice = Object<SlicePart, Unread>;

/// Of a slice's spec what has one shape in all versions of the API.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct SlicePart {
    node_name: Option<String>,
    pool: ResourcePool,
    devices: Option<Vec<DeviceName>>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct DeviceName {
    name: String,
}

impl Watch for KubeCluster {
    fn narrows(&self) -> bool {
        true
    }

    fn claims(self: Arc<Self>, scope: &Scope) -> BoxStream<'static, Seen<ClaimFacts, String>> {
        let (driver, scope) = (self.driver.clone(), scope.clone());
        let facts = move |claim: &Claim| facts::claim(&claim.metadata, claim.status.as_ref(), &driver);
        let found = async move {
            let resource = resource(self.known_version().await, "ResourceClaim", "resourceclaims");
            let api = match &scope {
                Scope::Cluster => Api::<Claim>::all_with(self.client.clone(), &resource),
                Scope::Namespace(name) => Api::namespaced_with(self.client.clone(), name, &resource),
            };
            watched(api, "resourceclaims", watcher::Config::default())
        };
        stream::once(found).flatten().map(move |event| seen(event, &facts, |facts| facts.uid)).boxed()
    }

    fn slices(self: Arc<Self>) -> BoxStream<'static, Seen<SliceFacts, String>> {
        let ours = watcher::Config::default().fields(&format!("spec.driver={}", self.driver));
        let facts = |slice: &Slice| {
            let SlicePart { node_name, pool, devices } = &slice.spec;
            let devices = devices.iter().flatten().map(|device| device.name.as_str());
            published::slice(&slice.metadata, node_name.as_deref(), pool, devices)
        };
        let found = async move {
            let resource = resource(self.known_version().await, "ResourceSlice", "resourceslices");
            watched(Api::<Slice>::all_with(self.client.clone(), &resource), "resourceslices", ours)
        };
        stream::once(found).flatten().map(move |event| seen(event, &facts, |facts| facts.name)).boxed()
    }

    fn slice_versions(self: Arc<Self>, of: SlicesOf) -> BoxStream<'static, Seen<SliceVersion, String>> {
        // Both selectors are indexed by the server. An empty value selects slices without a node.
        let node = if of == SlicesOf::ThisNode { self.node.as_str() } else { "" };
        let ours =
            watcher::Config::default().fields(&format!("spec.driver={},spec.nodeName={node}", self.driver));
        let version = |slice: &Slice| SliceVersion {
            name: slice.metadata.name.clone().unwrap_or_default(),
            version: slice.metadata.resource_version.clone().unwrap_or_default(),
            pool: slice.spec.pool.name.clone(),
        };
        let found = async move {
            let resource = resource(self.known_version().await, "ResourceSlice", "resourceslices");
            watched(Api::<Slice>::all_with(self.client.clone(), &resource), "resourceslices", ours)
        };
        stream::once(found).flatten().map(move |event| seen(event, &version, |slice| slice.name)).boxed()
    }

    fn pods(self: Arc<Self>, scope: &Scope) -> BoxStream<'static, Seen<PodFacts, String>> {
        // The server is asked for metadata alone.
        let api = match scope {
            Scope::Cluster => Api::<PartialObjectMeta<Pod>>::all(self.client.clone()),
            Scope::Namespace(name) => Api::namespaced(self.client.clone(), name),
        };
        let facts = |pod: &PartialObjectMeta<Pod>| facts::pod(&pod.metadata);
        watched(api, "pods", watcher::Config::default())
            .map(move |event| seen(event, &facts, |facts| facts.name))
            .boxed()
    }

    fn namespaces(self: Arc<Self>) -> BoxStream<'static, Seen<NamespaceFacts, String>> {
        let api = Api::<PartialObjectMeta<Namespace>>::all(self.client.clone());
        let facts = |namespace: &PartialObjectMeta<Namespace>| facts::namespace(&namespace.metadata);
        watched(api, "namespaces", watcher::Config::default())
            .map(move |event| seen(event, &facts, |facts| facts.name))
            .boxed()
    }

    fn nodes(self: Arc<Self>, needs: Needs) -> BoxStream<'static, Seen<NodeFacts, String>> {
        let (own, pace) = (self.node.clone(), self.node_pace);
        let ask = move |question: Question| {
            let cluster = Arc::clone(&self);
            async move { cluster.node_facts(&question).await }.boxed()
        };
        nodes::asked(&own, needs, Box::new(ask), pace)
    }
}

impl KubeCluster {
    /// The version spoken with the server, once it has said.
    async fn known_version(&self) -> ApiVersion {
        loop {
            match self.version().await {
                Ok(version) => return version,
                Err(error) => debug!(%error, "nothing can be watched yet"),
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// The events of a watch that starts again after each failure, later each time.
fn watched<K>(api: Api<K>, what: &'static str, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    watcher(api, config.page_size(PAGE)).default_backoff().filter_map(move |event| {
        ready(match event {
            Ok(event) => Some(event),
            // A watch that has become too old to go on is one of them, and quite usual.
            Err(error) => {
                if let watcher::Error::WatchError(_) = &error {
                    debug!(what, %error, "watching again");
                } else {
                    warn!(what, error = &error as &dyn std::error::Error, "cannot watch; trying again");
                }
                None
            }
        })
    })
}

fn seen<K, T>(event: Event<K>, facts: &impl Fn(&K) -> T, key: impl Fn(T) -> String) -> Seen<T, String> {
    match event {
        Event::Init => Seen::Listing,
        Event::InitApply(object) | Event::Apply(object) => Seen::Is(facts(&object)),
        Event::Delete(object) => Seen::Gone(key(facts(&object))),
        Event::InitDone => Seen::Listed,
    }
}
