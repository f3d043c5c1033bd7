//! The two seams with a clock beside every call.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use netferry::{
    datapath::{
        AttachedProgram, Datapath, DatapathError, EndpointId, EndpointSpec, EndpointStats, ForeignProgram,
        limits::Limits,
        policy::{Policy, Resolved},
        state::{MapPart, Wanted},
    },
    link::{
        Address, Ends, Home, Link, LinkError, LinkRef, Links, Namespace, Pair, PairKind, Route, Setup, Upper,
    },
};

/// Calls in their order, with how long each took.
pub(crate) type Steps = Arc<Mutex<Listed>>;
/// The calls of one way.
pub(crate) type Listed = Vec<(&'static str, Duration)>;

pub(crate) struct Watched<T> {
    inner: Arc<T>,
    steps: Steps,
}

impl<T> Watched<T> {
    pub(crate) fn new(inner: Arc<T>, steps: &Steps) -> Self {
        Self { inner, steps: Arc::clone(steps) }
    }

    fn note<R>(&self, name: &'static str, start: Instant, done: R) -> R {
        self.steps.lock().expect("steps").push((name, start.elapsed()));
        done
    }
}

#[async_trait]
impl<T: Links> Links for Watched<T> {
    async fn list(&self, namespace: &Namespace) -> Result<Vec<Link>, LinkError> {
        let start = Instant::now();
        self.note("link list", start, self.inner.list(namespace).await)
    }
    async fn get(&self, namespace: &Namespace, link: &LinkRef) -> Result<Link, LinkError> {
        let start = Instant::now();
        self.note("link get", start, self.inner.get(namespace, link).await)
    }
    async fn home(&self, namespace: &Namespace, ifindex: u32) -> Result<Home, LinkError> {
        let start = Instant::now();
        self.note("link home", start, self.inner.home(namespace, ifindex).await)
    }
    async fn look(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &[&'static str],
    ) -> Result<Home, LinkError> {
        let start = Instant::now();
        self.note("link look", start, self.inner.look(namespace, ifindex, sysctls).await)
    }
    async fn set_up(&self, namespace: &Namespace, ifindex: u32, up: bool) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note(
            if up { "link set_up" } else { "link set_down" },
            start,
            self.inner.set_up(namespace, ifindex, up).await,
        )
    }
    async fn rename(&self, namespace: &Namespace, ifindex: u32, name: &str) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link rename", start, self.inner.rename(namespace, ifindex, name).await)
    }
    async fn move_to(
        &self,
        from: &Namespace,
        ifindex: u32,
        to: &Namespace,
        name: &str,
        index: Option<u32>,
    ) -> Result<u32, LinkError> {
        let start = Instant::now();
        self.note("link move_to", start, self.inner.move_to(from, ifindex, to, name, index).await)
    }
    async fn configure(&self, namespace: &Namespace, ifindex: u32, setup: &Setup) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link configure", start, self.inner.configure(namespace, ifindex, setup).await)
    }
    async fn set_mtu(&self, namespace: &Namespace, ifindex: u32, mtu: u32) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link set_mtu", start, self.inner.set_mtu(namespace, ifindex, mtu).await)
    }
    async fn add_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: &Address,
    ) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link add_address", start, self.inner.add_address(namespace, ifindex, address).await)
    }
    async fn remove_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), LinkError> {
        let start = Instant::now();
        let removed = self.inner.remove_address(namespace, ifindex, address).await;
        self.note("link remove_address", start, removed)
    }
    async fn add_routes(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        routes: &[Route],
    ) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link add_routes", start, self.inner.add_routes(namespace, ifindex, routes).await)
    }
    async fn replace_route(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        route: &Route,
    ) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link replace_route", start, self.inner.replace_route(namespace, ifindex, route).await)
    }
    async fn set_sysctls(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link set_sysctls", start, self.inner.set_sysctls(namespace, ifindex, sysctls).await)
    }
    async fn remove_alt_name(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        name: &str,
    ) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link remove_alt_name", start, self.inner.remove_alt_name(namespace, ifindex, name).await)
    }
    async fn make_pair(&self, pair: &Pair) -> Result<Ends, LinkError> {
        let start = Instant::now();
        self.note("link make_pair", start, self.inner.make_pair(pair).await)
    }
    async fn open_pair(&self, host_end: u32, kind: PairKind) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link open_pair", start, self.inner.open_pair(host_end, kind).await)
    }
    async fn make_upper(&self, upper: &Upper) -> Result<u32, LinkError> {
        let start = Instant::now();
        self.note("link make_upper", start, self.inner.make_upper(upper).await)
    }
    async fn remake(&self, home: &Home) -> Result<u32, LinkError> {
        let start = Instant::now();
        self.note("link remake", start, self.inner.remake(home).await)
    }
    async fn remove(&self, namespace: &Namespace, ifindex: u32) -> Result<(), LinkError> {
        let start = Instant::now();
        self.note("link remove", start, self.inner.remove(namespace, ifindex).await)
    }
    async fn restore(&self, ifindex: u32, home: &Home) -> Result<(), Vec<LinkError>> {
        let start = Instant::now();
        self.note("link restore", start, self.inner.restore(ifindex, home).await)
    }
}

