//! How many flows an endpoint may hold in the table of all.

use bytemuck::{Pod, Zeroable};

use crate::flow::{Flow, HIGH_OPENED};

/// The share of one endpoint, by endpoint id.
///
/// The programs keep the count as flows open and are forgotten. Those that end by age or are evicted are not noticed by
/// it; so each complete sweep of the table counts anew.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Budget {
    /// Flows it holds; read as signed, since a count that is put right may be one too small for a moment.
    pub open: u64,
    /// Those that the sweep under way has found so far.
    pub counting: u64,
    /// When the last sweep was complete, coarse monotonic nanoseconds; 0: there was none yet.
    pub counted_at: u64,
    /// Most flows it may hold. Written by user space.
    pub most: u64,
}

const _: () = assert!(size_of::<Budget>() == 32);

/// For how long a count is good for refusing flows, in nanoseconds. Without a daemon nobody sweeps: then flows that are
/// over stay in the count, and the table falls back to evicting what was used least recently.
pub const COUNT_HOLDS: u64 = 60_000_000_000;

impl Budget {
    /// Whether one more flow must be refused at `now`.
    #[must_use]
    #[inline]
    pub const fn is_used_up(open: u64, most: u64, counted_at: u64, now: u64) -> bool {
        open.cast_signed() >= most.cast_signed() && now.saturating_sub(counted_at) <= COUNT_HOLDS
    }
}

/// The endpoint whose budget a flow is taken from: the one that opened it, or if that is not on this node the one it
/// was opened to.
#[must_use]
#[inline]
pub const fn payer(flow: &Flow) -> u32 {
    let (opener, other) =
        if flow.state & HIGH_OPENED == 0 { (flow.low, flow.high) } else { (flow.high, flow.low) };
    if opener.endpoint == 0 { other.endpoint } else { opener.endpoint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Side;

    #[test]
    fn the_opener_pays_or_else_who_is_here() {
        let side = |endpoint| Side { endpoint, policy: 1 };
        let flow = |state, low, high| Flow { state, low: side(low), high: side(high), ..Flow::default() };
        assert_eq!(payer(&flow(0, 3, 4)), 3);
        assert_eq!(payer(&flow(HIGH_OPENED, 3, 4)), 4);
        assert_eq!(payer(&flow(0, 0, 4)), 4);
        assert_eq!(payer(&flow(HIGH_OPENED, 3, 0)), 3);
    }

    #[test]
    fn a_count_refuses_only_while_it_is_fresh() {
        assert!(Budget::is_used_up(8, 8, 5, 5));
        assert!(!Budget::is_used_up(7, 8, 5, 5));
        assert!(!Budget::is_used_up(u64::MAX, 8, 5, 5), "-1");
        assert!(!Budget::is_used_up(8, 8, 5, 6 + COUNT_HOLDS));
    }
}
