//! Makes of a datagram that goes no further the ICMP error its sender is owed, in place.

use core::ptr;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use bytemuck::{Pod, Zeroable};
use netferry_common::{Addr, CounterKey, Direction, Reason};

use crate::datagram::Datagram;
use crate::judge::Scratch;
use crate::maps::Maps;
use crate::opaque::{hide, zero};
use crate::owed::{Message, is_nobody, owed};
use crate::packet::{ETH_LEN, Ethernet, Ipv4, Ipv6, Packet, is_group};
use crate::skb::Inner;
use crate::tables::Tables;
use crate::transport::protocol;

/// Bytes quoted of a datagram: at most what the kernel sums up at once, with the 8 bytes of the ICMP header.
const MOST_QUOTED: u32 = 504;
/// An IPv4 header and 8 bytes.
const LEAST_QUOTED: u32 = 28;
const HOPS: u8 = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header4 {
    eth: Ethernet,
    ip: [u16; 10],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header6 {
    eth: Ethernet,
    ip: [u16; 20],
}

const _: () = assert!(size_of::<Header4>() == ETH_LEN + size_of::<Ipv4>());
const _: () = assert!(size_of::<Header6>() == ETH_LEN + size_of::<Ipv6>());

/// Turns the frame into an error about it, back to where it came from, if its sender is owed one and was not told too
/// often. `source` is who says so.
#[inline(always)]
pub(crate) fn refuse(
    skb: *mut __sk_buff,
    way: (u32, Direction),
    reason: Reason,
    source: Addr,
    scratch: &mut Scratch,
) -> bool {
    let Scratch { ip, note, message: buffer, .. } = scratch;
    let packet = Inner::again(skb);
    if is_nobody(source, ip.v4) {
        return false;
    }
    let Some(message) = owed(&packet, ip, reason, note.mtu) else { return false };
    let Some(eth) = packet.head::<Ethernet>(0) else { return false };
    let key = CounterKey { endpoint: way.0, direction: way.1.number() };
    if is_group(eth.dst) || !Maps.may_refuse(key, Maps.now()) {
        return false;
    }
    let Some(quoted) = quote(skb, ip, &message, buffer) else { return false };
    let back = Ethernet { dst: eth.src, src: eth.dst, ethertype: eth.ethertype };
    let length = 8 + quoted;
    if ip.v4 {
        finish4(skb, ip, back, source, length, buffer)
    } else {
        finish6(skb, ip, back, source, length, buffer)
    }
}

/// Copies what is quoted behind the ICMP header, which has its checksum over itself and the quote then.
#[inline(always)]
fn quote(skb: *mut __sk_buff, ip: &Datagram, message: &Message, buffer: &mut [u32; 130]) -> Option<u32> {
    // Whole words: what must be quoted is that, and the checksum is a sum of words.
    let quoted = bounded((ip.end - ETH_LEN as u32).min(MOST_QUOTED) & !3, LEAST_QUOTED, MOST_QUOTED)?;
    buffer[0] = u32::from_ne_bytes([message.kind, message.code, 0, 0]);
    buffer[1] = message.rest.to_be();
    // SAFETY: the buffer has 8 bytes and more than the most that is quoted; the helper fills all of it or fails.
    let done = unsafe {
        let place = buffer.as_mut_ptr().add(2);
        bpf_skb_load_bytes(skb.cast(), ETH_LEN as u32, place.cast(), quoted)
    };
    (done == 0).then_some(quoted)
}

/// A number within bounds that the verifier sees: one comparison of a difference would say nothing of the number itself.
#[inline(always)]
fn bounded(number: u32, least: u32, most: u32) -> Option<u32> {
    let number = hide(number);
    if number < least {
        return None;
    }
    let number = hide(number);
    if number > most { None } else { Some(number) }
}

/// Sum of so many bytes of the buffer, from a sum before.
#[inline(always)]
fn sum(words: *const u32, length: u32, before: u32) -> u32 {
    // SAFETY: the helper reads `length` bytes, which the caller has there.
    unsafe { bpf_csum_diff(ptr::null_mut(), 0, words.cast_mut(), length, before) as u32 }
}

#[inline(always)]
fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline(always)]
fn set_checksum(buffer: &mut [u32; 130], checksum: u16) {
    let [kind, code, ..] = buffer[0].to_ne_bytes();
    let [one, two] = checksum.to_ne_bytes();
    buffer[0] = u32::from_ne_bytes([kind, code, one, two]);
}

