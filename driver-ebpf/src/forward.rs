//! What a router does to a datagram: one hop less.

use netferry_common::Reason;

use crate::datagram::Datagram;
use crate::packet::{ETH_LEN, Ipv4, Ipv6, Packet};

/// Takes one hop off a datagram. [`Reason::HopLimit`] if it was its last.
#[inline(always)]
pub fn take_hop<P: Packet>(packet: &P, ip: &Datagram) -> Result<(), Reason> {
    let stored = if ip.v4 {
        let header: Ipv4 = packet.head(ETH_LEN).ok_or(Reason::MalformedIpv4)?;
        if header.ttl <= 1 {
            return Err(Reason::HopLimit);
        }
        // RFC 1141: the TTL is the high half of its word.
        let sum = u32::from(u16::from_be(header.checksum)) + 0x100;
        let [high, low] = ((sum + (sum >> 16)) as u16).to_be_bytes();
        packet.store(ETH_LEN + 8, &[header.ttl - 1, header.protocol, high, low])
    } else {
        let header: Ipv6 = packet.head(ETH_LEN).ok_or(Reason::MalformedIpv6)?;
        if header.hop_limit <= 1 {
            return Err(Reason::HopLimit);
        }
        let [low, high] = header.payload_len.to_ne_bytes();
        packet.store(ETH_LEN + 4, &[low, high, header.next, header.hop_limit - 1])
    };
    if stored { Ok(()) } else { Err(Reason::NoRoute) }
}
