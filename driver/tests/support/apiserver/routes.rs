//! From HTTP to the objects and back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::State as Extract,
    http::{
        HeaderMap, Method, Response, Uri,
        header::{ACCEPT, CONTENT_TYPE},
    },
};
use netferry::cluster::versions::{self, ApiVersion};
use serde_json::{Value, json};

use super::{Fault, Recorded, State, watch};

/// An error as the API server words it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn body(&self) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code})
    }
}

pub(super) type Answer = Result<(u16, Value), Failure>;

pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) query: &'a BTreeMap<String, String>,
    pub(super) content_type: &'a str,
    /// Whether only metadata is asked for.
    pub(super) metadata: bool,
    pub(super) body: &'a Value,
}

pub(super) async fn handle(
    Extract(state): Extract<Arc<Mutex<State>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    bytes: Bytes,
) -> Response<Body> {
    let query = query(uri.query().unwrap_or_default());
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let metadata = accepted.contains("as=PartialObjectMetadata");
    let watched = watch::at(uri.path())
        .filter(|_| query.contains_key("watch"))
        .map(|watched| watched.of(metadata, query.get("fieldSelector")));
    let from = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let shared = Arc::clone(&state);
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let body = if bytes.is_empty() { Ok(Value::Null) } else { serde_yaml_ng::from_slice(&bytes) };
    let (code, answer, hang) = {
        let mut state = state.lock().expect("state");
        let fault = state.fault(method.as_str(), uri.path());
        let request = Request {
            method: method.as_str(),
            query: &query,
            content_type: &content_type,
            metadata,
            body: body.as_ref().unwrap_or(&Value::Null),
        };
        let done = match (&fault, &body) {
            (Some(Fault::Status(_) | Fault::Hang), _) => Ok((200, Value::Null)),
            (_, Err(error)) => Err(Failure::new(400, "BadRequest", error.to_string())),
            _ => state.route(uri.path(), &request),
        };
        let done = match fault {
            Some(Fault::Status(code) | Fault::DoneBut(code)) => {
                let reason = if code == 409 { "Conflict" } else { "InternalError" };
                Err(Failure::new(code, reason, "injected"))
            }
            _ => done,
        };
        let (code, answer) = done.unwrap_or_else(|failure| (failure.code, failure.body()));
        let hang = matches!(fault, Some(Fault::Hang));
        state.requests.push(Recorded {
            method: method.to_string(),
            path: uri.path().to_owned(),
            query,
            content_type,
            body: body.unwrap_or_default(),
            code: if hang { 0 } else { code },
        });
        (code, answer, hang)
    };
    if hang {
        tokio::time::sleep(Duration::from_hours(1)).await;
    }
    let body = match watched {
        Some(watched) if code == 200 => watch::answer(shared, watched, from),
        _ => Body::from(answer.to_string()),
    };
    Response::builder().status(code).header(CONTENT_TYPE, "application/json").body(body).expect("response")
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&hex), 16).expect("percent encoding")
            }
            other => other,
        });
    }
    String::from_utf8(bytes).expect("UTF-8 in the query")
}

