//! The kernel's messages as links, addresses, routes and neighbours.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, InfoData, InfoNetkit, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
        NetkitPolicy, Prop,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RoutePreference, RouteProtocol, RouteScope,
        RouteType,
    },
};

use super::{SETTABLE_LINK_FLAGS, recipe};
use crate::link::{Address, KindData, Link, MacAddr, Neighbour, Route, Scope, Settings};

/// `IFA_F_SECONDARY` on IPv6: a privacy address, made and forgotten by the kernel.
const IFA_F_TEMPORARY: u32 = 0x01;
/// Flags of an address that whoever adds it may set: NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE,
/// MCAUTOJOIN (`inet6_rtm_newaddr` in the kernel's net/ipv6/addrconf.c; IPv4 takes the last two).
const SETTABLE_ADDRESS_FLAGS: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;
/// Lifetime of what does not expire.
const FOREVER: u32 = u32::MAX;

/// A link with what only [`crate::link::Home`] needs.
pub(super) struct LinkFacts {
    pub(super) link: Link,
    pub(super) settings: Settings,
    /// Index of the bridge, bond or VRF it is a port of.
    pub(super) controller: Option<u32>,
    /// What MTU the kernel takes, in bytes; 0 as the highest is no limit.
    pub(super) mtu_range: (u32, u32),
    /// What its kind needs, for the kinds that can be made anew.
    pub(super) data: Option<KindData>,
    /// Index of its parent or peer (`IFLA_LINK`).
    pub(super) lower: Option<u32>,
    /// Whether that index is one of another namespace (`IFLA_LINK_NETNSID`).
    pub(super) lower_elsewhere: bool,
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddr)
}

pub(super) fn link(message: &LinkMessage) -> LinkFacts {
    let flags = message.header.flags;
    let mut facts = LinkFacts {
        link: Link {
            ifindex: message.header.index,
            name: String::new(),
            mac: None,
            permanent_mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            kind: None,
            blackhole: false,
            alt_names: BTreeSet::new(),
        },
        settings: Settings { flags: flags.bits() & SETTABLE_LINK_FLAGS, ..Settings::default() },
        controller: None,
        mtu_range: (0, 0),
        data: None,
        lower: None,
        lower_elsewhere: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => facts.link.name.clone_from(name),
            LinkAttribute::Address(bytes) => facts.link.mac = mac(bytes),
            LinkAttribute::PermAddress(bytes) => facts.link.permanent_mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => facts.link.mtu = *mtu,
            LinkAttribute::MinMtu(mtu) => facts.mtu_range.0 = *mtu,
            LinkAttribute::MaxMtu(mtu) => facts.mtu_range.1 = *mtu,
            LinkAttribute::Controller(index) if *index != 0 => facts.controller = Some(*index),
            LinkAttribute::Link(index) if *index != 0 => facts.lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => facts.lower_elsewhere = true,
            LinkAttribute::IfAlias(alias) => facts.settings.alias = Some(alias.clone()),
            LinkAttribute::TxQueueLen(length) => facts.settings.tx_queue_len = Some(*length),
            LinkAttribute::Group(group) => facts.settings.group = *group,
            LinkAttribute::LinkInfo(infos) => {
                facts.link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                facts.link.blackhole = infos.iter().any(blackhole);
                facts.data = recipe::decode(infos);
            }
            LinkAttribute::PropList(props) => {
                facts.link.alt_names = props
                    .iter()
                    .filter_map(|prop| match prop {
                        Prop::AltIfName(name) => Some(name.clone()),
                        _ => None,
                    })
                    .collect();
            }
            LinkAttribute::AfSpecUnspec(families) => facts.settings.token = token(families),
            _ => {}
        }
    }
    facts
}

/// Whether either end of a netkit pair drops what no program of netkit's own hooks decides about. The kernel tells both
/// policies at each end.
fn blackhole(info: &LinkInfo) -> bool {
    let LinkInfo::Data(InfoData::Netkit(netkit)) = info else { return false };
    netkit.iter().any(|it| {
        matches!(it, InfoNetkit::Policy(policy) | InfoNetkit::PeerPolicy(policy) if *policy != NetkitPolicy::Pass)
    })
}

fn token(families: &[AfSpecUnspec]) -> Option<Ipv6Addr> {
    families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(facts) => facts.iter().find_map(|fact| match fact {
            AfSpecInet6::Token(token) if !token.is_unspecified() => Some(*token),
            _ => None,
        }),
        _ => None,
    })
}

