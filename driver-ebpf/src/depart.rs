//! The way of a datagram beyond the node: over the network's uplink, routed or as on one Ethernet, or through a tunnel.

use netferry_common::counters::path;
use netferry_common::uplink::{BRIDGED, OVERLAY, ROUTED};
use netferry_common::{Addr, Member, MemberKey, Reason, Uplink, member};

use crate::datagram::{Datagram, Part};
use crate::deliver::Target;
use crate::forward::take_hop;
use crate::judge::{Case, Note, Scratch};
use crate::packet::{ETH_LEN, Ethernet, Ipv4, Ipv6, Packet};
use crate::tables::Tables;
use crate::transport::protocol;

/// Finds the way of a datagram that the sender's side let through, and that is for no endpoint of this node.
#[inline(always)]
pub fn depart<P: Packet, T: Tables>(case: &Case<'_, P, T>, scratch: &mut Scratch) -> Result<(), Reason> {
    let Scratch { note, ip, target, outer, .. } = scratch;
    *target = Target::HOST;
    let network = case.endpoint.network;
    let member = case.tables.member(&MemberKey { network, addr: ip.destination });
    let Some(uplink) = case.tables.uplink(network) else {
        // A rule lets it out of the network.
        return if member.is_none() { Ok(()) } else { Err(Reason::NoRoute) };
    };
    target.ifindex = uplink.ifindex;
    outer.vni = uplink.tag;
    if let Some(member) = &member {
        outer.node = member.node;
    }
    if let Some(Member { endpoint: member::GATEWAY, .. }) = member {
        // Back to the pod, whose own program judges the answer.
        target.ifindex = case.endpoint.ifindex;
        return echo(case, ip);
    }
    match (uplink.flags, member) {
        (ROUTED, _) => {
            if is_link_local(ip.source) || is_link_local(ip.destination) {
                return Err(Reason::NoRoute);
            }
            target.path = path::ROUTED;
            fits(note, uplink)?;
            take_hop(case.packet, ip)
        }
        (BRIDGED, member) => {
            target.path = path::UPLINK;
            fits(note, uplink)?;
            let known = member.is_none_or(|member| case.packet.set_destination(member.mac));
            if known && case.packet.tag(uplink.tag) { Ok(()) } else { Err(Reason::NoRoute) }
        }
        (OVERLAY, Some(member)) => {
            target.path = path::OVERLAY;
            if member.node == Addr::UNSPECIFIED {
                return Err(Reason::NoRoute);
            }
            fits(note, uplink)?;
            if case.packet.set_destination(member.mac) { Ok(()) } else { Err(Reason::NoRoute) }
        }
        (OVERLAY, None) => {
            *target = Target::HOST;
            Ok(())
        }
        _ => Err(Reason::NoRoute),
    }
}

#[inline(always)]
fn fits(note: &mut Note, uplink: &Uplink) -> Result<(), Reason> {
    if note.size > uplink.mtu {
        note.mtu = uplink.mtu;
        return Err(Reason::MtuExceeded);
    }
    Ok(())
}

/// Whether an address is of fe80::/10, beyond which a router lets nothing (RFC 4291).
#[inline(always)]
pub fn is_link_local(addr: Addr) -> bool {
    let [first, ..]: [u32; 4] = bytemuck::cast(addr);
    first & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
}

/// Makes an echo request to the gateway its own answer. The gateway hears nothing else.
#[inline(always)]
fn echo<P: Packet, T: Tables>(case: &Case<'_, P, T>, ip: &Datagram) -> Result<(), Reason> {
    let [kind, code, ..]: [u8; 4] = bytemuck::cast(ip.transport[0]);
    let [_, checksum]: [u16; 2] = bytemuck::cast(ip.transport[0]);
    // RFC 1624: the type is the high half of its word, and the checksum changes by as much as that.
    let (reply, more) = match (ip.v4, ip.protocol, kind) {
        (true, protocol::ICMP, 8) => (0_u8, 0x0800_u32),
        (false, protocol::ICMPV6, 128) => (129, 0xfeff),
        _ => return Err(Reason::NoRoute),
    };
    if ip.part != Part::Whole || ip.options {
        return Err(Reason::NoRoute);
    }
    let sum = u32::from(u16::from_be(checksum)) + more;
    let [high, low] = ((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes();
    let back = Ethernet { dst: case.eth.src, src: case.eth.dst, ethertype: case.eth.ethertype };
    let swapped = if ip.v4 {
        let header: Ipv4 = case.packet.head(ETH_LEN).ok_or(Reason::MalformedIpv4)?;
        case.packet.store(ETH_LEN + 12, &[header.dst, header.src])
    } else {
        let header: Ipv6 = case.packet.head(ETH_LEN).ok_or(Reason::MalformedIpv6)?;
        case.packet.store(ETH_LEN + 8, &[header.dst, header.src])
    };
    let answered = swapped
        && case.packet.store(ip.offset as usize, &[reply, code, high, low])
        && case.packet.set_link(&back);
    if answered { Ok(()) } else { Err(Reason::NoRoute) }
}
