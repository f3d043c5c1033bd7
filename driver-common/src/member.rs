//! Membership: which address of a network lives where.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// An address on an isolated network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct MemberKey {
    /// Network id, never [`crate::endpoint::NETWORK_WIRE`].
    pub network: u32,
    /// The member's address, link-local ones included.
    pub addr: Addr,
}

const _: () = assert!(size_of::<MemberKey>() == 20);

/// [`Member::endpoint`] of an address that the node has itself, as the gateway of the network: it answers for it, and
/// nobody else may speak in its name.
pub const GATEWAY: u32 = u32::MAX;

/// Who has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Member {
    /// Endpoint id on this node; 0 for a member on another node, or [`GATEWAY`].
    pub endpoint: u32,
    /// Where its node takes tunnelled frames, on a network with an overlay; zeros for a member that is on this node
    /// or reached over the wire of an uplink.
    pub node: Addr,
    /// Its hardware address: what ARP and neighbour discovery are answered with.
    pub mac: [u8; 6],
    /// Always 0.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Member>() == 28);

impl Member {
    /// A member that is reached without a tunnel.
    #[must_use]
    #[inline]
    pub const fn new(endpoint: u32, mac: [u8; 6]) -> Self {
        Self { endpoint, node: Addr::UNSPECIFIED, mac, pad: [0; 2] }
    }

    /// Whether it is an endpoint of this node.
    #[must_use]
    #[inline]
    pub const fn is_endpoint(&self) -> bool {
        self.endpoint != 0 && self.endpoint != GATEWAY
    }
}
