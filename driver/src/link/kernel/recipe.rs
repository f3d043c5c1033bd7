//! How a made link was made, read from the kernel's messages and written into them.

use std::path::Path;

use netlink_packet_core::{Emitable as _, NlasIterator, Parseable as _};
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoMacVtap, InfoVlan, IpVlanFlags, LinkInfo, MacVlanFlags,
    VlanFlags, VlanProtocol, VlanQosMapping,
};

use super::{decode::LinkFacts, home, subject::Subject};
use crate::link::{
    IpvlanData, KindData, LinkError, LinkRef, MacAddr, MacvlanData, Parent, Recipe, VethData, VlanData,
};

/// EtherType of 802.1Q, which the kernel takes where none is named (`vlan_newlink`, net/8021q/vlan_netlink.c).
const ETH_P_8021Q: u16 = 0x8100;
/// The flags that every kernel of ours knows: a mask with another one is refused (`vlan_dev_change_flags`,
/// net/8021q/vlan_dev.c).
const VLAN_FLAGS: u32 = 0x1f;
/// Replace the list of sources (`MACVLAN_MACADDR_SET`, linux/if_link.h).
const MACVLAN_MACADDR_SET: u32 = 3;

/// The recipe of a link; `None` for hardware, for kinds that are not made anew, and where the parent or peer is in
/// another namespace.
pub(super) async fn of(
    on: &Subject,
    host: Option<&Path>,
    facts: &LinkFacts,
) -> Result<Option<Recipe>, LinkError> {
    if facts.lower_elsewhere {
        return Ok(None);
    }
    let lower = match facts.lower {
        Some(index) => match on.facts(&LinkRef::Index(index)).await {
            Err(LinkError::NotFound { .. }) => None,
            lower => Some(lower?),
        },
        None => None,
    };
    Ok(match (facts.data.clone(), lower) {
        (Some(KindData::Dummy), _) => Some(Recipe { data: KindData::Dummy, parent: None }),
        (Some(data), Some(lower)) => {
            Parent::of(&lower.link).map(|parent| Recipe { data, parent: Some(parent) })
        }
        (None, Some(peer)) if facts.link.kind.as_deref() == Some("veth") => {
            let data = KindData::Veth(veth(on, host, peer).await?);
            Some(Recipe { data, parent: None })
        }
        _ => None,
    })
}

async fn veth(on: &Subject, host: Option<&Path>, peer: LinkFacts) -> Result<VethData, LinkError> {
    let peer_controller = match peer.controller {
        Some(index) => Some(on.facts(&LinkRef::Index(index)).await?.link.name),
        None => None,
    };
    // What of it could not be put back is left out: it stays where it is, and may never die.
    let (peer, _) = home::gather(on, host, peer).await?;
    Ok(VethData { peer: Box::new(peer), peer_controller })
}

/// What a message says about the kinds whose data it has; of a veth it has none (`veth_link_ops`, drivers/net/veth.c).
pub(super) fn decode(infos: &[LinkInfo]) -> Option<KindData> {
    let data =
        || infos.iter().find_map(|info| if let LinkInfo::Data(data) = info { Some(data) } else { None });
    let kind = infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
    match (kind?, data()) {
        (InfoKind::Dummy, _) => Some(KindData::Dummy),
        (InfoKind::Vlan, Some(InfoData::Vlan(data))) => vlan(data).map(KindData::Vlan),
        (InfoKind::MacVlan, Some(InfoData::MacVlan(data))) => macvlan(data).map(KindData::Macvlan),
        (InfoKind::MacVtap, Some(InfoData::MacVtap(data))) => {
            macvlan(&as_macvlan(data)).map(KindData::Macvtap)
        }
        (InfoKind::IpVlan, Some(InfoData::IpVlan(data))) => ipvlan(data).map(KindData::Ipvlan),
        _ => None,
    }
}

/// The same attributes as the decoder's other type.
fn as_macvlan(data: &[InfoMacVtap]) -> Vec<InfoMacVlan> {
    let mut bytes = vec![0; data.buffer_len()];
    data.emit(&mut bytes);
    NlasIterator::new(bytes.as_slice()).filter_map(|it| InfoMacVlan::parse(&it.ok()?).ok()).collect()
}

