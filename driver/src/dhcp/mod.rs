//! Addresses by DHCP (RFC 2131) of the network behind an uplink.
//!
//! The node is the client of its ports, since a port is held to its own addresses and cannot ask: it leases an address
//! for the port's hardware address before the claim's plan is made ([`leases`]), renews it as long as the claim is
//! prepared ([`keep`]), and gives it back afterwards. What was asked for is on disk before it is asked for ([`book`]).
//! [`wire`] is messages and frames, [`socket`] how they come and go, [`client`] the exchanges, [`lease`] the times.

pub mod book;
pub mod client;
pub mod keep;
pub mod lease;
pub mod leases;
pub mod socket;
pub mod wire;

pub use lease::{Lease, Phase};
pub use leases::{Ask, Leases, NoLeases};
