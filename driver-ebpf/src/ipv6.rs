//! IPv6: the header and its extensions must agree with the frame.

use netferry_common::{Addr, Reason};

use crate::datagram::{Datagram, Part};
use crate::packet::{ETH_LEN, Ipv6, Packet};

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

/// The header after the IPv6 header and its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Its IP protocol number.
    pub protocol: u8,
    /// Where it starts in the frame.
    pub offset: usize,
    /// How much of the datagram is here.
    pub part: Part,
    /// Whether there is a fragment header at all, be it with the whole datagram behind it.
    pub fragment: bool,
    /// Identification in the fragment header, in memory order.
    pub id: u32,
}

impl Upper {
    const ERROR: u64 = 1 << 63;

    /// As one number: what a function of a BPF program can return.
    #[inline(always)]
    pub fn pack(result: Result<Self, Reason>) -> u64 {
        match result {
            Err(reason) => Self::ERROR | u64::from(reason.number()),
            Ok(upper) => {
                u64::from(upper.id)
                    | u64::from(upper.offset as u16) << 32
                    | u64::from(upper.protocol) << 48
                    | (upper.part as u64) << 56
                    | u64::from(upper.fragment) << 58
            }
        }
    }

    /// The reverse of [`Self::pack`].
    #[inline(always)]
    pub fn unpack(packed: u64) -> Result<Self, Reason> {
        if packed & Self::ERROR != 0 {
            let many = packed as u32 == Reason::ExtensionHeader.number();
            return Err(if many { Reason::ExtensionHeader } else { Reason::MalformedIpv6 });
        }
        Ok(Self {
            protocol: (packed >> 48) as u8,
            offset: usize::from((packed >> 32) as u16),
            part: match packed >> 56 & 3 {
                0 => Part::Whole,
                1 => Part::First,
                _ => Part::Later,
            },
            fragment: packed >> 58 & 1 != 0,
            id: packed as u32,
        })
    }
}

/// Whether a header of this type is looked past.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        header::HOP_BY_HOP
            | header::ROUTING
            | header::FRAGMENT
            | header::AUTHENTICATION
            | header::DESTINATION
            | header::MOBILITY
    )
}

/// Reads an IPv6 header that agrees with its frame.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Result<Datagram, Reason> {
    let ip: Ipv6 = packet.head(ETH_LEN).ok_or(Reason::MalformedIpv6)?;
    if ip.version_class >> 4 != 6 {
        return Err(Reason::MalformedIpv6);
    }
    let start = ETH_LEN + size_of::<Ipv6>();
    let payload = usize::from(u16::from_be(ip.payload_len));
    let end = if payload == 0 && packet.gso_size() != 0 { packet.len() } else { start + payload };
    if end > packet.len() {
        return Err(Reason::MalformedIpv6);
    }
    let source = Addr::from_words(ip.src);
    let destination = Addr::from_words(ip.dst);
    // A mapped address on the wire would be taken for an IPv4 address in every map.
    if is_multicast(ip.src) || is_mapped(ip.src) || is_mapped(ip.dst) {
        return Err(Reason::MalformedIpv6);
    }
    let plain = Upper { protocol: ip.next, offset: start, part: Part::Whole, fragment: false, id: 0 };
    let upper = if is_extension(ip.next) { packet.extensions(ip.next, start, end)? } else { plain };
    let transport = if upper.offset == start { packet.head(start) } else { packet.load(upper.offset) };
    Ok(Datagram {
        v4: false,
        source,
        destination,
        protocol: upper.protocol,
        group: is_multicast(ip.dst),
        options: upper.offset != start && !(upper.fragment && upper.offset == start + 8),
        part: upper.part,
        id: upper.id,
        offset: upper.offset as u32,
        end: end as u32,
        transport: transport.unwrap_or_default(),
        fragment: upper.fragment,
        pad: crate::opaque::zeros(),
    })
}

/// Walks the extension headers from `offset` on, where a header of type `next` starts, of a datagram that ends at `end`.
#[inline(always)]
pub fn walk<P: Packet>(packet: &P, mut next: u8, mut offset: usize, end: usize) -> Result<Upper, Reason> {
    let mut upper = Upper { protocol: next, offset, part: Part::Whole, fragment: false, id: 0 };
    for seen in 0..=MAX_EXTENSIONS {
        if !is_extension(next) {
            upper.protocol = next;
            upper.offset = offset;
            return Ok(upper);
        }
        if seen == MAX_EXTENSIONS {
            break;
        }
        let length: [u8; 8] = packet.load(offset).ok_or(Reason::MalformedIpv6)?;
        // What is behind the datagram only pads the frame.
        if offset + 8 > end {
            return Err(Reason::MalformedIpv6);
        }
        let this = next;
        next = length[0];
        offset += match this {
            header::FRAGMENT => {
                let position = u16::from_be_bytes([length[2], length[3]]);
                upper.fragment = true;
                upper.id = u32::from_ne_bytes([length[4], length[5], length[6], length[7]]);
                if position & 0xfff8 != 0 {
                    upper.part = Part::Later;
                    upper.protocol = next;
                    upper.offset = offset + 8;
                    return Ok(upper);
                }
                if position & 1 != 0 {
                    upper.part = Part::First;
                }
                8
            }
            // At least three words (RFC 4302).
            header::AUTHENTICATION if length[1] == 0 => return Err(Reason::MalformedIpv6),
            header::AUTHENTICATION => (usize::from(length[1]) + 2) * 4,
            // Segments left to visit: the address in the IPv6 header is not where it goes in the end.
            header::ROUTING if length[3] != 0 => return Err(Reason::ExtensionHeader),
            _ => (usize::from(length[1]) + 1) * 8,
        };
        if offset > end {
            return Err(Reason::MalformedIpv6);
        }
    }
    Err(Reason::ExtensionHeader)
}

#[inline(always)]
pub(crate) fn is_multicast(words: [u32; 4]) -> bool {
    words[0] & 0xff00_0000_u32.to_be() == 0xff00_0000_u32.to_be()
}

/// Whether it is how the maps write an IPv4 address.
#[inline(always)]
pub(crate) fn is_mapped(words: [u32; 4]) -> bool {
    words[0] == 0 && words[1] == 0 && words[2] == 0xffff_u32.to_be()
}