#[inline(always)]
fn finish4(
    skb: *mut __sk_buff,
    ip: &Datagram,
    eth: Ethernet,
    source: Addr,
    length: u32,
    buffer: &mut [u32; 130],
) -> bool {
    set_checksum(buffer, folded(sum(buffer.as_ptr(), length, 0)));
    let ([.., from], [.., to]): ([u32; 4], [u32; 4]) = (bytemuck::cast(source), bytemuck::cast(ip.source));
    let mut header = Ipv4 {
        version_ihl: 0x45,
        // Internetwork control, as routers send it.
        tos: 0xc0,
        total_len: (length as u16 + 20).to_be(),
        id: zero() as u16,
        fragment: zero() as u16,
        ttl: HOPS,
        protocol: protocol::ICMP,
        checksum: zero() as u16,
        src: from,
        dst: to,
    };
    let words: [u32; 5] = bytemuck::cast(header);
    header.checksum = folded(sum(words.as_ptr(), 20, 0));
    let header = Header4 { eth, ip: bytemuck::cast(header) };
    let at = size_of::<Header4>() as u32;
    clear(skb, ip, at + length)
        && store(skb, 0, ptr::from_ref(&header).cast(), at)
        && store_message(skb, at, buffer, length)
}

#[inline(always)]
fn finish6(
    skb: *mut __sk_buff,
    ip: &Datagram,
    eth: Ethernet,
    source: Addr,
    length: u32,
    buffer: &mut [u32; 130],
) -> bool {
    let header = Ipv6 {
        version_class: 0x60,
        flow: [zero() as u8, zero() as u8, zero() as u8],
        payload_len: (length as u16).to_be(),
        next: protocol::ICMPV6,
        hop_limit: HOPS,
        src: bytemuck::cast(source),
        dst: bytemuck::cast(ip.source),
    };
    // Of the pseudo-header: both addresses, length and protocol.
    let mut words: [u32; 10] = bytemuck::cast(header);
    words[0] = length.to_be();
    words[1] = u32::from(protocol::ICMPV6).to_be();
    let pseudo = sum(words.as_ptr(), 40, 0);
    set_checksum(buffer, folded(sum(buffer.as_ptr(), length, pseudo)));
    let header = Header6 { eth, ip: bytemuck::cast(header) };
    let at = size_of::<Header6>() as u32;
    clear(skb, ip, at + length)
        && store(skb, 0, ptr::from_ref(&header).cast(), at)
        && store_message(skb, at, buffer, length)
}

/// Makes the frame as long as the error, an ordinary one: no segments, and no checksum left for a device to fill in where
/// there is something else now. The kernel forgets about such a checksum when the place it starts from is cut off.
#[inline(always)]
fn clear(skb: *mut __sk_buff, ip: &Datagram, length: u32) -> bool {
    /// `BPF_ADJ_ROOM_MAC` of linux/bpf.h: right after the Ethernet header.
    const MAC: u32 = 1;
    let cut = (ip.offset - ETH_LEN as u32 + 20).min(512);
    let remains = ETH_LEN as u32 + size_of::<Ipv6>() as u32;
    // SAFETY: the helpers check lengths against the frame.
    unsafe {
        bpf_skb_change_tail(skb, remains + cut, 0) == 0
            && bpf_skb_adjust_room(skb, -(cut as i32), MAC, 0) == 0
            && bpf_skb_change_tail(skb, length, 0) == 0
    }
}

#[inline(always)]
fn store(skb: *mut __sk_buff, offset: u32, bytes: *const core::ffi::c_void, length: u32) -> bool {
    // SAFETY: the helper reads `length` bytes, which the caller has there, and checks the frame's length.
    unsafe { bpf_skb_store_bytes(skb.cast(), offset, bytes.cast(), length, 0) == 0 }
}

#[inline(always)]
fn store_message(skb: *mut __sk_buff, offset: u32, buffer: &[u32; 130], length: u32) -> bool {
    bounded(length, 8 + LEAST_QUOTED, 8 + MOST_QUOTED)
        .is_some_and(|length| store(skb, offset, buffer.as_ptr().cast(), length))
}
