//! Whose turn it is: work on one claim, pod or sandbox is done one after the other, and work on different ones at once.
//!
//! Two pods never race for a device, which one claim has, or for a name, which is unique in one pod. So there is no lock for
//! the node but the one that a recovery takes: it looks at everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex as StdMutex, PoisonError, Weak},
};

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Something that one piece of work at a time is done on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// A claim, by its UID.
    Claim(String),
    /// A pod, by its UID: its namespace, and the names in it.
    Pod(String),
    /// A sandbox, by the runtime's id: it may be stopped before any record names it.
    Sandbox(String),
}

/// The turns of a node.
#[derive(Default)]
pub(super) struct Turns {
    all: Arc<RwLock<()>>,
    parts: StdMutex<BTreeMap<Part, Weak<Mutex<()>>>>,
}

/// The turn with some parts, until it is dropped.
pub(super) struct Turn {
    _parts: Vec<OwnedMutexGuard<()>>,
    _all: OwnedRwLockReadGuard<()>,
}

impl Turns {
    /// The turn with everything.
    pub(super) async fn of_all(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.all).write_owned().await
    }

    /// The turn with what `parts` names, also after the wait for it.
    pub(super) async fn of(&self, parts: impl Fn() -> BTreeSet<Part>) -> Turn {
        let mut wanted = parts();
        loop {
            let turn = self.wait(&wanted).await;
            let now = parts();
            if now.is_subset(&wanted) {
                return turn;
            }
            // Never more while some are had: two that wait for each other's parts would wait for ever.
            drop(turn);
            wanted.extend(now);
        }
    }

    /// In one order, whoever asks.
    async fn wait(&self, wanted: &BTreeSet<Part>) -> Turn {
        let all = Arc::clone(&self.all).read_owned().await;
        let mut parts = Vec::with_capacity(wanted.len());
        for part in wanted {
            parts.push(self.lock_of(part).lock_owned().await);
        }
        Turn { _parts: parts, _all: all }
    }

    fn lock_of(&self, part: &Part) -> Arc<Mutex<()>> {
        // A poisoned lock is used on: what it guards is whole after each statement.
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = parts.get(part).and_then(Weak::upgrade) {
            return lock;
        }
        parts.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(Mutex::new(()));
        parts.insert(part.clone(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::FutureExt as _;

    use super::*;

    fn parts(names: &[&str]) -> BTreeSet<Part> {
        names.iter().map(|name| Part::Claim((*name).to_owned())).collect()
    }

    #[tokio::test]
    async fn different_parts_do_not_wait_and_the_same_ones_do() {
        let turns = Turns::default();
        let one = turns.of(|| parts(&["a", "b"])).await;
        let other = turns.of(|| parts(&["c"])).now_or_never().expect("nobody works on c");
        assert!(turns.of(|| parts(&["b", "d"])).now_or_never().is_none(), "b is worked on");
        assert!(turns.of_all().now_or_never().is_none());
        drop((one, other));
        let all = turns.of_all().now_or_never().expect("nothing is worked on");
        assert!(turns.of(|| parts(&["e"])).now_or_never().is_none());
        drop(all);
        assert!(turns.of(|| parts(&["b", "d"])).now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_is_named_after_the_wait_is_waited_for_too() {
        let turns = Arc::new(Turns::default());
        let (first, second) = (turns.of(|| parts(&["a"])).await, turns.of(|| parts(&["b"])).await);
        let more = Arc::new(AtomicBool::new(false));
        let (waiting, named) = (Arc::clone(&turns), Arc::clone(&more));
        let mut third = tokio::spawn(async move {
            let wanted = || if named.load(Ordering::SeqCst) { parts(&["a", "b"]) } else { parts(&["a"]) };
            drop(waiting.of(wanted).await);
        });
        tokio::task::yield_now().await;
        more.store(true, Ordering::SeqCst);
        drop(first);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert!((&mut third).now_or_never().is_none(), "b is worked on");
        drop(second);
        third.await.expect("its turn comes");
    }

    #[tokio::test]
    async fn what_nobody_works_on_is_forgotten() {
        let turns = Turns::default();
        for number in 0..100 {
            drop(turns.of(|| parts(&[&number.to_string()])).await);
        }
        assert!(turns.parts.lock().expect("parts").len() <= 1);
    }
}
