//! Global functions for what comes from beyond the node and goes there, as those of [`crate::skb`].

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key};
use aya_ebpf::helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use netferry_common::{Addr, Direction, Reason, WireKey, counters};

use crate::arrive::{Arrival, Entrance, arrive};
use crate::datagram::wire;
use crate::deliver::Target;
use crate::ipv6::is_mapped;
use crate::judge::{Case, Scratch};
use crate::maps::{Maps, network_of};
use crate::opaque::zero;
use crate::packet::{Ethernet, Packet, ethertype};
use crate::skb::{Inner, PASS, code, direction, reason};
use crate::tables::Tables;
use crate::{depart, owed, refuse};

/// What [`nf_enter_wire`] and [`nf_enter_tunnel`] say of a frame: it is not of a network, and the host's.
pub const HOST: u64 = 0;
/// It is dropped, and counted.
pub const DROP: u64 = 1;
/// It is an answer now, to go back.
pub const BOUNCE: u64 = 2;
/// It is [`nf_enter_link`]'s.
pub const LINK: u64 = 3;
/// The lower half is the endpoint it is for.
pub const ENDPOINT: u64 = 1 << 32;

/// Hops of the outer header.
const TUNNEL_TTL: u8 = 64;
/// `struct bpf_tunnel_key` of linux/bpf.h as far as every kernel knows it: id, remote address, and a word of type of
/// service, TTL and two bytes of nothing.
type TunnelKey = [u32; 6];

/// Says to which node a frame goes from the device that tunnels start from.
#[inline(always)]
pub(crate) fn tunnel(skb: *mut __sk_buff, vni: u32, node: &Addr) -> bool {
    let [a, b, c, d]: [u32; 4] = bytemuck::cast(*node);
    let options = u32::from_ne_bytes([0, TUNNEL_TTL, 0, 0]);
    let v4 = is_mapped([a, b, c, d]);
    // The kernel has an IPv4 address here as a number. Over IPv6 the outer checksum may not be left out (RFC 8200).
    let (mut key, flags): (TunnelKey, u32) = if v4 {
        ([vni, u32::from_be(d), zero(), zero(), zero(), options], BPF_F_ZERO_CSUM_TX)
    } else {
        ([vni, a, b, c, d, options], BPF_F_TUNINFO_IPV6)
    };
    // SAFETY: the helper reads as many bytes as it is told.
    unsafe {
        let place = ptr::from_mut(&mut key).cast::<bpf_tunnel_key>();
        bpf_skb_set_tunnel_key(skb, place, size_of::<TunnelKey>() as u32, u64::from(flags)) == 0
    }
}

/// Which tunnel a frame came through.
#[inline(always)]
fn tunnel_of(skb: *mut __sk_buff) -> Option<(u32, Addr)> {
    let mut key: TunnelKey = [zero(), zero(), zero(), zero(), zero(), zero()];
    let place = ptr::from_mut(&mut key).cast::<bpf_tunnel_key>();
    let size = size_of::<TunnelKey>() as u32;
    // SAFETY: the helper writes as many bytes as it is told.
    unsafe {
        if bpf_skb_get_tunnel_key(skb, place, size, 0) == 0 {
            return Some((key[0], Addr::from_v4_word(key[1].to_be())));
        }
        let found = bpf_skb_get_tunnel_key(skb, place, size, u64::from(BPF_F_TUNINFO_IPV6)) == 0;
        // A mapped address would be taken for the IPv4 address of another node.
        if found && !is_mapped([key[1], key[2], key[3], key[4]]) {
            return Some((key[0], Addr::from_words([key[1], key[2], key[3], key[4]])));
        }
    }
    None
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn nf_depart(skb: *mut __sk_buff, id: u32, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return Reason::NoEndpoint.number();
    };
    let packet = Inner::again(skb);
    let Some(case) = Case::again(&packet, &Maps, id, Direction::FromPod) else {
        return Reason::NoEndpoint.number();
    };
    code(depart::depart(&case, scratch))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn nf_arrive(skb: *mut __sk_buff, id: u32, hook: u32, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return Reason::NoEndpoint.number();
    };
    let packet = Inner::again(skb);
    let Some(case) = Case::again(&packet, &Maps, id, Direction::ToPod) else {
        return Reason::NoEndpoint.number();
    };
    code(arrive(&case, hook, scratch))
}

