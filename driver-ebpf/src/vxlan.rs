//! Tunnels without the kernel's device for them: the headers of a frame that leaves (RFC 7348), and the short way of one that
//! comes in.
//!
//! As in [`crate::established`], what is not plain goes the long way, through that device and [`crate::judge`]: nothing is
//! dropped here.

use netferry_common::endpoint::READY;
use netferry_common::limit::LIMIT_TO_POD;
use netferry_common::{Addr, MemberKey, Tunnel};

use crate::established::{FRAGMENTED, PLAIN_V4, Plain, plain};
use crate::flows::Place;
use crate::packet::{self, ETH_LEN, Ethernet, Ipv4, Packet, ethertype};
use crate::tables::Tables;
use crate::transport::protocol;

/// Bytes of an outer IP header, of a UDP header and of a VXLAN header.
const IP: usize = size_of::<Ipv4>();
const UDP: usize = 8;
const VXLAN: usize = 8;
/// Bytes that a tunnel adds in front of the IP header of a frame.
pub const OUTER: usize = IP + UDP + VXLAN + ETH_LEN;
/// Where the Ethernet header of the frame inside starts.
const INSIDE: usize = ETH_LEN + IP + UDP + VXLAN;
/// Flags of a VXLAN header that has a VNI, big endian.
const HAS_VNI: u32 = 0x0800_0000_u32.to_be();
/// Hops of the outer header.
pub const TTL: u8 = 64;
/// The bits of congestion notification, and their values (RFC 3168).
const ECN: u8 = 3;
const ECN_CAPABLE: u8 = 2;
const CONGESTION: u8 = 3;
/// Source ports are from here on: those that are nobody's (RFC 6335).
const DYNAMIC_PORTS: u16 = 0xc000;
/// Nanoseconds that a frame may wait, at the most, in the queue between the link and the device that tunnels end at.
pub const QUEUED: u64 = 10_000_000;

/// What the headers of a frame that leaves are made of.
pub struct Leaving {
    /// The frame's own Ethernet header, as halves of words.
    pub link: [u16; 7],
    /// The first two bytes of its IP header.
    pub class: [u8; 2],
    /// Its length.
    pub length: u32,
    /// The network's number in tunnels.
    pub vni: u32,
    /// IPv4 address of this node, in memory order.
    pub source: u32,
    /// That of the other.
    pub destination: u32,
    /// UDP port of tunnels.
    pub port: [u8; 2],
    /// The same for all frames of a flow: links and queues between the nodes are chosen by it.
    pub hash: u32,
    /// Any number: a router may cut the datagram in fragments.
    pub number: u16,
}

/// What of these headers comes after the hardware addresses of the outer one.
pub const HEADERS: usize = 2 + OUTER;

impl Leaving {
    /// Writes them from the third byte of the words on: [`HEADERS`] bytes. The UDP checksum is left out, as is usual over
    /// IPv4.
    #[inline(always)]
    pub fn write(&self, words: &mut [u32]) {
        let Some(words) = words.first_chunk_mut::<14>() else { return };
        let udp = self.length + (UDP + VXLAN) as u32;
        let length = (udp + IP as u32) as u16;
        let port = DYNAMIC_PORTS | (self.hash ^ self.hash >> 16) as u16;
        let [mac_a, mac_b, mac_c, mac_d, mac_e, mac_f, inside] = self.link;
        words[0] = two(0, ethertype::IPV4);
        words[1] = two(u16::from_ne_bytes([PLAIN_V4, self.congestion()]), length.to_be());
        words[2] = two(self.number, 0);
        let hops = u16::from_ne_bytes([TTL, protocol::UDP]);
        let sum = halves(words[1]) + u32::from(self.number) + u32::from(hops);
        let sum = folded(sum + halves(self.source) + halves(self.destination));
        words[3] = two(hops, !sum);
        words[4] = self.source;
        words[5] = self.destination;
        words[6] = two(port.to_be(), u16::from_ne_bytes(self.port));
        words[7] = two((udp as u16).to_be(), 0);
        words[8] = HAS_VNI;
        words[9] = (self.vni << 8).to_be();
        words[10] = two(mac_a, mac_b);
        words[11] = two(mac_c, mac_d);
        words[12] = two(mac_e, mac_f);
        words[13] = two(inside, 0);
    }

