//! Two endpoints of an isolated network, judged and delivered by Netferry's programs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use netferry::datapath::events::FlowEvents;
use netferry::datapath::limits::{Limits, RateLimit};
use netferry::datapath::policy::{Action, CompiledPolicy, Peer, Peers, Policy, Rule, Rules};
use netferry::datapath::{AyaDatapath, Datapath as _, EndpointSpec, Placement};

use super::paths::{Parts, Pods, address, mac, other_peer};

/// The datapath of a node, with a reader of its events as the daemon is one.
pub(crate) struct Node {
    datapath: Arc<AyaDatapath>,
    networks: u32,
}

impl Node {
    /// Opens it on the bpf file system of this process.
    pub(crate) fn open() -> Result<Self> {
        let root = PathBuf::from("/sys/fs/bpf/netferry-bench");
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
        // Once for both: they share its entries.
        let policy = rules.map(|rules| self.compiled(rules)).transpose()?;
        for (pod, id) in (1..).zip(ids) {
            let spec = EndpointSpec {
                id,
                placement: Placement::HostVeth,
                network: self.networks,
                mac: mac(pod).parse().map_err(anyhow::Error::msg)?,
                addresses: vec![format!("{}/24", address(pod)).parse()?],
                mtu: 1500,
            };
            pods.host.run(|| {
                let link = nix::net::if_::if_nametoindex(format!("h{pod}").as_str())?;
                Ok(self.datapath.attach(link, &spec)?)
            })?;
            // What is measured is how fast flows can be opened, not that it is limited.
            let limit = Some(RateLimit { new_flows_per_second: Some(10_000_000), ..RateLimit::default() });
            self.datapath.set_limits(id, &Limits { ingress: limit, egress: limit, ..Limits::default() })?;
            if let Some(policy) = &policy {
                self.datapath.set_compiled(id, policy)?;
            }
            self.datapath.set_ready(id, true)?;
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

    fn compiled(&self, rules: u32) -> Result<Arc<CompiledPolicy>> {
        let room = self.datapath.policy_room()?;
        Ok(Arc::new(CompiledPolicy::new(&policy(rules)?, &NoNames, room)?))
    }
}

/// Peers are addresses here.
struct NoNames;

impl Peers for NoNames {
    fn network(&self, _: &str) -> Option<Vec<IpAddr>> {
        Some(Vec::new())
    }

    fn selected(&self, _: &BTreeMap<String, String>, _: Action) -> Option<Vec<IpAddr>> {
        Some(Vec::new())
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
