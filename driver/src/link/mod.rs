//! The kernel's links behind one narrow seam.

pub mod kernel;
pub mod underlay;

mod mac;
mod pair;
mod recipe;
mod upper;

pub use kernel::identity;
pub use mac::MacAddr;
pub use pair::{Ends, Pair, PairKind};
pub use recipe::{IpvlanData, KindData, MacvlanData, Parent, Recipe, VethData, VlanData};
pub use upper::{Ipvlan, IpvlanFlag, IpvlanMode, Macvlan, MacvlanMode, SubInterface, Upper, Vlan};

#[cfg(any(test, feature = "failpoints"))]
pub mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// A network namespace, given to every verb instead of being a property of the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Namespace {
    /// The namespace the daemon was started in.
    Host,
    /// A namespace kept alive at this path (`/var/run/netns/…`, `/proc/PID/ns/net`).
    Path(PathBuf),
}

impl Namespace {
    /// The namespace at `path`.
    pub fn at(path: impl AsRef<Path>) -> Self {
        Self::Path(path.as_ref().to_owned())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A link found in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Index, unique in its namespace only.
    pub ifindex: u32,
    /// Name in its namespace.
    pub name: String,
    /// Hardware address now.
    pub mac: Option<MacAddr>,
    /// Hardware address burnt in (`IFLA_PERM_ADDRESS`), where the driver has one.
    pub permanent_mac: Option<MacAddr>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Kernel link kind, `None` for hardware.
    pub kind: Option<String>,
    /// An end of a netkit pair that lets nothing pass, one way or both (policy `blackhole`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blackhole: bool,
    /// Alternative names.
    pub alt_names: BTreeSet<String>,
}

/// Scope of an address or route (`rtnetlink(7)`, `rtm_scope`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// Valid anywhere.
    #[default]
    Universe,
    /// Interior to the site.
    Site,
    /// Valid on this link.
    Link,
    /// Valid on this host.
    Host,
}

/// An address on a link, with all that is needed to put it back as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// Address and prefix length.
    pub address: IpNetwork,
    /// Point-to-point peer, where it differs from the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// IPv4 broadcast address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<IpAddr>,
    /// IPv4 label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Scope.
    #[serde(default)]
    pub scope: Scope,
    /// `IFA_FLAGS` bits that were set by whoever added it (noprefixroute, home, nodad, mngtmpaddr, …);
    /// the kernel's own state bits (tentative, dadfailed, …) are left out.
    #[serde(default)]
    pub flags: u32,
    /// Valid and preferred lifetime in seconds; `None` is for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<(u32, u32)>,
    /// `IFA_PROTO`.
    #[serde(default)]
    pub protocol: u8,
    /// Metric of the route to the prefix (`IFA_RT_PRIORITY`); 0 is the kernel's default.
    #[serde(default)]
    pub metric: u32,
}

impl Address {
    /// A plain address as an administrator would add it.
    #[must_use]
    pub fn plain(address: IpNetwork) -> Self {
        Self {
            address,
            peer: None,
            broadcast: None,
            label: None,
            scope: Scope::Universe,
            flags: 0,
            lifetime: None,
            protocol: 0,
            metric: 0,
        }
    }
}

/// A route through a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Destination; `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: IpNetwork,
    /// Next hop; `None` means the destination is on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Preferred source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Scope.
    #[serde(default)]
    pub scope: Scope,
    /// Routing table; 254 is `main`.
    pub table: u32,
    /// Who made it (`rtm_protocol`): 2 kernel, 3 boot, 4 static, …
    pub protocol: u8,
    /// Metric; 0 is none for IPv4, and the kernel's default for IPv6.
    #[serde(default)]
    pub metric: u32,
    /// `RTNH_F_ONLINK`.
    #[serde(default)]
    pub onlink: bool,
}

/// A permanent neighbour entry, kept so that it can be put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbour {
    /// Protocol address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: MacAddr,
}

/// What an interface is given in its pod before it is up. The kernel is asked for one thing after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Hardware address, if not the one it has.
    pub mac: Option<MacAddr>,
    /// MTU in bytes, if not the one it has.
    pub mtu: Option<u32>,
    /// Per-link sysctls, named as in [`Home::sysctls`].
    pub sysctls: BTreeMap<String, String>,
    /// Addresses, in this order.
    pub addresses: Vec<Address>,
}

