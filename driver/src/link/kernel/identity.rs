//! Which network namespace an open file is, told so that no other one can pass for it.
//!
//! A path is no identity: `/proc/PID/ns/net` leads elsewhere once the process id belongs to another process, and a name
//! under `/run/netns` may be given again. Neither is an inode alone: the kernel reuses the number of a namespace that is
//! gone. The cookie is not reused while the kernel runs, and the boot id tells one run from the next.

use std::{
    fmt,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::PathBuf,
    sync::LazyLock,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use serde::{Deserialize, Serialize};

use crate::datapath::{namespace_type, netns_cookie};

/// A number that the kernel draws once at each boot (`proc_do_uuid`, drivers/char/random.c).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Identity of a network namespace. Two values are equal if, and only if, they are of the same namespace; on a kernel
/// before 5.14, which tells no cookie, a namespace made after the other was gone may have its inode.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetnsId {
    /// `SO_NETNS_COOKIE` of a socket inside (`sk_getsockopt`, net/core/sock.c; Linux 5.14): unique while the kernel
    /// runs, and never reused. 0 on an older kernel; no namespace has that one.
    pub cookie: u64,
    /// Boot in which the cookie and the inode mean something; see [`boot_id`].
    pub boot_id: String,
    /// Device of the kernel's nsfs (`st_dev`).
    pub dev: u64,
    /// Inode in it (`st_ino`), as in `readlink /proc/PID/ns/net`. Reused once the namespace is gone.
    pub ino: u64,
}

/// As `readlink /proc/PID/ns/net` shows it, and the cookie; without the boot.
impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)?;
        if self.cookie == 0 { Ok(()) } else { write!(f, " cookie {}", self.cookie) }
    }
}

/// Identity of the network namespace that `file` is an open handle of: of `/proc/PID/ns/net`, or of a file that it is
/// mounted on. Whatever its path leads to later, the answer is about this one.
///
/// Enters the namespace on a thread of its own, which needs CAP_SYS_ADMIN. `InvalidInput`, with the path, if the file is
/// anything but a network namespace.
pub fn netns_id(file: &File) -> io::Result<NetnsId> {
    prove(file)?;
    let stat = file.metadata()?;
    let boot_id = boot_id();
    if boot_id.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{BOOT_ID} cannot be read")));
    }
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path_of(file).display()));
    let cookie = cookie(file).map_err(named)?;
    Ok(NetnsId { cookie, boot_id: boot_id.to_owned(), dev: stat.dev(), ino: stat.ino() })
}

/// Id of the kernel's present run, read once for the life of the process. Empty where /proc does not tell it.
#[must_use]
pub fn boot_id() -> &'static str {
    static READ: LazyLock<String> =
        LazyLock::new(|| fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default());
    &READ
}

/// The file system first: the number of the call means something else to a device.
fn prove(file: &File) -> io::Result<()> {
    let not_one = |what: String| {
        let text = format!("{} is no network namespace: {what}", path_of(file).display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    if fstatfs(file.as_fd())?.filesystem_type() != NSFS_MAGIC {
        return Err(not_one("it is no namespace at all".to_owned()));
    }
    match namespace_type(file.as_fd()) {
        Ok(libc::CLONE_NEWNET) => Ok(()),
        Ok(other) => Err(not_one(format!("it is a namespace of type {other:#x}"))),
        Err(error) => Err(not_one(error.to_string())),
    }
}

fn cookie(file: &File) -> io::Result<u64> {
    let inside = || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        // Any socket has the cookie of its namespace; this kind is in every kernel, and binds to nothing.
        match netns_cookie(UnixDatagram::unbound()?.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(0),
            cookie => cookie,
        }
    };
    // A thread that has changed its namespace never goes back to a pool.
    thread::scope(|scope| {
        let entered = thread::Builder::new().name("netns-id".to_owned()).spawn_scoped(scope, inside)?;
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside it panicked")))
    })
}

/// For an error: the path by which it was opened, as far as the kernel still knows it.
fn path_of(file: &File) -> PathBuf {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::read_link(&link).unwrap_or_else(|_| link.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_written_down_and_shown() {
        let mut id = NetnsId { cookie: 4097, boot_id: "b".into(), dev: 4, ino: 4_026_531_840 };
        let text = serde_json::to_string(&id).expect("json");
        assert_eq!(text, r#"{"cookie":4097,"bootId":"b","dev":4,"ino":4026531840}"#);
        assert_eq!(serde_json::from_str::<NetnsId>(&text).expect("json"), id);
        assert_eq!(id.to_string(), "net:[4026531840] cookie 4097");
        id.cookie = 0;
        assert_eq!(id.to_string(), "net:[4026531840]");
    }

    #[test]
    fn what_is_no_network_namespace_is_refused_by_name() {
        for (path, named, why) in [
            ("/proc/self/ns/mnt", "mnt:[", "it is a namespace of type 0x20000"),
            ("/proc/self/ns/user", "user:[", "it is a namespace of type 0x10000000"),
            ("/proc/self/exe", "/", "it is no namespace at all"),
            ("/dev/null", "/dev/null", "it is no namespace at all"),
            ("/proc", "/proc", "it is no namespace at all"),
        ] {
            let refused = netns_id(&File::open(path).expect(path)).expect_err(path);
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{path}: {refused}");
            let text = refused.to_string();
            assert!(text.starts_with(named) && text.contains(why), "{path}: {text}");
        }
    }

    #[test]
    fn a_boot_has_one_id() {
        assert_eq!(boot_id().len(), 36, "{}", boot_id());
        assert_eq!(boot_id(), boot_id());
    }
}