fn vlan(data: &[InfoVlan]) -> Option<VlanData> {
    let (mut vlan, mut id) = (
        VlanData { id: 0, protocol: ETH_P_8021Q, flags: 0, egress_qos: Vec::new(), ingress_qos: Vec::new() },
        None,
    );
    for attribute in data {
        match attribute {
            InfoVlan::Id(value) => id = Some(*value),
            InfoVlan::Protocol(value) => vlan.protocol = u16::from(*value),
            InfoVlan::Flags((flags, _)) => vlan.flags = flags.bits(),
            InfoVlan::EgressQos(mappings) => vlan.egress_qos = pairs(mappings),
            InfoVlan::IngressQos(mappings) => vlan.ingress_qos = pairs(mappings),
            _ => {}
        }
    }
    Some(VlanData { id: id?, ..vlan })
}

fn pairs(mappings: &[VlanQosMapping]) -> Vec<(u32, u32)> {
    let pair = |mapping: &VlanQosMapping| match mapping {
        VlanQosMapping::Mapping(from, to) => Some((*from, *to)),
        _ => None,
    };
    mappings.iter().filter_map(pair).collect()
}

fn macvlan(data: &[InfoMacVlan]) -> Option<MacvlanData> {
    let (mut mode, mut flags, mut sources) = (None, 0, Vec::new());
    let (mut bc_queue_len, mut bc_cutoff) = (None, None);
    let source =
        |it: &InfoMacVlan| if let InfoMacVlan::MacAddr(mac) = it { Some(MacAddr(*mac)) } else { None };
    for attribute in data {
        match attribute {
            InfoMacVlan::Mode(value) => mode = Some(u32::from(*value)),
            InfoMacVlan::Flags(value) => flags = value.bits(),
            InfoMacVlan::MacAddrData(list) => sources = list.iter().filter_map(source).collect(),
            InfoMacVlan::BcQueueLen(length) => bc_queue_len = Some(*length),
            InfoMacVlan::BcCutoff(receivers) => bc_cutoff = Some(*receivers),
            _ => {}
        }
    }
    Some(MacvlanData { mode: mode?, flags, sources, bc_queue_len, bc_cutoff })
}

fn ipvlan(data: &[InfoIpVlan]) -> Option<IpvlanData> {
    let (mut mode, mut flags) = (None, 0);
    for attribute in data {
        match attribute {
            InfoIpVlan::Mode(value) => mode = Some(u16::from(*value)),
            InfoIpVlan::Flags(value) => flags = value.bits(),
            _ => {}
        }
    }
    Some(IpvlanData { mode: mode?, flags })
}

/// Kind and data for a request; of a veth's data, which is its other end, nothing.
pub(super) fn encode(data: &KindData) -> Vec<LinkInfo> {
    let (kind, data) = match data {
        KindData::Dummy => (InfoKind::Dummy, None),
        KindData::Veth(_) => (InfoKind::Veth, None),
        KindData::Vlan(vlan) => (InfoKind::Vlan, Some(InfoData::Vlan(vlan_attributes(vlan)))),
        KindData::Macvlan(data) => (InfoKind::MacVlan, Some(InfoData::MacVlan(macvlan_attributes(data)))),
        // The numbers of its attributes are those of a macvlan (`macvtap_newlink`, drivers/net/macvtap.c).
        KindData::Macvtap(data) => (InfoKind::MacVtap, Some(InfoData::MacVlan(macvlan_attributes(data)))),
        KindData::Ipvlan(IpvlanData { mode, flags }) => {
            let flags = InfoIpVlan::Flags(IpVlanFlags::from_bits_retain(*flags));
            (InfoKind::IpVlan, Some(InfoData::IpVlan(vec![InfoIpVlan::Mode((*mode).into()), flags])))
        }
    };
    [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data)).collect()
}

