//! Rate limits on bytes and frames, as on the wire.

use netferry_common::limit::{BYTES, FRAMES, LIMIT_FROM_POD, LIMIT_TO_POD};
use netferry_common::{Direction, LimitKey};

use crate::tables::Tables;

/// Whether an endpoint has such limits.
#[inline(always)]
pub fn is_limited(flags: u32, direction: Direction) -> bool {
    let limited = match direction {
        Direction::FromPod => LIMIT_FROM_POD,
        Direction::ToPod => LIMIT_TO_POD,
    };
    flags & limited != 0
}

/// Charges frames and bytes; `false` if one of the limits is used up.
#[inline(always)]
pub fn charge<T: Tables>(tables: &T, endpoint: u32, direction: u32, frames: u64, bytes: u64) -> bool {
    let now = tables.now();
    let key = |kind| LimitKey { endpoint, direction, kind };
    tables.take(&key(BYTES), now, bytes) != Some(false)
        && tables.take(&key(FRAMES), now, frames) != Some(false)
}
