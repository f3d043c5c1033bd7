//! Counters of an endpoint, one set per direction. Per-CPU maps: the reader adds the CPUs up.

use bytemuck::{Pod, Zeroable};

pub use crate::verdict::Drops;

/// Bit of [`CounterKey::endpoint`]: the rest is a network id. So is counted what was dropped on its way in from an uplink
/// or a tunnel before an endpoint was found that it is for; with 0 as the network, what came with a VNI of none.
pub const NETWORK: u32 = 1 << 31;

/// Key of [`Traffic`] and [`Drops`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct CounterKey {
    /// Endpoint id, or network id with [`NETWORK`].
    pub endpoint: u32,
    /// A [`crate::Direction`] as number: 0 from the pod, 1 to the pod.
    pub direction: u32,
}

const _: () = assert!(size_of::<CounterKey>() == 8);

/// Frames and bytes of one endpoint in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Frames let through. A GSO frame counts as the segments it becomes on the wire.
    pub packets: u64,
    /// Bytes let through, Ethernet header included, as on the wire.
    pub bytes: u64,
    /// Frames dropped, for all reasons together (as the kernel sees them: a GSO frame is one).
    pub dropped: u64,
    /// Of `packets`, those sent straight into the receiver's namespace: the fast path. Only from the pod.
    pub fast: u64,
    /// Of `packets`, those that took the receiver's own program because they were fragments.
    pub slow_fragment: u64,
    /// Likewise, because of IPv4 options or IPv6 extension headers.
    pub slow_options: u64,
    /// Likewise, because they were ICMP errors.
    pub slow_error: u64,
    /// Likewise, because the kernel lacks `bpf_redirect_peer`.
    pub slow_no_peer: u64,
    /// Of `packets`, those that the program sent out of an uplink itself, or that came in there and went straight into
    /// the pod's namespace.
    pub uplink: u64,
    /// Likewise through a tunnel to another node, or from one.
    pub overlay: u64,
}

const _: () = assert!(size_of::<Traffic>() == 80);

impl Traffic {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        packets: 0,
        bytes: 0,
        dropped: 0,
        fast: 0,
        slow_fragment: 0,
        slow_options: 0,
        slow_error: 0,
        slow_no_peer: 0,
        uplink: 0,
        overlay: 0,
    };
}

/// Which way a frame that passed went on; the place of its counter in [`Traffic`].
pub mod path {
    /// Through the host, or to the wire: not counted apart.
    pub const HOST: u32 = 0;
    /// [`super::Traffic::fast`].
    pub const FAST: u32 = 1;
    /// [`super::Traffic::slow_fragment`].
    pub const FRAGMENT: u32 = 2;
    /// [`super::Traffic::slow_options`].
    pub const OPTIONS: u32 = 3;
    /// [`super::Traffic::slow_error`].
    pub const ERROR: u32 = 4;
    /// [`super::Traffic::slow_no_peer`].
    pub const NO_PEER: u32 = 5;
    /// [`super::Traffic::uplink`], as on one Ethernet; or in from an uplink.
    pub const UPLINK: u32 = 6;
    /// [`super::Traffic::uplink`], with the neighbour found by the kernel's routes.
    pub const ROUTED: u32 = 7;
    /// [`super::Traffic::overlay`].
    pub const OVERLAY: u32 = 8;
    /// Likewise, with the tunnel's headers put on by the program, and sent.
    pub const ENCAPSULATED: u32 = 9;
}
