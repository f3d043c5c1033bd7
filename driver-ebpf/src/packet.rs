//! A frame, and the headers read from it.

use bytemuck::{AnyBitPattern, Pod, Zeroable};
use netferry_common::{Direction, Reason};

use crate::datagram::Datagram;
use crate::flows::SharedFlow;
use crate::ipv6::{self, Upper};
use crate::judge::{Case, Note, Scratch};
use crate::tables::Tables;
use crate::{admit, answer, arrive, deliver, depart, nd, rate, related};

/// Bytes of an Ethernet header, where the next header starts.
pub const ETH_LEN: usize = 14;

/// Read access to one frame, Ethernet header first.
pub trait Packet: Sized {
    /// Where the frame was met: a constant of [`hook`].
    const HOOK: u32;
    /// Whether that is the host end of a pair, where the frame can be sent elsewhere: back to the pod, or to another.
    const HOST_END: bool = Self::HOOK == hook::PAIR;
    /// Whether it came from beyond the node.
    const OUTSIDE: bool = Self::HOOK == hook::WIRE || Self::HOOK == hook::TUNNEL;
    /// Bytes of the frame, whether in its linear part or not.
    fn len(&self) -> usize;
    /// Whether the kernel keeps an 802.1Q or 802.1ad tag beside the frame (`skb->vlan_present`).
    fn vlan_tagged(&self) -> bool;
    /// Payload of each segment of a GSO frame, 0 for an ordinary frame. The length field of a GSO frame may be 0, where
    /// 16 bits do not hold it (BIG TCP).
    fn gso_size(&self) -> u32;
    /// A header at a constant offset within the first [`HEAD_LEN`] bytes; `None` if the frame is shorter.
    fn head<T: AnyBitPattern>(&self, offset: usize) -> Option<T>;
    /// A header at any offset; `None` if the frame is shorter.
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T>;
    /// [`ipv6::walk`], where the verifier is not led through its loop again and again.
    #[inline(always)]
    fn extensions(&self, next: u8, offset: usize, end: usize) -> Result<Upper, Reason> {
        ipv6::walk(self, next, offset, end)
    }
    /// [`Datagram::read`], likewise.
    #[inline(always)]
    fn datagram(&self, v4: bool, ip: &mut Datagram) -> Result<(), Reason> {
        *ip = Datagram::read(self, v4)?;
        Ok(())
    }
    /// [`nd::check`], likewise.
    #[inline(always)]
    fn link_scope<T: Tables>(&self, case: &Case<'_, Self, T>, ip: &Datagram) -> Result<bool, Reason> {
        nd::check(case, ip.offset as usize, ip.end as usize, ip.fragment)
    }
    /// [`related::check`], likewise.
    #[inline(always)]
    fn related<T: Tables>(&self, case: &Case<'_, Self, T>, ip: &Datagram) -> Result<(), Reason> {
        related::check(case, ip.offset as usize, ip.end as usize, ip.v4)
    }
    /// [`admit::reconsider`], likewise.
    #[inline(always)]
    fn reconsider<T: Tables>(&self, case: &Case<'_, Self, T>, scratch: &mut Scratch) -> Result<(), Reason> {
        admit::reconsider(case, scratch)
    }
    /// [`answer::arp`], likewise.
    #[inline(always)]
    fn answer_arp<T: Tables>(&self, case: &Case<'_, Self, T>, scratch: &mut Scratch) -> Result<(), Reason> {
        answer::arp(case, &mut scratch.target)
    }
    /// [`answer::neighbor`], likewise.
    #[inline(always)]
    fn answer_neighbor<T: Tables>(
        &self,
        case: &Case<'_, Self, T>,
        scratch: &mut Scratch,
    ) -> Result<(), Reason> {
        answer::neighbor(case, scratch.ip.offset as usize, &mut scratch.target)
    }
    /// [`deliver::deliver`], likewise.
    #[inline(always)]
    fn deliver<T: Tables>(
        &self,
        case: &Case<'_, Self, T>,
        known: Option<&SharedFlow>,
        scratch: &mut Scratch,
    ) -> Result<(), Reason> {
        deliver::deliver(case, known, scratch)
    }
    /// [`depart::depart`], likewise.
    #[inline(always)]
    fn depart<T: Tables>(&self, case: &Case<'_, Self, T>, scratch: &mut Scratch) -> Result<(), Reason> {
        depart::depart(case, scratch)
    }
    /// [`arrive::arrive`], likewise.
    #[inline(always)]
    fn arrive<T: Tables>(&self, case: &Case<'_, Self, T>, scratch: &mut Scratch) -> Result<(), Reason> {
        arrive::arrive(case, Self::HOOK, scratch)
    }
    /// [`rate::charge`], likewise, for an endpoint that has limits.
    #[inline(always)]
    fn charge<T: Tables>(
        &self,
        tables: &T,
        endpoint: u32,
        direction: Direction,
        flags: u32,
        note: &Note,
    ) -> Result<(), Reason> {
        let limited = rate::is_limited(flags, direction);
        if limited && !rate::charge(tables, endpoint, direction.number(), note.frames, note.bytes) {
            return Err(Reason::RateLimit);
        }
        Ok(())
    }
    /// Makes of the frame the ICMP error its sender is owed for this reason, if it is owed one. `false`: it is to be
    /// dropped.
    #[inline(always)]
    fn refuse(&self, _: u32, _: Direction, _: Reason, _: &mut Scratch) -> bool {
        false
    }
    /// Replaces the whole frame. `false`: it is as it was, or cut.
    fn replace<T: Pod>(&self, frame: &T) -> bool;
    /// Replaces the destination hardware address.
    fn set_destination(&self, mac: [u8; 6]) -> bool;
    /// Replaces the Ethernet header.
    fn set_link(&self, header: &Ethernet) -> bool;
    /// Replaces bytes of the datagram, from an even offset on.
    fn store<T: Pod>(&self, offset: usize, bytes: &T) -> bool;
    /// Puts a VLAN id on the frame; 0 for none.
    fn tag(&self, vlan: u32) -> bool;
    /// Whether the device that received it took it for the host.
    fn is_to_host(&self) -> bool;
    /// Whether there is nothing in it, not even a header.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a frame can be met.
pub mod hook {
    /// A moved link.
    pub const LINK: u32 = 0;
    /// The host end of a pair whose other end is the pod's.
    pub const PAIR: u32 = 1;
    /// An uplink, from the wire.
    pub const WIRE: u32 = 2;
    /// The device that tunnels end at.
    pub const TUNNEL: u32 = 3;
}

/// What [`Packet::head`] may reach: Ethernet, IPv6 and TCP without options.
pub const HEAD_LEN: usize = ETH_LEN + 40 + 20;
/// Likewise of a frame with IPv4 without options; where there are some, what follows is read by [`Packet::load`].
pub const HEAD_LEN_V4: usize = ETH_LEN + 20 + 20;

/// A hardware address as read from a frame; halves of it are aligned to 2 in every header.
pub type Mac = [u16; 3];

/// A hardware address as [`Mac`].
#[inline(always)]
#[must_use]
pub fn mac(bytes: [u8; 6]) -> Mac {
    bytemuck::cast(bytes)
}

/// Whether a hardware address is a group address: multicast or broadcast.
#[inline(always)]
#[must_use]
pub fn is_group(mac: Mac) -> bool {
    mac[0] & 0x0100_u16.to_be() != 0
}

/// Ethernet II header.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// Big endian.
    pub ethertype: u16,
}

