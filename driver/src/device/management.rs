//! Links that stay on the host: without them the node loses its address, its API server or its tunnels, or the kernel does
//! not move them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use super::netlink::Facts;

/// Why a link is never moved into a pod. It may still be the uplink of a network, or the parent of sub-interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotMovable {
    /// It, or a link stacked on it, has an `InternalIP` of the node.
    NodeAddress,
    /// The way to the API server leads through it.
    ApiServer,
    /// Tunnels of overlay networks leave from an address of it.
    Underlay,
    /// The kernel keeps links of its kind in the network namespace they were made in.
    NamespaceLocal,
    /// A network's uplink stands on it.
    Uplink,
    /// By which addresses the node is reached was never learnt, and it has an address or a default route, or is below a
    /// link that does.
    Unknown,
}

impl NotMovable {
    /// Value of the attribute `notMovable`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeAddress => "node-address",
            Self::ApiServer => "api-server",
            Self::Underlay => "underlay",
            Self::NamespaceLocal => "namespace-local",
            Self::Uplink => "uplink",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for NotMovable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NodeAddress => "the node's InternalIP is on it",
            Self::ApiServer => "the node reaches its API server through it",
            Self::Underlay => "the tunnels of overlay networks leave through it",
            Self::NamespaceLocal => {
                "the kernel does not move a link of this kind to another network namespace"
            }
            Self::Uplink => "a network's uplink stands on it",
            Self::Unknown => {
                "it has an address or a default route, and the node's own addresses are not known yet: the API server has \
                 not reported the Node since Netferry was installed"
            }
        })
    }
}

/// Addresses by which the node is reached and reaches others. Those of the default are none, as on a node without a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Management {
    /// Each `InternalIP` of the Node.
    pub node: BTreeSet<IpAddr>,
    /// Addresses of API servers, those behind the service `kubernetes` among them.
    pub api_servers: BTreeSet<IpAddr>,
    /// The address that tunnels of overlay networks leave from (`--overlay-address`).
    pub underlay: BTreeSet<IpAddr>,
    /// Whether the Node was never read: then each link with an address or a default route may be the node's own.
    pub unknown: bool,
}

/// Kinds whose links carry `NETIF_F_NETNS_LOCAL` (`netns_immutable` since Linux 6.15), for kernels that do not report it
/// by rtnetlink.
const LOCAL_KINDS: [&str; 8] = ["bridge", "bond", "team", "vrf", "hsr", "openvswitch", "batadv", "ppp"];
/// Tunnel devices that each namespace has of its own.
const FALLBACK_DEVICES: [&str; 7] = ["tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0"];

/// The links that are never moved, by index, each with the first reason of [`NotMovable`] that holds. `stacked` has, for
/// each lower link, those that stand on it: a link goes with what is below it.
#[must_use]
pub(super) fn not_movable(
    facts: &Facts,
    management: &Management,
    stacked: &BTreeMap<u32, BTreeSet<u32>>,
) -> BTreeMap<u32, NotMovable> {
    let with = |wanted: &BTreeSet<IpAddr>| -> BTreeSet<u32> {
        let has =
            |addresses: &Vec<ipnetwork::IpNetwork>| addresses.iter().any(|it| wanted.contains(&it.ip()));
        facts.addresses.iter().filter(|(_, addresses)| has(addresses)).map(|(index, _)| *index).collect()
    };
    // An API server on this very node is reached through the loopback link, and by others through its address.
    let mut api_servers = with(&management.api_servers);
    api_servers.extend(&facts.ways);
    let mut maybe = BTreeSet::new();
    if management.unknown {
        maybe.extend(facts.addresses.keys());
        maybe.extend(facts.default_routes.iter().map(|route| route.ifindex));
    }
    let mut found = BTreeMap::new();
    for (links, why) in [
        (with(&management.node), NotMovable::NodeAddress),
        (api_servers, NotMovable::ApiServer),
        (with(&management.underlay), NotMovable::Underlay),
        (maybe, NotMovable::Unknown),
    ] {
        for index in with_lower(links, stacked) {
            found.entry(index).or_insert(why);
        }
    }
    for link in facts.links.values() {
        let of_kind = || link.kind.as_deref().is_some_and(|kind| LOCAL_KINDS.contains(&kind));
        let local = link.netns_immutable.unwrap_or_else(of_kind);
        if local || link.loopback || FALLBACK_DEVICES.contains(&link.name.as_str()) {
            let why = found.entry(link.ifindex).or_insert(NotMovable::NamespaceLocal);
            if *why == NotMovable::Unknown {
                *why = NotMovable::NamespaceLocal;
            }
        }
    }
    found
}

/// `links` and every link below one of them.
pub(super) fn with_lower(mut links: BTreeSet<u32>, stacked: &BTreeMap<u32, BTreeSet<u32>>) -> BTreeSet<u32> {
    loop {
        let below: Vec<u32> = stacked
            .iter()
            .filter(|(lower, uppers)| !links.contains(*lower) && !uppers.is_disjoint(&links))
            .map(|(lower, _)| *lower)
            .collect();
        if below.is_empty() {
            return links;
        }
        links.extend(below);
    }
}
