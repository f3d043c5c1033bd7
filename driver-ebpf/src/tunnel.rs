//! Global functions for tunnels, as those of [`crate::skb`].

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX,
    BPF_FIB_LOOKUP_SKIP_NEIGH, TC_ACT_SHOT, bpf_fib_lookup, bpf_redir_neigh, bpf_tunnel_key,
};
use aya_ebpf::helpers;
use core::ptr;
use netferry_common::{Addr, Tunnel};

use crate::ipv6::is_mapped;
use crate::judge::Scratch;
use crate::maps::{Maps, route};
use crate::opaque::{reread, zero};
use crate::packet::{ETH_LEN, Packet};
use crate::skb::Inner;
use crate::tables::Tables as _;
use crate::transport::protocol;
use crate::vxlan::{HEADERS, Leaving, OUTER, TTL};

/// `AF_INET` of sys/socket.h.
const AF_INET: u8 = 2;
/// `struct bpf_tunnel_key` of linux/bpf.h as far as every kernel knows it: id, remote address, and a word of type of
/// service, TTL and two bytes of nothing.
type TunnelKey = [u32; 6];
/// Words of `struct bpf_fib_lookup` of linux/bpf.h, and places in it: family, protocol and source port; destination port
/// and length; interface; type of service; source; destination, which becomes the next hop; and the tag, in front of the
/// hardware addresses.
const FIB: usize = 16;
const FIB_LINK: usize = 2;
const FIB_SOURCE: usize = 4;
const FIB_NEXT: usize = 8;

/// Says to which node a frame goes from the device that tunnels start from.
#[inline(always)]
pub(crate) fn tunnel(skb: *mut __sk_buff, vni: u32, node: &Addr) -> bool {
    let [a, b, c, d]: [u32; 4] = bytemuck::cast(*node);
    let options = u32::from_ne_bytes([0, TTL, 0, 0]);
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
        helpers::bpf_skb_set_tunnel_key(skb, place, size_of::<TunnelKey>() as u32, u64::from(flags)) == 0
    }
}

/// Which tunnel a frame came through.
#[inline(always)]
pub(crate) fn tunnel_of(skb: *mut __sk_buff) -> Option<(u32, Addr)> {
    let mut key: TunnelKey = [zero(), zero(), zero(), zero(), zero(), zero()];
    let place = ptr::from_mut(&mut key).cast::<bpf_tunnel_key>();
    let size = size_of::<TunnelKey>() as u32;
    // SAFETY: the helper writes as many bytes as it is told.
    unsafe {
        if helpers::bpf_skb_get_tunnel_key(skb, place, size, 0) == 0 {
            return Some((key[0], Addr::from_v4_word(key[1].to_be())));
        }
        let found = helpers::bpf_skb_get_tunnel_key(skb, place, size, u64::from(BPF_F_TUNINFO_IPV6)) == 0;
        // A mapped address would be taken for the IPv4 address of another node.
        if found && !is_mapped([key[1], key[2], key[3], key[4]]) {
            return Some((key[0], Addr::from_words([key[1], key[2], key[3], key[4]])));
        }
    }
    None
}

