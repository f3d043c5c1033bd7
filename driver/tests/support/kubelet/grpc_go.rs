//! Unary calls as grpc-go puts them on a unix socket, byte by byte.
//!
//! The plugin manager dials the registration socket by its path, and grpc-go makes `:authority` of it. No
//! client of tonic's can send that: it is no authority of a URI. Headers enter the table of the connection and
//! are named by their index from then on, as grpc-go does.

use std::{io, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use httlib_hpack::Encoder;
use loona_hpack::Decoder;
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time,
};

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// A frame as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The first frame of `bytes` and what is behind it, if it is complete.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = bytes.split_first_chunk::<9>()?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *header;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let (payload, rest) = rest.split_at_checked(length.try_into().ok()?)?;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        Some((Self { kind, flags, stream, payload: payload.to_vec() }, rest))
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).expect("a frame is short").to_be_bytes();
        let header = [length[1], length[2], length[3], self.kind, self.flags];
        [&header[..], &self.stream.to_be_bytes(), &self.payload].concat()
    }
}

/// The path as grpc-go makes an authority of it (`encodeAuthority` in its `clientconn.go`).
pub fn authority_of(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte);
    let encode = |byte: &u8| {
        if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }
    };
    path.as_os_str().as_encoded_bytes().iter().map(encode).collect()
}

/// A connection of grpc-go's.
pub struct Connection {
    stream: UnixStream,
    authority: String,
    encoder: Encoder<'static>,
    decoder: Decoder<'static>,
    received: Vec<u8>,
    next: u32,
}

impl Connection {
    /// Dial a socket by its path.
    pub async fn dial(path: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let settings = Frame { kind: SETTINGS, flags: 0, stream: 0, payload: Vec::new() };
        stream.write_all(&settings.bytes()).await?;
        Ok(Self {
            stream,
            authority: authority_of(path),
            encoder: Encoder::default(),
            decoder: Decoder::new(),
            received: Vec::new(),
            next: 1,
        })
    }

    /// The header block of the next call, in the order of grpc-go's (`createHeaderFields` in its
    /// `http2_client.go`).
    pub fn header_block(&mut self, method: &str, timeout: &str) -> Vec<u8> {
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", &self.authority),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-go/1.78.0"),
            ("te", "trailers"),
            ("grpc-accept-encoding", "gzip"),
            ("grpc-timeout", timeout),
        ];
        let flags =
            Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE;
        let mut block = Vec::new();
        for (name, value) in headers {
            let header = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags);
            self.encoder.encode(header, &mut block).expect("encodes");
        }
        block
    }

    /// Call a method with one message, and take the one that is answered.
    pub async fn unary<T: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
        timeout: Duration,
    ) -> anyhow::Result<T> {
        let call = async {
            let stream = self.next;
            self.next += 2;
            let payload = self.header_block(method, &format!("{}m", timeout.as_millis()));
            let headers = Frame { kind: HEADERS, flags: END_HEADERS, stream, payload };
            let message = request.encode_to_vec();
            let length = u32::try_from(message.len())?.to_be_bytes();
            let payload = [&[0][..], &length, &message].concat();
            let data = Frame { kind: DATA, flags: END_STREAM, stream, payload };
            self.stream.write_all(&[headers.bytes(), data.bytes()].concat()).await?;
            self.answer(stream).await
        };
        let message = time::timeout(timeout, call).await.with_context(|| format!("{method} timed out"))??;
        Ok(T::decode(message.as_slice())?)
    }

    async fn answer(&mut self, stream: u32) -> anyhow::Result<Vec<u8>> {
        let mut data = Vec::new();
        loop {
            let frame = self.frame().await?;
            match frame.kind {
                RST_STREAM => bail!("stream terminated by RST_STREAM {:?}", frame.payload),
                GOAWAY => bail!("connection ended by GOAWAY {:?}", frame.payload),
                SETTINGS | PING if frame.flags & ACK == 0 => {
                    let payload = if frame.kind == PING { frame.payload } else { Vec::new() };
                    let ack = Frame { kind: frame.kind, flags: ACK, stream: 0, payload };
                    self.stream.write_all(&ack.bytes()).await?;
                }
                DATA if frame.stream == stream => data.extend_from_slice(&frame.payload),
                HEADERS if frame.stream == stream => {
                    ensure!(frame.flags & END_HEADERS != 0, "an answer's headers are in one frame");
                    let headers = self.decoder.decode(&frame.payload)?;
                    if frame.flags & END_STREAM != 0 {
                        let ok = (b"grpc-status".to_vec(), b"0".to_vec());
                        ensure!(headers.contains(&ok), "the call failed: {headers:?}");
                        let message = data.get(5..).context("no message")?;
                        return Ok(message.to_vec());
                    }
                }
                _ => {}
            }
        }
    }

    async fn frame(&mut self) -> anyhow::Result<Frame> {
        loop {
            if let Some((frame, rest)) = Frame::parse(&self.received) {
                self.received = rest.to_vec();
                return Ok(frame);
            }
            ensure!(self.stream.read_buf(&mut self.received).await? > 0, "the peer hung up");
        }
    }
}
