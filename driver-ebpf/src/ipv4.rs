//! IPv4: the header must agree with the frame.

use netferry_common::{Addr, Reason};

use crate::datagram::{Datagram, Part};
use crate::packet::{ETH_LEN, Ipv4, Packet};

const MIN_LEN: usize = size_of::<Ipv4>();
const MORE_FRAGMENTS: u16 = 0x2000_u16.to_be();
const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();

/// Reads an IPv4 header that agrees with its frame.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Result<Datagram, Reason> {
    let ip: Ipv4 = packet.head(ETH_LEN).ok_or(Reason::MalformedIpv4)?;
    let header_len = usize::from(ip.version_ihl & 0x0f) * 4;
    if ip.version_ihl >> 4 != 4 || header_len < MIN_LEN {
        return Err(Reason::MalformedIpv4);
    }
    let room = packet.len() - ETH_LEN;
    let total_len = usize::from(u16::from_be(ip.total_len));
    // A frame may be longer than its datagram (Ethernet pads to 60 bytes), never shorter.
    let fits = header_len <= total_len && total_len <= room;
    let big_tcp = total_len == 0 && packet.gso_size() != 0 && header_len <= room;
    if !fits && !big_tcp {
        return Err(Reason::MalformedIpv4);
    }
    if is_group(ip.src) || ip.src == u32::MAX {
        return Err(Reason::MalformedIpv4);
    }
    let part = if ip.fragment & FRAGMENT_OFFSET != 0 {
        Part::Later
    } else if ip.fragment & MORE_FRAGMENTS != 0 {
        Part::First
    } else {
        Part::Whole
    };
    let offset = ETH_LEN + header_len;
    let transport = if header_len == MIN_LEN { packet.head(ETH_LEN + MIN_LEN) } else { packet.load(offset) };
    Ok(Datagram {
        v4: true,
        source: Addr::from_v4_word(ip.src),
        destination: Addr::from_v4_word(ip.dst),
        protocol: ip.protocol,
        group: is_group(ip.dst) || ip.dst == u32::MAX,
        options: header_len != MIN_LEN,
        part,
        id: u32::from(ip.id),
        offset: offset as u32,
        end: if big_tcp { packet.len() as u32 } else { (ETH_LEN + total_len) as u32 },
        transport: transport.unwrap_or_default(),
        fragment: false,
        pad: crate::opaque::zeros(),
    })
}

/// Whether an address in memory order is in 224.0.0.0/4.
#[inline(always)]
fn is_group(word: u32) -> bool {
    word & 0xf000_0000_u32.to_be() == 0xe000_0000_u32.to_be()
}
