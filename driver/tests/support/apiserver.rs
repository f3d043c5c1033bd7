//! An API server stand-in over plain HTTP: discovery, nodes, namespaces, networks, claims with server-side apply of their
//! device status, slices, Leases, Events; watches over networks, claims (of all namespaces or one), slices, nodes, and over
//! the metadata of namespaces and pods. It refuses what the real one refuses, keeps resource versions, and can be told to
//! fail. Objects are kept in the v1 shape and served in the version asked for.

mod apply;
mod networks;
mod objects;
mod routes;
mod shared;
mod validate;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use netferry::cluster::versions::ApiVersion;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use apply::Ownership;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) content_type: String,
    pub(crate) body: Value,
    /// What was answered; 0 while hanging.
    pub(crate) code: u16,
}

/// What a failing request gets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// This HTTP status, without anything being done.
    Status(u16),
    /// The request is carried out, and then this status is answered: the client cannot know.
    DoneBut(u16),
    /// No answer at all.
    Hang,
}

struct Injected {
    method: &'static str,
    path: String,
    left: usize,
    fault: Fault,
}

/// Objects by resource and `namespace/name` (or `name`).
pub(crate) type Objects = BTreeMap<(&'static str, String), Value>;

#[derive(Default)]
pub(crate) struct State {
    objects: Objects,
    ownership: BTreeMap<String, Ownership>,
    /// Types of the conditions of networks that each manager applied, by UID and manager.
    condition_owners: BTreeMap<(String, String), BTreeSet<String>>,
    version: u64,
    names: u64,
    requests: Vec<Recorded>,
    faults: Vec<Injected>,
    served: Vec<ApiVersion>,
    /// Whether the CustomResourceDefinition of networks is installed.
    networks_served: bool,
    /// Whether the feature gate DRAConsumableCapacity is off: its fields are dropped from slices.
    no_shared_devices: bool,
    /// Verbs and resources that access reviews deny.
    denied: Vec<(&'static str, &'static str)>,
    /// What watches are told.
    changes: Vec<watch::Logged>,
}

/// The running server; it ends with this value.
pub(crate) struct ApiServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl ApiServer {
    /// Start, serving these versions of resource.k8s.io.
    pub(crate) async fn start(served: &[ApiVersion]) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("address"), served).await
    }

    /// Start at an address, for example that of a server that was stopped before.
    pub(crate) async fn start_at(address: SocketAddr, served: &[ApiVersion]) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.expect("bind the API server");
        Self::start_on(listener, served)
    }

    /// Start on a listener, which may be one of another network namespace.
    pub(crate) fn start_on(listener: tokio::net::TcpListener, served: &[ApiVersion]) -> Self {
        let state =
            State { served: served.to_vec(), version: 100, networks_served: true, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let address = listener.local_addr().expect("address of the API server");
        let router = axum::Router::new().fallback(routes::handle).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
        Self { address, state, task }
    }

    /// `http://…`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Write a kubeconfig for it into `dir`.
    pub(crate) fn kubeconfig(&self, dir: &Path) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url()}}],
            "users": [{"name": "test", "user": {"token": "test"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let path = dir.join("kubeconfig.yaml");
        std::fs::write(&path, config.to_string()).expect("write the kubeconfig");
        path
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("state")
    }

    /// Put a node, namespace, network, claim, class, pod or slice (in the v1 shape) there, as somebody else would. Returns it as
    /// stored, with UID and resource version.
    pub(crate) fn put(&self, object: Value) -> Value {
        self.state().put(object)
    }

    /// Deny a verb on a resource in access reviews.
    pub(crate) fn deny(&self, verb: &'static str, resource: &'static str) {
        self.state().denied.push((verb, resource));
    }

    /// Take an object away, as somebody else would.
    pub(crate) fn remove(&self, resource: &'static str, name: &str) {
        self.state().take_away(resource, name);
    }

    /// Delete a network as `kubectl delete` does: it stays until its finalizers are gone.
    pub(crate) fn delete_network(&self, name: &str) {
        self.state().delete_network(name);
    }

    /// Turn the feature gate DRAConsumableCapacity off.
    pub(crate) fn without_shared_devices(&self) {
        self.state().no_shared_devices = true;
    }

    /// Install the CustomResourceDefinition of networks, or take it away.
    pub(crate) fn serve_networks(&self, served: bool) {
        self.state().networks_served = served;
    }

    /// An object in the v1 shape: `get("resourceclaims", "default/a")`.
    pub(crate) fn get(&self, resource: &'static str, name: &str) -> Option<Value> {
        self.state().objects.get(&(resource, name.to_owned())).cloned()
    }

    /// Every object of a resource, in the v1 shape.
    pub(crate) fn all(&self, resource: &'static str) -> Vec<Value> {
        let state = self.state();
        state
            .objects
            .iter()
            .filter(|((kind, _), _)| *kind == resource)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Server-side apply of device status as another driver would do it.
    pub(crate) fn apply_as(&self, manager: &str, claim: &str, devices: &Value) {
        let (namespace, name) = claim.split_once('/').expect("namespace/name");
        let body = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": namespace}, "status": {"devices": devices}});
        self.state().apply(manager, false, claim, &body).expect("apply");
    }

    /// Let the next `count` requests of that method whose path contains `path` fail.
    pub(crate) fn fail_next(&self, method: &'static str, path: &str, count: usize, fault: Fault) {
        self.state().faults.push(Injected { method, path: path.to_owned(), left: count, fault });
    }

    /// No more failures.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// Everything that was asked so far.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.state().requests.clone()
    }

    /// Requests of a method whose path contains `path`.
    pub(crate) fn asked(&self, method: &str, path: &str) -> Vec<Recorded> {
        let matches = |request: &Recorded| request.method == method && request.path.contains(path);
        self.requests().into_iter().filter(matches).collect()
    }

    /// Wait until `condition` holds for this server, or panic.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..400 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not within 10 s: {what}; asked: {:#?}", self.requests());
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn take_away(&mut self, resource: &'static str, name: &str) {
        let removed = self.objects.remove(&(resource, name.to_owned()));
        self.ownership.remove(name);
        if let Some(mut object) = removed {
            self.version += 1;
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.log(resource, "DELETED", &object);
        }
    }

    fn fault(&mut self, method: &str, path: &str) -> Option<Fault> {
        let matches =
            |fault: &Injected| fault.left > 0 && fault.method == method && path.contains(&fault.path);
        let injected = self.faults.iter_mut().find(|fault| matches(fault))?;
        injected.left -= 1;
        Some(injected.fault)
    }
}
