//! The short way of what most frames are: a segment of a flow that both of its endpoints, on this node, have allowed.
//!
//! Whatever is not plain goes the long way, [`crate::judge`], which decides the same about every frame that passes here:
//! nothing is dropped here, opened or written down but the counts.

use netferry_common::Addr;
use netferry_common::endpoint::READY;
use netferry_common::limit::{LIMIT_FROM_POD, LIMIT_TO_POD};

use crate::flows::{Between, Place};
use crate::packet::{self, ETH_LEN, Ethernet, Ipv4, Ipv6, Packet, ethertype};
use crate::tables::Tables;
use crate::transport::protocol;

/// Bytes of an IPv4 header without options, with its version.
const PLAIN_V4: u8 = 0x45;
/// Fragment offset, and the bit for more fragments.
const FRAGMENTED: u16 = 0x3fff_u16.to_be();
/// TCP flags: FIN, SYN, RST and ACK. Without the first three, a segment is one in the middle of a connection.
const FLAGS: u8 = 0x17;
const ACK: u8 = 0x10;

/// What the headers say.
struct Plain {
    source: Addr,
    destination: Addr,
    ports: [u16; 2],
    protocol: u8,
    /// Bytes of the datagram.
    size: u32,
}

/// The interface index of the receiver's host end, to send the frame straight into its namespace; `None`: ask
/// [`crate::judge`].
///
/// Addresses and membership are those of the flow: who it was opened by, and with whom, was checked then, and an endpoint
/// that loses an address gets a new policy version ([`netferry_common::Endpoint::policy`]).
#[inline(always)]
pub fn established<P: Packet, T: Tables>(packet: &P, tables: &T, id: u32) -> Option<u32> {
    let sender = tables.slot(id)?;
    if sender.flags & (READY | LIMIT_FROM_POD) != READY || sender.network == 0 || sender.ifindex == 0 {
        return None;
    }
    let eth: Ethernet = packet.head(0)?;
    if eth.src != packet::mac(sender.mac) || packet.vlan_tagged() || packet.gso_size() != 0 {
        return None;
    }
    let frame = match eth.ethertype {
        ethertype::IPV4 => plain_v4(packet)?,
        ethertype::IPV6 => plain_v6(packet)?,
        _ => return None,
    };
    let between = Between {
        protocol: frame.protocol,
        source: &frame.source,
        source_port: frame.ports[0],
        destination: &frame.destination,
        destination_port: frame.ports[1],
    };
    let place = Place::of(sender.network, &between);
    let flow = tables.flow(&place.key)?;
    if !flow.goes_on(&place, tables.now()) || !flow.allowed(&place, true, id, sender.policy) {
        return None;
    }
    let side = flow.judged(&place, false);
    // The sender itself gets nothing of its own, and so has no such flow.
    if side.endpoint == 0 || side.endpoint == id {
        return None;
    }
    let receiver = tables.slot(side.endpoint)?;
    let fits = receiver.flags & (READY | LIMIT_TO_POD) == READY
        && receiver.network == sender.network
        && receiver.policy == side.policy
        && receiver.ifindex != 0
        && frame.size <= receiver.mtu;
    if !fits || !tables.redirects_to_peer() {
        return None;
    }
    let bytes = packet.len() as u64;
    if eth.dst != packet::mac(receiver.mac) && !packet.set_destination(receiver.mac) {
        return None;
    }
    tables.went_fast(id, side.endpoint, bytes);
    Some(receiver.ifindex)
}

#[inline(always)]
fn plain_v4<P: Packet>(packet: &P) -> Option<Plain> {
    const NEXT: usize = ETH_LEN + size_of::<Ipv4>();
    let ip: Ipv4 = packet.head(ETH_LEN)?;
    let size = usize::from(u16::from_be(ip.total_len));
    if ip.version_ihl != PLAIN_V4 || ip.fragment & FRAGMENTED != 0 || ETH_LEN + size > packet.len() {
        return None;
    }
    let ports = plain_transport::<P, NEXT>(packet, ip.protocol, size.checked_sub(size_of::<Ipv4>())?)?;
    Some(Plain {
        source: Addr::from_v4_word(ip.src),
        destination: Addr::from_v4_word(ip.dst),
        ports,
        protocol: ip.protocol,
        size: size as u32,
    })
}

#[inline(always)]
fn plain_v6<P: Packet>(packet: &P) -> Option<Plain> {
    const NEXT: usize = ETH_LEN + size_of::<Ipv6>();
    let ip: Ipv6 = packet.head(ETH_LEN)?;
    let room = usize::from(u16::from_be(ip.payload_len));
    // With nothing in their first word are addresses that no flow is of, and those that stand for IPv4 in its key.
    if ip.version_class >> 4 != 6 || ip.src[0] == 0 || ip.dst[0] == 0 || NEXT + room > packet.len() {
        return None;
    }
    Some(Plain {
        source: Addr::from_words(ip.src),
        destination: Addr::from_words(ip.dst),
        ports: plain_transport::<P, NEXT>(packet, ip.next, room)?,
        protocol: ip.next,
        size: (size_of::<Ipv6>() + room) as u32,
    })
}

/// The ports of a datagram, or of a segment that neither opens a connection nor ends it.
#[inline(always)]
fn plain_transport<P: Packet, const OFFSET: usize>(
    packet: &P,
    protocol: u8,
    room: usize,
) -> Option<[u16; 2]> {
    let ports = packet.head(OFFSET)?;
    match protocol {
        protocol::TCP => {
            let [words, flags]: [u8; 2] = packet.head(OFFSET + 12)?;
            let header = usize::from(words >> 4) * 4;
            (flags & FLAGS == ACK && header >= 20 && header <= room).then_some(ports)
        }
        protocol::UDP if room >= 8 => Some(ports),
        _ => None,
    }
}
