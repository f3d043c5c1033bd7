//! A connection of the kubelet's as the HTTP/2 server sees it: requests go through [`AuthorityFilter`], and what
//! refuses the peer below the services is logged.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::{Connected, UdsConnectInfo};

use super::{
    authority::AuthorityFilter,
    frame::{ErrorFrames, error_name},
    refusals::Refusals,
};

/// How much is read from the peer at once.
const READ: usize = 8 << 10;

/// A stream whose read half is filtered, and whose written bytes pass unchanged and are looked through for
/// errors.
pub(super) struct Filtered<IO = UnixStream> {
    io: IO,
    filter: AuthorityFilter,
    input: Pending,
    output: Pending,
    ended: Ended,
    sent: ErrorFrames,
    refusals: Arc<Refusals>,
}

/// Bytes of which a part is done with.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    done: usize,
}

/// Whether more can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    No,
    ByPeer,
    Refused,
}

impl Pending {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.done..]
    }

    fn advance(&mut self, by: usize) {
        self.done += by;
        if self.done == self.bytes.len() {
            self.bytes.clear();
            self.done = 0;
        }
    }
}

impl<IO> Filtered<IO> {
    pub(super) fn new(io: IO, refusals: Arc<Refusals>) -> Self {
        Self {
            io,
            filter: AuthorityFilter::new(),
            input: Pending::default(),
            output: Pending::default(),
            ended: Ended::No,
            sent: ErrorFrames::default(),
            refusals,
        }
    }

    /// Filter the bytes that were read.
    fn filter(&mut self) {
        match self.filter.push(self.input.rest(), &mut self.output.bytes) {
            Ok(taken) => self.input.advance(taken),
            Err(refusal) => {
                self.refusals.log(format_args!("{refusal}"));
                self.ended = Ended::Refused;
                self.input = Pending::default();
            }
        }
    }

    fn observe(&mut self, sent: &[u8]) {
        let refusals = &self.refusals;
        self.sent.observe(sent, |frame, code| {
            refusals.log(format_args!("{frame} with {} ({code})", error_name(code)));
        });
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Filtered<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let ready = this.output.rest();
            if !ready.is_empty() {
                let taken = ready.len().min(buffer.remaining());
                buffer.put_slice(&ready[..taken]);
                this.output.advance(taken);
                return Poll::Ready(Ok(()));
            }
            if !this.input.rest().is_empty() {
                this.filter();
                continue;
            }
            match this.ended {
                Ended::No => {}
                Ended::ByPeer => return Poll::Ready(Ok(())),
                Ended::Refused => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, "the peer was refused");
                    return Poll::Ready(Err(error));
                }
            }
            let mut space = [0; READ];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.io).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                this.ended = Ended::ByPeer;
            }
            this.input.bytes.extend_from_slice(read.filled());
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Filtered<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(context, bytes))?;
        this.observe(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(context, slices))?;
        let mut left = written;
        for slice in slices {
            let sent = slice.len().min(left);
            this.observe(&slice[..sent]);
            left -= sent;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

impl Connected for Filtered {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.io.connect_info()
    }
}
