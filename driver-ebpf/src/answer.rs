//! ARP and neighbour discovery on an isolated network: answered from membership, in place, and never flooded. Only where
//! the network goes on over an uplink as one Ethernet is what no member of the node answers asked out there.

use bytemuck::{Pod, Zeroable};
use netferry_common::counters::path;
use netferry_common::uplink::BRIDGED;
use netferry_common::{Addr, Member, MemberKey, Reason, Uplink};

use crate::arp::{REPLY, REQUEST, address};
use crate::deliver::Target;
use crate::judge::Case;
use crate::opaque;
use crate::packet::{Arp, ETH_LEN, Ethernet, Ipv6, Mac, Packet, ethertype, mac};
use crate::tables::Tables;

const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;

/// An ARP frame, whole.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ArpFrame {
    eth: Ethernet,
    arp: Arp,
}

/// A neighbour advertisement after its IPv6 header, with the link-layer address option. In halves: nothing in a frame is
/// aligned to more.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Advertisement {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: [u16; 2],
    target: [u16; 8],
    option: [u8; 2],
    mac: Mac,
}

/// A neighbour advertisement, whole.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AdvertisementFrame {
    eth: Ethernet,
    version_class: u8,
    flow: [u8; 3],
    payload_len: u16,
    next: u8,
    hop_limit: u8,
    src: [u16; 8],
    dst: [u16; 8],
    message: Advertisement,
}

const _: () = assert!(size_of::<AdvertisementFrame>() == 86);

/// The uplink over which the network of an endpoint goes on as one Ethernet.
#[inline(always)]
pub fn wire<'a, P: Packet, T: Tables>(case: &Case<'a, P, T>) -> Option<&'a Uplink> {
    case.tables.uplink(case.endpoint.network).filter(|uplink| uplink.flags == BRIDGED)
}

/// Sends a message of the pod, which was checked already, out on the wire of its network.
#[inline(always)]
fn ask_outside<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    target: &mut Target,
    otherwise: Reason,
) -> Result<(), Reason> {
    let uplink = wire(case).ok_or(otherwise)?;
    *target = Target { ifindex: uplink.ifindex, path: path::UPLINK };
    if case.packet.tag(uplink.tag) { Ok(()) } else { Err(Reason::NoRoute) }
}

/// Whom to answer for: a member of this node or its gateway, and one of another node where nobody else can.
#[inline(always)]
fn answerable<P: Packet, T: Tables>(case: &Case<'_, P, T>, addr: Addr) -> Option<Member> {
    let member = case.tables.member(&MemberKey { network: case.endpoint.network, addr })?;
    (member.endpoint != 0 || wire(case).is_none()).then_some(member)
}

/// Makes a request of the pod, which was checked already, the answer of the member it asks for, or sends it to the wire:
/// then there is a target.
#[inline(always)]
pub fn arp<P: Packet, T: Tables>(case: &Case<'_, P, T>, target: &mut Target) -> Result<(), Reason> {
    let arp: Arp = case.packet.head(ETH_LEN).ok_or(Reason::MalformedArp)?;
    let asked = address(arp.target_ip);
    if arp.operation != REQUEST || case.owns(asked) {
        return ask_outside(case, target, Reason::NoReceiver);
    }
    match answerable(case, asked) {
        Some(member) => reply(case.packet, &arp, mac(member.mac)),
        None => ask_outside(case, target, Reason::NotMember),
    }
}

/// Makes of a request for somebody's hardware address the answer.
#[inline(always)]
pub fn reply<P: Packet>(packet: &P, asked: &Arp, theirs: Mac) -> Result<(), Reason> {
    let answer = ArpFrame {
        eth: Ethernet { dst: asked.sender_mac, src: theirs, ethertype: ethertype::ARP },
        arp: Arp {
            operation: REPLY,
            sender_mac: theirs,
            sender_ip: asked.target_ip,
            target_mac: asked.sender_mac,
            target_ip: asked.sender_ip,
            ..*asked
        },
    };
    if packet.replace(&answer) { Ok(()) } else { Err(Reason::NoReceiver) }
}

/// As [`arp`], for a message of the link over IPv6 that starts at `offset`.
#[inline(always)]
pub fn neighbor<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    offset: usize,
    target: &mut Target,
) -> Result<(), Reason> {
    let ip: Ipv6 = case.packet.head(ETH_LEN).ok_or(Reason::MalformedIpv6)?;
    let [kind]: [u8; 1] = case.packet.load(offset).ok_or(Reason::MalformedIpv6)?;
    if kind == ROUTER_SOLICITATION {
        // No router of this node speaks, and what one of the wire said to all would not get in.
        return Err(Reason::NoReceiver);
    }
    if kind != NEIGHBOR_SOLICITATION || ip.src == [0; 4] {
        return ask_outside(case, target, Reason::NoReceiver);
    }
    let words: [u32; 4] = case.packet.load(offset + 8).ok_or(Reason::MalformedNd)?;
    let asked = Addr::from_words(words);
    if case.owns(asked) {
        return ask_outside(case, target, Reason::NoReceiver);
    }
    match answerable(case, asked) {
        Some(member) => advertise(case.packet, case.mac, mac(member.mac), words, ip.src),
        None => ask_outside(case, target, Reason::NotMember),
    }
}

/// Makes of a solicitation of `asker` the advertisement of who has the target.
#[inline(always)]
pub fn advertise<P: Packet>(
    packet: &P,
    asker: Mac,
    theirs: Mac,
    target: [u32; 4],
    asked_from: [u32; 4],
) -> Result<(), Reason> {
    let mut message = Advertisement {
        kind: NEIGHBOR_ADVERTISEMENT,
        code: 0,
        checksum: 0,
        // Solicited, and to override what was known.
        flags: [0x6000_u16.to_be(), 0],
        target: bytemuck::cast(target),
        option: [2, 1],
        mac: theirs,
    };
    let (src, dst): ([u16; 8], [u16; 8]) = (bytemuck::cast(target), bytemuck::cast(asked_from));
    let length = size_of::<Advertisement>() as u32;
    let halves: [u16; 16] = bytemuck::cast(message);
    let sum = (length.to_be() >> 16) + (u32::from(ICMPV6).to_be() >> 16);
    message.checksum = folded(sum + total(&src) + total(&dst) + total(&halves));
    let answer = AdvertisementFrame {
        eth: Ethernet { dst: asker, src: theirs, ethertype: ethertype::IPV6 },
        version_class: 0x60,
        flow: [opaque::zero() as u8, opaque::zero() as u8, opaque::zero() as u8],
        payload_len: (length as u16).to_be(),
        next: ICMPV6,
        hop_limit: 255,
        src,
        dst,
        message,
    };
    if packet.replace(&answer) { Ok(()) } else { Err(Reason::NoReceiver) }
}

/// Sum of halves, in memory order: the Internet checksum (RFC 1071) does not care.
#[inline(always)]
fn total<const N: usize>(halves: &[u16; N]) -> u32 {
    let mut sum = 0;
    for half in halves {
        sum += u32::from(*half);
    }
    sum
}

#[inline(always)]
fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
