//! Links that are made, and deleted.

use std::{io, os::fd::AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo},
};

use super::{KernelLinks, Subject, encode, namespace};
use crate::link::{Ends, LinkError, LinkRef, Namespace, Pair};

/// The kernel makes both ends in one request: the far one in the namespace that its part of the message names
/// (`veth_newlink`, drivers/net/veth.c).
pub(super) async fn pair(links: &KernelLinks, pair: &Pair) -> Result<Ends, LinkError> {
    let Pair { host_name, pod, pod_name, pod_mac, mtu } = pair;
    let (here, there) = (links.on(&Namespace::Host, host_name).await?, links.on(pod, pod_name).await?);
    // Which of the two names is taken, the kernel does not say.
    for (on, name) in [(&here, host_name), (&there, pod_name)] {
        match on.facts(&LinkRef::Name(name.clone())).await {
            Ok(_) => return Err(name_taken(on, name)),
            Err(LinkError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let target = namespace::open(pod, links.host())?;
    let far = encode::link(
        0,
        vec![
            LinkAttribute::IfName(pod_name.clone()),
            LinkAttribute::NetNsFd(target.as_raw_fd()),
            LinkAttribute::Address(pod_mac.0.to_vec()),
            LinkAttribute::Mtu(*mtu),
        ],
    );
    let near = vec![
        LinkAttribute::IfName(host_name.clone()),
        LinkAttribute::Mtu(*mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]),
    ];
    let request = RouteNetlinkMessage::NewLink(encode::link(0, near));
    match here.conversation.change(request, NLM_F_CREATE | NLM_F_EXCL).await {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
            return Err(name_taken(&there, pod_name));
        }
        made => made.map_err(|source| here.error(format!("make with its other end {pod_name:?}"), source))?,
    }
    Ok(Ends {
        host: here.facts(&LinkRef::Name(host_name.clone())).await?.link.ifindex,
        pod: there.facts(&LinkRef::Name(pod_name.clone())).await?.link.ifindex,
    })
}

/// One that is gone already has been deleted.
pub(super) async fn remove(on: &Subject, ifindex: u32) -> Result<(), LinkError> {
    let request = RouteNetlinkMessage::DelLink(encode::link(ifindex, Vec::new()));
    match on.conversation.change(request, 0).await {
        Err(source) if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        done => done.map_err(|source| on.error("delete", source)),
    }
}

fn name_taken(on: &Subject, name: &str) -> LinkError {
    LinkError::NameTaken { name: name.to_owned(), namespace: on.namespace.clone() }
}
