//! The node's block list: peers whose frames are dropped before anything else looks at them.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// Data of the key of a longest-prefix map: an address, IPv4 mapped. The prefix length of the key counts the bits of
/// the mapped address: 192.0.2.0/24 has 96 + 24.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct BlockKey {
    /// The address; bits beyond the prefix are 0.
    pub addr: Addr,
}

const _: () = assert!(size_of::<BlockKey>() == 16);

/// All bits of a [`BlockKey`].
pub const BLOCK_BITS_ALL: u32 = 128;

/// A blocked prefix. What is in the map is blocked, so there is nothing to say.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Block {
    /// Always 0.
    pub pad: u32,
}

const _: () = assert!(size_of::<Block>() == 4);
