//! Two endpoints of an isolated network, judged and delivered by Netferry's programs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use netferry::datapath::events::FlowEvents;
use netferry::datapath::limits::{Limits, RateLimit};
use netferry::datapath::policy::{Action, Peer, Policy, Rule, Rules};
use netferry::datapath::{AyaDatapath, Datapath as _, EndpointSpec, Placement};

use super::netns::Netns;
use super::paths::{Parts, Pods, address, mac, other_peer};

/// A pod's link as it is protected.
pub(crate) struct Endpoint {
    pub(crate) id: u32,
    pub(crate) network: u32,
    /// Its number: `h<pod>` is its host end.
    pub(crate) pod: u8,
    pub(crate) mtu: u32,
}

/// The datapath of a node, with a reader of its events as the daemon is one.
pub(crate) struct Node {
    datapath: Arc<AyaDatapath>,
    networks: u32,
}

impl Node {
    /// Opens one more on the bpf file system of this process.
    pub(crate) fn open() -> Result<Self> {
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let nth = OPENED.fetch_add(1, Relaxed);
        let root = PathBuf::from(format!("/sys/fs/bpf/netferry-bench-{nth}"));
        let datapath = Arc::new(AyaDatapath::open(&root).context("open the datapath")?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut events = runtime.block_on(async { FlowEvents::open(&root) })?;
        std::thread::spawn(move || runtime.block_on(async { while events.next().await.is_ok() {} }));
        Ok(Self { datapath, networks: 0 })
    }

    /// Two pods on a network of their own, with a policy of so many rules in each direction.
    pub(crate) fn path(&mut self, rules: Option<u32>) -> Result<Parts> {
        let pods = Pods::veths()?;
        self.networks += 1;
        let ids = [2 * self.networks, 2 * self.networks + 1];
        for (pod, id) in (1..).zip(ids) {
            self.protect(&pods.host, &Endpoint { id, network: self.networks, pod, mtu: 1500 }, rules)?;
        }
        pods.one_subnet()?;
        let (host, datapath) = (pods.host.clone(), Arc::clone(&self.datapath));
        let evidence = move || {
            let sent = host.sent("h2")?;
            ensure!(sent < 50, "{sent} frames went through the host's end: not the fast path");
            for id in ids {
                let stats = datapath.stats(id)?;
                ensure!(stats.from_pod.packets >= 100 && stats.to_pod.packets >= 100, "{id}: {stats:?}");
            }
            Ok(())
        };
        Ok((pods, Box::new(evidence), vec![]))
    }

    /// The datapath alone.
    pub(crate) fn datapath(&self) -> Arc<AyaDatapath> {
        Arc::clone(&self.datapath)
    }

    /// Makes a pod's host end an endpoint, ready. Policies that are alike share their entries.
    pub(crate) fn protect(&self, host: &Netns, endpoint: &Endpoint, rules: Option<u32>) -> Result<()> {
        let Endpoint { id, network, pod, mtu } = *endpoint;
        let spec = EndpointSpec {
            id,
            placement: Placement::HostVeth,
            network,
            mac: mac(pod).parse().map_err(anyhow::Error::msg)?,
            addresses: vec![format!("{}/24", address(pod)).parse()?],
            mtu,
        };
        host.run(|| {
            let link = nix::net::if_::if_nametoindex(format!("h{pod}").as_str())?;
            Ok(self.datapath.attach(link, &spec)?)
        })?;
        // What is measured is how fast flows can be opened, not that it is limited.
        let limit = Some(RateLimit { new_flows_per_second: Some(10_000_000), ..RateLimit::default() });
        self.datapath.set_limits(id, &Limits { ingress: limit, egress: limit, ..Limits::default() })?;
        if let Some(rules) = rules {
            self.datapath.set_policy(id, &policy(rules)?)?;
        }
        Ok(self.datapath.set_ready(id, true)?)
    }
}

/// One rule lets the pods' subnet in and out; the others are for addresses of nobody.
fn policy(rules: u32) -> Result<Policy> {
    let mut allowed = vec![allow("10.77.0.0/24")?];
    for nth in 1..rules {
        allowed.push(allow(&other_peer(nth).to_string())?);
    }
    let rules = Rules { otherwise: None, rules: allowed };
    Ok(Policy { ingress: rules.clone(), egress: rules })
}

fn allow(cidr: &str) -> Result<Rule> {
    let peer = Peer { cidr: Some(cidr.parse()?), ..Peer::default() };
    Ok(Rule { action: Action::Allow, peers: Some(vec![peer]), ports: None })
}