/// Big-endian ethertypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800_u16.to_be();
    /// IPv6.
    pub const IPV6: u16 = 0x86dd_u16.to_be();
    /// ARP.
    pub const ARP: u16 = 0x0806_u16.to_be();
    /// 802.1Q customer tag.
    pub const VLAN: u16 = 0x8100_u16.to_be();
    /// 802.1ad service tag.
    pub const QINQ: u16 = 0x88a8_u16.to_be();
}

/// IPv4 header without options (RFC 791). Integers are big endian.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ipv4 {
    /// Version (4 bits) and header length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Header and payload, in bytes.
    pub total_len: u16,
    /// Identification of the datagram among its fragments.
    pub id: u16,
    /// Flags (3 bits) and fragment offset in units of 8 bytes.
    pub fragment: u16,
    /// Hops left.
    pub ttl: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: u16,
    /// Source, in memory order.
    pub src: u32,
    /// Destination, in memory order.
    pub dst: u32,
}

/// IPv6 header (RFC 8200). Integers are big endian.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ipv6 {
    /// Version (4 bits) and the high half of the traffic class.
    pub version_class: u8,
    /// Low half of the traffic class, and flow label.
    pub flow: [u8; 3],
    /// Bytes after this header.
    pub payload_len: u16,
    /// What follows this header.
    pub next: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source, in memory order.
    pub src: [u32; 4],
    /// Destination, in memory order.
    pub dst: [u32; 4],
}

/// ARP for IPv4 over Ethernet (RFC 826). Integers are big endian.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Arp {
    /// 1 for Ethernet.
    pub hardware: u16,
    /// 0x0800 for IPv4.
    pub protocol: u16,
    /// 6 and 4.
    pub lengths: [u8; 2],
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Hardware address of the sender.
    pub sender_mac: Mac,
    /// IPv4 address of the sender, in memory order.
    pub sender_ip: [u16; 2],
    /// Hardware address of the target.
    pub target_mac: Mac,
    /// IPv4 address of the target, in memory order.
    pub target_ip: [u16; 2],
}
