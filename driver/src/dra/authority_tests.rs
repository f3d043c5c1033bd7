use httlib_hpack::{Decoder as OtherDecoder, Encoder};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;

/// A frame of the client, or what came out of the filter in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Frame {
    Headers { stream: u32, end_stream: bool, priority: Vec<u8>, headers: Vec<(Vec<u8>, Vec<u8>)> },
    Other(Vec<u8>),
}

fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameHeader { length: payload.len(), kind, flags, stream }.write(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// Push in pieces of these lengths, over and over, and take the output as the connection does.
fn filter(bytes: &[u8], pieces: &[usize]) -> (Vec<u8>, Option<Refusal>) {
    let (mut filter, mut all, mut rest) = (AuthorityFilter::new(), Vec::new(), bytes);
    for length in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let mut output = Vec::new();
        let pushed = filter.push(&rest[..rest.len().min(*length)], &mut output);
        assert!(output.len() <= ENOUGH_OUTPUT + MAX_HEADERS + 1024, "{}", output.len());
        assert!(filter.part.len() <= MAX_PAYLOAD);
        assert!(filter.block.as_ref().is_none_or(|block| block.bytes.len() <= MAX_BLOCK));
        all.extend_from_slice(&output);
        match pushed {
            Ok(taken) => {
                assert!(taken > 0, "it moves on");
                rest = &rest[taken..];
            }
            Err(refusal) => return (all, Some(refusal)),
        }
    }
    (all, None)
}

/// Read the filter's output. Each block gets a decoder of its own: none refers to another.
fn parse(bytes: &[u8]) -> Vec<Frame> {
    let mut rest = bytes.strip_prefix(PREFACE).expect("the preface comes first");
    let (mut frames, mut open): (Vec<Frame>, Option<Vec<u8>>) = (Vec::new(), None);
    while !rest.is_empty() {
        let header = FrameHeader::parse(rest[..HEADER_LEN].try_into().unwrap());
        let payload = &rest[HEADER_LEN..][..header.length];
        assert!(header.length <= MAX_PAYLOAD);
        let whole = rest[..HEADER_LEN + header.length].to_vec();
        rest = &rest[HEADER_LEN + header.length..];
        if !matches!(header.kind, HEADERS | CONTINUATION) {
            assert!(open.is_none());
            frames.push(Frame::Other(whole));
            continue;
        }
        if header.kind == HEADERS {
            assert_eq!(header.flags & PADDED, 0);
            assert!(open.is_none());
            let (priority, fragment) = payload.split_at(if header.flags & PRIORITY != 0 { 5 } else { 0 });
            frames.push(Frame::Headers {
                stream: header.stream,
                end_stream: header.flags & END_STREAM != 0,
                priority: priority.to_vec(),
                headers: Vec::new(),
            });
            open = Some(fragment.to_vec());
        } else {
            open.as_mut().expect("a block to continue").extend_from_slice(payload);
        }
        if header.flags & END_HEADERS != 0 {
            let mut block = open.take().expect("a block");
            let Some(Frame::Headers { headers, .. }) = frames.last_mut() else { panic!("no block") };
            let mut decoded = Vec::new();
            OtherDecoder::default().decode(&mut block, &mut decoded).expect("decodes alone");
            *headers = decoded.into_iter().map(|(name, value, _)| (name, value)).collect();
        }
    }
    assert!(open.is_none());
    frames
}

fn header(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.into(), value.into())
}

fn encode(encoder: &mut Encoder<'_>, headers: &[(&str, &str)], flags: u8) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        encoder.encode((name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags), &mut block).unwrap();
    }
    block
}

fn headers_of(frame: &Frame) -> &[(Vec<u8>, Vec<u8>)] {
    let Frame::Headers { headers, .. } = frame else { panic!("{frame:?} has no headers") };
    headers
}

