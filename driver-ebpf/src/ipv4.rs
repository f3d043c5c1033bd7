//! IPv4: the header must agree with the frame, and the addresses with the endpoint.

use netferry_common::endpoint::{ADDR_BROADCAST, ADDR_OWN};
use netferry_common::{Addr, Reason};

use crate::judge::Case;
use crate::packet::{ETH_LEN, Ipv4, Packet};
use crate::tables::Tables;

const MIN_LEN: usize = size_of::<Ipv4>();

/// Checks an IPv4 frame.
///
/// From the pod, the source must be its own: also for DHCP, as addresses come from the claim. To the pod, the
/// source must not be its own, and the destination must be: its own address, the broadcast address of its
/// subnet, 255.255.255.255 or any group (which groups it hears is decided by its own stack and by policy).
#[inline(always)]
pub fn check<P: Packet, T: Tables>(case: &Case<'_, P, T>) -> Result<(), Reason> {
    let ip: Ipv4 = case.packet.head(ETH_LEN).ok_or(Reason::MalformedIpv4)?;
    let header_len = usize::from(ip.version_ihl & 0x0f) * 4;
    if ip.version_ihl >> 4 != 4 || header_len < MIN_LEN {
        return Err(Reason::MalformedIpv4);
    }
    let room = case.packet.len() - ETH_LEN;
    let total_len = usize::from(u16::from_be(ip.total_len));
    // A frame may be longer than its datagram (Ethernet pads to 60 bytes), never shorter.
    let fits = header_len <= total_len && total_len <= room;
    let big_tcp = total_len == 0 && case.packet.is_gso() && header_len <= room;
    if !fits && !big_tcp {
        return Err(Reason::MalformedIpv4);
    }
    let source = Addr::from_v4_word(ip.src);
    if case.from_pod() {
        return if case.owns(source) { Ok(()) } else { Err(Reason::SourceIpv4) };
    }
    if is_group(ip.src) || ip.src == u32::MAX {
        return Err(Reason::MalformedIpv4);
    }
    if case.owns(source) {
        return Err(Reason::OwnAddress);
    }
    let accepted = is_group(ip.dst)
        || ip.dst == u32::MAX
        || case.flags(Addr::from_v4_word(ip.dst)) & (ADDR_OWN | ADDR_BROADCAST) != 0;
    if accepted { Ok(()) } else { Err(Reason::DestinationAddress) }
}

/// Whether an address in memory order is in 224.0.0.0/4.
#[inline(always)]
fn is_group(word: u32) -> bool {
    word & 0xf000_0000_u32.to_be() == 0xe000_0000_u32.to_be()
}
