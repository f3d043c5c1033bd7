//! Whether the folder may have changed since it was last read: by its files' inodes, sizes and times, not by their contents.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Two changes within a step of the kernel's clock give a file one time. Times that are younger than this prove nothing.
const SETTLED: Duration = Duration::from_secs(2);
/// Readers that look within this time share one walk.
const SHARED: Duration = Duration::from_millis(200);

/// The folder's files at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u64);

/// The last stamp that was taken.
#[derive(Debug, Default)]
pub(super) struct Stamps(Mutex<Option<(Instant, Option<Stamp>)>>);

impl Stamps {
    /// The stamp of the folder, at most 200 ms old. Taken before a read, it is equal to a later one only if that read
    /// would find the same. `None` if that cannot be said: a file has just changed, or a part cannot be listed.
    pub(super) fn take(&self, root: &Path) -> Option<Stamp> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, stamp)) = *last
            && at.elapsed() < SHARED
        {
            return stamp;
        }
        let at = Instant::now();
        let stamp = stamp(root, SystemTime::now());
        *last = Some((at, stamp));
        stamp
    }
}

fn stamp(root: &Path, now: SystemTime) -> Option<Stamp> {
    let mut newest = 0;
    let sum = walk(root, &mut newest).ok()?;
    let settled = now.checked_sub(SETTLED)?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    (newest < i64::try_from(settled).ok()?).then_some(Stamp(sum))
}

/// A sum over everything below `dir` that does not depend on the order in which the kernel lists it.
fn walk(dir: &Path, newest: &mut i64) -> io::Result<u64> {
    let mut sum = 0_u64;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // A link counts by what it leads to; one that leads nowhere by itself.
        let facts = fs::metadata(&path).or_else(|_| fs::symlink_metadata(&path))?;
        *newest = (*newest).max(facts.ctime());
        let mut hasher = DefaultHasher::new();
        (&path, facts.dev(), facts.ino(), facts.size(), facts.ctime(), facts.ctime_nsec(), facts.mode())
            .hash(&mut hasher);
        sum = sum.wrapping_add(hasher.finish());
        if entry.file_type()?.is_dir() {
            sum = sum.wrapping_add(walk(&path, newest)?);
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_gives_another_stamp_and_a_young_one_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let later = || SystemTime::now() + Duration::from_mins(1);
        let mut stamps = vec![stamp(root, later()).unwrap()];
        let mut changed = |what: &str| {
            let now = stamp(root, later()).unwrap();
            assert_eq!(stamp(root, later()), Some(now), "{what}: the same again");
            assert!(!stamps.contains(&now), "{what}");
            stamps.push(now);
        };
        fs::create_dir(root.join("claims")).unwrap();
        changed("a folder");
        fs::write(root.join("claims/a.yaml"), "a").unwrap();
        changed("a file");
        fs::write(root.join("claims/a.yaml"), "ab").unwrap();
        changed("another size");
        fs::write(root.join("b"), "ab").unwrap();
        fs::rename(root.join("b"), root.join("claims/a.yaml")).unwrap();
        changed("another file of the same size");
        fs::remove_file(root.join("claims/a.yaml")).unwrap();
        assert_eq!(stamp(root, SystemTime::now()), None, "it has just changed");
        assert_eq!(stamp(&root.join("none"), later()), None);
    }
}
