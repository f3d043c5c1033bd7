//! Global functions of the short ways, as those of [`crate::skb`].

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
    TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers;
use core::ptr;
use netferry_common::{Direction, Reason};

use crate::established::{Onward, established};
use crate::judge::Scratch;
use crate::maps::Maps;
use crate::opaque::reread;
use crate::packet::{ETH_LEN, Packet, ethertype, hook};
use crate::skb::{Inner, Skb};
use crate::tables::Tables as _;
use crate::tunnel::{nf_encapsulate, tunnel};
use crate::vxlan::{OUTER, entering};

/// What [`nf_established`] says of a frame that is [`nf_leave`]'s.
pub const LEAVES: u32 = u32::MAX;

/// [`established`]: the interface index of the receiver's host end, [`LEAVES`], or 0 for the long way.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_established(skb: *mut __sk_buff, id: u32, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    match established(&Inner::again(skb), &Maps, id, scratch) {
        Some(Onward::Peer(ifindex)) => ifindex,
        Some(Onward::Tunnel) => LEAVES,
        None => 0,
    }
}

/// Sends a frame of a flow that goes on ([`crate::established`]) into its tunnel, by itself or from the device. The action to
/// return.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_leave(skb: *mut __sk_buff, id: u32, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(place) = (unsafe { scratch.as_mut() }) else { return TC_ACT_SHOT as u32 };
    let bytes = Inner::again(skb).len() as u64;
    let mut action = nf_encapsulate(skb, scratch);
    if action == 0 {
        if !tunnel(skb, place.outer.vni, &place.outer.node) {
            Maps.dropped(id, Direction::FromPod, Reason::NoRoute);
            return TC_ACT_SHOT as u32;
        }
        // SAFETY: the helper takes a number.
        action = unsafe { helpers::bpf_redirect(reread(&place.target.ifindex), 0) } as u32;
    }
    Maps.left(id, bytes);
    action
}

/// Sends a frame that came in over the link between the nodes straight to its receiver. The action to return.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_enter(skb: *mut __sk_buff) -> i32 {
    let Some(tunnel) = Maps.tunnel() else { return TC_ACT_UNSPEC };
    let packet = Skb::<{ hook::LINK }>::again(skb);
    let Some(found) = entering(&packet, &Maps, tunnel) else { return TC_ACT_UNSPEC };
    let v6 = found.eth.ethertype == ethertype::IPV6;
    let version = if v6 { BPF_F_ADJ_ROOM_DECAP_L3_IPV6 } else { BPF_F_ADJ_ROOM_DECAP_L3_IPV4 };
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | version);
    let bytes = packet.len() as u64 - OUTER as u64;
    // SAFETY: the helpers check lengths against the frame, and read no more than they are told.
    unsafe {
        if helpers::bpf_skb_adjust_room(skb, -(OUTER as i32), BPF_ADJ_ROOM_MAC, flags) != 0 {
            return TC_ACT_UNSPEC;
        }
        let eth = ptr::from_ref(&found.eth).cast();
        if helpers::bpf_skb_store_bytes(skb.cast(), 0, eth, ETH_LEN as u32, 0) != 0 {
            return TC_ACT_SHOT;
        }
        Maps.entered(found.endpoint, bytes);
        helpers::bpf_redirect_peer(found.ifindex, 0) as i32
    }
}