impl<T: Datapath> Datapath for Watched<T> {
    fn foreign_programs(&self, ifindex: u32) -> Result<Vec<ForeignProgram>, DatapathError> {
        let start = Instant::now();
        self.note("programs foreign_programs", start, self.inner.foreign_programs(ifindex))
    }
    fn attach(&self, ifindex: u32, spec: &EndpointSpec) -> Result<Vec<AttachedProgram>, DatapathError> {
        let start = Instant::now();
        self.note("programs attach", start, self.inner.attach(ifindex, spec))
    }
    fn preload(&self, spec: &EndpointSpec) -> Result<(), DatapathError> {
        let start = Instant::now();
        self.note("programs preload", start, self.inner.preload(spec))
    }
    fn travels(&self) -> bool {
        self.inner.travels()
    }
    fn attach_inside(
        &self,
        netns: &Path,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        let start = Instant::now();
        self.note("programs attach_inside", start, self.inner.attach_inside(netns, ifindex, spec))
    }
    fn set_policy(&self, id: EndpointId, policy: &Policy) -> Result<(), DatapathError> {
        let start = Instant::now();
        self.note("programs set_policy", start, self.inner.set_policy(id, policy))
    }
    fn guard_link(&self, id: EndpointId, ifindex: u32) -> Result<Option<String>, DatapathError> {
        let start = Instant::now();
        self.note("programs guard_link", start, self.inner.guard_link(id, ifindex))
    }
    fn guard_pod(&self, id: EndpointId, cgroup: &Path) -> Result<(), DatapathError> {
        let start = Instant::now();
        self.note("programs guard_pod", start, self.inner.guard_pod(id, cgroup))
    }
    fn guards(&self, id: EndpointId) -> Result<Vec<AttachedProgram>, DatapathError> {
        let start = Instant::now();
        self.note("programs guards", start, self.inner.guards(id))
    }
    fn compare(&self, wanted: &[Wanted]) -> Result<BTreeMap<EndpointId, Vec<MapPart>>, DatapathError> {
        let start = Instant::now();
        self.note("programs compare", start, self.inner.compare(wanted))
    }
    fn mend(&self, wanted: &Wanted) -> Result<(), DatapathError> {
        let start = Instant::now();
        self.note("programs mend", start, self.inner.mend(wanted))
    }
    fn verify(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        let start = Instant::now();
        self.note("programs verify", start, self.inner.verify(id, ifindex))
    }
    fn verify_inside(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        let start = Instant::now();
        self.note("programs verify_inside", start, self.inner.verify_inside(id, ifindex))
    }
    fn serves(&self, id: EndpointId, netns: &Path, ifindex: u32) -> Result<bool, DatapathError> {
        let start = Instant::now();
        self.note("programs serves", start, self.inner.serves(id, netns, ifindex))
    }
    fn set_policy_for(&self, id: EndpointId, policy: &Policy, peers: &Resolved) -> Result<(), DatapathError> {
        let start = Instant::now();
        self.note("programs set_policy", start, self.inner.set_policy_for(id, policy, peers))
    }
    fn set_limits(&self, id: EndpointId, limits: &Limits) -> Result<(), DatapathError> {
        let start = Instant::now();
        self.note("programs set_limits", start, self.inner.set_limits(id, limits))
    }
    fn set_ready(&self, id: EndpointId, ready: bool) -> Result<(), DatapathError> {
        let start = Instant::now();
        self.note("programs set_ready", start, self.inner.set_ready(id, ready))
    }
    fn attached_ifindex(&self, id: EndpointId) -> Result<Option<u32>, DatapathError> {
        let start = Instant::now();
        self.note("programs attached_ifindex", start, self.inner.attached_ifindex(id))
    }
    fn detach(&self, id: EndpointId) -> Result<(), DatapathError> {
        let start = Instant::now();
        self.note("programs detach", start, self.inner.detach(id))
    }
    fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        let start = Instant::now();
        self.note("programs endpoints", start, self.inner.endpoints())
    }
    fn last_endpoint(&self) -> Result<EndpointId, DatapathError> {
        let start = Instant::now();
        self.note("programs last_endpoint", start, self.inner.last_endpoint())
    }
    fn stats(&self, id: EndpointId) -> Result<EndpointStats, DatapathError> {
        let start = Instant::now();
        self.note("programs stats", start, self.inner.stats(id))
    }
}
