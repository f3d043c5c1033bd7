//! HTTP served within bounds: peers that are slow, idle or many cost a fixed number of connections and buffers.

use std::{collections::VecDeque, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time. One more closes the oldest, so that peers that hold theirs open keep out no others.
    pub connections: usize,
    /// How long a peer may take to send the header of a request, and how long a connection may be idle.
    pub header: Duration,
    /// How long a connection may last; a response under way then has [`Self::last_response`] to end.
    pub lifetime: Duration,
    /// See [`Self::lifetime`].
    pub last_response: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 64,
            header: Duration::from_secs(10),
            lifetime: Duration::from_mins(2),
            last_response: Duration::from_secs(5),
        }
    }
}

/// Most bytes of a request's header, and of a response that its peer does not read yet.
const BUFFER: usize = 16 * 1024;

/// Serve until `stop`, or until aborted; connections end with it.
pub async fn serve(mut listener: impl Listener, router: Router, bounds: Bounds, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (peer, _) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        open.retain(|connection| !connection.is_finished());
        while open.len() >= bounds.connections
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(connections.spawn(connection(peer, router.clone(), bounds)));
    }
}

async fn connection(
    peer: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    bounds: Bounds,
) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(peer), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = sleep(bounds.lifetime) => {
            serving.as_mut().graceful_shutdown();
            timeout(bounds.last_response, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an HTTP connection ended");
    }
}

#[cfg(test)]
mod tests;