    /// RFC 6040, compatibility mode for "congestion experienced", as the kernel has it.
    #[inline(always)]
    fn congestion(&self) -> u8 {
        let [_, low] = self.class;
        let inner = if self.link[6] == ethertype::IPV4 { low } else { low >> 4 } & ECN;
        if inner == CONGESTION { ECN_CAPABLE } else { inner }
    }
}

/// Two halves of a word in memory order.
#[inline(always)]
fn two(first: u16, second: u16) -> u32 {
    u32::from_ne_bytes(bytemuck::cast([first, second]))
}

#[inline(always)]
fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

#[inline(always)]
fn folded(sum: u32) -> u16 {
    halves(halves(sum)) as u16
}

/// A frame that came through a tunnel, and goes straight to its receiver.
#[derive(Clone, Copy)]
pub struct Entering {
    /// Whom it is for.
    pub endpoint: u32,
    /// Interface index of the receiver's host end.
    pub ifindex: u32,
    /// Its Ethernet header.
    pub eth: Ethernet,
}

/// Finds the receiver of a frame on the link between the nodes, if it is a segment of a flow that the receiver has allowed, from
/// where its sender is.
#[inline(always)]
pub fn entering<P: Packet, T: Tables>(packet: &P, tables: &T, tunnel: &Tunnel) -> Option<Entering> {
    let (node, vni) = tunnelled(packet, tunnel)?;
    let eth: Ethernet = packet.head(INSIDE)?;
    let frame: Plain = plain(packet, eth.ethertype, INSIDE + ETH_LEN)?;
    let network = tables.way_of_vni(vni).filter(|way| way.device == tunnel.device)?.network;
    let place = Place::of(network, &frame.between());
    let flow = tables.flow(&place.key)?;
    let side = flow.judged(&place, false);
    if side.endpoint == 0 {
        return None;
    }
    let now = tables.now();
    let receiver = tables.slot(side.endpoint)?;
    let fits = flow.goes_on(&place, now)
        && packet.gso_size() == 0
        && receiver.flags & (READY | LIMIT_TO_POD) == READY
        && receiver.network == network
        && receiver.policy == side.policy
        && receiver.ifindex != 0
        && frame.size <= receiver.mtu;
    if !fits {
        // It will wait for the device, where what comes after it must not overtake it.
        tables.queued(side.endpoint, now);
        return None;
    }
    let sender = tables.member(&MemberKey { network, addr: frame.source })?;
    let honest = sender.node == Addr::from_v4_word(node)
        && packet::mac(sender.mac) == eth.src
        && packet::mac(receiver.mac) == eth.dst;
    let goes = honest && tables.redirects_to_peer() && !tables.waits(side.endpoint, now);
    goes.then_some(Entering { endpoint: side.endpoint, ifindex: receiver.ifindex, eth })
}

/// The node that a frame comes from, in memory order, and its VNI, if it is a tunnel's to this node with nothing about it that the
/// kernel should see.
#[inline(always)]
fn tunnelled<P: Packet>(packet: &P, tunnel: &Tunnel) -> Option<(u32, u32)> {
    let eth: Ethernet = packet.head(0)?;
    if eth.ethertype != ethertype::IPV4 {
        return None;
    }
    let ip: Ipv4 = packet.head(ETH_LEN)?;
    if ip.version_ihl != PLAIN_V4
        || ip.protocol != protocol::UDP
        || ip.dst != u32::from_ne_bytes(tunnel.address)
        || ip.fragment & FRAGMENTED != 0
        // It is to be told to the receiver inside.
        || ip.tos & ECN == CONGESTION
    {
        return None;
    }
    let [_, port, _, checksum]: [u16; 4] = packet.head(ETH_LEN + IP)?;
    let [flags, vni]: [u32; 2] = packet.head(ETH_LEN + IP + UDP)?;
    if port != u16::from_ne_bytes(tunnel.port) || checksum != 0 || flags != HAS_VNI {
        return None;
    }
    if packet.vlan_tagged() || !packet.is_to_host() {
        return None;
    }
    Some((ip.src, u32::from_be(vni) >> 8))
}
