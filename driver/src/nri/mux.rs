//! NRI's multiplexer: logical connections over one socket.
//!
//! A frame is a 4-byte connection id, a 4-byte payload length, both big-endian, and the payload
//! (`pkg/net/multiplex/mux.go` in containerd/nri). Frames carry pieces of a byte stream and no message
//! boundaries. The protocol has no flow control of its own, so that a connection whose reader lags holds up
//! the trunk, and through the socket the peer: memory stays at [`QUEUE`] bytes a connection and direction,
//! whatever the peer sends.

use std::{future::Future, io};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream, ReadHalf,
        WriteHalf,
    },
    sync::Mutex,
};

#[cfg(test)]
mod tests;

/// Identifies a logical connection. 0 is reserved.
pub type ConnectionId = u32;

/// The connection on which the plugin serves.
pub const PLUGIN: ConnectionId = 1;
/// The connection on which the runtime serves.
pub const RUNTIME: ConnectionId = 2;

/// Bytes that wait in each direction of a connection before its writer is held up.
pub const QUEUE: usize = 64 * 1024;
/// Largest payload accepted: a ttrpc header and the largest ttrpc message, as in containerd/nri.
pub const PAYLOAD_LIMIT: u32 = 10 + (4 << 20);
/// Largest payload sent. The runtime's multiplexer reads a frame into the buffer its reader happens to pass,
/// and fails with ENOMEM if the frame is larger; its ttrpc reads through a `bufio.Reader` of this size.
pub const PAYLOAD_SENT: usize = 4096;

const HEADER: usize = 8;

/// Why all connections of a socket were closed.
#[derive(Debug, thiserror::Error)]
pub enum MuxError {
    /// The peer closed the socket between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed the socket within a frame's header.
    #[error("the connection ended after {got} of a frame header's {HEADER} bytes")]
    ShortHeader {
        /// Bytes of the header that came.
        got: usize,
    },
    /// The peer closed the socket within a frame's payload.
    #[error("the connection ended with {missing} of {length} bytes missing from a frame of connection {id}")]
    ShortPayload {
        /// The frame's connection.
        id: ConnectionId,
        /// The frame's length in bytes.
        length: u32,
        /// Bytes that did not come.
        missing: u32,
    },
    /// A frame for a connection that nobody has opened.
    #[error("frame for unknown connection {id}")]
    UnknownConnection {
        /// The frame's connection.
        id: ConnectionId,
    },
    /// A frame longer than any ttrpc message.
    #[error("frame of {length} bytes for connection {id}, at most {PAYLOAD_LIMIT} are allowed")]
    Oversized {
        /// The frame's connection.
        id: ConnectionId,
        /// Its length in bytes.
        length: u32,
    },
    /// This side closed one of its connections; all it had written was sent.
    #[error("connection {id} was closed on this side")]
    ConnectionClosed {
        /// Which.
        id: ConnectionId,
    },
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Open connections `ids` over `trunk`.
///
/// The future moves the bytes, and ends with the reason when the trunk or any connection ends; after that, and
/// when it is dropped, every connection reads end of file and refuses writes.
pub fn open<T, const N: usize>(
    trunk: T,
    ids: [ConnectionId; N],
) -> (impl Future<Output = MuxError> + Send, [DuplexStream; N])
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut queues = Vec::with_capacity(N);
    let mut sources = Vec::with_capacity(N);
    let connections = ids.map(|id| {
        let (near, far) = tokio::io::duplex(QUEUE);
        let (source, queue) = tokio::io::split(far);
        queues.push((id, queue));
        sources.push((id, source));
        near
    });
    let work = async move {
        let (reader, writer) = tokio::io::split(trunk);
        let writer = Mutex::new(writer);
        let mut sending: FuturesUnordered<_> =
            sources.into_iter().map(|(id, source)| send_frames(id, source, &writer)).collect();
        tokio::select! {
            error = receive_frames(reader, &mut queues) => error,
            Some(error) = sending.next() => error,
        }
    };
    (work, connections)
}

/// Move the trunk's frames to the connections' queues, until the trunk ends or breaks the format.
async fn receive_frames<R>(trunk: R, queues: &mut [(ConnectionId, WriteHalf<DuplexStream>)]) -> MuxError
where
    R: AsyncRead + Unpin,
{
    let mut trunk = BufReader::new(trunk);
    loop {
        if let Err(error) = receive_frame(&mut trunk, queues).await {
            return error;
        }
    }
}

async fn receive_frame<R>(
    trunk: &mut BufReader<R>,
    queues: &mut [(ConnectionId, WriteHalf<DuplexStream>)],
) -> Result<(), MuxError>
where
    R: AsyncRead + Unpin,
{
    let (id, length) = receive_header(trunk).await?;
    let Some((_, queue)) = queues.iter_mut().find(|(known, _)| *known == id) else {
        return Err(MuxError::UnknownConnection { id });
    };
    if length > PAYLOAD_LIMIT {
        return Err(MuxError::Oversized { id, length });
    }
    let mut payload = trunk.take(u64::from(length));
    let mut piece = [0; PAYLOAD_SENT];
    loop {
        let got = payload.read(&mut piece).await?;
        if got == 0 {
            break;
        }
        // A connection closed on this side takes no more; `send_frames` ends the session once all it wrote is out.
        let _ = queue.write_all(&piece[..got]).await;
    }
    match payload.limit() {
        0 => Ok(()),
        missing => {
            let missing = u32::try_from(missing).unwrap_or(length);
            Err(MuxError::ShortPayload { id, length, missing })
        }
    }
}

async fn receive_header<R>(trunk: &mut BufReader<R>) -> Result<(ConnectionId, u32), MuxError>
where
    R: AsyncRead + Unpin,
{
    let mut header = [0; HEADER];
    let mut got = 0;
    while got < HEADER {
        match trunk.read(&mut header[got..]).await? {
            0 if got == 0 => return Err(MuxError::Closed),
            0 => return Err(MuxError::ShortHeader { got }),
            more => got += more,
        }
    }
    let header = u64::from_be_bytes(header);
    #[expect(clippy::cast_possible_truncation, reason = "the id is the upper half, the length the lower")]
    Ok(((header >> 32) as ConnectionId, header as u32))
}

/// Frame what `source` has to say onto the trunk, until it is closed or the trunk fails.
async fn send_frames<W>(id: ConnectionId, mut source: ReadHalf<DuplexStream>, trunk: &Mutex<W>) -> MuxError
where
    W: AsyncWrite + Unpin,
{
    let mut frame = [0; HEADER + PAYLOAD_SENT];
    frame[..4].copy_from_slice(&id.to_be_bytes());
    loop {
        let length = match source.read(&mut frame[HEADER..]).await {
            Ok(0) => return MuxError::ConnectionClosed { id },
            Ok(length) => length,
            Err(error) => return error.into(),
        };
        // PAYLOAD_SENT fits in 32 bits, hence so does every length read.
        #[expect(clippy::cast_possible_truncation, reason = "at most PAYLOAD_SENT")]
        frame[4..HEADER].copy_from_slice(&(length as u32).to_be_bytes());
        let mut trunk = trunk.lock().await;
        if let Err(error) = trunk.write_all(&frame[..HEADER + length]).await {
            return error.into();
        }
        if let Err(error) = trunk.flush().await {
            return error.into();
        }
    }
}