/// For a kernel that cannot redirect to a peer: sends a frame to the host end of its endpoint, whose own program judges it.
/// 1 if it goes there, 2 if it is an error now that goes back, else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_hand_over(skb: *mut __sk_buff, id: u32, hook: u32, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    let packet = Inner::again(skb);
    let Some(case) = Case::again(&packet, &Maps, id, Direction::ToPod) else { return 0 };
    if case.eth.ethertype == ethertype::ARP {
        scratch.target = Target { ifindex: case.endpoint.ifindex, path: 0 };
        return 1;
    }
    (_, _, scratch.note.size) = wire(&packet, &scratch.ip);
    let Err(reason) = arrive(&case, hook, scratch) else { return 1 };
    Maps.dropped(id, Direction::ToPod, reason);
    let told = nf_refuse(skb, id, Direction::ToPod.number(), reason.number(), scratch) == PASS;
    if told { 2 } else { 0 }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn nf_refuse(
    skb: *mut __sk_buff,
    id: u32,
    way: u32,
    why: u32,
    scratch: *mut Scratch,
) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else {
        return Reason::NoEndpoint.number();
    };
    let Some(endpoint) = Maps.endpoint(id) else {
        return Reason::NoEndpoint.number();
    };
    let source = owed::speaker(Maps.uplink(endpoint.network), &scratch.ip);
    if refuse::refuse(skb, (id, direction(way)), reason(why), source, scratch) { PASS } else { why }
}

/// Finds whom a frame from an uplink is for, whose tag is of `network`. `tagged` if there is one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_enter_wire(
    skb: *mut __sk_buff,
    network: u32,
    tagged: u32,
    scratch: *mut Scratch,
) -> u64 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return DROP };
    let packet = Inner::again(skb);
    let found = match (packet.head::<Ethernet>(0), Maps.uplink(network)) {
        (Some(eth), Some(uplink)) => {
            Arrival { packet: &packet, tables: &Maps, network, eth }.from_wire(uplink, &mut scratch.ip)
        }
        (None, _) => Ok(Entrance::Nobody(Reason::MalformedEthernet)),
        (_, None) => Err(Reason::NoRoute),
    };
    entrance(network, found, tagged == 0)
}

/// Likewise for one that [`nf_enter_wire`] took for a message of the link.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_enter_link(
    skb: *mut __sk_buff,
    network: u32,
    tagged: u32,
    scratch: *mut Scratch,
) -> u64 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return DROP };
    let packet = Inner::again(skb);
    let Some(eth) = packet.head::<Ethernet>(0) else { return DROP };
    let found = Arrival { packet: &packet, tables: &Maps, network, eth }.of_the_link(&scratch.ip);
    entrance(network, found, tagged == 0)
}

/// Finds whom a frame is for that came through a tunnel.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_enter_tunnel(skb: *mut __sk_buff, scratch: *mut Scratch) -> u64 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return DROP };
    let packet = Inner::again(skb);
    let Some((vni, node)) = tunnel_of(skb) else {
        return entrance(0, Err(Reason::UnknownNetwork), false);
    };
    let Some(network) = network_of(&WireKey { ifindex: packet.ifindex(), tag: vni }) else {
        return entrance(0, Err(Reason::UnknownNetwork), false);
    };
    scratch.outer.vni = vni;
    scratch.outer.node = node;
    let Some(eth) = packet.head::<Ethernet>(0) else {
        return entrance(network, Err(Reason::MalformedEthernet), false);
    };
    let found = Arrival { packet: &packet, tables: &Maps, network, eth }.from_tunnel(&node, &mut scratch.ip);
    entrance(network, found, false)
}

/// Sends an answer back through the tunnel that the question came through. 0: it cannot be.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_back(skb: *mut __sk_buff, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    u32::from(tunnel(skb, scratch.outer.vni, &scratch.outer.node))
}

/// What a program does with a frame. On a wire that is `shared`, what is for nobody is the host's.
#[inline(always)]
fn entrance(network: u32, found: Result<Entrance, Reason>, shared: bool) -> u64 {
    match found {
        Ok(Entrance::Nobody(_)) if shared => HOST,
        Ok(Entrance::Link) => LINK,
        Ok(Entrance::Asker) => BOUNCE,
        Ok(Entrance::Endpoint(id)) => ENDPOINT | u64::from(id),
        Ok(Entrance::Nobody(reason)) | Err(reason) => {
            Maps.dropped(network | counters::NETWORK, Direction::ToPod, reason);
            DROP
        }
    }
}
