//! Makes the requests of a kubelet acceptable to an HTTP/2 server that checks `:authority`.
//!
//! The kubelet's plugin manager dials the registration socket by its path, and grpc-go then sends the path,
//! percent-encoded, as `:authority`. That is no authority of a URI, and the HTTP/2 server answers it with
//! RST_STREAM before any service sees the call. [`AuthorityFilter`] stands before the server: it puts
//! `localhost` in the place of what is no authority.
//!
//! A header block can refer to headers of earlier blocks (HPACK, RFC 7541), so each block of a connection is
//! decoded, and written again as literals that refer to nothing and enter no table. All other frames pass as
//! they are.

use loona_hpack::Decoder;
use thiserror::Error;

use super::frame::{
    CONTINUATION, END_HEADERS, END_STREAM, FrameHeader, HEADER_LEN, HEADERS, MAX_PAYLOAD, PADDED, PRIORITY,
    PUSH_PROMISE,
};

/// What a client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Put in the place of an authority that is none; grpc-go sends it itself when it knows that it dials a unix
/// socket.
pub(super) const LOCALHOST: &[u8] = b"localhost";
/// The dynamic table of a connection: SETTINGS_HEADER_TABLE_SIZE, which the server leaves at its default.
const TABLE: usize = 4096;
/// The most bytes of a header block as it comes, over all of its frames.
const MAX_BLOCK: usize = 64 << 10;
/// The most bytes of a block's headers, counted as in RFC 9113, section 6.5.2.
const MAX_HEADERS: usize = 64 << 10;
/// The most headers of a block.
const MAX_FIELDS: usize = 1024;
/// The most CONTINUATION frames of a block.
const MAX_CONTINUATIONS: usize = 64;
/// No more input is read once there is so much output.
const ENOUGH_OUTPUT: usize = MAX_PAYLOAD;

