//! Watches over networks, claims, slices, nodes, namespaces and pods.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use netferry::cluster::versions::{self, ApiVersion};
use serde_json::{Value, json};

use super::State;

/// What can be watched.
const WATCHED: [&str; 6] = ["networks", "resourceclaims", "resourceslices", "nodes", "namespaces", "pods"];

/// A change that watches are told.
pub(super) struct Logged {
    version: u64,
    resource: &'static str,
    kind: &'static str,
    /// In the v1 shape.
    object: Value,
}

/// What a request watches: the resource, the version of resource.k8s.io it is served in, and the namespace if it is
/// only one.
#[derive(Clone)]
pub(super) struct Watched {
    resource: &'static str,
    version: Option<ApiVersion>,
    namespace: Option<String>,
    /// The only driver whose slices are wanted.
    driver: Option<String>,
    /// The only node whose slices are wanted; empty for those of no node.
    node: Option<String>,
    /// Whether only metadata is asked for.
    metadata: bool,
}

/// What is at a path, if it can be watched.
pub(super) fn at(path: &str) -> Option<Watched> {
    let plain = |resource| Watched {
        resource,
        version: None,
        namespace: None,
        driver: None,
        node: None,
        metadata: false,
    };
    match path {
        "/apis/netferry.dev/v1alpha1/networks" => Some(plain("networks")),
        "/api/v1/nodes" => Some(plain("nodes")),
        "/api/v1/namespaces" => Some(plain("namespaces")),
        "/api/v1/pods" => Some(plain("pods")),
        _ => {
            let pods = path.strip_prefix("/api/v1/namespaces/").and_then(|rest| rest.strip_suffix("/pods"));
            if let Some(namespace) = pods {
                return Some(Watched { namespace: Some(namespace.to_owned()), ..plain("pods") });
            }
            let path = path.strip_prefix("/apis/resource.k8s.io/")?;
            if let Some(version) = path.strip_suffix("/resourceslices") {
                return Some(Watched {
                    version: Some(ApiVersion::parse(version)?),
                    ..plain("resourceslices")
                });
            }
            let within = path.strip_suffix("/resourceclaims")?;
            let (version, namespace) = match within.split_once("/namespaces/") {
                Some((version, namespace)) => (version, Some(namespace.to_owned())),
                None => (within, None),
            };
            let version = Some(ApiVersion::parse(version)?);
            Some(Watched { version, namespace, ..plain("resourceclaims") })
        }
    }
}

impl Watched {
    /// With metadata alone, or whole; of what a field selector selects by driver and node.
    pub(super) fn of(self, metadata: bool, selector: Option<&String>) -> Self {
        let selected = |field: &str| {
            let mut terms = selector.into_iter().flat_map(|text| text.split(','));
            terms.find_map(|term| term.strip_prefix(field)?.strip_prefix('=')).map(str::to_owned)
        };
        Self { metadata, driver: selected("spec.driver"), node: selected("spec.nodeName"), ..self }
    }
}

/// An object as who asks for metadata alone gets it.
pub(super) fn metadata_of(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

impl State {
    /// Tell the watches of a change.
    pub(super) fn log(&mut self, resource: &str, kind: &'static str, object: &Value) {
        if let Some(resource) = WATCHED.into_iter().find(|watched| *watched == resource) {
            self.changes.push(Logged { version: self.version, resource, kind, object: object.clone() });
        }
    }

    /// Changes after a resource version, a line each.
    fn news(&self, watched: &Watched, seen: u64) -> String {
        let from = self.changes.partition_point(|logged| logged.version <= seen);
        let within = |object: &Value| {
            watched.namespace.as_ref().is_none_or(|name| object["metadata"]["namespace"] == name.as_str())
                && watched.driver.as_ref().is_none_or(|name| object["spec"]["driver"] == name.as_str())
                && watched
                    .node
                    .as_ref()
                    .is_none_or(|name| object["spec"]["nodeName"].as_str().unwrap_or_default() == name)
        };
        let of = self.changes[from..]
            .iter()
            .filter(|logged| logged.resource == watched.resource && within(&logged.object));
        let line = |logged: &Logged| {
            let object = if watched.metadata { metadata_of(&logged.object) } else { logged.object.clone() };
            let object = match watched.version {
                Some(version) => versions::to_wire(version, object),
                None => object,
            };
            json!({"type": logged.kind, "object": object}).to_string() + "\n"
        };
        of.map(line).collect()
    }
}

/// The answer to a watch: one event a line, for as long as somebody reads.
pub(super) fn answer(state: Arc<Mutex<State>>, watched: Watched, from: u64) -> Body {
    let stream = futures::stream::unfold((state, watched, from), |(state, watched, seen)| async move {
        loop {
            let (news, now) = {
                let state = state.lock().expect("state");
                (state.news(&watched, seen), state.version)
            };
            if !news.is_empty() {
                return Some((Ok::<_, std::io::Error>(news), (state, watched, now)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    Body::from_stream(stream)
}
