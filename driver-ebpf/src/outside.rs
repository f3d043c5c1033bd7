//! Entry points of the programs for what comes from beyond the node. They serve all networks, and no endpoint of their own.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_vlan_pop};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netferry_common::{Direction, WireKey};
use netferry_ebpf::beyond::{
    BOUNCE, ENDPOINT, HOST, LINK, nf_back, nf_enter_link, nf_enter_tunnel, nf_enter_wire, nf_hand_over,
};
use netferry_ebpf::judge::{Scratch, Verdict, judge};
use netferry_ebpf::maps::{Maps, network_of, scratch};
use netferry_ebpf::packet::{ethertype, hook};
use netferry_ebpf::short::nf_enter;
use netferry_ebpf::skb::{PACKET_HOST, Skb};
use netferry_ebpf::tables::Tables;

const VLAN_ID: u32 = 0xfff;

/// An uplink, ingress. What is of no network is the host's, and not touched.
#[classifier]
fn uplink_ingress(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    // SAFETY: the context is valid.
    let raw = unsafe { &*skb };
    // The kernel has taken the tag out of the frame by now.
    let tag = match raw.vlan_present {
        0 => 0,
        _ if raw.vlan_proto != u32::from(ethertype::VLAN) => return TC_ACT_UNSPEC,
        _ => raw.vlan_tci & VLAN_ID,
    };
    let Some(network) = network_of(&WireKey { ifindex: raw.ifindex, tag }) else {
        return TC_ACT_UNSPEC;
    };
    let Some(scratch) = scratch() else { return TC_ACT_SHOT };
    let packet = Skb::<{ hook::WIRE }>::new(skb);
    let mut found = nf_enter_wire(packet.context(), network, tag, scratch);
    if found == LINK {
        found = nf_enter_link(packet.context(), network, tag, scratch);
    }
    match found {
        HOST => TC_ACT_UNSPEC,
        BOUNCE => back(packet.context()),
        to if to & ENDPOINT != 0 => hand_over(&packet, scratch, to as u32),
        _ => TC_ACT_SHOT,
    }
}

/// The device that tunnels end at, ingress. It is nobody else's, and so is nothing that comes out of it.
#[classifier]
fn overlay_ingress(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let Some(scratch) = scratch() else { return TC_ACT_SHOT };
    let packet = Skb::<{ hook::TUNNEL }>::new(skb);
    match nf_enter_tunnel(packet.context(), scratch) {
        to if to & ENDPOINT != 0 => hand_over(&packet, scratch, to as u32),
        _ => TC_ACT_SHOT,
    }
}

/// The link between the nodes, ingress. What is not plain goes on to the device that tunnels end at, and all else to the
/// host.
#[classifier]
fn underlay_ingress(context: TcContext) -> i32 {
    nf_enter(context.skb.skb)
}

/// Lets an endpoint judge a frame that is for it, here where it can be sent straight into the pod's namespace.
#[inline(always)]
fn hand_over<const HOOK: u32>(packet: &Skb<HOOK>, scratch: &mut Scratch, id: u32) -> i32 {
    if Maps.redirects_to_peer() {
        match judge(packet, &Maps, scratch, id, Direction::ToPod) {
            Verdict::Redirect(_) => into_pod(packet.context(), scratch.target.ifindex, true),
            Verdict::Refuse(_) => refused::<HOOK>(packet.context(), scratch),
            _ => TC_ACT_SHOT,
        }
    } else {
        match nf_hand_over(packet.context(), id, HOOK, scratch) {
            1 => into_pod(packet.context(), scratch.target.ifindex, false),
            2 => refused::<HOOK>(packet.context(), scratch),
            _ => TC_ACT_SHOT,
        }
    }
}

/// Without the tag, which is of the wire.
#[inline(always)]
fn into_pod(skb: *mut __sk_buff, ifindex: u32, peer: bool) -> i32 {
    // SAFETY: the context is valid, and the helpers check what they are given.
    unsafe {
        if (*skb).vlan_present != 0 && bpf_skb_vlan_pop(skb) != 0 {
            return TC_ACT_SHOT;
        }
        if !peer {
            return bpf_redirect(ifindex, 0) as i32;
        }
        bpf_skb_change_type(skb, PACKET_HOST);
        bpf_redirect_peer(ifindex, 0) as i32
    }
}

#[inline(always)]
fn refused<const HOOK: u32>(skb: *mut __sk_buff, scratch: &mut Scratch) -> i32 {
    if HOOK == hook::TUNNEL && nf_back(skb, scratch) == 0 {
        return TC_ACT_SHOT;
    }
    back(skb)
}

/// Out where it came in, with the tag it came with.
#[inline(always)]
fn back(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context is valid, and the helper checks what it is given.
    unsafe { bpf_redirect((*skb).ifindex, 0) as i32 }
}
