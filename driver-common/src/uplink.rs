//! Uplinks: how a network goes on beyond its node.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// [`Uplink::flags`]: the network goes on over the uplink as one Ethernet, to members on other nodes and to hosts.
pub const BRIDGED: u32 = 1;
/// [`Uplink::flags`]: the node routes: addresses that are not on it are reached by the host's routes over the uplink, as
/// behind a gateway.
pub const ROUTED: u32 = 2;
/// [`Uplink::flags`]: members on other nodes are reached through a tunnel ([`crate::Member::node`]).
pub const OVERLAY: u32 = 4;

/// The way out of a network, by network id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Uplink {
    /// One of [`BRIDGED`], [`ROUTED`], [`OVERLAY`].
    pub flags: u32,
    /// Index, in the host's namespace, of the link that frames leave by: the uplink, or the tunnel.
    pub ifindex: u32,
    /// VLAN id frames carry on an uplink, 0 for none and where it is routed; VNI in a tunnel.
    pub tag: u32,
    /// MTU of the link in bytes, less what the tunnel adds.
    pub mtu: u32,
    /// Hardware address of the network's gateway where the node is the gateway, else zeros.
    pub mac: [u8; 6],
    /// Always 0.
    pub pad: [u8; 2],
    /// IPv4 address of that gateway, which its ICMP errors come from; zeros for none.
    pub gateway_v4: [u8; 4],
    /// Its IPv6 address, likewise.
    pub gateway_v6: Addr,
}

const _: () = assert!(size_of::<Uplink>() == 44);

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
