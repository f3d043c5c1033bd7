//! The flows an endpoint holds in the table of all, counted.

use netferry_common::{Budget, Flow, budget};

use crate::atomic::Word;
use crate::maps::BUDGETS;

/// [`Budget`] in the map, which several CPUs read and write at a time.
#[repr(C)]
pub(crate) struct SharedBudget {
    pub(crate) open: Word,
    pub(crate) counting: Word,
    pub(crate) counted_at: Word,
    pub(crate) most: Word,
}

const _: () = assert!(size_of::<SharedBudget>() == size_of::<Budget>());

/// The budget of an endpoint, if user space gave it one.
#[inline(always)]
pub(crate) fn of(endpoint: u32) -> Option<&'static SharedBudget> {
    let budget = BUDGETS.get_ptr_mut(endpoint)?;
    // SAFETY: the layouts are the same, and all of a `SharedBudget` is atomic.
    Some(unsafe { &*budget.cast::<SharedBudget>() })
}

/// Counts a flow that is about to open. `false`: its endpoint holds as many as it may.
#[inline(always)]
pub(crate) fn take(flow: &Flow) -> bool {
    let Some(budget) = of(budget::payer(flow)) else { return true };
    if Budget::is_used_up(budget.open.load(), budget.most.load(), budget.counted_at.load(), flow.seen) {
        return false;
    }
    budget.open.add(1);
    true
}

/// Takes a flow off the count again.
#[inline(always)]
pub(crate) fn give_back(payer: u32) {
    if let Some(budget) = of(payer) {
        budget.open.add(u64::MAX);
    }
}
