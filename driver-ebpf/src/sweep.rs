//! The broom of the tables of flows and fragments, which user space has run from time to time.
//!
//! No program counts on it: a flow is over by its age. It makes room before a table has to evict, and puts the counts of
//! [`crate::budget`] right.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::{bpf_for_each_map_elem, bpf_ktime_get_ns};
use netferry_common::flow::{FRAGMENT_LIFETIME, expired};
use netferry_common::{Budget, Flow, FlowKey, Fragment, FragmentKey, budget};

use crate::atomic::Word;
use crate::budget::SharedBudget;
use crate::maps::{BUDGETS, FLOWS, FRAGMENTS};

/// What is over must be so for this long, nanoseconds: no frame that found it alive is still on its way then, which may
/// bring [`Flow::seen`] up to date.
const MARGIN: u64 = 2_000_000_000;

/// Most entries that one run removes, so that the locks of the tables are not taken too often at a stretch.
pub const MOST: u64 = 4096;

/// A flow that is over and about to be removed: of no time.
const DEAD: u64 = 1;

#[repr(C)]
struct Tally {
    now: u64,
    /// Changed atomically although it is nobody else's: the verifier then takes it for any number, and does not follow
    /// the walk for as long as it counts.
    removed: Word,
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

type Callback = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void, *mut Tally) -> i64;

/// Sweeps both tables. Returns how many entries it removed; [`MOST`] means that there may be more.
#[inline(always)]
pub fn sweep() -> i32 {
    // SAFETY: the helper reads a clock. Programs of this kind have no coarse one; it is some milliseconds behind this.
    let mut tally = Tally { now: unsafe { bpf_ktime_get_ns() }, removed: Word::new(0) };
    each(ptr::from_ref(&FLOWS).cast(), flow, &mut tally);
    // Only a walk that came to its end has counted every flow.
    let settle = if tally.removed.load() < MOST { publish as Callback } else { forget as Callback };
    each(ptr::from_ref(&BUDGETS).cast(), settle, &mut tally);
    each(ptr::from_ref(&FRAGMENTS).cast(), fragment, &mut tally);
    tally.removed.load() as i32
}

#[inline(always)]
fn each(map: *const c_void, callback: Callback, tally: &mut Tally) {
    // SAFETY: the map is one, and the callback takes what the kernel gives it: map, key, value and `tally`.
    unsafe { bpf_for_each_map_elem(map.cast_mut(), callback as *mut c_void, ptr::from_mut(tally).cast(), 0) };
}

unsafe extern "C" fn flow(_: *mut c_void, key: *mut c_void, value: *mut c_void, tally: *mut Tally) -> i64 {
    // SAFETY: the kernel calls this with an element of `FLOWS` and the tally of `sweep`. `seen` is the element's first
    // word, and the rest is only read.
    let (key, seen, flow, tally) =
        unsafe { (&*key.cast::<FlowKey>(), &*value.cast::<Word>(), &*value.cast::<Flow>(), &*tally) };
    let before = seen.load();
    let aged = Flow { seen: before.saturating_add(MARGIN), ..*flow };
    if !expired(key.protocol as u8, &aged, tally.now) {
        if let Some(budget) = crate::budget::of(budget::payer(&aged)) {
            budget.counting.add(1);
        }
        return GO_ON;
    }
    // If a frame has opened it anew since, or the element is another flow's now, its time is another one.
    if seen.exchange(before, DEAD) && FLOWS.remove(key).is_ok() {
        tally.removed.add(1);
    }
    if tally.removed.load() < MOST { GO_ON } else { STOP }
}

unsafe extern "C" fn fragment(
    _: *mut c_void,
    key: *mut c_void,
    value: *mut c_void,
    tally: *mut Tally,
) -> i64 {
    // SAFETY: as above, with an element of `FRAGMENTS`.
    let (key, first, tally) = unsafe { (&*key.cast::<FragmentKey>(), &*value.cast::<Fragment>(), &*tally) };
    if tally.now.saturating_sub(first.seen) > FRAGMENT_LIFETIME + MARGIN && FRAGMENTS.remove(key).is_ok() {
        tally.removed.add(1);
    }
    if tally.removed.load() < MOST { GO_ON } else { STOP }
}

unsafe extern "C" fn publish(_: *mut c_void, _: *mut c_void, value: *mut c_void, tally: *mut Tally) -> i64 {
    // SAFETY: as above, with an element of `BUDGETS`.
    let (budget, tally) = unsafe { (&*value.cast::<SharedBudget>(), &*tally) };
    budget.open.store(budget.counting.load());
    budget.counting.store(0);
    budget.counted_at.store(tally.now);
    GO_ON
}

unsafe extern "C" fn forget(_: *mut c_void, _: *mut c_void, value: *mut c_void, _: *mut Tally) -> i64 {
    // SAFETY: as above.
    unsafe { &*value.cast::<SharedBudget>() }.counting.store(0);
    GO_ON
}

const _: () = assert!(core::mem::offset_of!(Flow, seen) == 0);
const _: () = assert!(size_of::<Budget>() == size_of::<SharedBudget>());
