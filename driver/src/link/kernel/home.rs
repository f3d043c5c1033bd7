//! Reading what a link has at home.

use std::{collections::BTreeMap, path::Path};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, address::AddressMessage, neighbour::NeighbourAttribute,
    neighbour::NeighbourMessage,
};

use super::{
    decode::{self, Found, LinkFacts},
    encode, namespace, recipe,
    subject::Subject,
    sysctl,
};
use crate::link::{Address, Home, LinkError, LinkRef, Neighbour, Route};

/// Everything, or [`LinkError::CannotLeave`] if a part of it could not be put back.
pub(super) async fn read(on: &Subject, host: Option<&Path>, ifindex: u32) -> Result<Home, LinkError> {
    let facts = on.facts(&LinkRef::Index(ifindex)).await?;
    if let Some(controller) = facts.controller {
        let name = on.facts(&LinkRef::Index(controller)).await.map(|controller| controller.link.name);
        let name = name.unwrap_or_else(|_| controller.to_string());
        let problem = format!("it is a port of {name}");
        return Err(LinkError::CannotLeave {
            link: facts.link.name,
            namespace: on.namespace.clone(),
            problem,
        });
    }
    let recipe = recipe::of(on, host, &facts).await?;
    let name = facts.link.name.clone();
    let (home, refused) = gather(on, host, facts).await?;
    if let Some(problem) = refused.into_iter().next() {
        return Err(LinkError::CannotLeave { link: name, namespace: on.namespace.clone(), problem });
    }
    Ok(Home { recipe, ..home })
}

/// Everything but how it was made, and what of it could not be put back.
pub(super) async fn gather(
    on: &Subject,
    host: Option<&Path>,
    facts: LinkFacts,
) -> Result<(Home, Vec<String>), LinkError> {
    let LinkFacts { link, settings, .. } = facts;
    let (ifindex, name) = (link.ifindex, link.name.clone());
    let sysctls = namespace::within(&on.namespace, host, move || sysctl::changed(&name));
    // One after the other: a socket that has a dump unfinished refuses the next with EBUSY
    // (`__netlink_dump_start`, net/netlink/af_netlink.c).
    let dumps = async {
        let addresses = addresses(on, ifindex).await?;
        let neighbours = neighbours(on, ifindex).await?;
        Ok((addresses, neighbours, routes(on, ifindex).await?))
    };
    let (sysctls, (addresses, neighbours, (routes, refused))) = futures::try_join!(sysctls, dumps)?;
    Ok((Home { link, addresses, routes, neighbours, sysctls, settings, recipe: None }, refused))
}

/// What the link has now, without what could not be put back, and without neighbours.
pub(super) async fn look(
    on: &Subject,
    host: Option<&Path>,
    ifindex: u32,
    names: Vec<&'static str>,
) -> Result<Home, LinkError> {
    let facts = on.facts(&LinkRef::Index(ifindex)).await?;
    let addresses = addresses(on, ifindex).await?;
    let (routes, _) = routes(on, ifindex).await?;
    let sysctls = if names.is_empty() {
        BTreeMap::new()
    } else {
        let name = facts.link.name.clone();
        namespace::within(&on.namespace, host, move || sysctl::read(&name, &names)).await?
    };
    let (neighbours, settings) = (Vec::new(), facts.settings);
    Ok(Home { link: facts.link, addresses, routes, neighbours, sysctls, settings, recipe: None })
}

/// In the kernel's order.
pub(super) async fn addresses(on: &Subject, ifindex: u32) -> Result<Vec<Address>, LinkError> {
    let mut ask = AddressMessage::default();
    ask.header.index = ifindex;
    let objects = on.conversation.dump(RouteNetlinkMessage::GetAddress(ask)).await;
    let objects = objects.map_err(|source| on.error("read the addresses", source))?;
    let addresses = objects.iter().filter_map(|object| match object {
        // Kernels without strict checking give those of every link.
        RouteNetlinkMessage::NewAddress(message) if message.header.index == ifindex => {
            decode::address(message)
        }
        _ => None,
    });
    Ok(addresses.collect())
}

pub(super) async fn neighbours(on: &Subject, ifindex: u32) -> Result<Vec<Neighbour>, LinkError> {
    let mut ask = NeighbourMessage::default();
    ask.attributes.push(NeighbourAttribute::IfIndex(ifindex));
    let objects = on.conversation.dump(RouteNetlinkMessage::GetNeighbour(ask)).await;
    let objects = objects.map_err(|source| on.error("read the neighbours", source))?;
    let neighbours = objects.iter().filter_map(|object| match object {
        RouteNetlinkMessage::NewNeighbour(message) => decode::neighbour(message, ifindex),
        _ => None,
    });
    Ok(neighbours.collect())
}

/// Routes through the link in every table, in the kernel's order, and what could not be put back.
pub(super) async fn routes(on: &Subject, ifindex: u32) -> Result<(Vec<Route>, Vec<String>), LinkError> {
    let (mut through, mut refused) = (Vec::new(), Vec::new());
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let ask = RouteNetlinkMessage::GetRoute(encode::routes_through(ifindex, family));
        let objects = match on.conversation.dump(ask).await {
            // Nothing has been routed there yet, or the kernel has no IPv6.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => continue,
            objects => objects.map_err(|source| on.error("read the routes", source))?,
        };
        for object in &objects {
            let RouteNetlinkMessage::NewRoute(message) = object else { continue };
            match decode::route(message, ifindex) {
                Found::Remade => {}
                Found::Through(route) => through.push(route),
                Found::Refused(problem) => refused.push(problem),
            }
        }
    }
    Ok((through, refused))
}
