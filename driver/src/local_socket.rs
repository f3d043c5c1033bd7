//! A unix socket of the daemon, for root alone, that is removed with the value that bound it.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// A bound unix socket with mode 0600.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    /// Inode of the socket: a later daemon may have put its own in the place.
    inode: u64,
    listener: UnixListener,
}

impl LocalSocket {
    /// Bind in place of what an earlier daemon left. The socket appears at its path with its mode set. Needs a Tokio
    /// runtime.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&new)?.ino();
        fs::rename(&new, path)?;
        Ok(Self { path: path.to_owned(), inode, listener })
    }

    /// Where connections are accepted.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl axum::serve::Listener for LocalSocket {
    type Io = tokio::net::UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        axum::serve::Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