/// Why a peer is not listened to any longer.
#[derive(Debug, Error, PartialEq)]
pub(super) enum Refusal {
    #[error("it does not begin as an HTTP/2 client")]
    Preface,
    #[error("a frame of {0} bytes, {MAX_PAYLOAD} are allowed")]
    FrameSize(usize),
    #[error("a client sends no PUSH_PROMISE")]
    PushPromise,
    #[error("a frame of another kind or stream within a header block")]
    Interrupted,
    #[error("a CONTINUATION without a header block to continue")]
    NothingToContinue,
    #[error("a HEADERS frame is shorter than its padding and priority")]
    Padding,
    #[error("a header block of more than {MAX_BLOCK} bytes")]
    BlockSize,
    #[error("a header block in more than {MAX_CONTINUATIONS} CONTINUATION frames")]
    Continuations,
    #[error("a header block of more than {MAX_FIELDS} headers")]
    Fields,
    #[error("headers of more than {MAX_HEADERS} bytes")]
    HeadersSize,
    #[error("a header block that is cut short")]
    Truncated,
    #[error("a size update of the header table behind a header")]
    LateSizeUpdate,
    #[error("a header block that cannot be decoded: {0}")]
    Hpack(#[from] loona_hpack::decoder::DecoderError),
}

/// The client's half of one connection. It does no I/O: bytes of the client go in, bytes for the server come
/// out.
pub(super) struct AuthorityFilter {
    state: State,
    /// The part of a frame that must be complete before it is looked at: its header, or the payload of a HEADERS
    /// or CONTINUATION frame.
    part: Vec<u8>,
    block: Option<Block>,
    decoder: Decoder<'static>,
}

/// Where in the stream of frames the next byte is.
#[derive(Clone, Copy)]
enum State {
    /// In the preface, of which so many bytes were seen.
    Preface(usize),
    /// In a frame header.
    Header,
    /// In the payload of a frame that passes, with so many bytes to come.
    Passing(usize),
    /// In the payload of a HEADERS or CONTINUATION frame.
    Fragment(FrameHeader),
}

/// A header block whose end has not come.
struct Block {
    stream: u32,
    end_stream: bool,
    priority: Vec<u8>,
    bytes: Vec<u8>,
    continuations: usize,
}

impl AuthorityFilter {
    pub(super) fn new() -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE);
        Self { state: State::Preface(0), part: Vec::new(), block: None, decoder }
    }

    /// Read from `input`, append what the server may see to `output`, and return how many bytes were read. All
    /// of them are, unless there is enough output: then the rest must be given again. Not to be called again
    /// after a refusal.
    pub(super) fn push(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut rest = input;
        while !rest.is_empty() && output.len() < ENOUGH_OUTPUT {
            let taken = self.step(rest, output)?;
            rest = &rest[taken..];
        }
        Ok(input.len() - rest.len())
    }

    /// Read at least one byte, and at most to the end of the current part.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Refusal> {
        match self.state {
            State::Preface(seen) => {
                let taken = input.len().min(PREFACE.len() - seen);
                if input[..taken] != PREFACE[seen..][..taken] {
                    return Err(Refusal::Preface);
                }
                output.extend_from_slice(&input[..taken]);
                let seen = seen + taken;
                self.state = if seen < PREFACE.len() { State::Preface(seen) } else { State::Header };
                Ok(taken)
            }
            State::Header => {
                let (taken, complete) = self.collect(input, HEADER_LEN);
                if complete && let Ok(header) = <[u8; HEADER_LEN]>::try_from(self.part.as_slice()) {
                    self.part.clear();
                    self.begin_frame(FrameHeader::parse(header), header, output)?;
                }
                Ok(taken)
            }
            State::Passing(left) => {
                let taken = input.len().min(left);
                output.extend_from_slice(&input[..taken]);
                self.state = if taken < left { State::Passing(left - taken) } else { State::Header };
                Ok(taken)
            }
            State::Fragment(header) => {
                let (taken, complete) = self.collect(input, header.length);
                if complete {
                    self.end_fragment(header, output)?;
                }
                Ok(taken)
            }
        }
    }

    /// Add to the current part, which is `length` bytes long. Returns how many bytes were taken, and whether
    /// the part is complete.
    fn collect(&mut self, input: &[u8], length: usize) -> (usize, bool) {
        let taken = input.len().min(length - self.part.len());
        self.part.extend_from_slice(&input[..taken]);
        (taken, self.part.len() == length)
    }

    fn begin_frame(
        &mut self,
        header: FrameHeader,
        bytes: [u8; HEADER_LEN],
        output: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        if header.length > MAX_PAYLOAD {
            return Err(Refusal::FrameSize(header.length));
        }
        match (header.kind, &mut self.block) {
            (PUSH_PROMISE, _) => return Err(Refusal::PushPromise),
            (CONTINUATION, Some(block)) if block.stream == header.stream => {
                block.continuations += 1;
                if block.continuations > MAX_CONTINUATIONS {
                    return Err(Refusal::Continuations);
                }
            }
            (_, Some(_)) => return Err(Refusal::Interrupted),
            (CONTINUATION, None) => return Err(Refusal::NothingToContinue),
            (HEADERS, None) => {}
            (_, None) => {
                output.extend_from_slice(&bytes);
                self.state = if header.length > 0 { State::Passing(header.length) } else { State::Header };
                return Ok(());
            }
        }
        self.state = State::Fragment(header);
        // There may be no byte that would lead on.
        if header.length == 0 { self.end_fragment(header, output) } else { Ok(()) }
    }

    /// Take the complete payload of a HEADERS or CONTINUATION frame into the block; write the block if this is
    /// its end.
    fn end_fragment(&mut self, header: FrameHeader, output: &mut Vec<u8>) -> Result<(), Refusal> {
        self.state = State::Header;
        if let Some(block) = &mut self.block {
            if block.bytes.len() + self.part.len() > MAX_BLOCK {
                return Err(Refusal::BlockSize);
            }
            block.bytes.extend_from_slice(&self.part);
        } else {
            let (priority, fragment) = headers_payload(header.flags, &self.part)?;
            self.block = Some(Block {
                stream: header.stream,
                end_stream: header.flags & END_STREAM != 0,
                priority: priority.to_vec(),
                bytes: fragment.to_vec(),
                continuations: 0,
            });
        }
        self.part.clear();
        if header.flags & END_HEADERS != 0
            && let Some(block) = self.block.take()
        {
            let headers = self.rewrite(&block.bytes)?;
            block.write(&headers, output);
        }
        Ok(())
    }

    /// Decode a header block, and encode it again with literals alone.
    fn rewrite(&mut self, block: &[u8]) -> Result<Vec<u8>, Refusal> {
        // Also a bound for the time that the decoder takes.
        check_fields(block)?;
        let (mut encoded, mut size) = (Vec::new(), 0_usize);
        self.decoder.decode_with_cb(block, |name, value| {
            let value = acceptable(&name, &value);
            size = size.saturating_add(name.len() + value.len() + 32);
            if size <= MAX_HEADERS {
                encoded.push(LITERAL);
                write_string(&name, &mut encoded);
                write_string(value, &mut encoded);
            }
        })?;
        if size > MAX_HEADERS { Err(Refusal::HeadersSize) } else { Ok(encoded) }
    }
}

