//! Links, addresses, routes and neighbours as the kernel's messages.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo},
    link::{AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkMessage, Prop},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType},
};

use crate::link::{Address, MacAddr, Neighbour, Route, Scope};

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// A link message about `ifindex`; 0 names no link.
pub(super) fn link(ifindex: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes = attributes;
    message
}

/// Set the flags under `mask`, and only those.
pub(super) fn flags(ifindex: u32, value: u32, mask: u32) -> LinkMessage {
    let mut message = link(ifindex, Vec::new());
    message.header.flags = LinkFlags::from_bits_retain(value & mask);
    message.header.change_mask = LinkFlags::from_bits_retain(mask);
    message
}

/// Add or take away alternative names.
pub(super) fn alt_name(ifindex: u32, name: &str) -> LinkMessage {
    link(ifindex, vec![LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())])])
}

/// Set the IPv6 token.
pub(super) fn token(ifindex: u32, token: Ipv6Addr) -> LinkMessage {
    let family = AfSpecUnspec::Inet6(vec![AfSpecInet6::Token(token)]);
    link(ifindex, vec![LinkAttribute::AfSpecUnspec(vec![family])])
}

/// An address on a link.
pub(super) fn address(ifindex: u32, address: &Address) -> AddressMessage {
    let own = address.address.ip();
    let mut message = AddressMessage::default();
    message.header.family = family(own);
    message.header.prefix_len = address.address.prefix();
    message.header.index = ifindex;
    message.header.scope = match address.scope {
        Scope::Universe => AddressScope::Universe,
        Scope::Site => AddressScope::Site,
        Scope::Link => AddressScope::Link,
        Scope::Host => AddressScope::Host,
    };
    // The header holds the low eight bits, the attribute all of them; the kernel reads the attribute.
    message.header.flags = AddressHeaderFlags::from_bits_retain(address.flags.to_le_bytes()[0]);
    let attributes = &mut message.attributes;
    attributes.push(AddressAttribute::Local(own));
    attributes.push(AddressAttribute::Address(address.peer.unwrap_or(own)));
    attributes.push(AddressAttribute::Flags(AddressFlags::from_bits_retain(address.flags)));
    if let Some(IpAddr::V4(broadcast)) = address.broadcast {
        attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    if let Some(label) = &address.label {
        attributes.push(AddressAttribute::Label(label.clone()));
    }
    if let Some((valid, preferred)) = address.lifetime {
        let mut info = CacheInfo::default();
        info.ifa_valid = valid;
        info.ifa_preferred = preferred;
        attributes.push(AddressAttribute::CacheInfo(info));
    }
    if address.protocol != 0 {
        attributes.push(AddressAttribute::Protocol(address.protocol.into()));
    }
    if address.metric != 0 {
        attributes.push(AddressAttribute::RoutePriority(address.metric));
    }
    message
}

/// A route through a link.
pub(super) fn route(ifindex: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination.ip());
    header.destination_prefix_length = route.destination.prefix();
    header.protocol = route.protocol.into();
    header.kind = RouteType::Unicast;
    header.scope = match route.scope {
        Scope::Universe => RouteScope::Universe,
        Scope::Site => RouteScope::Site,
        Scope::Link => RouteScope::Link,
        Scope::Host => RouteScope::Host,
    };
    // Tables above 255 are in the attribute only.
    header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.destination.prefix() != 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.network())));
    }
    if let Some(gateway) = route.gateway {
        attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Oif(ifindex));
    message
}

/// Ask for every route of a family through a link.
pub(super) fn routes_through(ifindex: u32, family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.attributes.push(RouteAttribute::Oif(ifindex));
    message
}

/// A permanent neighbour on a link.
pub(super) fn neighbour(ifindex: u32, neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.address);
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(match neighbour.address {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    let MacAddr(bytes) = neighbour.mac;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(bytes.to_vec()));
    message
}
