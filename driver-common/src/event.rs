//! What the programs report as it happens, through a ring buffer.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// [`Event::kind`]: a flow was let open.
pub const OPEN: u32 = 1;
/// [`Event::kind`]: a flow ended by TCP FIN or RST, or SCTP SHUTDOWN or ABORT. Others end silently, by age.
pub const CLOSE: u32 = 2;
/// [`Event::kind`]: a frame was dropped; [`Event::reason`] says why.
pub const DENY: u32 = 3;

/// One event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// Coarse monotonic time, nanoseconds since boot.
    pub time: u64,
    /// [`OPEN`], [`CLOSE`] or [`DENY`].
    pub kind: u32,
    /// Endpoint id.
    pub endpoint: u32,
    /// A [`crate::Direction`] as number: which way the frame went.
    pub direction: u32,
    /// A [`crate::Reason`] as number; 0 unless [`DENY`].
    pub reason: u32,
    /// Number of the rule that decided; 0 where none did.
    pub rule: u32,
    /// Source of the frame; `::` where it had no address that could be read.
    pub source: Addr,
    /// Destination of the frame.
    pub destination: Addr,
    /// Source port, big endian.
    pub source_port: [u8; 2],
    /// Destination port, big endian.
    pub destination_port: [u8; 2],
    /// IP protocol number; 0 if it is not IP.
    pub protocol: u32,
    /// Always 0.
    pub pad: u32,
}

const _: () = assert!(size_of::<Event>() == 72);
