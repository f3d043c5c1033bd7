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

/// Who has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Member {
    /// Endpoint id on this node; 0 for a member on another node.
    pub endpoint: u32,
    /// Its hardware address: what ARP and neighbour discovery are answered with.
    pub mac: [u8; 6],
    /// Always 0.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Member>() == 12);
