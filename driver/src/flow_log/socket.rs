//! The socket of flow events: one JSON object a line, to any number of readers up to a limit. Nobody waits for a
//! reader: one that is too slow is dropped.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{
        Semaphore,
        broadcast::{self, error::RecvError},
    },
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{local_socket::LocalSocket, metrics::Metrics};

/// Most readers at a time; another one is refused by a closed connection.
const READERS: usize = 16;
/// How long a reader may leave its buffer full.
const WRITE: Duration = Duration::from_secs(2);
/// Most bytes that are written at once.
const CHUNK: usize = 64 * 1024;

/// Take readers at the socket, until aborted.
pub(super) async fn serve(socket: LocalSocket, readers: Readers) {
    loop {
        match socket.listener().accept().await {
            Ok((stream, _)) => readers.take(stream),
            Err(error) => {
                // Out of file descriptors, most likely: the connection stays in the queue.
                warn!("cannot take a reader of flow events: {error}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Those who read.
pub(super) struct Readers {
    lines: broadcast::Sender<Arc<str>>,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Readers {
    pub(super) fn new(
        lines: broadcast::Sender<Arc<str>>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self { lines, metrics, places: Arc::new(Semaphore::new(READERS)), stop }
    }

    fn take(&self, stream: UnixStream) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            warn!("a reader of flow events is refused: there are {READERS}");
            return;
        };
        let (lines, metrics) = (self.lines.subscribe(), Arc::clone(&self.metrics));
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let _place = place;
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = feed(stream, lines) => ended,
            };
            match ended {
                Ended::Left => debug!("a reader of flow events has left"),
                Ended::TooSlow(behind) => {
                    metrics.flow_reader_dropped();
                    warn!(behind, "a reader of flow events was too slow and is dropped");
                }
            }
        });
    }
}

/// Why a reader is no more.
enum Ended {
    Left,
    /// With so many events not told, as far as is known.
    TooSlow(u64),
}

async fn feed(stream: UnixStream, mut lines: broadcast::Receiver<Arc<str>>) -> Ended {
    let (mut from, mut to) = stream.into_split();
    let mut said = [0; 64];
    let mut text = Vec::new();
    loop {
        let first = tokio::select! {
            // What a reader says means nothing, but its end is told here: a write would tell it only when there is
            // something to write.
            read = from.read(&mut said) => match read {
                Ok(1..) => continue,
                Ok(0) | Err(_) => return Ended::Left,
            },
            line = lines.recv() => line,
        };
        match first {
            Ok(line) => text.extend_from_slice(line.as_bytes()),
            Err(RecvError::Lagged(behind)) => return Ended::TooSlow(behind),
            Err(RecvError::Closed) => return Ended::Left,
        }
        while text.len() < CHUNK
            && let Ok(line) = lines.try_recv()
        {
            text.extend_from_slice(line.as_bytes());
        }
        match timeout(WRITE, to.write_all(&text)).await {
            Ok(Ok(())) => text.clear(),
            Ok(Err(_)) => return Ended::Left,
            Err(_) => return Ended::TooSlow(u64::try_from(lines.len()).unwrap_or(u64::MAX)),
        }
    }
}
