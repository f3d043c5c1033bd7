//! Ways to connect two pods of a node, each in namespaces of its own.

use std::any::Any;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail, ensure};

use super::bare::{self, Jump};
use super::external::External;
use super::load::Ends;
use netferry::network::transport::Headers;

use super::netns::Netns;
use super::ours::Node;
use super::overlay;

/// Every path, in the order of the tables.
pub(crate) const NAMES: [&str; 15] = [
    "direct",
    "bridge",
    "bridge-nft",
    "macvlan",
    "forward",
    "bare-peer",
    "bare-redirect",
    "ours-off",
    "ours-1",
    "ours-10k",
    "ours-100k",
    "vxlan-bridge",
    "overlay",
    "overlay-device",
    "overlay-10k",
];

/// Prefixes in the set of `bridge-nft`.
const NFT_PREFIXES: u32 = 10_000;

/// A path that carries traffic.
pub(crate) struct Path {
    pub(crate) name: String,
    pub(crate) pods: Pods,
    /// Says, after traffic of at least a hundred frames each way, whether it took this path.
    pub(crate) evidence: Evidence,
    /// What must live as long.
    _keep: Vec<Box<dyn Any>>,
}

/// See [`Path::evidence`].
pub(crate) type Evidence = Box<dyn Fn() -> Result<()>>;

impl Path {
    /// Makes the path of a name.
    pub(crate) fn new(name: &str, node: &mut Node) -> Result<Self> {
        let made = match name {
            "direct" => direct(),
            "bridge" => bridge(),
            "bridge-nft" => bridge_nft(),
            "macvlan" => macvlan(),
            "forward" => forward(),
            "bare-peer" => bare::path(Jump::Peer),
            "bare-redirect" => bare::path(Jump::Device),
            "ours-off" => node.path(None),
            "ours-1" => node.path(Some(1)),
            "ours-10k" => node.path(Some(10_000)),
            "ours-100k" => node.path(Some(100_000)),
            "vxlan-bridge" => overlay::kernel(),
            "overlay" => overlay::ours(Headers::Programs, None),
            "overlay-device" => overlay::ours(Headers::Kernel, None),
            "overlay-10k" => overlay::ours(Headers::Programs, Some(10_000)),
            _ => bail!("no path {name}"),
        };
        let (pods, evidence, keep) = made.with_context(|| format!("make the path {name}"))?;
        Ok(Self { name: name.to_owned(), pods, evidence, _keep: keep })
    }
}

impl Path {
    /// A path that somebody else has made.
    pub(crate) fn external(of: &External) -> Result<Self> {
        let (pods, evidence) = of.pods()?;
        Ok(Self { name: of.name.clone(), pods, evidence, _keep: Vec::new() })
    }
}

/// What a path is made of but for its name.
pub(crate) type Parts = (Pods, Evidence, Vec<Box<dyn Any>>);

/// Two pods, and the host that connects them.
pub(crate) struct Pods {
    pub(crate) host: Netns,
    pub(crate) client: Netns,
    pub(crate) server: Netns,
    to: IpAddr,
}

impl Pods {
    /// Three namespaces with nothing in them.
    pub(crate) fn new() -> Result<Self> {
        let (host, client, server) = (Netns::new()?, Netns::new()?, Netns::new()?);
        Ok(Self { host, client, server, to: address(2).into() })
    }

    /// Two namespaces that are there already, and the server's address.
    pub(crate) fn there(client: Netns, server: Netns, to: IpAddr) -> Result<Self> {
        Ok(Self { host: Netns::new()?, client, server, to })
    }

    /// With a veth pair each: `h1` and `h2` at the host, `eth0` in the pods, without addresses.
    pub(crate) fn veths() -> Result<Self> {
        let pods = Self::new()?;
        for (pod, netns) in [(1, &pods.client), (2, &pods.server)] {
            Self::veth(&pods.host, pod, netns, 1500)?;
        }
        Ok(pods)
    }

    /// A veth pair between a host and a pod.
    pub(crate) fn veth(host: &Netns, pod: u8, netns: &Netns, mtu: u32) -> Result<()> {
        let (mac, path) = (mac(pod), netns.path());
        host.ip(&format!(
            "link add h{pod} mtu {mtu} type veth peer name eth0 mtu {mtu} address {mac} netns {path}"
        ))?;
        host.ip(&format!("link set h{pod} up"))
    }

    /// Gives both an address on one subnet, and sets them up.
    pub(crate) fn one_subnet(&self) -> Result<()> {
        for (pod, netns) in [(1, &self.client), (2, &self.server)] {
            netns.ip(&format!("addr add {}/24 dev eth0", address(pod)))?;
            netns.ip("link set eth0 up")?;
        }
        Ok(())
    }

