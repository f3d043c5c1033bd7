//! Uplinks: how a network goes on beyond its node.

use bytemuck::{Pod, Zeroable};

/// [`Uplink::flags`]: members are reached over the uplink by their hardware address, as on one Ethernet.
pub const BRIDGED: u32 = 1;
/// [`Uplink::flags`]: datagrams for addresses that are not members are routed out, and in, as a gateway does.
pub const ROUTED: u32 = 2;
/// [`Uplink::flags`]: members on other nodes are reached through a tunnel ([`crate::Member::node`]).
pub const OVERLAY: u32 = 4;

/// The way out of a network, by network id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Uplink {
    /// [`BRIDGED`], [`ROUTED`], [`OVERLAY`].
    pub flags: u32,
    /// Index, in the host's namespace, of the link that frames leave by: the uplink, or the tunnel.
    pub ifindex: u32,
    /// VLAN id frames carry on an uplink, 0 for none; VNI in a tunnel.
    pub tag: u32,
    /// MTU of the link in bytes, less what the tunnel adds.
    pub mtu: u32,
    /// Hardware address of the network's gateway where the node is the gateway, else zeros.
    pub mac: [u8; 6],
    /// Always 0.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Uplink>() == 24);

/// Where a frame came in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct WireKey {
    /// Index of the uplink or the tunnel, in the host's namespace.
    pub ifindex: u32,
    /// VLAN id, 0 for an untagged frame; VNI from a tunnel.
    pub tag: u32,
}

const _: () = assert!(size_of::<WireKey>() == 8);

/// Which network a frame belongs to that came in there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Wire {
    /// Network id.
    pub network: u32,
}

const _: () = assert!(size_of::<Wire>() == 4);
