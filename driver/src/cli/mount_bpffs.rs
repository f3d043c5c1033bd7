//! `netferry mount-bpffs`: the file system in which pinned programs and maps outlive the daemon.

use std::path::Path;

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Where every distribution mounts it.
const BPFFS: &str = "/sys/fs/bpf";

/// Mount it at `/sys/fs/bpf`, unless it is there.
pub fn run() -> Result<()> {
    mount_at(Path::new(BPFFS))
}

fn mount_at(path: &Path) -> Result<()> {
    let found = statfs(path).with_context(|| format!("cannot read the file system of {}", path.display()))?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=700"))
        .with_context(|| format!("cannot mount a bpf file system on {}", path.display()))
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn it_is_mounted_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        // In a mount namespace of the thread's own, which ends with it.
        let mounts = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).ok()?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
            mount_at(&path).expect("first");
            mount_at(&path).expect("second");
            let mounts = std::fs::read_to_string("/proc/thread-self/mounts").expect("mounts");
            let on = format!(" {} bpf ", path.display());
            Some(mounts.lines().filter(|line| line.contains(&on)).count())
        })
        .join()
        .expect("thread");
        // Only root may make the namespace.
        assert!(mounts.is_none_or(|count| count == 1), "{mounts:?}");
        assert!(mount_at(Path::new("/nonexistent")).is_err());
    }
}
