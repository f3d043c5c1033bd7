//! IPv6: the header and its extensions must agree with the frame, and the addresses with the endpoint.

use netferry_common::{Addr, Reason};

use crate::judge::Case;
use crate::nd;
use crate::packet::{ETH_LEN, Ipv6, Packet};
use crate::tables::Tables;

/// Extension headers looked at; a frame with more is dropped. RFC 8504 lets a host set such a limit.
const MAX_EXTENSIONS: usize = 6;

/// IP protocol numbers of extension headers (RFC 8200, RFC 4302).
mod header {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
}

/// ICMPv6 as IP protocol.
const ICMPV6: u8 = 58;

/// The header after the IPv6 header and its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Its IP protocol number.
    pub protocol: u8,
    /// Where it starts in the frame.
    pub offset: usize,
    /// Whether the frame is a fragment.
    pub fragment: bool,
    /// Whether it is a fragment other than the first, so that there is no header at `offset`.
    pub later_fragment: bool,
}

/// Checks an IPv6 frame.
///
/// From the pod, the source must be its own or, where a host has no address yet (neighbour solicitation for
/// its own address, multicast listener report), unspecified. To the pod, the source must not be its own, and
/// the destination must be its own address or any group.
#[inline(always)]
pub fn check<P: Packet, T: Tables>(case: &Case<'_, P, T>) -> Result<(), Reason> {
    let ip: Ipv6 = case.packet.head(ETH_LEN).ok_or(Reason::MalformedIpv6)?;
    if ip.version_class >> 4 != 6 {
        return Err(Reason::MalformedIpv6);
    }
    let start = ETH_LEN + size_of::<Ipv6>();
    let payload = usize::from(u16::from_be(ip.payload_len));
    let end = if payload == 0 && case.packet.is_gso() { case.packet.len() } else { start + payload };
    if end > case.packet.len() {
        return Err(Reason::MalformedIpv6);
    }
    let source = Addr::from_words(ip.src);
    let destination = Addr::from_words(ip.dst);
    // A mapped address on the wire would be taken for an IPv4 address in every map.
    if source.is_multicast() || source.as_v4().is_some() || destination.as_v4().is_some() {
        return Err(Reason::MalformedIpv6);
    }
    let unspecified = ip.src == [0; 4];
    if case.from_pod() {
        if !unspecified && !case.owns(source) {
            return Err(Reason::SourceIpv6);
        }
    } else {
        if case.owns(source) {
            return Err(Reason::OwnAddress);
        }
        if !destination.is_multicast() && !case.owns(destination) {
            return Err(Reason::DestinationAddress);
        }
    }
    let upper = walk(case.packet, ip.next, start)?;
    if upper.protocol == ICMPV6 && !upper.later_fragment {
        return nd::check(case, &ip, upper, end);
    }
    if case.from_pod() && unspecified { Err(Reason::SourceIpv6) } else { Ok(()) }
}

/// Walks the extension headers from `offset` on, where a header of type `next` starts.
#[inline(always)]
fn walk<P: Packet>(packet: &P, mut next: u8, mut offset: usize) -> Result<Upper, Reason> {
    let mut fragment = false;
    for _ in 0..=MAX_EXTENSIONS {
        let length = match next {
            header::HOP_BY_HOP
            | header::ROUTING
            | header::FRAGMENT
            | header::AUTHENTICATION
            | header::DESTINATION
            | header::MOBILITY => packet.load::<[u8; 8]>(offset).ok_or(Reason::MalformedIpv6)?,
            protocol => return Ok(Upper { protocol, offset, fragment, later_fragment: false }),
        };
        let this = next;
        next = length[0];
        offset += match this {
            header::FRAGMENT => {
                fragment = true;
                if u16::from_be_bytes([length[2], length[3]]) & 0xfff8 != 0 {
                    return Ok(Upper { protocol: next, offset: offset + 8, fragment, later_fragment: true });
                }
                8
            }
            header::AUTHENTICATION => (usize::from(length[1]) + 2) * 4,
            // Segments left to visit: the address in the IPv6 header is not where it goes in the end.
            header::ROUTING if length[3] != 0 => return Err(Reason::ExtensionHeader),
            _ => (usize::from(length[1]) + 1) * 8,
        };
    }
    Err(Reason::ExtensionHeader)
}
