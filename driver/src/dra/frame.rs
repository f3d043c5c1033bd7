//! HTTP/2 frames, as far as the filter on the kubelet's sockets reads and writes them (RFC 9113, section 4.1).

/// The length of a frame header.
pub(super) const HEADER_LEN: usize = 9;
/// The largest payload that a peer may send: SETTINGS_MAX_FRAME_SIZE, which the server leaves at its default.
pub(super) const MAX_PAYLOAD: usize = 16_384;

/// Frame types (RFC 9113, section 6).
pub(super) const HEADERS: u8 = 0x1;
pub(super) const RST_STREAM: u8 = 0x3;
pub(super) const PUSH_PROMISE: u8 = 0x5;
pub(super) const GOAWAY: u8 = 0x7;
pub(super) const CONTINUATION: u8 = 0x9;

/// Flags of HEADERS and CONTINUATION frames.
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY: u8 = 0x20;

/// The header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Length of the payload.
    pub(super) length: usize,
    /// Frame type.
    pub(super) kind: u8,
    /// Flags, whose meaning depends on the type.
    pub(super) flags: u8,
    /// Stream, without the reserved bit.
    pub(super) stream: u32,
}

impl FrameHeader {
    pub(super) fn parse([l0, l1, l2, kind, flags, s0, s1, s2, s3]: [u8; HEADER_LEN]) -> Self {
        Self {
            length: usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & (u32::MAX >> 1),
        }
    }

    /// Append the header to `output`. The length is at most [`MAX_PAYLOAD`], which three bytes hold.
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.length.to_be_bytes()[size_of::<usize>() - 3..]);
        output.extend_from_slice(&[self.kind, self.flags]);
        output.extend_from_slice(&self.stream.to_be_bytes());
    }
}

/// The name of an HTTP/2 error code (RFC 9113, section 7).
pub(super) fn error_name(code: u32) -> &'static str {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("an unknown error code")
}

/// Finds the frames with which a server refuses a stream or a connection, in the bytes that it sends.
#[derive(Debug, Default)]
pub(super) struct ErrorFrames {
    header: [u8; HEADER_LEN],
    header_filled: usize,
    /// The first bytes of the payload: enough for the error code of both frames.
    payload: [u8; 8],
    payload_read: usize,
}

impl ErrorFrames {
    /// Read the next bytes of the stream; `found` gets the name of each frame that carries an error, and its
    /// error code. NO_ERROR and CANCEL are ordinary ends.
    pub(super) fn observe(&mut self, mut bytes: &[u8], mut found: impl FnMut(&'static str, u32)) {
        while !bytes.is_empty() {
            if self.header_filled < HEADER_LEN {
                let taken = bytes.len().min(HEADER_LEN - self.header_filled);
                self.header[self.header_filled..][..taken].copy_from_slice(&bytes[..taken]);
                self.header_filled += taken;
                bytes = &bytes[taken..];
                if self.header_filled < HEADER_LEN {
                    return;
                }
            }
            let header = FrameHeader::parse(self.header);
            let taken = bytes.len().min(header.length - self.payload_read);
            if let Some(kept) = self.payload.get_mut(self.payload_read..) {
                let copied = taken.min(kept.len());
                kept[..copied].copy_from_slice(&bytes[..copied]);
            }
            self.payload_read += taken;
            bytes = &bytes[taken..];
            if self.payload_read == header.length {
                self.end_of_frame(header, &mut found);
            }
        }
    }

    fn end_of_frame(&mut self, header: FrameHeader, found: &mut impl FnMut(&'static str, u32)) {
        let (words, _) = self.payload.as_chunks::<4>();
        let error = match header.kind {
            RST_STREAM if header.length == 4 => Some(("RST_STREAM", words[0])),
            GOAWAY if header.length >= 8 => Some(("GOAWAY", words[1])),
            _ => None,
        };
        (self.header_filled, self.payload_read) = (0, 0);
        if let Some((name, code)) = error {
            let code = u32::from_be_bytes(code);
            if !matches!(error_name(code), "NO_ERROR" | "CANCEL") {
                found(name, code);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        FrameHeader { length: payload.len(), kind, flags: 0, stream: 1 }.write(&mut bytes);
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn errors_of_a_server_are_found_wherever_the_bytes_are_cut() {
        let stream = [
            frame(0x4, &[]),
            frame(RST_STREAM, &[0, 0, 0, 1]),
            frame(0x0, &[7; 100]),
            frame(RST_STREAM, &[0, 0, 0, 8]),
            frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 0]),
            frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 11, b'w', b'h', b'y']),
            frame(0x6, &[0, 0, 0, 0, 0, 0, 0, 2]),
        ]
        .concat();
        for cut in 1..=stream.len() {
            let (mut frames, mut seen) = (ErrorFrames::default(), Vec::new());
            for bytes in stream.chunks(cut) {
                frames.observe(bytes, |name, code| seen.push((name, error_name(code))));
            }
            assert_eq!(seen, [("RST_STREAM", "PROTOCOL_ERROR"), ("GOAWAY", "ENHANCE_YOUR_CALM")], "{cut}");
        }
        assert_eq!(error_name(99), "an unknown error code");
    }
}
