//! Watches over networks, claims and nodes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use netferry::cluster::versions::{self, ApiVersion};
use serde_json::{Value, json};

use super::State;

/// What can be watched.
const WATCHED: [&str; 3] = ["networks", "resourceclaims", "nodes"];

/// A change that watches are told.
pub(super) struct Logged {
    version: u64,
    resource: &'static str,
    kind: &'static str,
    /// In the v1 shape.
    object: Value,
}

/// What a request watches: the resource, and the version of resource.k8s.io it is served in.
#[derive(Clone, Copy)]
pub(super) struct Watched {
    resource: &'static str,
    version: Option<ApiVersion>,
}

/// What is at a path, if it can be watched.
pub(super) fn at(path: &str) -> Option<Watched> {
    let plain = |resource| Watched { resource, version: None };
    match path {
        "/apis/netferry.dev/v1alpha1/networks" => Some(plain("networks")),
        "/api/v1/nodes" => Some(plain("nodes")),
        _ => {
            let version = path.strip_prefix("/apis/resource.k8s.io/")?.strip_suffix("/resourceclaims")?;
            Some(Watched { resource: "resourceclaims", version: Some(ApiVersion::parse(version)?) })
        }
    }
}

impl State {
    /// Tell the watches of a change.
    pub(super) fn log(&mut self, resource: &str, kind: &'static str, object: &Value) {
        if let Some(resource) = WATCHED.into_iter().find(|watched| *watched == resource) {
            self.changes.push(Logged { version: self.version, resource, kind, object: object.clone() });
        }
    }

    /// Changes after a resource version, a line each.
    fn news(&self, watched: Watched, seen: u64) -> String {
        let from = self.changes.partition_point(|logged| logged.version <= seen);
        let of = self.changes[from..].iter().filter(|logged| logged.resource == watched.resource);
        let line = |logged: &Logged| {
            let object = logged.object.clone();
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
    let stream = futures::stream::unfold((state, from), move |(state, seen)| async move {
        loop {
            let (news, now) = {
                let state = state.lock().expect("state");
                (state.news(watched, seen), state.version)
            };
            if !news.is_empty() {
                return Some((Ok::<_, std::io::Error>(news), (state, now)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    Body::from_stream(stream)
}
