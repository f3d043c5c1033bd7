//! Numbers of endpoints: read from the kernel once, and known from then on.

use std::collections::{BTreeMap, BTreeSet};

use netferry_common::{flow::SCOPE_ENDPOINT, maps::MAX_ENDPOINTS, slot};
use tokio::sync::Mutex;

use super::Attacher;
use crate::datapath::{DatapathError, EndpointId};

/// Which numbers are in use. `None` until they are asked for, and after all were.
#[derive(Default)]
pub(super) struct Numbers(Mutex<Option<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Highest number given out: none is used again while it can be helped, as flows of its last bearer may be left.
    last: EndpointId,
    used: BTreeSet<EndpointId>,
    /// Slots with how many endpoints share them: one, unless there were more endpoints than slots.
    slots: BTreeMap<u32, u32>,
}

impl Known {
    fn new(used: BTreeSet<EndpointId>, last: EndpointId) -> Self {
        let mut known = Self { last: used.iter().copied().fold(last, u32::max), ..Self::default() };
        for id in used {
            known.take(id);
        }
        known
    }

    fn take(&mut self, id: EndpointId) {
        if self.used.insert(id) {
            *self.slots.entry(slot::of(id)).or_default() += 1;
        }
    }

    fn free(&mut self, id: EndpointId) {
        if !self.used.remove(&id) {
            return;
        }
        let left = self.slots.get(&slot::of(id)).map_or(0, |shared| shared.saturating_sub(1));
        match left {
            0 => drop(self.slots.remove(&slot::of(id))),
            left => drop(self.slots.insert(slot::of(id), left)),
        }
    }

    /// The next number whose slot is free; with none, the next one, and whether that is so.
    fn next(&mut self) -> (EndpointId, bool) {
        let mut id = next_id(self.last);
        let mut is_free = false;
        for _ in 0..MAX_ENDPOINTS {
            is_free = !self.slots.contains_key(&slot::of(id));
            if is_free {
                break;
            }
            id = next_id(id);
        }
        (id, is_free)
    }
}

impl Attacher {
    /// A number that no checkpoint, pin or map entry has or had, with a slot that is free.
    pub(super) async fn new_endpoint(&self) -> Result<EndpointId, DatapathError> {
        let mut numbers = self.numbers.0.lock().await;
        let mut known = match numbers.take() {
            Some(known) => known,
            None => self.read_numbers(0).await?,
        };
        let (mut id, is_free) = known.next();
        if !is_free {
            // Some may be in use for nothing: an attach failed between the number and its record.
            known = self.read_numbers(known.last).await?;
            id = known.next().0;
        }
        known.take(id);
        known.last = id;
        *numbers = Some(known);
        Ok(id)
    }

    async fn read_numbers(&self, last: EndpointId) -> Result<Known, DatapathError> {
        let read = |datapath: &dyn crate::datapath::Datapath| {
            Ok::<_, DatapathError>((datapath.endpoints()?, datapath.last_endpoint()?))
        };
        let (mut used, ever) = self.datapath(read).await?;
        used.extend(self.held_endpoints());
        Ok(Known::new(used.into_iter().collect(), ever.max(last)))
    }

    /// Close the gate of an endpoint, take its programs off, and forget it.
    pub(super) async fn forget_endpoint(&self, id: EndpointId) -> Result<(), DatapathError> {
        self.datapath(move |datapath| datapath.detach(id)).await?;
        self.free_number(id).await;
        Ok(())
    }

    pub(super) async fn free_number(&self, id: EndpointId) {
        if let Some(known) = &mut *self.numbers.0.lock().await {
            known.free(id);
        }
    }
}

/// Numbers are of 31 bits: the highest one says in a flow whose it is.
fn next_id(id: EndpointId) -> EndpointId {
    id.checked_add(1).filter(|id| *id < SCOPE_ENDPOINT).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: u32 = 4096;
    const _: () = assert!(SLOTS as usize == MAX_ENDPOINTS);

    #[test]
    fn numbers_go_on_and_skip_slots_that_are_taken() {
        let mut known = Known::new(BTreeSet::from([7]), 9);
        assert_eq!(known.next(), (10, true));
        known.take(10);
        known.last = 10;
        known.take(11);
        assert_eq!(known.next(), (12, true), "11 has its slot");
        known.last = SLOTS + 6;
        assert_eq!(known.next(), (SLOTS + 8, true), "7 has the slot of {}", SLOTS + 7);
        known.free(7);
        assert_eq!(known.next(), (SLOTS + 7, true));
        known.last = SCOPE_ENDPOINT - 1;
        assert_eq!(known.next().0, 1, "0 is no endpoint");
    }

    #[test]
    fn a_shared_slot_is_free_when_both_are_gone_and_a_full_table_says_so() {
        let mut known = Known::new(BTreeSet::from([3, 3 + SLOTS]), 2);
        known.free(3);
        known.free(3);
        assert_ne!(known.next().0, 3);
        known.free(3 + SLOTS);
        known.last = 2;
        assert_eq!(known.next(), (3, true));
        (1..=SLOTS).for_each(|id| known.take(id));
        assert!(!known.next().1);
    }
}
