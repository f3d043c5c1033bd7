//! Global functions for what comes from beyond the node and goes there, as those of [`crate::skb`].

use core::ptr;

use aya_ebpf::bindings::__sk_buff;
use netferry_common::counters::path;
use netferry_common::{Direction, Reason, WireKey, counters};

use crate::arrive::{Arrival, Entrance, arrive};
use crate::datagram::wire;
use crate::deliver::Target;
use crate::judge::{Case, Scratch};
use crate::maps::{Maps, network_of};
use crate::opaque::reread;
use crate::packet::{Ethernet, Packet, ethertype};
use crate::skb::{Inner, PASS, code, direction, reason};
use crate::tables::Tables;
use crate::tunnel::{nf_encapsulate, tunnel, tunnel_of};
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

/// Sends a frame into its tunnel, with the headers on it already where that can be.
#[inline(always)]
fn leave(skb: *mut __sk_buff, scratch: &mut Scratch) -> bool {
    if nf_encapsulate(skb, ptr::from_mut(scratch)) == 0 {
        return tunnel(skb, scratch.outer.vni, &scratch.outer.node);
    }
    scratch.target.path = path::ENCAPSULATED;
    true
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
    if let Err(reason) = depart::depart(&case, scratch) {
        return reason.number();
    }
    if reread(&scratch.target.path) != path::OVERLAY || leave(skb, scratch) {
        PASS
    } else {
        Reason::NoRoute.number()
    }
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
