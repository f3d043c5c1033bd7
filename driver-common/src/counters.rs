//! Counters of an endpoint, one set per direction. Per-CPU maps: the reader adds the CPUs up.

use bytemuck::{Pod, Zeroable};

pub use crate::verdict::Drops;

/// Key of [`Traffic`] and [`Drops`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct CounterKey {
    /// Endpoint id.
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
}

const _: () = assert!(size_of::<Traffic>() == 24);