/// `None` for the addresses that the kernel makes and forgets by itself.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut far) = (None, None);
    let mut flags = u32::from(message.header.flags.bits());
    let (mut broadcast, mut label, mut lifetime, mut protocol, mut metric) = (None, None, None, 0, 0);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => far = Some(*ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(IpAddr::V4(*ip)),
            AddressAttribute::Label(text) => label = Some(text.clone()),
            AddressAttribute::Flags(bits) => flags = bits.bits(),
            AddressAttribute::CacheInfo(info) if info.ifa_valid != FOREVER => {
                lifetime = Some((info.ifa_valid, info.ifa_preferred));
            }
            // A deprecated address: valid for ever, preferred no longer.
            AddressAttribute::CacheInfo(info) if info.ifa_preferred != FOREVER => {
                lifetime = Some((FOREVER, info.ifa_preferred));
            }
            AddressAttribute::Protocol(who) => protocol = u8::from(*who),
            AddressAttribute::RoutePriority(value) => metric = *value,
            _ => {}
        }
    }
    let own = local.or(far)?;
    if own.is_ipv6() && flags & IFA_F_TEMPORARY != 0 {
        return None;
    }
    Some(Address {
        address: IpNetwork::new(own, message.header.prefix_len).ok()?,
        peer: far.filter(|far| *far != own),
        broadcast,
        label,
        scope: match message.header.scope {
            AddressScope::Site => Scope::Site,
            AddressScope::Link => Scope::Link,
            AddressScope::Host => Scope::Host,
            _ => Scope::Universe,
        },
        flags: flags & SETTABLE_ADDRESS_FLAGS,
        lifetime,
        protocol,
        metric,
    })
}

/// What became of a route of the kernel's table.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Made by the kernel, or learnt again by itself.
    Remade,
    /// Through the link, and can be put back.
    Through(Route),
    /// Through the link, and cannot be put back: why.
    Refused(String),
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A route that the kernel's filter found to use the link `ifindex`.
pub(super) fn route(message: &RouteMessage, ifindex: u32) -> Found {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let mut route = Route {
        destination: IpNetwork::from(unspecified),
        gateway: None,
        source: None,
        scope: match header.scope {
            RouteScope::Site => Scope::Site,
            RouteScope::Link => Scope::Link,
            RouteScope::Host => Scope::Host,
            _ => Scope::Universe,
        },
        table: u32::from(header.table),
        protocol: header.protocol.into(),
        metric: 0,
        onlink: header.flags.contains(RouteFlags::Onlink),
    };
    let (mut destination, mut oif, mut expires) = (unspecified, None, false);
    let mut extra: Option<&str> = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = ip(to).unwrap_or(unspecified),
            RouteAttribute::Gateway(via) => route.gateway = ip(via),
            RouteAttribute::PrefSource(from) => route.source = ip(from),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::CacheInfo(info) => expires = info.expires != 0,
            RouteAttribute::MultiPath(hops) if hops.iter().any(|hop| hop.interface_index == ifindex) => {
                oif = Some(ifindex);
                extra = Some("several next hops");
            }
            RouteAttribute::NhId(_) => extra = Some("a nexthop object"),
            RouteAttribute::Metrics(metrics) if !metrics.is_empty() => {
                extra = Some("metrics (mtu, advmss, …)");
            }
            RouteAttribute::Encap(_) => extra = Some("an encapsulation"),
            RouteAttribute::Via(_) => extra = Some("a gateway of another family"),
            RouteAttribute::Realm(_) => extra = Some("a realm"),
            RouteAttribute::Source(_) => extra = Some("a source prefix"),
            RouteAttribute::Preference(preference) if *preference != RoutePreference::Medium => {
                extra = Some("a router preference");
            }
            _ => {}
        }
    }
    if oif != Some(ifindex) || header.protocol == RouteProtocol::Kernel {
        return Found::Remade;
    }
    // Router advertisements and redirects come again; cached routes are no configuration.
    let learnt = matches!(header.protocol, RouteProtocol::Ra | RouteProtocol::IcmpRedirect) && expires;
    if learnt || header.flags.contains(RouteFlags::Cloned) {
        return Found::Remade;
    }
    match IpNetwork::new(destination, header.destination_prefix_length) {
        Ok(network) => route.destination = network,
        Err(error) => return Found::Refused(format!("route to {destination}: {error}")),
    }
    if header.kind != RouteType::Unicast {
        extra = Some("a type other than unicast");
    } else if header.tos != 0 {
        extra = Some("a type of service");
    } else if expires {
        extra = Some("a lifetime");
    }
    match extra {
        Some(what) => {
            Found::Refused(format!("route to {} in table {} has {what}", route.destination, route.table))
        }
        None => Found::Through(route),
    }
}

/// A permanent entry on the link `ifindex`.
pub(super) fn neighbour(message: &NeighbourMessage, ifindex: u32) -> Option<Neighbour> {
    if message.header.ifindex != ifindex || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut hardware) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => hardware = mac(bytes),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: hardware? })
}