#[test]
fn what_a_kubelet_sends_gets_an_authority_and_stays_the_same_otherwise() {
    let bytes = include_bytes!("../../tests/wire/kubelet-getinfo.bin");
    let (output, refusal) = filter(bytes, &[usize::MAX]);
    assert_eq!(refusal, None);
    for cut in 1..bytes.len() {
        assert_eq!(filter(bytes, &[cut]).0, output, "{cut}");
    }
    let frames = parse(&output);
    // SETTINGS, SETTINGS, HEADERS, DATA, RST_STREAM, GOAWAY.
    let [first, second, request, data, reset, goaway] = frames.as_slice() else { panic!("{frames:?}") };
    let others: Vec<u8> = [first, second]
        .into_iter()
        .flat_map(|frame| if let Frame::Other(bytes) = frame { bytes.clone() } else { panic!("{frame:?}") })
        .collect();
    assert_eq!(others, bytes[PREFACE.len()..][..others.len()]);
    let behind: Vec<u8> = [data, reset, goaway]
        .into_iter()
        .flat_map(|frame| if let Frame::Other(bytes) = frame { bytes.clone() } else { panic!("{frame:?}") })
        .collect();
    assert!(bytes.ends_with(&behind));
    assert_eq!(
        headers_of(request)[..4],
        [
            header(":method", "POST"),
            header(":scheme", "http"),
            header(":path", "/pluginregistration.Registration/GetInfo"),
            header(":authority", "localhost"),
        ]
    );
    let names: Vec<_> =
        headers_of(request)[4..].iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["content-type", "user-agent", "te", "grpc-accept-encoding", "grpc-timeout"]);
}

#[test]
fn only_what_is_no_authority_is_replaced() {
    let cases = [
        ("localhost", "localhost"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]", "[::1]"),
        ("netferry.dev-reg.sock", "netferry.dev-reg.sock"),
        ("%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fnetferry.dev-reg.sock", "localhost"),
        ("/var/lib/kubelet", "localhost"),
        ("", "localhost"),
        ("a b", "localhost"),
        ("\u{e4}", "localhost"),
        ("a\r\nx: y", "localhost"),
    ];
    for (sent, expected) in cases {
        for name in [":authority", "host"] {
            // Each twice: the server has the say on duplicates, which it must still see.
            let headers = [(name, sent), ("x-other", sent), (name, sent)];
            let block = encode(&mut Encoder::default(), &headers, 0);
            let bytes = [PREFACE.to_vec(), raw(HEADERS, END_HEADERS, 1, &block)].concat();
            let (output, refusal) = filter(&bytes, &[7]);
            assert_eq!(refusal, None);
            let expected = [header(name, expected), header("x-other", sent), header(name, expected)];
            assert_eq!(headers_of(&parse(&output)[0]), expected, "{name} {sent:?}");
        }
    }
}

#[test]
fn the_table_of_the_connection_is_followed() {
    let mut encoder = Encoder::default();
    let flags = Encoder::WITH_INDEXING | Encoder::BEST_FORMAT | Encoder::HUFFMAN_VALUE;
    let headers = [(":authority", "%2Fa.sock"), ("te", "trailers")];
    let first = encode(&mut encoder, &headers, flags);
    let again = encode(&mut encoder, &headers, flags);
    assert_eq!(again.len(), 2, "both are an index");
    // Emptied and made large again, as RFC 7541, section 4.2 has it.
    let mut emptied = Vec::new();
    encoder.update_max_dynamic_size(0, &mut emptied).unwrap();
    encoder.update_max_dynamic_size(4096, &mut emptied).unwrap();
    emptied.extend(encode(&mut encoder, &headers, flags));
    assert!(emptied.len() > again.len() + 6);
    let blocks = [first, again, emptied.clone()].map(|block| raw(HEADERS, END_HEADERS, 1, &block));
    let (output, refusal) = filter(&[PREFACE.to_vec(), blocks.concat()].concat(), &[1]);
    assert_eq!(refusal, None);
    let frames = parse(&output);
    assert_eq!(frames.len(), 3);
    for frame in frames {
        assert_eq!(headers_of(&frame), [header(":authority", "localhost"), header("te", "trailers")]);
    }
}

