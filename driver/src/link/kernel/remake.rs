//! A made link from its record.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoVeth, LinkAttribute, LinkInfo},
};

use super::{KernelLinks, encode, make::name_taken, recipe, restore, subject::Subject};
use crate::{
    link::{Home, KindData, Link, LinkError, LinkRef, Namespace, VethData},
    telemetry::chain,
};

/// The index is the one it had, if that is free: `rtnl_newlink` (net/core/rtnetlink.c) takes it from the header.
pub(super) async fn remake(links: &KernelLinks, home: &Home) -> Result<u32, LinkError> {
    let wanted = &home.link;
    let Some(recipe) = &home.recipe else { return Err(LinkError::NoRecipe { link: wanted.name.clone() }) };
    let on = links.on(&Namespace::Host, &wanted.name).await?;
    let parent = match &recipe.parent {
        Some(parent) => {
            let found = named(&on, &parent.name).await?;
            parent.index(&wanted.name, found.as_ref())?;
            found
        }
        None => None,
    };
    let peer = match &recipe.data {
        KindData::Veth(veth) => Some(veth),
        _ => None,
    };
    for name in [Some(&wanted.name), peer.map(|veth| &veth.peer.link.name)].into_iter().flatten() {
        if named(&on, name).await?.is_some() {
            return Err(name_taken(&on, name));
        }
    }
    let index = free_index(&on, wanted, peer).await?;
    let mut info = recipe::encode(&recipe.data);
    info.extend(peer.map(|veth| {
        let far = &veth.peer.link;
        let far_index = if index == 0 { 0 } else { far.ifindex };
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(encode::link(far_index, own(far, None)))))
    }));
    let mut attributes = own(wanted, parent.as_ref());
    attributes.extend(parent.map(|parent| LinkAttribute::Link(parent.ifindex)));
    attributes.push(LinkAttribute::LinkInfo(info));
    let request = RouteNetlinkMessage::NewLink(encode::link(index, attributes));
    match on.conversation.change(request, NLM_F_CREATE | NLM_F_EXCL).await {
        // A VLAN that its parent has already is the same error.
        Err(source)
            if source.kind() == io::ErrorKind::AlreadyExists && named(&on, &wanted.name).await?.is_some() =>
        {
            return Err(name_taken(&on, &wanted.name));
        }
        made => {
            made.map_err(|source| on.error(format!("make anew as {}", recipe.data.kind()), source))?;
        }
    }
    if let Some(veth) = peer {
        restore_peer(links, veth).await;
    }
    Ok(on.facts(&LinkRef::Name(wanted.name.clone())).await?.link.ifindex)
}

async fn named(on: &Subject, name: &str) -> Result<Option<Link>, LinkError> {
    match on.facts(&LinkRef::Name(name.to_owned())).await {
        Ok(facts) => Ok(Some(facts.link)),
        Err(LinkError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The recorded index, or 0, which leaves it to the kernel. A pair gets both or none: the kernel takes that of the other
/// end only with this one's (`veth_newlink`, drivers/net/veth.c).
async fn free_index(on: &Subject, wanted: &Link, peer: Option<&VethData>) -> Result<u32, LinkError> {
    for index in [Some(wanted.ifindex), peer.map(|veth| veth.peer.link.ifindex)].into_iter().flatten() {
        match on.facts(&LinkRef::Index(index)).await {
            Err(LinkError::NotFound { .. }) => {}
            Ok(_) => return Ok(0),
            Err(error) => return Err(error),
        }
    }
    Ok(wanted.ifindex)
}

/// Name, hardware address and MTU, as far as its parent lets them be.
fn own(wanted: &Link, parent: Option<&Link>) -> Vec<LinkAttribute> {
    let mut attributes = vec![LinkAttribute::IfName(wanted.name.clone())];
    // One that has its parent's address is given none, so that it follows when that changes (`vlan_sync_address`,
    // net/8021q/vlan.c). An ipvlan always has it.
    let address = wanted.mac.filter(|_| parent.is_none_or(|parent| parent.mac != wanted.mac));
    attributes.extend(address.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    // More than the parent's would be refused, and the link lost for it.
    if parent.is_none_or(|parent| wanted.mtu <= parent.mtu) {
        attributes.push(LinkAttribute::Mtu(wanted.mtu));
    }
    attributes
}

/// The other end of a pair, which nothing but this return knows to be missing. The pair is there whatever becomes of it.
async fn restore_peer(links: &KernelLinks, veth: &VethData) {
    let name = &veth.peer.link.name;
    if let Err(errors) = try_restore_peer(links, veth).await {
        for error in errors {
            tracing::warn!(
                link = name,
                error = chain(&error),
                "other end of a pair made anew is not as it was"
            );
        }
    }
}

async fn try_restore_peer(links: &KernelLinks, veth: &VethData) -> Result<(), Vec<LinkError>> {
    let one = |error| vec![error];
    let name = &veth.peer.link.name;
    let on = links.on(&Namespace::Host, name).await.map_err(one)?;
    let ifindex = on.facts(&LinkRef::Name(name.clone())).await.map_err(one)?.link.ifindex;
    let mut errors = Vec::new();
    if let Some(controller) = &veth.peer_controller {
        let joined = match named(&on, controller).await {
            Ok(Some(controller)) => {
                let port = encode::link(ifindex, vec![LinkAttribute::Controller(controller.ifindex)]);
                let set = on.conversation.change(RouteNetlinkMessage::SetLink(port), 0).await;
                set.map_err(|source| on.error(format!("make a port of {}", controller.name), source))
            }
            Ok(None) => Err(LinkError::NotFound { link: controller.clone(), namespace: Namespace::Host }),
            Err(error) => Err(error),
        };
        errors.extend(joined.err());
    }
    errors.extend(restore::all(links, ifindex, &veth.peer).await.err().into_iter().flatten());
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
