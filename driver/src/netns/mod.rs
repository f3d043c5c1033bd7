//! Network namespaces of sandboxes: which one a path leads to today, and holding one so that no link is lost with it.
//!
//! A software link dies with its namespace. Runtimes remove the namespace of a sandbox before they report its stop
//! (CRI-O), or report no stop at all (containerd, of sandboxes that are older than its own start). So the driver holds
//! the namespace by a bind mount of its own from the attach until the last link has been returned. Such a mount says
//! nothing about the life of the sandbox: that is decided by the path that the runtime has given alone.

mod kernel;

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

pub use self::kernel::KernelNamespaces;
pub use crate::link::identity::NetnsId;

/// Why a namespace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is there, or what is there is no network namespace: the sandbox has ended.
    #[error("{} leads to no network namespace", path.display())]
    Gone {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is the host's own, which is never a sandbox.
    #[error("{} leads to the host's own network namespace, which is no sandbox", path.display())]
    Host {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused for a reason that says nothing about the namespace.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried, such as `open`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl NetnsError {
    /// Whether the error proves that no sandbox is at the path. Other errors prove nothing: the daemon may have run out of
    /// descriptors.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::Host { .. })
    }
}

/// A namespace that a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which namespace.
    pub id: NetnsId,
    /// When the kernel made the file of the namespace, in nanoseconds since 1970: the time of its inode, which a mount
    /// keeps. It orders namespaces that are there at one time, and is no part of their identity: a clock may be set.
    pub since: i128,
}

/// A namespace that the driver holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Which namespace.
    pub id: NetnsId,
    /// The driver's own path to it, where it can be entered as long as it is held.
    pub path: PathBuf,
}

/// The kernel's network namespaces, in the verbs that attach and return need.
#[async_trait]
pub trait Namespaces: Send + Sync {
    /// This boot of the kernel (`/proc/sys/kernel/random/boot_id`). No namespace outlives it.
    fn boot_id(&self) -> String;
    /// The namespace that a path leads to today.
    async fn look(&self, path: &Path) -> Result<Seen, NetnsError>;
    /// Hold the namespace that a path leads to today. Holding one that is held already changes nothing.
    async fn hold(&self, path: &Path) -> Result<Hold, NetnsError>;
    /// Every path at which a namespace is held, or was meant to be when the daemon was killed.
    async fn held(&self) -> Result<Vec<PathBuf>, NetnsError>;
    /// Whether another path than a hold leads to a namespace that is held: then its sandbox may live, whoever has forgotten it.
    async fn is_used(&self, hold: &Path) -> Result<bool, NetnsError>;
    /// Let go of a namespace. What is not held is no error.
    async fn release(&self, hold: &Path) -> Result<(), NetnsError>;
}