/// The next hop towards another node, if the host's routes lead there over the link between the nodes, and a datagram of that
/// size fits. `words` are used up.
#[inline(always)]
fn next_hop(
    skb: *mut __sk_buff,
    tunnel: &Tunnel,
    node: u32,
    size: u32,
    words: &mut [u32; 130],
) -> Option<u32> {
    let (now, route) = (Maps.now(), route(node)?);
    if route.at == now && u32::from_ne_bytes(route.node) == node && size <= route.size {
        return Some(u32::from_ne_bytes(route.next));
    }
    let [port_high, port_low] = tunnel.port;
    let [length_low, length_high] = ((size + OUTER as u32) as u16).to_ne_bytes();
    words[0] = u32::from_ne_bytes([AF_INET, protocol::UDP, 0, 0]);
    words[1] = u32::from_ne_bytes([port_high, port_low, length_low, length_high]);
    words[FIB_LINK] = tunnel.device;
    words[3] = zero();
    words[FIB_SOURCE] = u32::from_ne_bytes(tunnel.address);
    words[FIB_NEXT] = node;
    words[12] = zero();
    // SAFETY: the helper reads and writes as many bytes as it is told, which are in the words.
    let found = unsafe {
        let place = words.as_mut_ptr().cast::<bpf_fib_lookup>();
        helpers::bpf_fib_lookup(skb.cast(), place, (FIB * 4) as i32, BPF_FIB_LOOKUP_SKIP_NEIGH)
    };
    let (link, next) = (reread(&words[FIB_LINK]), reread(&words[FIB_NEXT]));
    let [family, ..] = reread(&words[0]).to_ne_bytes();
    // The next hop of an IPv4 route may be an IPv6 address (RFC 5549).
    if found != 0 || link != tunnel.link || family != AF_INET {
        return None;
    }
    route.at = now;
    route.node = node.to_ne_bytes();
    route.next = next.to_ne_bytes();
    route.size = size;
    Some(next)
}

/// Sends a frame to the node and with the VNI that the scratch says, a datagram of `note.size`, from the program that met it. The action to return; or
/// 0: it cannot be, and is as it was.
///
/// The host's routes say which way, and its neighbours are asked as for a frame of its own; its firewall is not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nf_encapsulate(skb: *mut __sk_buff, scratch: *mut Scratch) -> u32 {
    // SAFETY: the verifier makes sure that it is null or points to that much memory.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    let Some(tunnel) = Maps.tunnel() else { return 0 };
    let [a, b, c, destination]: [u32; 4] = bytemuck::cast(scratch.outer.node);
    if !is_mapped([a, b, c, destination]) {
        return 0;
    }
    let source = u32::from_ne_bytes(tunnel.address);
    let Some(next) = next_hop(skb, tunnel, destination, scratch.note.size, &mut scratch.message) else {
        return 0;
    };
    let packet = Inner::again(skb);
    let (Some(inner), Some(class)) = (packet.head::<[u16; 7]>(0), packet.head::<[u8; 2]>(ETH_LEN)) else {
        return 0;
    };
    // SAFETY: the helpers take the context, or nothing.
    let (hash, number) =
        unsafe { (helpers::bpf_get_hash_recalc(skb), helpers::bpf_get_prandom_u32() as u16) };
    let leaving = Leaving {
        link: inner,
        class,
        length: packet.len() as u32,
        vni: scratch.outer.vni,
        source,
        destination,
        port: tunnel.port,
        hash,
        number,
    };
    leaving.write(&mut scratch.message);
    // What is inside is smaller than the link's MTU by as much as this adds, segments too.
    let flags = BPF_F_ADJ_ROOM_FIXED_GSO
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
    let flags = u64::from(flags) | (ETH_LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
    let mut hop = [u32::from(AF_INET), next, zero(), zero(), zero()];
    // SAFETY: the helpers check lengths against the frame, and read no more than they are told, which is in the message
    // and on the stack.
    unsafe {
        // Datagrams in one buffer (UDP GSO) are refused.
        if helpers::bpf_skb_adjust_room(skb, OUTER as i32, BPF_ADJ_ROOM_MAC, flags) != 0 {
            return 0;
        }
        let headers = scratch.message.as_ptr().cast::<u8>().add(2);
        let place = (ETH_LEN - 2) as u32;
        if helpers::bpf_skb_store_bytes(skb.cast(), place, headers.cast(), HEADERS as u32, 0) != 0 {
            return TC_ACT_SHOT as u32;
        }
        let place = hop.as_mut_ptr().cast::<bpf_redir_neigh>();
        helpers::bpf_redirect_neigh(tunnel.link, place, size_of_val(&hop) as i32, 0) as u32
    }
}
