//! ARP and neighbour discovery on an isolated network: answered from membership, in place, and never flooded.

use bytemuck::{Pod, Zeroable};
use netferry_common::{Addr, MemberKey, Reason};

use crate::judge::Case;
use crate::opaque;
use crate::packet::{Arp, ETH_LEN, Ethernet, Ipv6, Mac, Packet, ethertype, mac};
use crate::tables::Tables;

const REQUEST: u16 = 1_u16.to_be();
const REPLY: u16 = 2_u16.to_be();
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

/// Makes a request of the pod, which was checked already, the answer of the member it asks for.
#[inline(always)]
pub fn arp<P: Packet, T: Tables>(case: &Case<'_, P, T>) -> Result<(), Reason> {
    let arp: Arp = case.packet.head(ETH_LEN).ok_or(Reason::MalformedArp)?;
    let target = Addr::from_v4_word(bytemuck::cast(arp.target_ip));
    if arp.operation != REQUEST || case.owns(target) {
        return Err(Reason::NoReceiver);
    }
    let member = case.tables.member(&MemberKey { network: case.endpoint.network, addr: target });
    let theirs = mac(member.ok_or(Reason::NotMember)?.mac);
    let answer = ArpFrame {
        eth: Ethernet { dst: case.mac, src: theirs, ethertype: ethertype::ARP },
        arp: Arp {
            operation: REPLY,
            sender_mac: theirs,
            sender_ip: arp.target_ip,
            target_mac: case.mac,
            target_ip: arp.sender_ip,
            ..arp
        },
    };
    if case.packet.replace(&answer) { Ok(()) } else { Err(Reason::NoReceiver) }
}

/// Likewise for a message of the link over IPv6 that starts at `offset`.
#[inline(always)]
pub fn neighbor<P: Packet, T: Tables>(case: &Case<'_, P, T>, offset: usize) -> Result<(), Reason> {
    let ip: Ipv6 = case.packet.head(ETH_LEN).ok_or(Reason::MalformedIpv6)?;
    let kind: [u8; 1] = case.packet.load(offset).ok_or(Reason::MalformedIpv6)?;
    if kind != [NEIGHBOR_SOLICITATION] || ip.src == [0; 4] {
        return Err(Reason::NoReceiver);
    }
    let target: [u32; 4] = case.packet.load(offset + 8).ok_or(Reason::MalformedNd)?;
    let addr = Addr::from_words(target);
    if case.owns(addr) {
        return Err(Reason::NoReceiver);
    }
    let member = case.tables.member(&MemberKey { network: case.endpoint.network, addr });
    let theirs = mac(member.ok_or(Reason::NotMember)?.mac);
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
    let (src, dst): ([u16; 8], [u16; 8]) = (bytemuck::cast(target), bytemuck::cast(ip.src));
    let length = size_of::<Advertisement>() as u32;
    let halves: [u16; 16] = bytemuck::cast(message);
    let sum = (length.to_be() >> 16) + (u32::from(ICMPV6).to_be() >> 16);
    message.checksum = folded(sum + total(&src) + total(&dst) + total(&halves));
    let answer = AdvertisementFrame {
        eth: Ethernet { dst: case.mac, src: theirs, ethertype: ethertype::IPV6 },
        version_class: 0x60,
        flow: [opaque::zero() as u8, opaque::zero() as u8, opaque::zero() as u8],
        payload_len: (length as u16).to_be(),
        next: ICMPV6,
        hop_limit: 255,
        src,
        dst,
        message,
    };
    if case.packet.replace(&answer) { Ok(()) } else { Err(Reason::NoReceiver) }
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