impl State {
    fn route(&mut self, path: &str, request: &Request<'_>) -> Answer {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if request.query.contains_key("watch") && watch::at(path).is_none() {
            return Err(Failure::new(400, "BadRequest", "watch is not played here"));
        }
        let missing = || Failure::new(404, "NotFound", "the server could not find the requested resource");
        match parts[..] {
            ["api"] => Ok((
                200,
                json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
            )),
            ["version"] => Ok((
                200,
                json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "",
                "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
            )),
            ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => {
                Ok((201, self.review(request.body)))
            }
            ["apis"] => {
                Ok((200, json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": self.groups()})))
            }
            ["apis", group] => {
                let group = self.groups().into_iter().find(|known| known["name"] == group);
                group.map(|group| (200, group)).ok_or_else(missing)
            }
            ["api", "v1", "namespaces", name] => self.read("namespaces", name, None),
            ["apis", "netferry.dev", "v1alpha1", "networks", ref rest @ ..] => {
                self.networks(rest, request).unwrap_or_else(|| Err(missing()))
            }
            ["api", "v1", "namespaces"] => {
                Ok(self.list("namespaces", ("NamespaceList", "v1"), None, request))
            }
            ["api", "v1", "pods"] => Ok(self.list("pods", ("PodList", "v1"), None, request)),
            ["api", "v1", "namespaces", namespace, "pods"] => {
                Ok(self.list_within("pods", Some(namespace), ("PodList", "v1"), None, request))
            }
            ["api", "v1", "nodes"] => Ok(self.list("nodes", ("NodeList", "v1"), None, request)),
            ["api", "v1", "nodes", name] => self.read("nodes", name, None),
            ["api", "v1", "namespaces", namespace, "pods", name] => {
                self.read("pods", &format!("{namespace}/{name}"), None)
            }
            ["apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases", ref rest @ ..] => {
                self.leases(namespace, rest, request).unwrap_or_else(|| Err(missing()))
            }
            ["apis", "events.k8s.io", "v1", "namespaces", namespace, "events"] => {
                self.create_event(namespace, request)
            }
            ["apis", "events.k8s.io", "v1", "namespaces", namespace, "events", name] => {
                self.patch_event(&format!("{namespace}/{name}"), request)
            }
            ["apis", versions::GROUP, version, ref rest @ ..] => {
                let served = ApiVersion::parse(version).filter(|version| self.served.contains(version));
                let version = served.ok_or_else(missing)?;
                self.resource(version, rest, request).unwrap_or_else(|| Err(missing()))
            }
            _ => Err(missing()),
        }
    }

    /// An access review, answered.
    fn review(&self, review: &Value) -> Value {
        let of = &review["spec"]["resourceAttributes"];
        let denied =
            self.denied.iter().any(|(verb, resource)| of["verb"] == *verb && of["resource"] == *resource);
        let mut review = review.clone();
        review["status"] = json!({"allowed": !denied});
        review
    }

    fn groups(&self) -> Vec<Value> {
        let entry = |group: &str, version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
        let group = |name: &str, versions: Vec<Value>| {
            json!({"kind": "APIGroup", "apiVersion": "v1", "name": name,
                "preferredVersion": versions.first(), "versions": versions})
        };
        let mut groups = vec![group("events.k8s.io", vec![entry("events.k8s.io", "v1")])];
        let served: Vec<_> =
            self.served.iter().map(|version| entry(versions::GROUP, version.version())).collect();
        if !served.is_empty() {
            groups.push(group(versions::GROUP, served));
        }
        groups
    }

    fn resource(&mut self, version: ApiVersion, rest: &[&str], request: &Request<'_>) -> Option<Answer> {
        let v = Some(version);
        Some(match (request.method, rest) {
            ("GET", []) => {
                let resource = |name: &str, namespaced: bool, kind: &str| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get"]});
                let resources = json!([
                    resource("resourceclaims", true, "ResourceClaim"),
                    resource("resourceclaims/status", true, "ResourceClaim"),
                    resource("resourceslices", false, "ResourceSlice"),
                    resource("deviceclasses", false, "DeviceClass"),
                ]);
                Ok((
                    200,
                    json!({"kind": "APIResourceList", "apiVersion": "v1",
                    "groupVersion": version.api_version(), "resources": resources}),
                ))
            }
            ("GET", ["resourceclaims"]) => {
                Ok(self.list("resourceclaims", ("ResourceClaimList", version.api_version()), v, request))
            }
            ("GET", ["namespaces", namespace, "resourceclaims"]) => {
                let api = ("ResourceClaimList", version.api_version());
                Ok(self.list_within("resourceclaims", Some(namespace), api, v, request))
            }
            ("GET", ["namespaces", namespace, "resourceclaims", name]) => {
                self.read("resourceclaims", &format!("{namespace}/{name}"), v)
            }
            ("PATCH", ["namespaces", namespace, "resourceclaims", name, "status"]) => {
                self.patch_status(version, &format!("{namespace}/{name}"), request)
            }
            ("GET", ["deviceclasses", name]) => self.read("deviceclasses", name, v),
            ("GET", ["resourceslices"]) => self.list_slices(version, request),
            ("POST", ["resourceslices"]) => self.create_slice(version, request),
            ("GET", ["resourceslices", name]) => self.read("resourceslices", name, v),
            ("PUT", ["resourceslices", name]) => self.update_slice(version, name, request),
            ("DELETE", ["resourceslices", name]) => self.delete_slice(name),
            _ => return None,
        })
    }
}