/// All that a link loses when it changes namespace, and its names: what "home as before" means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Home {
    /// The link as it was.
    pub link: Link,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Routes through it, in every table, that the kernel will not make by itself.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Per-link sysctls that differ from the kernel's defaults: name below `net/{ipv4,ipv6}/conf/<link>/`
    /// (for example `ipv6/disable_ipv6`) to value.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// What travels with the link, and could be changed by its pod.
    #[serde(default)]
    pub settings: Settings,
    /// How to make it anew, for a made link of a kind that can be: it dies with the namespace that it is in. `None` for
    /// any other, and where its parent or peer is in another namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
}

/// Settings that a link keeps when it moves, but that a pod with `NET_ADMIN` may change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Alias (`IFLA_IFALIAS`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Length of the transmit queue in packets (`IFLA_TXQLEN`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_queue_len: Option<u32>,
    /// Group (`IFLA_GROUP`).
    #[serde(default)]
    pub group: u32,
    /// `IFF_NOARP`, `IFF_PROMISC`, `IFF_ALLMULTI`, `IFF_MULTICAST` as they were (`netdevice(7)`).
    #[serde(default)]
    pub flags: u32,
    /// IPv6 token (`ip token`); lost when the link moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<std::net::Ipv6Addr>,
}

/// How to find a link that may have moved or been renamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkRef {
    /// By index.
    Index(u32),
    /// By name.
    Name(String),
}

