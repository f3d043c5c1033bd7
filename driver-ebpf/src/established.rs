//! The short way of what most frames are: a segment of a flow that all of its endpoints on this node have allowed.
//!
//! Whatever is not plain goes the long way, [`crate::judge`], which decides the same about every frame that passes here:
//! nothing is dropped here, opened or written down but the counts.

use netferry_common::endpoint::READY;
use netferry_common::limit::{LIMIT_FROM_POD, LIMIT_TO_POD};
use netferry_common::{Addr, MemberKey, Slot};

use crate::flows::{Between, Place};
use crate::judge::Scratch;
use crate::packet::{self, ETH_LEN, Ethernet, Ipv4, Ipv6, Packet, ethertype};
use crate::tables::Tables;
use crate::transport::protocol;

/// Bytes of an IPv4 header without options, with its version.
pub(crate) const PLAIN_V4: u8 = 0x45;
/// Fragment offset, and the bit for more fragments.
pub(crate) const FRAGMENTED: u16 = 0x3fff_u16.to_be();
/// TCP flags: FIN, SYN, RST and ACK. Without the first three, a segment is one in the middle of a connection.
const FLAGS: u8 = 0x17;
const ACK: u8 = 0x10;

/// Where such a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// Straight into the namespace of the receiver, whose host end has this interface index.
    Peer(u32),
    /// Into the tunnel that the scratch has in `outer`, with the bytes of the datagram in `note.size` and the device in
    /// `target`. It is not counted.
    Tunnel,
}

/// What the headers say.
pub(crate) struct Plain {
    pub(crate) source: Addr,
    pub(crate) destination: Addr,
    ports: [u16; 2],
    protocol: u8,
    /// Bytes of the datagram.
    pub(crate) size: u32,
}

impl Plain {
    #[inline(always)]
    pub(crate) fn between(&self) -> Between<'_> {
        Between {
            protocol: self.protocol,
            source: &self.source,
            source_port: self.ports[0],
            destination: &self.destination,
            destination_port: self.ports[1],
        }
    }
}

/// Where a frame goes; `None`: ask [`crate::judge`].
///
/// Addresses and membership are those of the flow: who it was opened by, and with whom, was checked then, and an endpoint
/// that loses an address gets a new policy version ([`netferry_common::Endpoint::policy`]).
#[inline(always)]
pub fn established<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    id: u32,
    scratch: &mut Scratch,
) -> Option<Onward> {
    let sender = tables.slot(id)?;
    if sender.flags & (READY | LIMIT_FROM_POD) != READY || sender.network == 0 || sender.ifindex == 0 {
        return None;
    }
    let eth: Ethernet = packet.head(0)?;
    if eth.src != packet::mac(sender.mac) || packet.vlan_tagged() || packet.gso_size() != 0 {
        return None;
    }
    let frame = plain(packet, eth.ethertype, ETH_LEN)?;
    let place = Place::of(sender.network, &frame.between());
    let flow = tables.flow(&place.key)?;
    if !flow.goes_on(&place, tables.now()) || !flow.allowed(&place, true, id, sender.policy) {
        return None;
    }
    let side = flow.judged(&place, false);
    if side.endpoint == 0 {
        return through_tunnel(packet, tables, sender, &eth, &frame, scratch);
    }
    // The sender itself gets nothing of its own, and so has no such flow.
    if side.endpoint == id {
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
    Some(Onward::Peer(receiver.ifindex))
}

/// A frame to a member on another node. Where that is may change as long as a flow goes on, and is looked up.
#[inline(always)]
fn through_tunnel<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    sender: &Slot,
    eth: &Ethernet,
    frame: &Plain,
    scratch: &mut Scratch,
) -> Option<Onward> {
    let way = tables.way(sender.network)?;
    let member = tables.member(&MemberKey { network: sender.network, addr: frame.destination })?;
    let leads = member.endpoint == 0 && member.node != Addr::UNSPECIFIED;
    if !leads || frame.size > way.mtu {
        return None;
    }
    if eth.dst != packet::mac(member.mac) && !packet.set_destination(member.mac) {
        return None;
    }
    scratch.target.ifindex = way.device;
    scratch.outer.vni = way.vni;
    scratch.outer.node = member.node;
    scratch.note.size = frame.size;
    Some(Onward::Tunnel)
}

/// The headers from the IP header on, which is at this offset, if there is nothing about them that others should look at.
#[inline(always)]
pub(crate) fn plain<P: Packet>(packet: &P, ethertype: u16, offset: usize) -> Option<Plain> {
    match ethertype {
        ethertype::IPV4 => plain_v4(packet, offset),
        ethertype::IPV6 => plain_v6(packet, offset),
        _ => None,
    }
}

#[inline(always)]
fn plain_v4<P: Packet>(packet: &P, offset: usize) -> Option<Plain> {
    let ip: Ipv4 = packet.head(offset)?;
    let size = usize::from(u16::from_be(ip.total_len));
    if ip.version_ihl != PLAIN_V4 || ip.fragment & FRAGMENTED != 0 || offset + size > packet.len() {
        return None;
    }
    let ports = plain_transport(
        packet,
        offset + size_of::<Ipv4>(),
        ip.protocol,
        size.checked_sub(size_of::<Ipv4>())?,
    )?;
    Some(Plain {
        source: Addr::from_v4_word(ip.src),
        destination: Addr::from_v4_word(ip.dst),
        ports,
        protocol: ip.protocol,
        size: size as u32,
    })
}

#[inline(always)]
fn plain_v6<P: Packet>(packet: &P, offset: usize) -> Option<Plain> {
    let next = offset + size_of::<Ipv6>();
    let ip: Ipv6 = packet.head(offset)?;
    let room = usize::from(u16::from_be(ip.payload_len));
    // With nothing in their first word are addresses that no flow is of, and those that stand for IPv4 in its key.
    if ip.version_class >> 4 != 6 || ip.src[0] == 0 || ip.dst[0] == 0 || next + room > packet.len() {
        return None;
    }
    Some(Plain {
        source: Addr::from_words(ip.src),
        destination: Addr::from_words(ip.dst),
        ports: plain_transport(packet, next, ip.next, room)?,
        protocol: ip.next,
        size: (size_of::<Ipv6>() + room) as u32,
    })
}

/// The ports of a datagram, or of a segment that neither opens a connection nor ends it.
#[inline(always)]
fn plain_transport<P: Packet>(packet: &P, offset: usize, protocol: u8, room: usize) -> Option<[u16; 2]> {
    let ports = packet.head(offset)?;
    match protocol {
        protocol::TCP => {
            let [words, flags]: [u8; 2] = packet.head(offset + 12)?;
            let header = usize::from(words >> 4) * 4;
            (flags & FLAGS == ACK && header >= 20 && header <= room).then_some(ports)
        }
        protocol::UDP if room >= 8 => Some(ports),
        _ => None,
    }
}
