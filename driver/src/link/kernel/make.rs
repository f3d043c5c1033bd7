//! Links that are made, and deleted.

use std::{io, os::fd::AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVeth, InfoVlan, IpVlanFlags, IpVlanMode,
        LinkAttribute, LinkInfo, MacVlanMode,
    },
};

use super::{KernelLinks, Subject, encode, namespace};
use crate::link::{
    Ends, IpvlanFlag, IpvlanMode, LinkError, LinkRef, MacvlanMode, Namespace, Pair, SubInterface, Upper,
};

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

pub(super) async fn upper(links: &KernelLinks, upper: &Upper) -> Result<u32, LinkError> {
    let Upper { parent, name, mac, sub_interface } = upper;
    let on = links.on(&Namespace::Host, name).await?;
    let (kind, data) = info(*sub_interface);
    let mut attributes = vec![
        LinkAttribute::IfName(name.clone()),
        LinkAttribute::Link(*parent),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
    ];
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    let request = RouteNetlinkMessage::NewLink(encode::link(0, attributes));
    let by_name = LinkRef::Name(name.clone());
    match on.conversation.change(request, NLM_F_CREATE | NLM_F_EXCL).await {
        // A VLAN that is there already is the same error.
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists && on.facts(&by_name).await.is_ok() => {
            return Err(name_taken(&on, name));
        }
        made => made.map_err(|source| on.error(format!("make {sub_interface} on link {parent}"), source))?,
    }
    Ok(on.facts(&by_name).await?.link.ifindex)
}

fn info(sub_interface: SubInterface) -> (InfoKind, InfoData) {
    match sub_interface {
        SubInterface::Macvlan(macvlan) => {
            let mode = match macvlan.mode {
                MacvlanMode::Bridge => MacVlanMode::Bridge,
                MacvlanMode::Private => MacVlanMode::Private,
                MacvlanMode::Vepa => MacVlanMode::Vepa,
            };
            (InfoKind::MacVlan, InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]))
        }
        SubInterface::Ipvlan(ipvlan) => {
            let mode = match ipvlan.mode {
                IpvlanMode::L2 => IpVlanMode::L2,
                IpvlanMode::L3 => IpVlanMode::L3,
                IpvlanMode::L3s => IpVlanMode::L3S,
            };
            let flags = match ipvlan.flag {
                IpvlanFlag::Bridge => IpVlanFlags::empty(),
                IpvlanFlag::Private => IpVlanFlags::Private,
                IpvlanFlag::Vepa => IpVlanFlags::Vepa,
            };
            let data = vec![InfoIpVlan::Mode(mode), InfoIpVlan::Flags(flags)];
            (InfoKind::IpVlan, InfoData::IpVlan(data))
        }
        SubInterface::Vlan(vlan) => (InfoKind::Vlan, InfoData::Vlan(vec![InfoVlan::Id(vlan.id)])),
    }
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