/// What a link verb can fail with.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No such link in that namespace.
    #[error("no link {link} in network namespace {namespace}")]
    NotFound {
        /// Index or name that was asked for.
        link: String,
        /// Where.
        namespace: Namespace,
    },
    /// The namespace cannot be opened: most often its pod is gone.
    #[error("network namespace {namespace} cannot be entered")]
    NamespaceGone {
        /// Which.
        namespace: Namespace,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The name is taken in the target namespace.
    #[error("a link named {name:?} already exists in network namespace {namespace}")]
    NameTaken {
        /// The name asked for.
        name: String,
        /// Where it is taken.
        namespace: Namespace,
    },
    /// Something of the link could not be put back when it comes home, so it must not leave.
    #[error("link {link} in network namespace {namespace} cannot leave: {problem}")]
    CannotLeave {
        /// The link.
        link: String,
        /// Where.
        namespace: Namespace,
        /// What could not be put back.
        problem: String,
    },
    /// Nothing is recorded from which the link could be made: see [`Home::recipe`].
    #[error("no record says how link {link} was made")]
    NoRecipe {
        /// The link.
        link: String,
    },
    /// The host's namespace has no link with the name of the parent.
    #[error("link {link} was made on {parent}, which is gone")]
    ParentGone {
        /// The link that was to be made anew.
        link: String,
        /// What it was made on.
        parent: Parent,
    },
    /// The parent's name belongs to a link with another hardware address.
    #[error("link {link} was made on {parent}, whose name is that of another link now: {found}")]
    ParentReplaced {
        /// The link that was to be made anew.
        link: String,
        /// What it was made on.
        parent: Parent,
        /// What has the name now.
        found: String,
    },
    /// Anything else the kernel refused.
    #[error("{action} on {link} in network namespace {namespace}")]
    Kernel {
        /// The verb, for a reader ("set the MTU to 9000").
        action: String,
        /// The link.
        link: String,
        /// Where.
        namespace: Namespace,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// The kernel's links, in the verbs an attach needs. Every verb names its namespace.
///
/// Implementations are the kernel ([`kernel`]) and, in tests, a stateful model of it. Verbs that are already
/// satisfied succeed: a recovery repeats what an earlier run may have done.
#[async_trait]
pub trait Links: Send + Sync {
    /// Every link in the namespace.
    async fn list(&self, namespace: &Namespace) -> Result<Vec<Link>, LinkError>;
    /// One link, or [`LinkError::NotFound`].
    async fn get(&self, namespace: &Namespace, link: &LinkRef) -> Result<Link, LinkError>;
    /// What must be put back when the link comes home.
    async fn home(&self, namespace: &Namespace, ifindex: u32) -> Result<Home, LinkError>;
    /// What the link has now, in whatever state it is: what cannot be put back is left out. Of its sysctls, those that
    /// are named, as in [`Home::sysctls`].
    async fn look(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &[&'static str],
    ) -> Result<Home, LinkError>;
    /// Administrative state.
    async fn set_up(&self, namespace: &Namespace, ifindex: u32, up: bool) -> Result<(), LinkError>;
    /// Rename; the link must be down on older kernels.
    async fn rename(&self, namespace: &Namespace, ifindex: u32, name: &str) -> Result<(), LinkError>;
    /// Move to another namespace under `name` in one step, so that no other name is ever seen there. The
    /// link gets `index` there if that is given and free. Returns the index the link has there.
    async fn move_to(
        &self,
        from: &Namespace,
        ifindex: u32,
        to: &Namespace,
        name: &str,
        index: Option<u32>,
    ) -> Result<u32, LinkError>;
    /// MTU in bytes.
    async fn set_mtu(&self, namespace: &Namespace, ifindex: u32, mtu: u32) -> Result<(), LinkError>;
    /// Give an interface in a pod what it has before it is up.
    async fn configure(&self, namespace: &Namespace, ifindex: u32, setup: &Setup) -> Result<(), LinkError>;
    /// Add an address.
    async fn add_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: &Address,
    ) -> Result<(), LinkError>;
    /// Take every address away that has this IP address, whatever its prefix length.
    async fn remove_address(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), LinkError>;
    /// Add routes through the link, which is up, up to the first that is refused.
    async fn add_routes(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        routes: &[Route],
    ) -> Result<(), LinkError>;
    /// Have a route through the link in the place of one to the same destination in the same table: at no moment is there
    /// none. One that is not there is added.
    async fn replace_route(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        route: &Route,
    ) -> Result<(), LinkError>;
    /// Write per-link sysctls, named as in [`Home::sysctls`]. One that this kernel lacks is passed over.
    async fn set_sysctls(
        &self,
        namespace: &Namespace,
        ifindex: u32,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), LinkError>;
    /// Take an alternative name away.
    async fn remove_alt_name(&self, namespace: &Namespace, ifindex: u32, name: &str)
    -> Result<(), LinkError>;
    /// Make a pair with one end in the pod's namespace from the first moment, so that its name meets no other
    /// on the host. [`LinkError::NameTaken`] if a name is taken, and nothing is made.
    async fn make_pair(&self, pair: &Pair) -> Result<Ends, LinkError>;
    /// Let a pair carry frames: its end in the host's namespace goes up, and what holds frames back by itself no longer
    /// does.
    async fn open_pair(&self, host_end: u32, kind: PairKind) -> Result<(), LinkError>;
    /// Make a link on another one, both in the host's namespace. Returns its index.
    async fn make_upper(&self, upper: &Upper) -> Result<u32, LinkError>;
    /// Make a link that is gone from its record, in the host's namespace: down, with its name, MAC, MTU, and its index if
    /// that is free; [`restore`](Self::restore) does the rest. The other end of a veth pair comes back whole. Returns the
    /// index. [`LinkError::NoRecipe`], [`LinkError::ParentGone`], [`LinkError::ParentReplaced`] or
    /// [`LinkError::NameTaken`] if it cannot be, and then nothing is made.
    async fn remake(&self, home: &Home) -> Result<u32, LinkError>;
    /// Delete a made link, and with an end of a pair the other one.
    async fn remove(&self, namespace: &Namespace, ifindex: u32) -> Result<(), LinkError>;
    /// Put back everything of `home` that the link at `ifindex` in the host's namespace lacks, and take away
    /// what it has too much: name, alternative names, MAC, MTU, sysctls, state, addresses, neighbours,
    /// routes, in the order the kernel needs. Collects every error and goes on.
    async fn restore(&self, ifindex: u32, home: &Home) -> Result<(), Vec<LinkError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_twelve_digits_and_no_signs() {
        assert_eq!("02:00:5e:AB:cd:0f".parse(), Ok(MacAddr([2, 0, 0x5e, 0xab, 0xcd, 0x0f])));
        for bad in ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "+f:00:00:00:00:01", "2:00:00:00:00:001"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
