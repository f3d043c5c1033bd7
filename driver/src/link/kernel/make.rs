//! Links that are made, and deleted.

use std::{io, os::fd::AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoNetkit, InfoVeth, InfoVlan, IpVlanFlags, IpVlanMode,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode, NetkitMode, NetkitPolicy,
    },
};

use super::{KernelLinks, encode, namespace, subject::Subject};
use crate::link::{
    Ends, IpvlanFlag, IpvlanMode, LinkError, LinkRef, MacvlanMode, Namespace, Pair, PairKind, SubInterface,
    Upper,
};

/// The kernel makes both ends in one request: the far one in the namespace that its part of the message names
/// (`veth_newlink`, drivers/net/veth.c; `netkit_new_link`, drivers/net/netkit.c).
pub(super) async fn pair(links: &KernelLinks, pair: &Pair) -> Result<Ends, LinkError> {
    let Pair { kind, host_name, pod, pod_name, pod_mac, mtu } = pair;
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
        LinkAttribute::LinkInfo(pair_info(*kind, far)),
    ];
    let request = RouteNetlinkMessage::NewLink(encode::link(0, near));
    match here.conversation.change(request, NLM_F_CREATE | NLM_F_EXCL).await {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
            return Err(name_taken(&there, pod_name));
        }
        made => {
            let action = || format!("make as {} with its other end {pod_name:?}", kind.as_str());
            made.map_err(|source| here.error(action(), source))?;
        }
    }
    Ok(Ends {
        host: here.facts(&LinkRef::Name(host_name.clone())).await?.link.ifindex,
        pod: there.facts(&LinkRef::Name(pod_name.clone())).await?.link.ifindex,
    })
}

/// A netkit pair is made closed: what no program of its own hooks decides about is dropped at both ends before anything
/// else sees it. tcx comes after that, so that with tcx the policy can only hold until the pair is opened.
fn pair_info(kind: PairKind, far: LinkMessage) -> Vec<LinkInfo> {
    let (kind, data) = match kind {
        PairKind::Veth => (InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(far))),
        PairKind::Netkit => {
            let closed = [
                InfoNetkit::Policy(NetkitPolicy::Drop),
                InfoNetkit::PeerPolicy(NetkitPolicy::Drop),
                InfoNetkit::Mode(NetkitMode::L2),
                InfoNetkit::Peer(far),
            ];
            (InfoKind::Netkit, InfoData::Netkit(closed.into()))
        }
    };
    vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]
}

/// Policies are changed through the host's end only, which is the pair's first (`netkit_change_link`), and by a request
/// for a new link that is there already. It changes them before it sets the link up (`rtnl_changelink`,
/// net/core/rtnetlink.c).
pub(super) async fn open_pair(on: &Subject, host_end: u32, kind: PairKind) -> Result<(), LinkError> {
    let up = LinkFlags::Up.bits();
    let mut message = encode::flags(host_end, up, up);
    let request = match kind {
        PairKind::Veth => RouteNetlinkMessage::SetLink(message),
        PairKind::Netkit => {
            let open = [InfoNetkit::Policy(NetkitPolicy::Pass), InfoNetkit::PeerPolicy(NetkitPolicy::Pass)];
            message.attributes.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Netkit),
                LinkInfo::Data(InfoData::Netkit(open.into())),
            ]));
            RouteNetlinkMessage::NewLink(message)
        }
    };
    on.conversation.change(request, 0).await.map_err(|source| on.error("open the pair", source))
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

pub(super) fn name_taken(on: &Subject, name: &str) -> LinkError {
    LinkError::NameTaken { name: name.to_owned(), namespace: on.namespace.clone() }
}
