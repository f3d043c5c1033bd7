//! Asks the running daemon.

use std::{io, path::Path, time::Duration};

use http::{Request, StatusCode, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

/// How long the daemon may take. It answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of an answer: thousands of claims fit.
const MOST: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nothing listens there.
    #[error("no daemon answers at {0}")]
    NoDaemon(String),
    /// The socket is root's.
    #[error("not enough rights to ask the daemon at {0}: run this as root")]
    NotPermitted(String),
    /// It did not answer as this version expects.
    #[error("the daemon at {socket} gives no answer that can be used: {problem}")]
    Unusable {
        /// The socket.
        socket: String,
        /// What is wrong.
        problem: String,
    },
}

/// Ask for what is at `path`, from outside of a Tokio runtime.
pub fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, NoAnswer> {
    let at = socket.display().to_string();
    let unusable = |problem: String| NoAnswer::Unusable { socket: at.clone(), problem };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unusable(error.to_string()))?;
    let asked = async {
        let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => NoAnswer::NoDaemon(at.clone()),
            io::ErrorKind::PermissionDenied => NoAnswer::NotPermitted(at.clone()),
            _ => unusable(error.to_string()),
        })?;
        let body = fetch(stream, path).await.map_err(|error| unusable(error.to_string()))?;
        serde_json::from_slice(&body).map_err(|error| unusable(format!("{path}: {error}")))
    };
    runtime
        .block_on(timeout_of(asked))
        .unwrap_or_else(|()| Err(unusable(format!("it takes longer than {} s", PATIENCE.as_secs()))))
}

async fn timeout_of<T>(asked: impl Future<Output = T>) -> Result<T, ()> {
    timeout(PATIENCE, asked).await.map_err(drop)
}

async fn fetch(stream: UnixStream, path: &str) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, "netferry").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST).collect().await?.to_bytes();
    connection.abort();
    if status == StatusCode::OK { Ok(body) } else { Err(format!("{path}: HTTP status {status}").into()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_without_a_daemon_is_told_from_one_that_speaks_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("query.sock");
        let asked = || ask::<serde_json::Value>(&socket, "/v1/status").unwrap_err();
        assert!(matches!(asked(), NoAnswer::NoDaemon(_)), "{}", asked());
        let listener = UnixListener::bind(&socket).unwrap();
        let other = std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut peer, _) = listener.accept().unwrap();
            let _ = peer.read(&mut [0; 1024]).unwrap();
            peer.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
        });
        let error = asked();
        assert!(matches!(&error, NoAnswer::Unusable { problem, .. } if problem.contains("404")), "{error}");
        other.join().unwrap();
        // Its listener is gone, its file is not.
        assert!(matches!(asked(), NoAnswer::NoDaemon(_)), "{}", asked());
    }
}