fn vlan_attributes(vlan: &VlanData) -> Vec<InfoVlan> {
    let mask = VlanFlags::from_bits_retain(VLAN_FLAGS | vlan.flags);
    let mappings =
        |pairs: &[(u32, u32)]| pairs.iter().map(|(from, to)| VlanQosMapping::Mapping(*from, *to)).collect();
    let mut attributes = vec![
        InfoVlan::Id(vlan.id),
        InfoVlan::Protocol(VlanProtocol::from(vlan.protocol)),
        InfoVlan::Flags((VlanFlags::from_bits_retain(vlan.flags), mask)),
    ];
    if !vlan.egress_qos.is_empty() {
        attributes.push(InfoVlan::EgressQos(mappings(&vlan.egress_qos)));
    }
    if !vlan.ingress_qos.is_empty() {
        attributes.push(InfoVlan::IngressQos(mappings(&vlan.ingress_qos)));
    }
    attributes
}

fn macvlan_attributes(macvlan: &MacvlanData) -> Vec<InfoMacVlan> {
    let mut attributes = vec![
        InfoMacVlan::Mode(macvlan.mode.into()),
        InfoMacVlan::Flags(MacVlanFlags::from_bits_retain(macvlan.flags)),
    ];
    if !macvlan.sources.is_empty() {
        let list = macvlan.sources.iter().map(|MacAddr(mac)| InfoMacVlan::MacAddr(*mac)).collect();
        attributes
            .extend([InfoMacVlan::MacAddrMode(MACVLAN_MACADDR_SET.into()), InfoMacVlan::MacAddrData(list)]);
    }
    attributes.extend(macvlan.bc_queue_len.map(InfoMacVlan::BcQueueLen));
    attributes.extend(macvlan.bc_cutoff.map(InfoMacVlan::BcCutoff));
    attributes
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;
    use crate::link::kernel::{decode, encode as messages};

    fn read_back(data: &KindData, more: Vec<LinkAttribute>) -> LinkFacts {
        let mut attributes = vec![LinkAttribute::LinkInfo(encode(data))];
        attributes.extend(more);
        let message = messages::link(7, attributes);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        decode::link(&LinkMessage::parse(&bytes[..]).expect("a message"))
    }

    #[test]
    fn what_a_kind_needs_comes_back() {
        let plain = MacvlanData { mode: 4, flags: 0, sources: vec![], bc_queue_len: None, bc_cutoff: None };
        let source = MacvlanData {
            mode: 16,
            flags: 3,
            sources: vec![MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])],
            bc_queue_len: Some(2000),
            bc_cutoff: Some(-1),
        };
        let tagged = VlanData { id: 5, protocol: 0x8100, flags: 1, egress_qos: vec![], ingress_qos: vec![] };
        let provider = VlanData {
            id: 4094,
            protocol: 0x88a8,
            flags: 0x14,
            egress_qos: vec![(1, 2), (3, 4)],
            ingress_qos: vec![(6, 7)],
        };
        for data in [
            KindData::Dummy,
            KindData::Vlan(tagged),
            KindData::Vlan(provider),
            KindData::Macvlan(plain.clone()),
            KindData::Macvlan(source.clone()),
            KindData::Macvtap(plain),
            KindData::Macvtap(source),
            KindData::Ipvlan(IpvlanData { mode: 2, flags: 1 }),
            // Numbers that a later kernel may have.
            KindData::Ipvlan(IpvlanData { mode: 7, flags: 0x8000 }),
        ] {
            let facts = read_back(&data, vec![LinkAttribute::Link(4)]);
            assert_eq!(facts.link.kind.as_deref(), Some(data.kind()));
            assert_eq!((facts.lower, facts.lower_elsewhere), (Some(4), false));
            assert_eq!(facts.data, Some(data));
        }
    }

    #[test]
    fn a_parent_elsewhere_is_seen_and_other_kinds_have_no_data() {
        let facts = read_back(&KindData::Dummy, vec![LinkAttribute::Link(4), LinkAttribute::LinkNetNsId(0)]);
        assert!(facts.lower_elsewhere);
        assert_eq!(decode(&[LinkInfo::Kind(InfoKind::Bridge)]), None);
        assert_eq!(decode(&[LinkInfo::Kind(InfoKind::Vlan)]), None, "a VLAN without an id");
        assert_eq!(decode(&[]), None);
    }
}
