//! A lock for each of many keys, for threads that may wait.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// One piece of work at a time on each key.
#[derive(Debug)]
pub(crate) struct Keyed<K> {
    busy: Mutex<BTreeSet<K>>,
    freed: Condvar,
}

impl<K> Default for Keyed<K> {
    fn default() -> Self {
        Self { busy: Mutex::default(), freed: Condvar::new() }
    }
}

/// The lock of a key, until it is dropped.
pub(crate) struct KeyGuard<'a, K: Ord> {
    of: &'a Keyed<K>,
    key: K,
}

impl<K: Ord + Clone> Keyed<K> {
    /// Wait until nobody works on the key. Not to be asked for twice by one thread.
    pub(crate) fn lock(&self, key: &K) -> KeyGuard<'_, K> {
        let mut busy = self.busy();
        while !busy.insert(key.clone()) {
            busy = self.freed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        KeyGuard { of: self, key: key.clone() }
    }
}

impl<K: Ord> Keyed<K> {
    /// A set whose changes are single calls is whole after a panic.
    fn busy(&self) -> MutexGuard<'_, BTreeSet<K>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord> Drop for KeyGuard<'_, K> {
    fn drop(&mut self) {
        self.of.busy().remove(&self.key);
        self.of.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        thread,
    };

    use super::*;

    #[test]
    fn keys_do_not_wait_for_each_other_and_one_key_does() {
        let keyed = Arc::new(Keyed::default());
        let one = keyed.lock(&1);
        drop(keyed.lock(&2));
        let (inside, most) = (Arc::new(AtomicU32::new(1)), Arc::new(AtomicU32::new(1)));
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let (keyed, inside, most) = (Arc::clone(&keyed), Arc::clone(&inside), Arc::clone(&most));
                thread::spawn(move || {
                    let _lock = keyed.lock(&1);
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        inside.fetch_sub(1, Ordering::SeqCst);
        drop(one);
        for thread in waiting {
            thread.join().expect("no panic");
        }
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }
}
