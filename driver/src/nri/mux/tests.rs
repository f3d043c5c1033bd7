use std::time::Duration;

use proptest::prelude::*;
use tokio::{io::duplex, time::timeout};

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn frame(id: ConnectionId, payload: &[u8]) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Feed `bytes` and then end of file; the mux's verdict and what each connection read.
async fn feed(bytes: Vec<u8>, pieces: Vec<usize>) -> (MuxError, [Vec<u8>; 2]) {
    let (mut peer, trunk) = duplex(1024);
    let (work, [mut one, mut two]) = open(trunk, [1, 2]);
    let write = async move {
        let mut rest = &bytes[..];
        for piece in pieces {
            let (head, tail) = rest.split_at(piece.min(rest.len()));
            rest = tail;
            if peer.write_all(head).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        // The mux may have closed the trunk already.
        let _ = peer.write_all(rest).await;
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let (error, (), _, _) = timeout(SOON, async {
        tokio::join!(work, write, one.read_to_end(&mut first), two.read_to_end(&mut second))
    })
    .await
    .expect("the mux hangs");
    (error, [first, second])
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

#[tokio::test]
async fn frames_are_parts_of_a_stream() {
    let mut bytes = frame(1, b"ab");
    bytes.extend(frame(2, b"12"));
    bytes.extend(frame(1, b""));
    bytes.extend(frame(1, b"cd"));
    let (error, [one, two]) = feed(bytes, vec![1; 40]).await;
    assert!(matches!(error, MuxError::Closed), "{error}");
    assert_eq!((&one[..], &two[..]), (&b"abcd"[..], &b"12"[..]));
}

#[tokio::test]
async fn bad_frames_close_everything() {
    let (error, _) = feed(frame(7, b"x"), vec![]).await;
    assert!(matches!(error, MuxError::UnknownConnection { id: 7 }), "{error}");

    let (error, _) = feed(frame(0, b"x"), vec![]).await;
    assert!(matches!(error, MuxError::UnknownConnection { id: 0 }), "{error}");

    let (error, [one, _]) = feed([&frame(1, b"abc")[..], &[0, 0, 0]].concat(), vec![]).await;
    assert!(matches!(error, MuxError::ShortHeader { got: 3 }), "{error}");
    assert_eq!(one, b"abc");

    let mut bytes = frame(2, b"0123456789");
    bytes.truncate(HEADER + 4);
    let (error, _) = feed(bytes, vec![]).await;
    assert!(matches!(error, MuxError::ShortPayload { id: 2, length: 10, missing: 6 }), "{error}");

    let mut bytes = 1u32.to_be_bytes().to_vec();
    bytes.extend((PAYLOAD_LIMIT + 1).to_be_bytes());
    let (error, _) = feed(bytes, vec![]).await;
    assert!(matches!(error, MuxError::Oversized { id: 1, length } if length == PAYLOAD_LIMIT + 1), "{error}");
}

#[tokio::test]
async fn the_largest_frame_passes() {
    let payload: Vec<u8> = (0..PAYLOAD_LIMIT).map(|i| (i % 251) as u8).collect();
    let (error, [one, _]) = feed(frame(1, &payload), vec![]).await;
    assert!(matches!(error, MuxError::Closed), "{error}");
    assert!(one == payload, "the payload is changed");
}

/// The runtime's reader has a buffer of 4096 bytes, and fails on a larger frame.
#[tokio::test]
async fn no_frame_sent_is_larger_than_the_runtimes_buffer() {
    let (mut peer, trunk) = duplex(1 << 20);
    let (work, [mut one, _two]) = open(trunk, [1, 2]);
    let message = vec![9; 100_000];
    let write = async move {
        one.write_all(&message).await.unwrap();
        drop(one);
    };
    let (error, ()) = timeout(SOON, async { tokio::join!(work, write) }).await.unwrap();
    assert!(matches!(error, MuxError::ConnectionClosed { id: 1 }), "{error}");
    let mut total = 0;
    let mut header = [0; HEADER];
    while peer.read_exact(&mut header).await.is_ok() {
        assert_eq!(header[..4], [0, 0, 0, 1]);
        let length = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
        assert!(length <= PAYLOAD_SENT, "{length}");
        total += length;
        peer.read_exact(&mut vec![0; length]).await.unwrap();
    }
    assert_eq!(total, 100_000);
}

/// A peer that floods a connection nobody reads is held up, and costs no more than the queue.
#[tokio::test]
async fn a_flood_is_held_up_at_the_queue() {
    const SOCKET: usize = 1024;
    for size in [1, 7, 1000, 65_536, PAYLOAD_LIMIT as usize] {
        let (mut peer, trunk) = duplex(SOCKET);
        let (work, [one, _two]) = open(trunk, [1, 2]);
        let mux = tokio::spawn(work);
        let flood = frame(1, &vec![0; size]);
        let mut accepted = 0;
        // Held up: nothing was taken for a while that is long for a copy between two buffers.
        while let Ok(wrote) =
            timeout(Duration::from_millis(50), peer.write(&flood[accepted % flood.len()..])).await
        {
            accepted += wrote.unwrap();
            let frames = accepted / flood.len() + 1;
            // The queue, the socket, the reader's buffer, and one piece on its way between them.
            let most = QUEUE + SOCKET + 8 * 1024 + PAYLOAD_SENT + frames * HEADER;
            assert!(accepted <= most, "{accepted} bytes accepted of frames of {size}");
        }
        assert!(accepted >= QUEUE, "held up after {accepted} bytes already");
        // Its reader comes back to life: so does the trunk.
        let drain = tokio::spawn(async move { tokio::io::copy(&mut { one }, &mut tokio::io::sink()).await });
        timeout(SOON, peer.write_all(&flood[accepted % flood.len()..])).await.unwrap().unwrap();
        drop(peer);
        assert!(matches!(mux.await.unwrap(), MuxError::Closed));
        drain.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_up_the_writer() {
    let (_peer, trunk) = duplex(1024);
    let (work, [mut one, _two]) = open(trunk, [1, 2]);
    let mux = tokio::spawn(work);
    let mut accepted = 0;
    while let Ok(wrote) = timeout(Duration::from_millis(50), one.write(&[0; 4096])).await {
        accepted += wrote.unwrap();
        assert!(accepted <= QUEUE + 2 * PAYLOAD_SENT + 1024, "{accepted}");
    }
    mux.abort();
}

#[derive(Clone, Debug)]
enum Chunk {
    Frame(ConnectionId, Vec<u8>),
    Header(u32, u32),
    Noise(Vec<u8>),
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        6 => (1u32..=2, bytes.clone()).prop_map(|(id, payload)| Chunk::Frame(id, payload)),
        1 => (0u32..=4, prop_oneof![0u32..300, any::<u32>()]).prop_map(|(id, length)| Chunk::Header(id, length)),
        1 => bytes.prop_map(Chunk::Noise),
    ]
}

/// What the format says `bytes` mean, worked out without the code under test.
fn expected(bytes: &[u8]) -> (String, [Vec<u8>; 2]) {
    let mut out = [Vec::new(), Vec::new()];
    let mut rest = bytes;
    let verdict = loop {
        if rest.is_empty() {
            break MuxError::Closed;
        }
        let Some((header, tail)) = rest.split_at_checked(8) else {
            break MuxError::ShortHeader { got: rest.len() };
        };
        let id = u32::from_be_bytes(header[..4].try_into().unwrap());
        let length = u32::from_be_bytes(header[4..].try_into().unwrap());
        if !(1..=2).contains(&id) {
            break MuxError::UnknownConnection { id };
        }
        if length > PAYLOAD_LIMIT {
            break MuxError::Oversized { id, length };
        }
        let there = tail.len().min(length as usize);
        out[id as usize - 1].extend(&tail[..there]);
        rest = &tail[there..];
        if there < length as usize {
            break MuxError::ShortPayload { id, length, missing: length - u32::try_from(there).unwrap() };
        }
    };
    (verdict.to_string(), out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_in_any_pieces_mean_what_the_format_says(
        chunks in prop::collection::vec(chunk(), 0..8),
        pieces in prop::collection::vec(1usize..64, 0..32),
    ) {
        let mut bytes = Vec::new();
        for chunk in chunks {
            match chunk {
                Chunk::Frame(id, payload) => bytes.extend(frame(id, &payload)),
                Chunk::Header(id, length) => {
                    bytes.extend(id.to_be_bytes());
                    bytes.extend(length.to_be_bytes());
                }
                Chunk::Noise(noise) => bytes.extend(noise),
            }
        }
        let (verdict, streams) = expected(&bytes);
        let (error, read) = run(feed(bytes, pieces));
        prop_assert_eq!(error.to_string(), verdict);
        prop_assert_eq!(read, streams);
    }
}
