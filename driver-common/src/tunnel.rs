//! Tunnels whose headers the programs put on and take off themselves.

use bytemuck::{Pod, Zeroable};

/// Where the tunnels of this node start and end, alone in the array [`crate::maps::TUNNEL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tunnel {
    /// Index, in the host's namespace, of the device that tunnels start from and end at for the kernel; 0: all headers are
    /// left to it.
    pub device: u32,
    /// Index of the link between the nodes. What the host's routes send over another is left to the device.
    pub link: u32,
    /// IPv4 address of this node.
    pub address: [u8; 4],
    /// UDP port of the tunnels on all nodes, big endian.
    pub port: [u8; 2],
    /// Always 0.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Tunnel>() == 16);

/// The way of a network through tunnels once more, where a program finds it without a search: in the array
/// [`crate::maps::WAYS`], by network at [`way_of_network`], and by VNI at [`way_of_vni`]. Of two that share a place one has it,
/// and the other is looked up in [`crate::maps::UPLINKS`] and [`crate::maps::WIRES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Way {
    /// Network id; 0: nobody has the place.
    pub network: u32,
    /// The network's number in tunnels.
    pub vni: u32,
    /// [`crate::Uplink::ifindex`]: the tunnel device.
    pub device: u32,
    /// [`crate::Uplink::mtu`].
    pub mtu: u32,
}

const _: () = assert!(size_of::<Way>() == 16);

/// Half of the places.
const PLACES: u32 = 4096;
const _: () = assert!(2 * PLACES as usize == crate::maps::MAX_WAYS && PLACES.is_power_of_two());

/// Where a network's [`Way`] is.
#[must_use]
#[inline]
pub const fn way_of_network(network: u32) -> u32 {
    network & (PLACES - 1)
}

/// Where that of a VNI is.
#[must_use]
#[inline]
pub const fn way_of_vni(vni: u32) -> u32 {
    PLACES | vni & (PLACES - 1)
}

/// What the host's routes said of another node, per CPU in the array [`crate::maps::ROUTES`], at [`route_of`] its address. It
/// holds for one tick of the clock: looking it up for each frame would cost more than all else about its tunnel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Route {
    /// When, in coarse nanoseconds since boot.
    pub at: u64,
    /// IPv4 address of the node.
    pub node: [u8; 4],
    /// Next hop towards it.
    pub next: [u8; 4],
    /// Bytes of the largest datagram that was found to fit the way.
    pub size: u32,
    /// Always 0.
    pub pad: u32,
}

const _: () = assert!(size_of::<Route>() == 24);
const ROUTES: u32 = 256;
const _: () = assert!(ROUTES as usize == crate::maps::MAX_ROUTES && ROUTES.is_power_of_two());

/// Where the [`Route`] to a node is, whose address is a word in memory order.
#[must_use]
#[inline]
pub const fn route_of(node: u32) -> u32 {
    (u32::from_be(node) ^ u32::from_be(node) >> 8) & (ROUTES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_their_numbers_do_not_share_places() {
        assert_eq!((way_of_network(7), way_of_vni(7)), (7, 4096 + 7));
        assert_eq!((way_of_network(4096 + 7), way_of_vni(0xff_ffff)), (7, 2 * 4096 - 1));
    }

    #[test]
    fn the_nodes_of_a_rack_have_routes_of_their_own() {
        let mut taken = [false; ROUTES as usize];
        for last in 0..=255 {
            let node = u32::from_ne_bytes([192, 0, 2, last]);
            assert!(!core::mem::replace(&mut taken[route_of(node) as usize], true), "{last}");
        }
    }
}
