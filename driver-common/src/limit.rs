//! Rate limits, by the generic cell rate algorithm: one number of state, no timer, exact in the long run.

use bytemuck::{Pod, Zeroable};

/// [`LimitKey::kind`]: bytes as on the wire.
pub const BYTES: u32 = 0;
/// [`LimitKey::kind`]: frames as on the wire.
pub const FRAMES: u32 = 1;
/// [`LimitKey::kind`]: new flows.
pub const FLOWS: u32 = 2;

/// [`LimitKey::kind`]: events about frames that were dropped.
pub const DENIES: u32 = 3;

/// Which limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct LimitKey {
    /// Endpoint id.
    pub endpoint: u32,
    /// A [`crate::Direction`] as number.
    pub direction: u32,
    /// [`BYTES`], [`FRAMES`], [`FLOWS`] or [`DENIES`].
    pub kind: u32,
}

const _: () = assert!(size_of::<LimitKey>() == 12);

/// [`crate::Endpoint::flags`]: a [`BYTES`] or [`FRAMES`] limit exists for what the pod sends.
pub const LIMIT_FROM_POD: u32 = 16;
/// [`crate::Endpoint::flags`]: a [`BYTES`] or [`FRAMES`] limit exists for what is sent to the pod.
pub const LIMIT_TO_POD: u32 = 32;

/// Fraction bits of [`Limit::increment`].
pub const FRACTION: u32 = 16;

/// A limit and its state.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Limit {
    /// When all that was taken is paid back, coarse monotonic nanoseconds. User space writes 0; programs move it.
    pub paid_at: u64,
    /// Nanoseconds that one unit takes, times 2^[`FRACTION`].
    pub increment: u64,
    /// Burst, as the nanoseconds in which it is paid back. At least [`MIN_BURST`].
    pub burst: u64,
}

const _: () = assert!(size_of::<Limit>() == 24);

/// ICMP errors that an endpoint is sent, or that are sent in its name: 100 a second, and 10 at once. A sender that is
/// refused needs one, and a flood of datagrams must not become a flood of errors.
pub const ERRORS: Limit = Limit { paid_at: 0, increment: 10_000_000 << FRACTION, burst: 100_000_000 };

/// The burst of bytes and frames where none is asked for, in milliseconds of the rate: the least retransmission timeout of
/// Linux's TCP (`TCP_RTO_MIN`). On a short path a sender fills any burst at once, loses all that follows, and waits that
/// long; what the burst cannot hold of the wait is lost to it. At most 2 % more than the rate pass in any ten seconds.
pub const USUAL_BURST: u64 = 200;

/// The least [`Limit::burst`], in nanoseconds: the coarse clock moves in steps of up to 10 ms.
pub const MIN_BURST: u64 = 20_000_000;

impl Limit {
    /// A limit of `rate` units a second (at least 1) with the burst [`USUAL_BURST`].
    #[must_use]
    pub fn usual(rate: u64) -> Self {
        Self::new(rate, rate.saturating_mul(USUAL_BURST) / 1000)
    }

    /// A limit of `rate` units a second (at least 1) with a burst of `burst` units.
    #[must_use]
    pub fn new(rate: u64, burst: u64) -> Self {
        let increment = (u128::from(NANOSECONDS) << FRACTION) / u128::from(rate.max(1));
        let refill = (u128::from(burst) * increment) >> FRACTION;
        Self {
            paid_at: 0,
            increment: u64::try_from(increment).unwrap_or(u64::MAX),
            burst: u64::try_from(refill).unwrap_or(u64::MAX).clamp(MIN_BURST, NANOSECONDS * 3600),
        }
    }

    /// When all will be paid back if `units` are taken at `now`; `None` if the debt is above the burst already. So
    /// the last frame may overdraw, which keeps the rate exact and lets frames larger than the burst through.
    #[must_use]
    #[inline]
    pub const fn take(&self, paid_at: u64, now: u64, units: u64) -> Option<u64> {
        let start = if paid_at > now { paid_at } else { now };
        if start - now > self.burst {
            return None;
        }
        Some(start + (units.wrapping_mul(self.increment) >> FRACTION))
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes let through in ten seconds of frames offered at twice the rate, on a clock of 4 ms steps. Before, nothing was
    /// sent for long, or enough for the burst.
    fn through(rate: u64, frame: u64, rested: bool) -> u64 {
        let limit = Limit::usual(rate);
        let (mut paid_at, mut passed, mut sent) = (if rested { 0 } else { limit.burst }, 0, 0);
        while sent < 20 * rate {
            let now =
                1 + u64::try_from(u128::from(sent) * u128::from(NANOSECONDS) / u128::from(2 * rate)).unwrap();
            if let Some(next) = limit.take(paid_at, now / 4_000_000 * 4_000_000, frame) {
                paid_at = next;
                passed += frame;
            }
            sent += frame;
        }
        passed
    }

    #[test]
    fn exact_within_two_percent_over_ten_seconds() {
        for (rate, frame) in [(100_000_000 / 8, 1514), (5_000_000_000 / 8, 1514), (1000, 60)] {
            let exact = 10 * rate;
            let passed = through(rate, frame, false);
            assert!(
                passed.abs_diff(exact) <= exact / 500 + 2 * frame,
                "{passed} of {exact} at {rate} bytes/s"
            );
            // After a rest the burst comes on top, and no more.
            let passed = through(rate, frame, true);
            assert!((exact..=exact + exact / 50 + 2 * frame).contains(&passed), "{passed} of {exact}");
        }
    }
}
