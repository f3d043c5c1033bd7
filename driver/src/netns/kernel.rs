//! Holding namespaces by bind mounts below a folder of the driver's own.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use tokio::task::spawn_blocking;

use super::{Hold, Namespaces, NetnsError, NetnsId, Seen};
use crate::link::identity::{boot_id, netns_id};

/// Holds below one folder. Two daemons must not share it: each releases what it has no record of.
#[derive(Clone, Debug)]
pub struct KernelNamespaces {
    folder: PathBuf,
    /// The host's own namespace, where it is not the one this process is in.
    host: Option<PathBuf>,
}

impl KernelNamespaces {
    /// Holds are mounts below `folder`, which is made when the first is.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), host: None }
    }

    /// The same for a host whose own namespace is at this path.
    #[must_use]
    pub fn of_host(mut self, host: impl Into<PathBuf>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Open a path, and prove that it is the namespace of a sandbox.
    fn open(&self, path: &Path) -> Result<(File, NetnsId), NetnsError> {
        let file = File::open(path).map_err(|source| missing(path, source))?;
        let id = netns_id(&file).map_err(|source| not_a_namespace(path, source))?;
        let host = self.host.as_deref().unwrap_or(Path::new("/proc/self/ns/net"));
        let own = File::open(host).and_then(|own| netns_id(&own));
        let own = own.map_err(|source| NetnsError::Io { action: "identify", path: host.into(), source })?;
        if own == id {
            return Err(NetnsError::Host { path: path.to_owned() });
        }
        Ok((file, id))
    }

    fn hold_now(&self, path: &Path) -> Result<Hold, NetnsError> {
        let (file, id) = self.open(path)?;
        let hold = self.folder.join(file_name(&id));
        if File::open(&hold).and_then(|there| netns_id(&there)).is_ok_and(|there| there == id) {
            return Ok(Hold { id, path: hold });
        }
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| NetnsError::Io { action, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(failed("create", &self.folder))?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&hold)
            .map_err(failed("create", &hold))?;
        // By the descriptor: the path may lead elsewhere by now.
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        mount(Some(source.as_str()), &hold, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| failed("mount a network namespace on", &hold)(errno.into()))?;
        Ok(Hold { id, path: hold })
    }

    fn held_now(&self) -> Result<Vec<PathBuf>, NetnsError> {
        let listed = fs::read_dir(&self.folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        match listed {
            Ok(entries) => Ok(entries.into_iter().map(|entry| entry.path()).collect()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(NetnsError::Io { action: "list", path: self.folder.clone(), source }),
        }
    }

    /// By the mounts that this process sees: the runtime's are propagated to it.
    fn is_used_now(&self, hold: &Path) -> Result<bool, NetnsError> {
        const MOUNTS: &str = "/proc/self/mountinfo";
        let path = hold.to_owned();
        let mounts = fs::read_to_string(MOUNTS).map_err(|source| NetnsError::Io {
            action: "look for the mounts of",
            path,
            source,
        })?;
        // Fields of proc_pid_mountinfo(5): the root of a namespace's mount is its name, such as net:[4026531840].
        let fields = |line: &str| {
            let mut fields = line.split(' ').skip(3);
            let (root, point) = (fields.next()?.to_owned(), PathBuf::from(fields.next()?));
            line.contains(" - nsfs ").then_some((root, point))
        };
        let mounts: Vec<_> = mounts.lines().filter_map(fields).collect();
        let own = mounts.iter().find(|(_, point)| point == hold).map(|(root, _)| root);
        Ok(mounts.iter().any(|(root, point)| Some(root) == own && !point.starts_with(&self.folder)))
    }

    fn release_now(&self, hold: &Path) -> Result<(), NetnsError> {
        let failed = |action, source| Err(NetnsError::Io { action, path: hold.to_owned(), source });
        // Never anything but an entry of the folder, whatever a damaged record says.
        if hold.parent() != Some(self.folder.as_path()) {
            return failed("release", io::ErrorKind::InvalidInput.into());
        }
        // A daemon that was killed between two mounts may have left one above the other.
        loop {
            match umount2(hold, MntFlags::MNT_DETACH) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return failed("unmount", errno.into()),
            }
        }
        match fs::remove_file(hold) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => failed("remove", source),
            _ => Ok(()),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        path: &Path,
        call: impl FnOnce(&Self, &Path) -> Result<T, NetnsError> + Send + 'static,
    ) -> Result<T, NetnsError> {
        let (this, path) = (self.clone(), path.to_owned());
        match spawn_blocking(move || call(&this, &path)).await {
            Ok(result) => result,
            // Not cancelled: nothing aborts it. A panic goes on where it would have gone.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

#[async_trait]
impl Namespaces for KernelNamespaces {
    fn boot_id(&self) -> String {
        boot_id().to_owned()
    }

    async fn look(&self, path: &Path) -> Result<Seen, NetnsError> {
        let look = |this: &Self, path: &Path| {
            let (file, id) = this.open(path)?;
            let made = file.metadata().map_err(|source| not_a_namespace(path, source))?;
            Ok(Seen { id, since: i128::from(made.ctime()) * 1_000_000_000 + i128::from(made.ctime_nsec()) })
        };
        self.blocking(path, look).await
    }

    async fn hold(&self, path: &Path) -> Result<Hold, NetnsError> {
        self.blocking(path, Self::hold_now).await
    }

    async fn held(&self) -> Result<Vec<PathBuf>, NetnsError> {
        self.blocking(&self.folder, |this, _| this.held_now()).await
    }

    async fn is_used(&self, hold: &Path) -> Result<bool, NetnsError> {
        self.blocking(hold, Self::is_used_now).await
    }

    async fn release(&self, hold: &Path) -> Result<(), NetnsError> {
        self.blocking(hold, Self::release_now).await
    }
}

/// The cookie is not given again while the kernel runs; where the kernel has none (before Linux 5.14), the inode stands for
/// it, which is not given again while it is held.
fn file_name(id: &NetnsId) -> String {
    match id.cookie {
        0 => format!("inode-{}", id.ino),
        cookie => format!("net-{cookie}"),
    }
}

fn missing(path: &Path, source: io::Error) -> NetnsError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NetnsError::Gone { path, source },
        _ => NetnsError::Io { action: "open", path, source },
    }
}

/// A mount point whose mount is gone is an ordinary file.
fn not_a_namespace(path: &Path, source: io::Error) -> NetnsError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::InvalidInput => NetnsError::Gone { path, source },
        _ => NetnsError::Io { action: "identify", path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    struct Netns(String);

    impl Netns {
        fn new(name: &str) -> Self {
            assert!(Command::new("ip").args(["netns", "add", name]).status().unwrap().success());
            Self(name.to_owned())
        }

        fn path(&self) -> PathBuf {
            Path::new("/run/netns").join(&self.0)
        }
    }

    impl Drop for Netns {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }

    fn namespaces() -> Option<(tempfile::TempDir, KernelNamespaces)> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP netns::kernel: needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let namespaces = KernelNamespaces::new(dir.path().join("netns"));
        Some((dir, namespaces))
    }

    #[tokio::test]
    async fn a_held_namespace_outlives_its_path_and_goes_when_it_is_released() {
        let Some((_dir, namespaces)) = namespaces() else { return };
        let netns = Netns::new("nf-hold-1");
        let hold = namespaces.hold(&netns.path()).await.unwrap();
        assert_eq!(namespaces.look(&netns.path()).await.unwrap().id, hold.id);
        assert_eq!(namespaces.hold(&netns.path()).await.unwrap(), hold);
        let path = netns.path();
        assert!(namespaces.is_used(&hold.path).await.unwrap(), "by its own path");
        drop(netns);
        assert!(!namespaces.is_used(&hold.path).await.unwrap());
        assert!(namespaces.look(&path).await.unwrap_err().is_gone());
        assert_eq!(namespaces.look(&hold.path).await.unwrap().id, hold.id);
        assert_eq!(namespaces.held().await.unwrap(), std::slice::from_ref(&hold.path));
        namespaces.release(&hold.path).await.unwrap();
        assert_eq!(namespaces.held().await.unwrap(), Vec::<PathBuf>::new());
        assert!(namespaces.look(&hold.path).await.unwrap_err().is_gone());
        // Released twice, as a daemon that was killed does.
        namespaces.release(&hold.path).await.unwrap();
    }

    #[tokio::test]
    async fn the_hosts_own_namespace_and_what_is_none_are_never_held() {
        let Some((dir, namespaces)) = namespaces() else { return };
        let host = namespaces.hold(Path::new("/proc/self/ns/net")).await.unwrap_err();
        assert!(matches!(host, NetnsError::Host { .. }), "{host}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let paths = [file.as_path(), Path::new("/proc/self/ns/mnt"), Path::new("/nowhere")];
        for path in paths {
            let error = namespaces.hold(path).await.unwrap_err();
            assert!(matches!(error, NetnsError::Gone { .. }), "{error}");
        }
        assert_eq!(namespaces.held().await.unwrap(), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_is_listed_and_released() {
        let Some((_dir, namespaces)) = namespaces() else { return };
        // Killed between the file and the mount.
        fs::create_dir_all(&namespaces.folder).unwrap();
        let half = namespaces.folder.join("net-1");
        fs::write(&half, "").unwrap();
        assert_eq!(namespaces.held().await.unwrap(), std::slice::from_ref(&half));
        namespaces.release(&half).await.unwrap();
        assert_eq!(namespaces.held().await.unwrap(), Vec::<PathBuf>::new());
        let outside = namespaces.release(Path::new("/etc/hostname")).await.unwrap_err();
        assert!(outside.to_string().contains("/etc/hostname"), "{outside}");
        assert!(Path::new("/etc/hostname").exists());
    }
}
