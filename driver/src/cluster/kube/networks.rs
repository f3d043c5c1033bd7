//! Networks and namespaces of an API server.

use std::collections::BTreeMap;

use futures::stream::{self, BoxStream, StreamExt as _};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use serde_json::{Value, json};

use super::{KubeCluster, errors, errors::Object};
use crate::{
    cluster::ClusterError,
    network::{
        Declared, NetworkRef,
        spec::{self, NetworkObject, NetworkStatus},
    },
};

impl KubeCluster {
    // Each spec is read by itself afterwards: one object that this version of the driver does not understand must
    // not hide the others, as it would in a typed list.
    pub(super) fn network_api(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &ApiResource::erase::<NetworkObject>(&()))
    }

    pub(super) async fn labels_of_namespace(
        &self,
        name: &str,
    ) -> Result<BTreeMap<String, String>, ClusterError> {
        let object = Object::new("Namespace", name, "read");
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = self.request(&object, api.get(name)).await?;
        Ok(namespace.metadata.labels.unwrap_or_default())
    }

    pub(super) fn watch_networks(&self) -> BoxStream<'static, Result<Vec<Declared>, ClusterError>> {
        let events = watcher(self.network_api(), watcher::Config::default()).default_backoff().boxed();
        stream::unfold((events, Watched::default()), |(mut events, mut watched)| async move {
            loop {
                match events.next().await? {
                    Ok(event) => {
                        if let Some(networks) = watched.take(event) {
                            return Some((Ok(networks), (events, watched)));
                        }
                    }
                    Err(error) => return Some((Err(seen_as(error)), (events, watched))),
                }
            }
        })
        .boxed()
    }

    pub(super) async fn apply_status_of_network(
        &self,
        network: &NetworkRef,
        status: &NetworkStatus,
    ) -> Result<(), ClusterError> {
        // Only what every node comes to alike: all of them write under the driver's one name.
        let status =
            json!({"observedGeneration": status.observed_generation, "conditions": status.conditions});
        self.apply_to_network(network, &self.driver, &status).await
    }

    pub(super) async fn apply_counts_of_network(
        &self,
        network: &NetworkRef,
        nodes: u32,
        members: u32,
    ) -> Result<(), ClusterError> {
        // A manager of its own: the apply of the conditions would take the fields away otherwise.
        let manager = format!("{}/counts", self.driver);
        self.apply_to_network(network, &manager, &json!({"nodes": nodes, "members": members})).await
    }

    pub(super) async fn apply_to_network(
        &self,
        network: &NetworkRef,
        manager: &str,
        status: &Value,
    ) -> Result<(), ClusterError> {
        let object = Object::new(spec::KIND, &network.name, "apply the status of");
        let body = json!({
            "apiVersion": spec::API_VERSION,
            "kind": spec::KIND,
            "metadata": {"name": network.name, "uid": network.uid},
            "status": status,
        });
        let params = PatchParams::apply(manager).force();
        self.request(&object, self.network_api().patch_status(&network.name, &params, &Patch::Apply(&body)))
            .await
            .map(drop)
            .map_err(errors::recreated)
    }
}

/// The set of networks, as the events of a watch make it.
#[derive(Default)]
struct Watched {
    networks: BTreeMap<String, Declared>,
    /// The list that is being read; it takes the place of the set when it is whole.
    listed: BTreeMap<String, Declared>,
}

impl Watched {
    /// The whole set, where the event changes it.
    fn take(&mut self, event: watcher::Event<DynamicObject>) -> Option<Vec<Declared>> {
        let entry = |object: DynamicObject| {
            let declared = Declared::new(&object.metadata, &object.data);
            (declared.reference.name.clone(), declared)
        };
        match event {
            watcher::Event::Init => {
                self.listed.clear();
                return None;
            }
            watcher::Event::InitApply(object) => {
                self.listed.extend([entry(object)]);
                return None;
            }
            watcher::Event::InitDone => self.networks = std::mem::take(&mut self.listed),
            watcher::Event::Apply(object) => self.networks.extend([entry(object)]),
            watcher::Event::Delete(object) => drop(self.networks.remove(&entry(object).0)),
        }
        Some(self.networks.values().cloned().collect())
    }
}

fn seen_as(error: watcher::Error) -> ClusterError {
    let object = Object::new(spec::KIND, "", "watch");
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => errors::from_kube(&object, error),
        watcher::Error::WatchError(status) => errors::from_kube(&object, kube::Error::Api(status)),
        error @ watcher::Error::NoResourceVersion => errors::unavailable(object.to_string(), error),
    }
}
