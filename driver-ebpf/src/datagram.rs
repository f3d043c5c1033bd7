//! An IP datagram, IPv4 or IPv6, as the later checks see it.

use netferry_common::endpoint::{ADDR_BROADCAST, ADDR_OWN};
use netferry_common::{Addr, Reason};

use crate::judge::Case;
use crate::packet::{ETH_LEN, Packet};
use crate::tables::Tables;
use crate::{ipv4, ipv6};

/// How much of a datagram a frame carries.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Its first fragment, with the transport header.
    First,
    /// A later fragment, without.
    Later,
}

/// What the IP header says. Without padding: it is handed to functions the verifier looks at by themselves, and must be
/// known in all its bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Source.
    pub source: Addr,
    /// Destination.
    pub destination: Addr,
    /// Identification of the datagram among its fragments, in memory order.
    pub id: u32,
    /// The first 8 bytes of the transport header; zero in a later fragment, and where there are fewer.
    pub transport: [u32; 2],
    /// Where the transport header starts in the frame.
    pub offset: u32,
    /// Where the datagram ends in the frame.
    pub end: u32,
    /// IP protocol number of the transport header.
    pub protocol: u8,
    /// How much of the datagram this is.
    pub part: Part,
    /// Whether it is IPv4.
    pub v4: bool,
    /// Whether the destination is a multicast or broadcast address.
    pub group: bool,
    /// Whether there are IPv4 options or IPv6 extension headers other than the fragment header.
    pub options: bool,
    /// Whether there is an IPv6 fragment header, be it around the whole datagram.
    pub fragment: bool,
    /// Nothing.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Datagram>() == 60);

impl Datagram {
    /// Nothing read yet.
    pub const UNREAD: Self = Self {
        source: Addr::UNSPECIFIED,
        destination: Addr::UNSPECIFIED,
        id: 0,
        transport: [0; 2],
        offset: 0,
        end: 0,
        protocol: 0,
        part: Part::Whole,
        v4: false,
        group: false,
        options: false,
        fragment: false,
        pad: [0; 2],
    };

    /// Reads the IP header of a frame.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, v4: bool) -> Result<Self, Reason> {
        if v4 { ipv4::parse(packet) } else { ipv6::parse(packet) }
    }
}

/// Checks that the addresses fit the endpoint.
///
/// From the pod, the source must be its own: also for DHCP, as addresses come from the claim (where an IPv6 host may
/// have none yet is decided in [`crate::nd`]). To the pod, the source must not be its own, and the destination must
/// be: its own address, the broadcast address of its IPv4 subnet, 255.255.255.255 or any group (which groups it
/// hears is decided by its own stack and by policy).
#[inline(never)]
pub fn check_addresses<P: Packet, T: Tables>(case: &Case<'_, P, T>, ip: &Datagram) -> Result<(), Reason> {
    let own_source = case.flags(ip.source) & ADDR_OWN != 0;
    if case.from_pod() {
        return match (own_source, ip.v4) {
            (true, _) => Ok(()),
            (false, true) => Err(Reason::SourceIpv4),
            (false, false) => Err(Reason::SourceIpv6),
        };
    }
    if own_source {
        return Err(Reason::OwnAddress);
    }
    let accepted = ip.group || case.flags(ip.destination) & (ADDR_OWN | ADDR_BROADCAST) != 0;
    if accepted { Ok(()) } else { Err(Reason::DestinationAddress) }
}

/// Frames and bytes on the wire, and the size of the largest datagram in them: a GSO frame is cut into segments, each
/// with the headers of the whole.
#[inline(always)]
pub fn wire<P: Packet>(packet: &P, ip: &Datagram) -> (u64, u64, u32) {
    let length = packet.len() as u64;
    let segment = u64::from(packet.gso_size());
    if segment == 0 {
        return (1, length, ip.end - ETH_LEN as u32);
    }
    let transport = match ip.protocol {
        crate::transport::protocol::TCP => {
            packet.load::<[u8; 1]>(ip.offset as usize + 12).map_or(20, |[word]| usize::from(word >> 4) * 4)
        }
        _ => 8,
    };
    let headers = (ip.offset as usize + transport) as u64;
    let payload = length.saturating_sub(headers);
    let frames = payload.div_ceil(segment).max(1);
    let largest = if frames == 1 { length } else { headers + segment };
    (frames, length + (frames - 1) * headers, largest as u32 - ETH_LEN as u32)
}