#[test]
fn a_block_that_grows_beyond_a_frame_is_continued() {
    let mut encoder = Encoder::default();
    let long = "v".repeat(3000);
    let field = [("x-long", long.as_str())];
    let mut block = encode(&mut encoder, &field, Encoder::WITH_INDEXING);
    for _ in 0..15 {
        block.extend(encode(&mut encoder, &field, Encoder::BEST_FORMAT));
    }
    let payload = [vec![3], vec![0, 0, 0, 0, 9], block, vec![0; 3]].concat();
    let frame = raw(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITY, 5, &payload);
    let (output, refusal) = filter(&[PREFACE.to_vec(), frame].concat(), &[100]);
    assert_eq!(refusal, None);
    let expected = Frame::Headers {
        stream: 5,
        end_stream: true,
        priority: vec![0, 0, 0, 0, 9],
        headers: vec![header("x-long", &long); 16],
    };
    assert_eq!(parse(&output), [expected]);
    assert!(output.len() > 2 * MAX_PAYLOAD);
}

#[test]
fn a_peer_that_breaks_the_rules_is_refused() {
    let ok = encode(&mut Encoder::default(), &[("a", "b")], 0);
    // One entry of the table, named so often that it would fill hundreds of megabytes.
    let mut bomb = encode(&mut Encoder::default(), &[("x", &"v".repeat(4000))], Encoder::WITH_INDEXING);
    bomb.extend([0x80 | 0x3e; 1000]);
    let literal = encode(&mut Encoder::default(), &[("a", &"v".repeat(16_000))], 0);
    let half = &literal[..literal.len() / 2];
    let cases = [
        (raw(0, 0, 1, &vec![0; MAX_PAYLOAD + 1]), Refusal::FrameSize(MAX_PAYLOAD + 1)),
        (raw(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), Refusal::PushPromise),
        ([raw(HEADERS, 0, 1, &ok), raw(0, 0, 1, &[])].concat(), Refusal::Interrupted),
        ([raw(HEADERS, 0, 1, &ok), raw(HEADERS, END_HEADERS, 1, &ok)].concat(), Refusal::Interrupted),
        ([raw(HEADERS, 0, 1, &ok), raw(CONTINUATION, END_HEADERS, 3, &ok)].concat(), Refusal::Interrupted),
        (raw(CONTINUATION, END_HEADERS, 1, &ok), Refusal::NothingToContinue),
        (
            [raw(HEADERS, END_HEADERS, 1, &ok), raw(CONTINUATION, END_HEADERS, 1, &ok)].concat(),
            Refusal::NothingToContinue,
        ),
        (raw(HEADERS, END_HEADERS | PADDED, 1, &[]), Refusal::Padding),
        (raw(HEADERS, END_HEADERS | PADDED, 1, &[2, 0]), Refusal::Padding),
        (raw(HEADERS, END_HEADERS | PRIORITY, 1, &[0; 4]), Refusal::Padding),
        (raw(HEADERS, END_HEADERS | PRIORITY | PADDED, 1, &[1, 0, 0, 0, 0, 0]), Refusal::Padding),
        (
            [raw(HEADERS, 0, 1, half), raw(CONTINUATION, 0, 1, &[]).repeat(MAX_CONTINUATIONS + 1)].concat(),
            Refusal::Continuations,
        ),
        ([raw(HEADERS, 0, 1, half), raw(CONTINUATION, 0, 1, half).repeat(9)].concat(), Refusal::BlockSize),
        (raw(HEADERS, END_HEADERS, 1, &bomb), Refusal::HeadersSize),
        (raw(HEADERS, END_HEADERS, 1, &[0x82; MAX_FIELDS + 1]), Refusal::Fields),
        (raw(HEADERS, END_HEADERS, 1, &[0x3f]), Refusal::Truncated),
        (raw(HEADERS, END_HEADERS, 1, &[0x40]), Refusal::Truncated),
        (raw(HEADERS, END_HEADERS, 1, &[0x40, 5, b'a']), Refusal::Truncated),
        (raw(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]), Refusal::Truncated),
        (raw(HEADERS, END_HEADERS, 1, &[0x82, 0x20, 0x82]), Refusal::LateSizeUpdate),
        (
            // 4097.
            raw(HEADERS, END_HEADERS, 1, &[0x3f, 0xe2, 0x1f, 0x82]),
            Refusal::Hpack(loona_hpack::decoder::DecoderError::InvalidMaxDynamicSize),
        ),
        (
            raw(HEADERS, END_HEADERS, 1, &[0x80 | 0x3e]),
            Refusal::Hpack(loona_hpack::decoder::DecoderError::HeaderIndexOutOfBounds),
        ),
    ];
    for (frames, expected) in cases {
        for piece in [1, 1000, usize::MAX] {
            // The same whether the server has seen something good before or not.
            let good = raw(HEADERS, END_HEADERS, 1, &ok);
            let bytes = [PREFACE.to_vec(), good, frames.clone()].concat();
            assert_eq!(filter(&bytes, &[piece]).1.as_ref(), Some(&expected), "{piece}");
        }
    }
    assert_eq!(filter(b"GET / HTTP/1.1\r\n", &[4]).1, Some(Refusal::Preface));
}

