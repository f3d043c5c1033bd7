//! Through which links the kernel sends to an address.

use std::{collections::BTreeSet, net::IpAddr};

use futures::StreamExt as _;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage},
};
use rtnetlink::Handle;

use super::nexthops;

/// The way to an address.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// Links of every next hop of the route.
    pub(super) links: BTreeSet<u32>,
    /// Addresses that packets come from.
    pub(super) sources: BTreeSet<IpAddr>,
}

/// Look up the route to an address. An error says why there is none.
pub(super) async fn to(handle: &Handle, address: IpAddr) -> Result<Ways, String> {
    let mut ways = Ways::default();
    // What a packet would take now: one next hop of several, and its source.
    ways.add(&lookup(handle, address, RouteFlags::empty()).await?);
    // The route itself, with all its next hops. An older kernel without this has answered the first question.
    let Ok(route) = lookup(handle, address, RouteFlags::FibMatch).await else { return Ok(ways) };
    ways.add(&route);
    // Of a next hop that is an object of its own, the kernel may report the number alone (`net.ipv4.nexthop_compat_mode`).
    let object = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::NhId(id) => Some(*id),
        _ => None,
    });
    if let Some(id) = object {
        let links = nexthops::links(id).await;
        ways.links.extend(links.map_err(|error| format!("next hop {id} cannot be read: {error}"))?);
    }
    Ok(ways)
}

impl Ways {
    fn add(&mut self, route: &RouteMessage) {
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => self.links.extend([*index]),
                RouteAttribute::MultiPath(hops) => {
                    self.links.extend(hops.iter().map(|hop| hop.interface_index));
                }
                RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => self.sources.extend([IpAddr::V4(*ip)]),
                RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => self.sources.extend([IpAddr::V6(*ip)]),
                _ => {}
            }
        }
    }
}

async fn lookup(handle: &Handle, address: IpAddr, flags: RouteFlags) -> Result<RouteMessage, String> {
    let mut route = RouteMessage::default();
    let (family, length, destination) = match address {
        IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
    };
    route.header.address_family = family;
    route.header.destination_prefix_length = length;
    route.header.flags = flags;
    route.attributes = vec![RouteAttribute::Destination(destination)];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(route));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.clone().request(request).map_err(|error| error.to_string())?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => return Ok(route),
            NetlinkPayload::Error(error) => return Err(error.to_io().to_string()),
            _ => {}
        }
    }
    Err("the kernel has not answered".to_owned())
}
