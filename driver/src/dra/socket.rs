//! A unix socket that stays: bound again when its file vanishes, removed at the end.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::TryStreamExt as _;
use tokio::{net::UnixListener, sync::Notify, task::JoinSet, time};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tracing::{info, warn};

use super::{
    filtered::Filtered,
    refusals::{LastRefusal, Refusals},
};

/// How often the file is looked for. Folders are emptied by administrators and by other drivers' clean-ups;
/// an inotify watch would be lost with the folder.
const CHECK: Duration = Duration::from_secs(1);
/// How long calls may run on after the stop.
const DRAIN: Duration = Duration::from_secs(10);

/// A bound socket.
pub(super) struct Socket {
    path: PathBuf,
    listener: UnixListener,
    identity: (u64, u64),
}

impl Socket {
    /// Bind at `path`, in place of a socket that nobody serves any more.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let explain =
            |error: io::Error| io::Error::new(error.kind(), format!("socket {}: {error}", path.display()));
        Self::bind_plain(path).map_err(explain)
    }

    fn bind_plain(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is a file that is no socket",
                ));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it"));
            }
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let identity = identity(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { path: path.to_owned(), listener, identity })
    }

    /// Serve until `stop`; bind again when the file is gone or another's, and whenever `again` is notified.
    pub(super) async fn serve(
        self,
        routes: Routes,
        again: Arc<Notify>,
        refused: LastRefusal,
        stop: CancellationToken,
    ) {
        let path = self.path.clone();
        let refusals = Arc::new(Refusals::new(path.clone(), refused));
        let routes = refusals.watch(routes);
        let mut servers = JoinSet::new();
        let mut serving = Some(start(&mut servers, self, &routes, &refusals));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = again.notified() => {}
                () = time::sleep(CHECK) => {
                    if serving.as_ref().is_some_and(|(found, _)| identity(&path) == Some(*found)) {
                        continue;
                    }
                    info!(socket = %path.display(), "the socket is gone; binding it again");
                }
            }
            // Calls in progress go on; their connection is asked to come back by the path.
            retire(&path, serving.take());
            match Socket::bind(&path) {
                Ok(socket) => serving = Some(start(&mut servers, socket, &routes, &refusals)),
                Err(error) => warn!(%error, "cannot bind; trying again"),
            }
        }
        retire(&path, serving);
        let drained = time::timeout(DRAIN, async { while servers.join_next().await.is_some() {} });
        if drained.await.is_err() {
            warn!(socket = %path.display(), "calls still running after {} s were cut off", DRAIN.as_secs());
        }
    }
}

/// A server by its socket's identity, and how to stop it.
type Serving = ((u64, u64), CancellationToken);

fn start(servers: &mut JoinSet<()>, socket: Socket, routes: &Routes, refusals: &Arc<Refusals>) -> Serving {
    let (identity, ended) = (socket.identity, CancellationToken::new());
    let (routes, refusals, end) = (routes.clone(), Arc::clone(refusals), ended.clone());
    servers.spawn(async move {
        let incoming = UnixListenerStream::new(socket.listener)
            .map_ok(|stream| Filtered::new(stream, Arc::clone(&refusals)));
        let served = Server::builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, end.cancelled_owned());
        if let Err(error) = served.await {
            warn!(%error, socket = %socket.path.display(), "server failed");
        }
    });
    (identity, ended)
}

/// Stop listening, and remove the file if it is still ours.
fn retire(path: &Path, serving: Option<Serving>) {
    let Some((found, end)) = serving else { return };
    if identity(path) == Some(found)
        && let Err(error) = fs::remove_file(path)
    {
        warn!(%error, socket = %path.display(), "cannot remove");
    }
    end.cancel();
}

/// Whether there is a socket at the path that nobody serves any more.
pub(super) fn is_dead(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Device and inode: what makes a file at a path this one.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}
