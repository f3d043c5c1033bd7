//! What rtnetlink knows: links, addresses, default routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_core::{DefaultNla, Nla as _};
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{MtuRange, ways};
use crate::link::MacAddr;

/// `linux/if_link.h`, since Linux 6.15.
const IFLA_NETNS_IMMUTABLE: u16 = 67;

/// A dump failed.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// No netlink socket.
    #[error("cannot open an rtnetlink socket")]
    Socket(#[source] std::io::Error),
    /// The kernel refused or broke off a dump.
    #[error("cannot dump {what} by rtnetlink")]
    Dump {
        /// Links, addresses, routes.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
}

/// A link as rtnetlink tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// `IFLA_INFO_KIND`.
    pub kind: Option<String>,
    /// `IFLA_ADDRESS`, where it has six bytes.
    pub mac: Option<MacAddr>,
    /// Bytes.
    pub mtu: u32,
    /// `IFLA_OPERSTATE` as sysfs spells it.
    pub oper_state: String,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// `IFLA_MASTER`.
    pub master: Option<u32>,
    /// `IFLA_LINK`, where the other link is in this namespace and is not this one.
    pub lower: Option<u32>,
    /// Least and greatest MTU the link takes, in bytes (`IFLA_MIN_MTU`, `IFLA_MAX_MTU`), where the kernel reports them.
    pub mtu_range: MtuRange,
    /// Whether the kernel keeps it in its namespace (`IFLA_NETNS_IMMUTABLE`, since Linux 6.15); `None` where not reported.
    pub netns_immutable: Option<bool>,
}

/// A default route's way out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// Index of the link.
    pub ifindex: u32,
    /// Next hop.
    pub gateway: Option<IpAddr>,
}

/// All that one round of dumps gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Links by index.
    pub links: BTreeMap<u32, LinkFacts>,
    /// Addresses by link, in the kernel's order: the primary ones come first.
    pub addresses: BTreeMap<u32, Vec<IpNetwork>>,
    /// Default routes of both families and of every table: a table of its own does not make a link idle.
    pub default_routes: BTreeSet<DefaultRoute>,
    /// Links through which the addresses that were asked for are reached, all next hops of a route, and those with the
    /// addresses that packets there come from.
    pub ways: BTreeSet<u32>,
    /// Addresses that were asked for and that no way leads to, or whose way could not be found out; each with the reason.
    pub unreached: BTreeMap<IpAddr, String>,
}

/// Dump links, addresses and default routes of the network namespace of the calling thread, and look up the routes to
/// `addresses`.
///
/// A link whose name is not UTF-8 is passed over by the netlink decoder: neither the API nor the configuration
/// can name it.
pub async fn dump(addresses: &BTreeSet<IpAddr>) -> Result<Facts, DumpError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(DumpError::Socket)?;
    let connection = tokio::spawn(connection);
    let mut facts = dump_with(&handle).await;
    if let Ok(facts) = &mut facts {
        for address in addresses {
            match ways::to(&handle, *address).await {
                Ok(found) => {
                    facts.ways.extend(found.links);
                    let has = |on: &Vec<IpNetwork>| on.iter().any(|it| found.sources.contains(&it.ip()));
                    facts
                        .ways
                        .extend(facts.addresses.iter().filter(|(_, on)| has(on)).map(|(index, _)| *index));
                }
                Err(error) => drop(facts.unreached.insert(*address, error)),
            }
        }
    }
    connection.abort();
    facts
}

async fn dump_with(handle: &Handle) -> Result<Facts, DumpError> {
    let failed = |what| move |source| DumpError::Dump { what, source };
    let mut facts = Facts::default();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(failed("links"))? {
        let link = link_facts(&link);
        facts.links.insert(link.ifindex, link);
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(failed("addresses"))? {
        if let Some(address) = address(&message) {
            facts.addresses.entry(message.header.index).or_default().push(address);
        }
    }
    for request in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let mut routes = handle.route().get(request).execute();
        while let Some(message) = routes.try_next().await.map_err(failed("routes"))? {
            facts.default_routes.extend(default_routes(&message));
        }
    }
    Ok(facts)
}

fn link_facts(message: &LinkMessage) -> LinkFacts {
    let mut link = LinkFacts {
        ifindex: message.header.index,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        oper_state: "unknown".to_owned(),
        ..LinkFacts::default()
    };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::MinMtu(mtu) => link.mtu_range.least = *mtu,
            LinkAttribute::MaxMtu(mtu) => link.mtu_range.greatest = *mtu,
            LinkAttribute::Other(other) if other.kind() == IFLA_NETNS_IMMUTABLE => {
                link.netns_immutable = netns_immutable(other);
            }
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(MacAddr),
            LinkAttribute::OperState(state) => link.oper_state = state.to_string().to_lowercase(),
            LinkAttribute::IfAlias(alias) if !alias.is_empty() => link.alias = Some(alias.clone()),
            LinkAttribute::Controller(index) if *index != 0 => link.master = Some(*index),
            LinkAttribute::Link(index) if *index != 0 && *index != link.ifindex => link.lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind_name(kind)),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if elsewhere {
        link.lower = None;
    }
    link
}

fn netns_immutable(attribute: &DefaultNla) -> Option<bool> {
    let mut value = [0];
    (attribute.value_len() == value.len()).then(|| {
        attribute.emit_value(&mut value);
        value != [0]
    })
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Other(name) => name.clone(),
        known => known.to_string(),
    }
}

/// The address, unless it is link-local, or comes and goes by itself (IPv6 privacy addresses).
fn address(message: &AddressMessage) -> Option<IpNetwork> {
    if matches!(message.header.scope, AddressScope::Link | AddressScope::Host) {
        return None;
    }
    let (mut address, mut local, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(bits) => flags = *bits,
            _ => {}
        }
    }
    // IFA_ADDRESS is the peer on a point-to-point link; IFA_LOCAL is then the link's own address.
    let ip = local.or(address)?;
    // For IPv6, bit 0 means temporary (IFA_F_TEMPORARY); for IPv4, a secondary address.
    if ip.is_ipv6() && flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated) {
        return None;
    }
    IpNetwork::new(ip, message.header.prefix_len).ok()
}

fn default_routes(message: &RouteMessage) -> Vec<DefaultRoute> {
    if message.header.destination_prefix_length != 0 || message.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let (mut found, mut oif) = (Vec::new(), None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                found.extend(hops.iter().map(|hop| DefaultRoute {
                    ifindex: hop.interface_index,
                    gateway: gateway(&hop.attributes),
                }));
            }
            _ => {}
        }
    }
    found.extend(oif.map(|ifindex| DefaultRoute { ifindex, gateway: gateway(&message.attributes) }));
    found
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) | RouteAttribute::Via(RouteVia::Inet(ip)) => {
            Some(IpAddr::V4(*ip))
        }
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) | RouteAttribute::Via(RouteVia::Inet6(ip)) => {
            Some(IpAddr::V6(*ip))
        }
        _ => None,
    })
}
