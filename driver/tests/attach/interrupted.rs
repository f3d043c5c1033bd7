//! A decorator of both seams that lets one call fail.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
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

/// Lets one call of either seam fail, counted from 0 over all calls that change something or must succeed.
pub(crate) struct Interrupted<T> {
    inner: T,
    nth: u32,
    calls: AtomicU32,
}

impl<T> Interrupted<T> {
    pub(crate) fn new(inner: T, nth: u32) -> Self {
        Self { inner, nth, calls: AtomicU32::new(0) }
    }

    fn fails(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) == self.nth
    }

    fn link(&self, namespace: &Namespace, action: &str) -> Result<(), LinkError> {
        if !self.fails() {
            return Ok(());
        }
        let source = std::io::Error::other("asked for by the test");
        let (action, link) = (action.to_owned(), "?".to_owned());
        Err(LinkError::Kernel { action, link, namespace: namespace.clone(), source })
    }

    fn bpf(&self, action: &str) -> Result<(), DatapathError> {
        if !self.fails() {
            return Ok(());
        }
        Err(DatapathError::Bpf { action: action.to_owned(), source: "asked for by the test".into() })
    }
}

#[async_trait]
impl<T: Links> Links for Interrupted<T> {
    async fn list(&self, namespace: &Namespace) -> Result<Vec<Link>, LinkError> {
        self.inner.list(namespace).await
    }
    async fn get(&self, namespace: &Namespace, link: &LinkRef) -> Result<Link, LinkError> {
        self.inner.get(namespace, link).await
    }
    async fn home(&self, namespace: &Namespace, ifindex: u32) -> Result<Home, LinkError> {
        self.link(namespace, "home")?;
        self.inner.home(namespace, ifindex).await
    }
    async fn look(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &[&'static str],
    ) -> Result<Home, LinkError> {
        self.inner.look(namespace, ifindex, sysctls).await
    }
    async fn set_up(&self, namespace: &Namespace, ifindex: u32, up: bool) -> Result<(), LinkError> {
        self.link(namespace, "set_up")?;
        self.inner.set_up(namespace, ifindex, up).await
    }
    async fn rename(&self, namespace: &Namespace, ifindex: u32, name: &str) -> Result<(), LinkError> {
        self.link(namespace, "rename")?;
        self.inner.rename(namespace, ifindex, name).await
    }
    async fn move_to(
        &self,
        from: &Namespace,
        ifindex: u32,
        to: &Namespace,
        name: &str,
        index: Option<u32>,
    ) -> Result<u32, LinkError> {
        self.link(from, "move_to")?;
        self.inner.move_to(from, ifindex, to, name, index).await
    }
    async fn configure(&self, namespace: &Namespace, ifindex: u32, setup: &Setup) -> Result<(), LinkError> {
        // It can stop after each of its parts.
        let Setup { mac, mtu, sysctls, addresses } = setup.clone();
        let mut parts = vec![Setup { mac, ..Setup::default() }, Setup { mtu, ..Setup::default() }];
        parts.push(Setup { sysctls, ..Setup::default() });
        parts.extend(addresses.into_iter().map(|it| Setup { addresses: vec![it], ..Setup::default() }));
        for part in parts.iter().filter(|part| **part != Setup::default()) {
            self.link(namespace, "configure")?;
            self.inner.configure(namespace, ifindex, part).await?;
        }
        Ok(())
    }
    async fn set_mtu(&self, namespace: &Namespace, ifindex: u32, mtu: u32) -> Result<(), LinkError> {
        self.link(namespace, "set_mtu")?;
        self.inner.set_mtu(namespace, ifindex, mtu).await
    }
    async fn add_address(&self, ns: &Namespace, ifindex: u32, address: &Address) -> Result<(), LinkError> {
        self.link(ns, "add_address")?;
        self.inner.add_address(ns, ifindex, address).await
    }
    async fn remove_address(&self, ns: &Namespace, ifindex: u32, address: IpAddr) -> Result<(), LinkError> {
        self.link(ns, "remove_address")?;
        self.inner.remove_address(ns, ifindex, address).await
    }
    async fn add_routes(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        routes: &[Route],
    ) -> Result<(), LinkError> {
        for route in routes {
            self.link(namespace, "add_routes")?;
            self.inner.add_routes(namespace, ifindex, std::slice::from_ref(route)).await?;
        }
        Ok(())
    }
    async fn replace_route(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        route: &Route,
    ) -> Result<(), LinkError> {
        self.link(namespace, "replace_route")?;
        self.inner.replace_route(namespace, ifindex, route).await
    }
    async fn set_sysctls(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), LinkError> {
        self.link(namespace, "set_sysctls")?;
        self.inner.set_sysctls(namespace, ifindex, sysctls).await
    }
    async fn remove_alt_name(&self, ns: &Namespace, ifindex: u32, name: &str) -> Result<(), LinkError> {
        self.link(ns, "remove_alt_name")?;
        self.inner.remove_alt_name(ns, ifindex, name).await
    }
    async fn make_pair(&self, pair: &Pair) -> Result<Ends, LinkError> {
        self.link(&pair.pod, "make_pair")?;
        self.inner.make_pair(pair).await
    }
    async fn open_pair(&self, host_end: u32, kind: PairKind) -> Result<(), LinkError> {
        self.link(&Namespace::Host, "open_pair")?;
        self.inner.open_pair(host_end, kind).await
    }
    async fn make_upper(&self, upper: &Upper) -> Result<u32, LinkError> {
        self.link(&Namespace::Host, "make_upper")?;
        self.inner.make_upper(upper).await
    }
    async fn remake(&self, home: &Home) -> Result<u32, LinkError> {
        self.link(&Namespace::Host, "remake")?;
        self.inner.remake(home).await
    }
    async fn remove(&self, namespace: &Namespace, ifindex: u32) -> Result<(), LinkError> {
        self.link(namespace, "remove")?;
        self.inner.remove(namespace, ifindex).await
    }
    async fn restore(&self, ifindex: u32, home: &Home) -> Result<(), Vec<LinkError>> {
        self.inner.restore(ifindex, home).await
    }
}

impl<T: Datapath> Datapath for Interrupted<T> {
    fn foreign_programs(&self, ifindex: u32) -> Result<Vec<ForeignProgram>, DatapathError> {
        self.bpf("foreign_programs")?;
        self.inner.foreign_programs(ifindex)
    }
    fn attach(&self, ifindex: u32, spec: &EndpointSpec) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.bpf("attach")?;
        self.inner.attach(ifindex, spec)
    }
    fn preload(&self, spec: &EndpointSpec) -> Result<(), DatapathError> {
        self.inner.preload(spec)
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
        self.inner.attach_inside(netns, ifindex, spec)
    }
    fn verify_inside(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.inner.verify_inside(id, ifindex)
    }
    fn set_policy(&self, id: EndpointId, policy: &Policy) -> Result<(), DatapathError> {
        self.bpf("set_policy")?;
        self.inner.set_policy(id, policy)
    }
    fn guards(&self, id: EndpointId) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.inner.guards(id)
    }
    fn compare(&self, wanted: &[Wanted]) -> Result<BTreeMap<EndpointId, Vec<MapPart>>, DatapathError> {
        self.inner.compare(wanted)
    }
    fn mend(&self, wanted: &Wanted) -> Result<(), DatapathError> {
        self.inner.mend(wanted)
    }
    fn verify(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.bpf("verify")?;
        self.inner.verify(id, ifindex)
    }
    fn set_policy_for(&self, id: EndpointId, policy: &Policy, peers: &Resolved) -> Result<(), DatapathError> {
        self.bpf("set_policy")?;
        self.inner.set_policy_for(id, policy, peers)
    }
    fn set_limits(&self, id: EndpointId, limits: &Limits) -> Result<(), DatapathError> {
        self.bpf("set_limits")?;
        self.inner.set_limits(id, limits)
    }
    fn guard_link(&self, id: EndpointId, ifindex: u32) -> Result<Option<String>, DatapathError> {
        self.bpf("guard the link")?;
        self.inner.guard_link(id, ifindex)
    }
    fn guard_pod(&self, id: EndpointId, cgroup: &Path) -> Result<(), DatapathError> {
        self.bpf("guard the pod")?;
        self.inner.guard_pod(id, cgroup)
    }
    fn set_ready(&self, id: EndpointId, ready: bool) -> Result<(), DatapathError> {
        self.bpf("set_ready")?;
        self.inner.set_ready(id, ready)
    }
    fn serves(&self, id: EndpointId, netns: &Path, ifindex: u32) -> Result<bool, DatapathError> {
        self.inner.serves(id, netns, ifindex)
    }
    fn attached_ifindex(&self, id: EndpointId) -> Result<Option<u32>, DatapathError> {
        self.inner.attached_ifindex(id)
    }
    fn detach(&self, id: EndpointId) -> Result<(), DatapathError> {
        self.inner.detach(id)
    }
    fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        self.bpf("endpoints")?;
        self.inner.endpoints()
    }
    fn last_endpoint(&self) -> Result<EndpointId, DatapathError> {
        self.bpf("last_endpoint")?;
        self.inner.last_endpoint()
    }
    fn stats(&self, id: EndpointId) -> Result<EndpointStats, DatapathError> {
        self.inner.stats(id)
    }
}