/// How many random connections: `cargo xtask fuzz` asks for more.
fn cases() -> u32 {
    std::env::var("NETFERRY_FUZZ_CONNECTIONS")
        .map_or(300, |cases| cases.parse().expect("NETFERRY_FUZZ_CONNECTIONS: a number"))
}

/// A frame to be sent, and how.
#[derive(Clone, Debug)]
enum Sent {
    Headers {
        stream: u32,
        end_stream: bool,
        priority: Option<[u8; 5]>,
        padding: Option<u8>,
        size_updates: Vec<u32>,
        fields: Vec<(Vec<u8>, Vec<u8>, u8)>,
        cuts: Vec<usize>,
    },
    Other {
        kind: u8,
        flags: u8,
        stream: u32,
        payload: Vec<u8>,
    },
}

fn fields() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>, u8)>> {
    // Few names and values, so that many are in the table.
    let name = prop_oneof![
        3 => select(vec![":authority", ":path", "host", "te", "x-a", "x-b"]).prop_map(|name| name.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 1..40),
    ];
    let value = prop_oneof![
        3 => select(vec!["%2Frun%2Fa.sock", "localhost", "a.b:1", "", "trailers", "1000m"])
            .prop_map(|value| value.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..400),
    ];
    vec((name, value, 0_u8..32), 0..12)
}

fn sent() -> impl Strategy<Value = Sent> {
    let headers = (
        (any::<u32>(), any::<bool>(), option::of(any::<[u8; 5]>()), option::of(any::<u8>())),
        (vec(0_u32..=4096, 0..3), fields(), vec(0_usize..1500, 0..6)),
    );
    let headers =
        headers.prop_map(|((stream, end_stream, priority, padding), (size_updates, fields, cuts))| {
            Sent::Headers {
                stream: stream >> 1,
                end_stream,
                priority,
                padding,
                // An update must be followed by a header.
                size_updates: if fields.is_empty() { Vec::new() } else { size_updates },
                fields,
                cuts,
            }
        });
    let other = (
        select(vec![0x0_u8, 0x2, 0x3, 0x4, 0x6, 0x7, 0x8, 0xa, 0xff]),
        any::<u8>(),
        any::<u32>(),
        vec(any::<u8>(), 0..600),
    );
    let other = other.prop_map(|(kind, flags, stream, payload)| Sent::Other {
        kind,
        flags,
        stream: stream >> 1,
        payload,
    });
    prop_oneof![2 => headers, 1 => other]
}

