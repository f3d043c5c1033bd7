//! Connection tracking: one entry a flow, the same for both of its directions.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// [`crate::Endpoint::flags`]: flows are tracked although neither policy nor network asks for it.
pub const TRACK: u32 = 8;

/// Bit of [`FlowKey::scope`]: the rest is an endpoint id, not a network.
///
/// Wires may use the same addresses for different hosts, so on the wire each endpoint has flows of its own.
pub const SCOPE_ENDPOINT: u32 = 1 << 31;

/// A flow, whichever way its frames go: the side with the lower address (then port), as bytes, is the low one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// Network id, or endpoint id with [`SCOPE_ENDPOINT`].
    pub scope: u32,
    /// Address of the low side.
    pub low: Addr,
    /// Address of the high side.
    pub high: Addr,
    /// Port of the low side, big endian. For ICMP the identifier on the side that asked, and on the other 0 for an echo, 13
    /// for a timestamp. Else 0 where there are no ports.
    pub low_port: [u8; 2],
    /// Port of the high side.
    pub high_port: [u8; 2],
    /// IP protocol number, as a whole word so that no padding is left to chance.
    pub protocol: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 44);

/// One side of a flow, as it was judged.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Side {
    /// Endpoint id; 0 for a side that is not on this node, or was not judged yet.
    pub endpoint: u32,
    /// Policy version that allowed the flow. Another version in force means: judge again.
    pub policy: u32,
}

const _: () = assert!(size_of::<Side>() == 8);

/// [`Flow::state`]: the high side sent the first frame.
pub const HIGH_OPENED: u32 = 1;
/// [`Flow::state`]: the low side sent a frame.
pub const LOW_SENT: u32 = 2;
/// [`Flow::state`]: the high side sent a frame.
pub const HIGH_SENT: u32 = 4;
/// [`Flow::state`]: the low side sent a TCP FIN, or an SCTP SHUTDOWN.
pub const LOW_CLOSED: u32 = 8;
/// [`Flow::state`]: the high side sent a TCP FIN, or an SCTP SHUTDOWN.
pub const HIGH_CLOSED: u32 = 16;
/// [`Flow::state`]: a TCP RST or an SCTP ABORT was seen.
pub const RESET: u32 = 32;

/// What is known of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Coarse monotonic time of a recent frame, in nanoseconds since boot; brought up to date once a second.
    pub seen: u64,
    /// Bits above.
    pub state: u32,
    /// Number of the rule that let it open; 0 for the default.
    pub rule: u32,
    /// The low side.
    pub low: Side,
    /// The high side.
    pub high: Side,
}

const _: () = assert!(size_of::<Flow>() == 32);

const SECOND: u64 = 1_000_000_000;

/// For how long a flow without frames is still the same flow, in nanoseconds.
///
/// Short until both sides have spoken and after the end, so that a scan or a burst of short connections does not
/// fill the table.
#[must_use]
#[inline]
pub const fn lifetime(protocol: u8, state: u32) -> u64 {
    let answered = state & (LOW_SENT | HIGH_SENT) == LOW_SENT | HIGH_SENT;
    let closed = state & (LOW_CLOSED | HIGH_CLOSED) == LOW_CLOSED | HIGH_CLOSED;
    let seconds = match protocol {
        // TCP, SCTP
        6 | 132 if state & RESET != 0 || closed => 10,
        6 | 132 if !answered => 60,
        6 => 21_600,
        132 => 600,
        // UDP
        17 if answered => 180,
        _ => 30,
    };
    seconds * SECOND
}

/// Whether a flow is over at `now`, nanoseconds on the clock of [`Flow::seen`].
#[must_use]
#[inline]
pub const fn expired(protocol: u8, flow: &Flow, now: u64) -> bool {
    now.saturating_sub(flow.seen) > lifetime(protocol, flow.state)
}

/// Which datagram a fragment belongs to (RFC 791, RFC 8200), as seen by one endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Endpoint id.
    pub endpoint: u32,
    /// A [`crate::Direction`] as number.
    pub direction: u32,
    /// Source.
    pub source: Addr,
    /// Destination.
    pub destination: Addr,
    /// Identification: 16 bits of IPv4 or 32 bits of IPv6, in memory order.
    pub id: u32,
    /// IP protocol number of IPv4; 0 for IPv6, where it is not part of the identity.
    pub protocol: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 48);

/// A datagram whose first fragment was let through.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Fragment {
    /// Coarse monotonic time of the first fragment, nanoseconds.
    pub seen: u64,
    /// Policy version that let it through.
    pub policy: u32,
    /// Always 0.
    pub pad: u32,
}

const _: () = assert!(size_of::<Fragment>() == 16);

/// For how long later fragments are let through after the first, in nanoseconds: Linux's own limit for reassembly.
pub const FRAGMENT_LIFETIME: u64 = 30 * SECOND;
