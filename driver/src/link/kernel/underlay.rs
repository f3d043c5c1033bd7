//! [`Underlay`] on rtnetlink.

use std::io;

use async_trait::async_trait;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{KernelLinks, encode, ipsec, subject::Subject};
use crate::link::{
    LinkError, LinkRef, Namespace,
    underlay::{Tunnel, Underlay},
};

#[async_trait]
impl Underlay for KernelLinks {
    async fn make_tunnel(&self, tunnel: &Tunnel) -> Result<u32, LinkError> {
        let Tunnel { name, port, mac, mtu } = tunnel;
        let on = self.on(&Namespace::Host, name).await?;
        let data = vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Learning(false), InfoVxlan::Port(*port)];
        let attributes = vec![
            LinkAttribute::IfName(name.clone()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(*mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(data)),
            ]),
        ];
        let request = RouteNetlinkMessage::NewLink(encode::link(0, attributes));
        let by_name = LinkRef::Name(name.clone());
        match on.conversation.change(request, NLM_F_CREATE | NLM_F_EXCL).await {
            // Another device that takes the port for all VNIs is the same error.
            Err(source)
                if source.kind() == io::ErrorKind::AlreadyExists && on.facts(&by_name).await.is_ok() =>
            {
                return Err(LinkError::NameTaken { name: name.clone(), namespace: on.namespace });
            }
            made => made
                .map_err(|source| on.error(format!("make the tunnel device for UDP port {port}"), source))?,
        }
        Ok(on.facts(&by_name).await?.link.ifindex)
    }

    async fn tunnel(&self, ifindex: u32) -> Result<Option<Tunnel>, LinkError> {
        let on = self.on(&Namespace::Host, ifindex).await?;
        Ok(tunnel(&message(&on, ifindex).await?))
    }

    async fn ipsec_policies(&self) -> Result<u32, LinkError> {
        self.within(&Namespace::Host, ipsec::policies).await?.map_err(|source| LinkError::Kernel {
            action: "count the IPsec policies".to_owned(),
            link: "of the host".to_owned(),
            namespace: Namespace::Host,
            source,
        })
    }

    async fn is_promiscuous(&self, ifindex: u32) -> Result<bool, LinkError> {
        let on = self.on(&Namespace::Host, ifindex).await?;
        Ok(message(&on, ifindex).await?.header.flags.contains(LinkFlags::Promisc))
    }

    async fn set_promiscuous(&self, ifindex: u32, on: bool) -> Result<(), LinkError> {
        let link = self.on(&Namespace::Host, ifindex).await?;
        let bit = LinkFlags::Promisc.bits();
        let message = encode::flags(ifindex, if on { bit } else { 0 }, bit);
        let done = link.conversation.change(RouteNetlinkMessage::SetLink(message), 0).await;
        done.map_err(|source| {
            link.error(format!("set promiscuous mode {}", if on { "on" } else { "off" }), source)
        })
    }
}

async fn message(on: &Subject, ifindex: u32) -> Result<LinkMessage, LinkError> {
    let asked = RouteNetlinkMessage::GetLink(encode::link(ifindex, Vec::new()));
    let found = on.conversation.get(asked).await.map_err(|source| on.error("read the link", source))?;
    found
        .into_iter()
        .find_map(|object| match object {
            RouteNetlinkMessage::NewLink(message) => Some(message),
            _ => None,
        })
        .ok_or_else(|| LinkError::NotFound { link: on.link.clone(), namespace: on.namespace.clone() })
}

fn tunnel(message: &LinkMessage) -> Option<Tunnel> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    if !data.contains(&InfoVxlan::CollectMetadata(true)) || data.contains(&InfoVxlan::Learning(true)) {
        return None;
    }
    let port = data.iter().find_map(|info| match info {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    })?;
    let link = super::decode::link(message).link;
    Some(Tunnel { name: link.name, port, mac: link.mac?, mtu: link.mtu })
}