impl Block {
    /// Write the block with these encoded headers, in as many frames as they need.
    fn write(&self, headers: &[u8], output: &mut Vec<u8>) {
        let (first, mut rest) = headers.split_at(headers.len().min(MAX_PAYLOAD - self.priority.len()));
        let last = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
        let mut flags = last(rest);
        if self.end_stream {
            flags |= END_STREAM;
        }
        if !self.priority.is_empty() {
            flags |= PRIORITY;
        }
        let length = self.priority.len() + first.len();
        FrameHeader { length, kind: HEADERS, flags, stream: self.stream }.write(output);
        output.extend_from_slice(&self.priority);
        output.extend_from_slice(first);
        while !rest.is_empty() {
            let part;
            (part, rest) = rest.split_at(rest.len().min(MAX_PAYLOAD));
            FrameHeader { length: part.len(), kind: CONTINUATION, flags: last(rest), stream: self.stream }
                .write(output);
            output.extend_from_slice(part);
        }
    }
}

/// The priority and the fragment in the payload of a HEADERS frame, without the padding.
fn headers_payload(flags: u8, payload: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let mut rest = payload;
    if flags & PADDED != 0 {
        let (&padding, behind) = rest.split_first().ok_or(Refusal::Padding)?;
        let length = behind.len().checked_sub(padding.into()).ok_or(Refusal::Padding)?;
        rest = &behind[..length];
    }
    let priority = if flags & PRIORITY != 0 { 5 } else { 0 };
    rest.split_at_checked(priority).ok_or(Refusal::Padding)
}

/// The value that the server gets for a header: its own, or `localhost` for an authority that is none. `host` says
/// the same in older clients, and must not contradict `:authority`.
fn acceptable<'a>(name: &[u8], value: &'a [u8]) -> &'a [u8] {
    let names_the_server = matches!(name, b":authority" | b"host");
    if names_the_server && http::uri::Authority::try_from(value).is_err() { LOCALHOST } else { value }
}

/// How a literal without indexing begins, whose name is no index (RFC 7541, section 6.2.2).
const LITERAL: u8 = 0;

/// Append a string that is not compressed (RFC 7541, section 5.2).
fn write_string(string: &[u8], output: &mut Vec<u8>) {
    let mut length = string.len();
    if length < 0x7f {
        output.push(length.to_le_bytes()[0]);
    } else {
        output.push(0x7f);
        length -= 0x7f;
        while length >= 0x80 {
            output.push(length.to_le_bytes()[0] | 0x80);
            length >>= 7;
        }
        output.push(length.to_le_bytes()[0]);
    }
    output.extend_from_slice(string);
}

/// Check the order and the number of a block's fields by their lengths alone (RFC 7541, section 6).
fn check_fields(block: &[u8]) -> Result<(), Refusal> {
    let (mut rest, mut fields, mut headers) = (block, 0, 0);
    while let Some(&first) = rest.first() {
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(Refusal::Fields);
        }
        if first & 0xe0 == 0x20 {
            if headers > 0 {
                return Err(Refusal::LateSizeUpdate);
            }
            skip_integer(&mut rest, 5)?;
            continue;
        }
        headers += 1;
        if first & 0x80 != 0 {
            skip_integer(&mut rest, 7)?;
            continue;
        }
        let name = skip_integer(&mut rest, if first & 0x40 != 0 { 6 } else { 4 })?;
        for _ in usize::from(name != 0)..2 {
            let length = skip_integer(&mut rest, 7)?;
            rest = rest.get(length..).ok_or(Refusal::Truncated)?;
        }
    }
    Ok(())
}

/// Read an integer that begins with `prefix` bits of the first byte (RFC 7541, section 5.1). One that is longer
/// than any block is taken for one that is cut short.
fn skip_integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Refusal> {
    let (&first, mut behind) = rest.split_first().ok_or(Refusal::Truncated)?;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(first) & mask;
    if value == mask {
        for shift in [0, 7, 14, 21] {
            let (&byte, next) = behind.split_first().ok_or(Refusal::Truncated)?;
            behind = next;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *rest = behind;
                return Ok(value);
            }
        }
        return Err(Refusal::Truncated);
    }
    *rest = behind;
    Ok(value)
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
