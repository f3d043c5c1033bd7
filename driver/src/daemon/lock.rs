//! Which instance of the driver is the node's active one: who holds the lock of the state folder.
//!
//! The kernel lets go of it when the process ends, however that happens.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::sync::oneshot;

/// Held by the active instance; names its plugin socket.
const ACTIVE: &str = "active.lock";
/// Held, shared, by those that wait to become it.
const STANDBY: &str = "standby.lock";

/// The lock of the state folder. It is held until the process ends or this is dropped.
pub(super) struct StateLock(Flock<File>);

fn open(state_dir: &Path, name: &str) -> io::Result<File> {
    fs::create_dir_all(state_dir)?;
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(state_dir.join(name))
}

fn lock(file: File, how: FlockArg) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

impl StateLock {
    /// Take the lock if nobody has it.
    pub(super) fn try_take(state_dir: &Path) -> io::Result<Option<Self>> {
        Ok(lock(open(state_dir, ACTIVE)?, FlockArg::LockExclusiveNonblock)?.map(Self))
    }

    /// Take the lock as soon as whoever has it lets go. Meanwhile [`others_wait`] says so.
    pub(super) async fn wait(state_dir: &Path) -> io::Result<Self> {
        let waiting = lock(open(state_dir, STANDBY)?, FlockArg::LockSharedNonblock)?;
        let file = open(state_dir, ACTIVE)?;
        let (sender, taken) = oneshot::channel();
        // A thread of its own, which the end of the process does not wait for.
        std::thread::Builder::new().name("state lock".to_owned()).spawn(move || {
            let _ = sender.send(lock(file, FlockArg::LockExclusive));
        })?;
        let taken = taken.await.map_err(io::Error::other)??;
        drop(waiting);
        taken.map(Self).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Write down where this instance serves the kubelet, for those that forward calls to it.
    pub(super) fn announce(&mut self, plugin_socket: &Path) -> io::Result<()> {
        let text = plugin_socket.to_string_lossy();
        self.0.set_len(0)?;
        io::Seek::rewind(&mut *self.0)?;
        self.0.write_all(text.as_bytes())
    }
}

/// Where the active instance serves the kubelet, as far as it has said.
pub(super) fn active_socket(state_dir: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(state_dir.join(ACTIVE)).ok()?;
    (!text.is_empty()).then(|| PathBuf::from(text))
}

/// Whether another instance waits for the lock.
pub(super) fn others_wait(state_dir: &Path) -> bool {
    let file = open(state_dir, STANDBY);
    file.and_then(|file| lock(file, FlockArg::LockExclusiveNonblock)).is_ok_and(|free| free.is_none())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_has_the_lock_and_the_next_gets_it() {
        let folder = tempfile::tempdir().expect("folder");
        let mut first = StateLock::try_take(folder.path()).expect("lock").expect("free");
        assert!(StateLock::try_take(folder.path()).expect("lock").is_none());
        assert_eq!(active_socket(folder.path()), None);
        first.announce(Path::new("/a/longer/path.sock")).expect("announce");
        first.announce(Path::new("/a.sock")).expect("announce");
        assert_eq!(active_socket(folder.path()), Some(PathBuf::from("/a.sock")));
        assert!(!others_wait(folder.path()));
        let dir = folder.path().to_owned();
        let waiting = tokio::spawn(async move { StateLock::wait(&dir).await });
        while !others_wait(folder.path()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!waiting.is_finished());
        drop(first);
        let second = waiting.await.expect("runs").expect("lock");
        assert!(!others_wait(folder.path()));
        assert!(StateLock::try_take(folder.path()).expect("lock").is_none());
        drop(second);
        assert!(StateLock::try_take(folder.path()).expect("lock").is_some());
    }
}