/// The bytes of a connection, and the frames that should come out.
fn connection(frames: &[Sent]) -> (Vec<u8>, Vec<Frame>) {
    let (mut encoder, mut bytes, mut expected) = (Encoder::default(), PREFACE.to_vec(), Vec::new());
    for frame in frames {
        match frame {
            Sent::Other { kind, flags, stream, payload } => {
                let frame = raw(*kind, *flags, *stream, payload);
                bytes.extend_from_slice(&frame);
                expected.push(Frame::Other(frame));
            }
            Sent::Headers { stream, end_stream, priority, padding, size_updates, fields, cuts } => {
                let mut block = Vec::new();
                for size in size_updates {
                    encoder.update_max_dynamic_size(*size, &mut block).unwrap();
                }
                for field in fields {
                    encoder.encode(field.clone(), &mut block).unwrap();
                }
                let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (block.len() + 1)).collect();
                cuts.sort_unstable();
                cuts.push(block.len());
                let (mut flags, mut payload) = (0, Vec::new());
                if *end_stream {
                    flags |= END_STREAM;
                }
                if let Some(padding) = padding {
                    flags |= PADDED;
                    payload.push(*padding);
                }
                if let Some(priority) = priority {
                    flags |= PRIORITY;
                    payload.extend_from_slice(priority);
                }
                payload.extend_from_slice(&block[..cuts[0]]);
                payload.extend(std::iter::repeat_n(0, usize::from(padding.unwrap_or(0))));
                let end = |last: bool| if last { END_HEADERS } else { 0 };
                bytes.extend(raw(HEADERS, flags | end(cuts.len() == 1), *stream, &payload));
                for (at, cut) in cuts.windows(2).enumerate() {
                    let flags = end(at + 2 == cuts.len());
                    bytes.extend(raw(CONTINUATION, flags, *stream, &block[cut[0]..cut[1]]));
                }
                let header = |(name, value, _): &(Vec<u8>, Vec<u8>, u8)| {
                    (name.clone(), acceptable(name, value).to_vec())
                };
                expected.push(Frame::Headers {
                    stream: *stream,
                    end_stream: *end_stream,
                    priority: priority.map(Vec::from).unwrap_or_default(),
                    headers: fields.iter().map(header).collect(),
                });
            }
        }
    }
    (bytes, expected)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn connections_come_out_with_the_same_headers_and_frames(
        frames in vec(sent(), 0..12), pieces in vec(1_usize..700, 1..8),
    ) {
        let (bytes, expected) = connection(&frames);
        let (output, refusal) = filter(&bytes, &pieces);
        prop_assert_eq!(refusal, None);
        prop_assert_eq!(parse(&output), expected);
    }

    /// It ends, with or without a refusal, in bounded memory: `filter` has the assertions.
    #[test]
    fn damaged_connections_neither_panic_nor_grow(
        frames in vec(sent(), 1..12),
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 1..8),
        pieces in vec(1_usize..700, 1..8),
    ) {
        let (mut bytes, _) = connection(&frames);
        for (at, byte, how) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(bytes.len().min(at.max(PREFACE.len()))),
            }
        }
        filter(&bytes, &pieces);
    }

    #[test]
    fn noise_behind_the_preface_neither_panics_nor_grows(
        noise in vec(any::<u8>(), 0..2000), length in 0_usize..200, stream in 0_u32..3, flags in any::<u8>(),
    ) {
        // One frame of headers that are noise, and noise at large.
        let block = &noise[..noise.len().min(length)];
        let bytes = [PREFACE.to_vec(), raw(HEADERS, flags, stream, block), noise.clone()].concat();
        filter(&bytes, &[97]);
    }
}
