//! The maps, as the decisions see them.

use netferry_common::{Addr, Address, AddressKey, Direction, Endpoint, Reason};

/// Look-ups and counters. A look-up that fails is a `None`, and every `None` ends in a drop.
pub trait Tables {
    /// The endpoint of an id.
    fn endpoint(&self, id: u32) -> Option<&Endpoint>;
    /// What an endpoint may do with an address.
    fn address(&self, key: &AddressKey) -> Option<Address>;
    /// Counts a frame that passed.
    fn passed(&self, endpoint: u32, direction: Direction, packets: u64, bytes: u64);
    /// Counts a frame that was dropped.
    fn dropped(&self, endpoint: u32, direction: Direction, reason: Reason);
}

/// Flags of an address for an endpoint, 0 if it is not one of its own.
#[inline(always)]
pub fn address_flags<T: Tables>(tables: &T, endpoint: u32, addr: Addr) -> u32 {
    match tables.address(&AddressKey { endpoint, addr }) {
        Some(address) => address.flags,
        None => 0,
    }
}
