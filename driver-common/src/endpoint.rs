//! Endpoints: one protected interface of one pod, and the addresses it may use.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// [`Endpoint::flags`]: frames may pass. Without it everything is dropped, in both directions.
pub const READY: u32 = 1;

/// [`Endpoint::flags`]: other interfaces have its hardware address too, as ipvlan links of one parent do. What comes under it
/// is then no forgery.
pub const SHARED_MAC: u32 = 64;

/// The wire of a moved link: any peer that is not the pod itself may be spoken to, unless policy says otherwise.
pub const NETWORK_WIRE: u32 = 0;

/// What the programs enforce for one endpoint. Replaced whole by each write, so a reader sees one state.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// [`READY`], [`SHARED_MAC`], [`crate::policy::DENY_FROM_POD`], [`crate::policy::DENY_TO_POD`], [`crate::flow::TRACK`],
    /// [`crate::limit::LIMIT_FROM_POD`], [`crate::limit::LIMIT_TO_POD`].
    pub flags: u32,
    /// The isolated network it belongs to; [`NETWORK_WIRE`] for a moved link on its own wire.
    pub network: u32,
    /// MTU in bytes: what fits after the Ethernet header.
    pub mtu: u32,
    /// Version of the policy in force (see [`crate::policy`]); 0 means none, and only the defaults decide. A new
    /// version is also needed when an address is taken away: open flows do not look addresses up again.
    pub policy: u32,
    /// Interface index (in the host's namespace) frames for this endpoint are redirected to; 0 when it
    /// cannot be redirected to, as with a moved link.
    pub ifindex: u32,
    /// The only source hardware address it may send from.
    pub mac: [u8; 6],
    /// Always 0.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Endpoint>() == 28);

impl Endpoint {
    /// Whether frames may pass at all; asked before anything else.
    #[must_use]
    #[inline]
    pub const fn is_ready(&self) -> bool {
        self.flags & READY != 0
    }
}

/// Key of an own address.
///
/// A map of {endpoint, address} rather than an array in the record: one hash look-up answers "is this mine?"
/// for any number of addresses, with no loop for the verifier to walk, and `bpftool map dump` shows one
/// address a line. Unlike a prefix tree it needs no prefix: an own address is always a whole address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AddressKey {
    /// Endpoint id.
    pub endpoint: u32,
    /// The address.
    pub addr: Addr,
}

const _: () = assert!(size_of::<AddressKey>() == 20);

/// [`Address::flags`]: the pod may send from this address and receive at it.
pub const ADDR_OWN: u32 = 1;
/// [`Address::flags`]: the directed broadcast address of one of its IPv4 subnets: it may be received at, never
/// be sent from.
pub const ADDR_BROADCAST: u32 = 2;

/// What an endpoint may do with an address.
///
/// For each endpoint, user space writes: every address of the specification and the link-local address of
/// the MAC ([`Addr::link_local`]) as [`ADDR_OWN`], and for every IPv4 prefix shorter than 31 its broadcast
/// address as [`ADDR_BROADCAST`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Address {
    /// [`ADDR_OWN`] or [`ADDR_BROADCAST`].
    pub flags: u32,
    /// Prefix length of its subnet, in bits of its own family (24 for an IPv4 /24).
    pub prefix: u32,
}

const _: () = assert!(size_of::<Address>() == 8);
