//! Work inside a network namespace, on a thread of its own.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::link::{LinkError, Namespace};

/// Which namespace [`Namespace::Host`] is: `None` is that of the process.
pub(super) type HostPath = Option<PathBuf>;

/// Path of a namespace; `None` where no `setns` is needed.
pub(super) fn path_of<'a>(namespace: &'a Namespace, host: Option<&'a Path>) -> Option<&'a Path> {
    match namespace {
        Namespace::Host => host,
        Namespace::Path(path) => Some(path),
    }
}

/// An open handle of the namespace, for `IFLA_NET_NS_FD`.
pub(super) fn open(namespace: &Namespace, host: Option<&Path>) -> Result<File, LinkError> {
    let path = path_of(namespace, host).unwrap_or(Path::new("/proc/self/ns/net"));
    File::open(path).map_err(|source| LinkError::NamespaceGone { namespace: namespace.clone(), source })
}

/// Run `work` in the namespace. A thread that has changed its namespace never goes back to a pool: it lives
/// for this one call.
pub(super) async fn within<T: Send + 'static>(
    namespace: &Namespace,
    host: Option<&Path>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LinkError> {
    let gone = |source| LinkError::NamespaceGone { namespace: namespace.clone(), source };
    let path = path_of(namespace, host).map(Path::to_owned);
    let (reply, answer) = oneshot::channel();
    thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            // The caller may have been dropped: then nobody wants the answer.
            let _ = reply.send(enter(path.as_deref()).map(|()| work()));
        })
        .map_err(gone)?;
    match answer.await {
        Ok(result) => result.map_err(gone),
        Err(_) => Err(gone(io::Error::other("the thread inside it panicked"))),
    }
}

fn enter(path: Option<&Path>) -> io::Result<()> {
    let Some(path) = path else { return Ok(()) };
    // EINVAL: the file is there, but the namespace that was mounted on it is not.
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}
