//! Which case has which of the node's links: two cases at a time never have one link.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};

use super::{interrupt::interrupted, node::LINKS};

/// The links that no case has.
pub(crate) struct Pool {
    free: Mutex<Vec<usize>>,
    returned: Condvar,
}

impl Pool {
    /// A pool with all links.
    pub(crate) fn new() -> Self {
        Self { free: Mutex::new((1..=LINKS).rev().collect()), returned: Condvar::new() }
    }

    /// Takes links, and waits until there are enough.
    pub(crate) fn take(&self, count: usize) -> Result<Vec<usize>> {
        if count > LINKS {
            bail!("{count} links, and there are {LINKS}");
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while free.len() < count {
            if interrupted() {
                bail!("interrupted");
            }
            let waited = self.returned.wait_timeout(free, Duration::from_secs(1));
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let left = free.len() - count;
        let mut taken = free.split_off(left);
        taken.sort_unstable();
        Ok(taken)
    }

    /// Puts links back.
    pub(crate) fn put(&self, links: Vec<usize>) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).extend(links);
        self.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_given_once() {
        let pool = Pool::new();
        let mut all = pool.take(2).unwrap();
        all.extend(pool.take(LINKS - 2).unwrap());
        all.sort_unstable();
        assert_eq!(all, (1..=LINKS).collect::<Vec<_>>());
        assert!(pool.take(LINKS + 1).is_err());
    }
}