    /// The two ends of a load.
    pub(crate) fn ends(&self) -> Ends<'_> {
        Ends { client: &self.client, server: &self.server, to: self.to }
    }
}

/// Address of a pod where both are on one subnet.
pub(crate) fn address(pod: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, pod)
}

/// Hardware address of a pod's interface.
pub(crate) fn mac(pod: u8) -> String {
    format!("02:4e:46:00:00:{pod:02x}")
}

/// Traffic is seen to leave the host through the server's link, a frame for each transaction.
fn through_host(host: &Netns) -> Evidence {
    let host = host.clone();
    Box::new(move || {
        let sent = host.sent("h2")?;
        ensure!(sent >= 100, "only {sent} frames went through the host's end");
        Ok(())
    })
}

/// A veth pair between the two.
fn direct() -> Result<Parts> {
    let pods = Pods::new()?;
    pods.client.ip(&format!("link add eth0 type veth peer name eth0 netns {}", pods.server.path()))?;
    pods.one_subnet()?;
    Ok((pods, Box::new(|| Ok(())), vec![]))
}

/// Two veth pairs on a bridge.
fn bridge() -> Result<Parts> {
    let pods = Pods::veths()?;
    pods.host.ip("link add br0 type bridge")?;
    for words in ["link set br0 up", "link set h1 master br0", "link set h2 master br0"] {
        pods.host.ip(words)?;
    }
    pods.host.sysctl("bridge/bridge-nf-call-iptables", "0")?;
    pods.one_subnet()?;
    let evidence = through_host(&pods.host);
    Ok((pods, evidence, vec![]))
}

/// The same with bridged frames handed to nftables, as on most nodes: connection tracking, and new flows only
/// between the prefixes of a set.
fn bridge_nft() -> Result<Parts> {
    let (pods, ..) = bridge()?;
    pods.host.sysctl("bridge/bridge-nf-call-iptables", "1")?;
    let mut rules = String::from(
        "table inet filter {\n set peers { type ipv4_addr; flags interval; elements = { 10.77.0.0/24",
    );
    for nth in 1..NFT_PREFIXES {
        write!(rules, ", {}", other_peer(nth))?;
    }
    rules.push_str(
        " }; }\n chain forward { type filter hook forward priority 0; policy drop;\n \
         ct state vmap { established : accept, related : accept, invalid : drop }\n \
         ip saddr @peers ip daddr @peers accept\n }\n}\n",
    );
    pods.host.exec("nft -f -", &rules)?;
    let (host, sent) = (pods.host.clone(), through_host(&pods.host));
    let evidence = move || {
        sent()?;
        let tracked = host.number("netfilter/nf_conntrack_count")?;
        ensure!(tracked > 0, "nftables tracks no connection: bridged frames do not reach it");
        Ok(())
    };
    Ok((pods, Box::new(evidence), vec![]))
}

/// An address of nobody, none next to another, so that no two of them are one prefix.
pub(crate) fn other_peer(nth: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a80_0000 + nth * 2)
}

/// Two macvlan interfaces of one link, which forwards between them.
fn macvlan() -> Result<Parts> {
    let pods = Pods::new()?;
    pods.host.ip("link add up0 type veth peer name up1")?;
    pods.host.ip("link set up0 up")?;
    pods.host.ip("link set up1 up")?;
    for (pod, netns) in [(1, &pods.client), (2, &pods.server)] {
        pods.host.ip(&format!("link add mv{pod} link up0 type macvlan mode bridge"))?;
        pods.host.ip(&format!("link set mv{pod} netns {} name eth0", netns.path()))?;
    }
    pods.one_subnet()?;
    Ok((pods, Box::new(|| Ok(())), vec![]))
}

/// Two veth pairs of a subnet each, and the host routes.
fn forward() -> Result<Parts> {
    let mut pods = Pods::veths()?;
    pods.host.sysctl("ipv4/ip_forward", "1")?;
    for (pod, netns) in [(1, &pods.client), (2, &pods.server)] {
        pods.host.ip(&format!("addr add 10.77.{pod}.254/24 dev h{pod}"))?;
        netns.ip(&format!("addr add 10.77.{pod}.{pod}/24 dev eth0"))?;
        netns.ip("link set eth0 up")?;
        netns.ip(&format!("route add default via 10.77.{pod}.254"))?;
    }
    pods.to = Ipv4Addr::new(10, 77, 2, 2).into();
    let evidence = through_host(&pods.host);
    Ok((pods, evidence, vec![]))
}
