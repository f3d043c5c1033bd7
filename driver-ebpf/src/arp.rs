//! ARP (RFC 826, RFC 5227): nobody speaks for another.

use netferry_common::endpoint::SHARED_MAC;
use netferry_common::{Addr, MemberKey, Reason};

use crate::answer;
use crate::judge::Case;
use crate::packet::{Arp, ETH_LEN, Packet, ethertype, mac};
use crate::tables::Tables;

/// [`Arp::operation`].
pub const REQUEST: u16 = 1_u16.to_be();
/// [`Arp::operation`].
pub const REPLY: u16 = 2_u16.to_be();

/// Whether it is a request or reply for IPv4 over Ethernet.
#[inline(always)]
pub fn is_sound(arp: &Arp) -> bool {
    arp.hardware == 1_u16.to_be()
        && arp.protocol == ethertype::IPV4
        && arp.lengths == [6, 4]
        && (arp.operation == REQUEST || arp.operation == REPLY)
}

/// Checks an ARP frame.
///
/// From the pod, the sender must be the endpoint: its MAC and one of its addresses, or none in a probe for one
/// of its own addresses. To the pod, the sender must be somebody else.
#[inline(never)]
pub fn check<P: Packet, T: Tables>(case: &Case<'_, P, T>) -> Result<(), Reason> {
    let arp: Arp = case.packet.head(ETH_LEN).ok_or(Reason::MalformedArp)?;
    if !is_sound(&arp) {
        return Err(Reason::MalformedArp);
    }
    let sender_is_own = case.owns(address(arp.sender_ip));
    if !case.from_pod() {
        return match (arp.sender_mac == case.mac, sender_is_own) {
            (true, _) if case.endpoint.flags & SHARED_MAC == 0 => Err(Reason::OwnMac),
            (_, true) => Err(Reason::OwnAddress),
            (_, false) => Ok(()),
        };
    }
    if arp.sender_mac != case.mac {
        return Err(Reason::ArpSender);
    }
    let probe = arp.sender_ip == [0; 2] && arp.operation == REQUEST;
    if sender_is_own || (probe && case.owns(address(arp.target_ip))) {
        Ok(())
    } else {
        Err(Reason::ArpSender)
    }
}

/// On an isolated network, the sender must be a member under its own hardware address, or, where the network goes on over
/// an uplink, no member at all.
#[inline(always)]
pub fn check_member<P: Packet, T: Tables>(case: &Case<'_, P, T>) -> Result<(), Reason> {
    let arp: Arp = case.packet.head(ETH_LEN).ok_or(Reason::MalformedArp)?;
    let key = MemberKey { network: case.endpoint.network, addr: address(arp.sender_ip) };
    match case.tables.member(&key) {
        Some(member) if mac(member.mac) == arp.sender_mac => Ok(()),
        None if answer::wire(case).is_some() => Ok(()),
        _ => Err(Reason::NotMember),
    }
}

/// An address in an ARP frame.
#[inline(always)]
pub fn address(halves: [u16; 2]) -> Addr {
    Addr::from_v4_word(bytemuck::cast(halves))
}
