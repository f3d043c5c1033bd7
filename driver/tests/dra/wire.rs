//! What a kubelet's gRPC library puts on the wire, and what becomes of peers that are refused.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use netferry::dra::registration::RegistrationState;
use netferry_proto::dra::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time,
};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    daemon::{DRIVER, Daemon},
    kubelet::grpc_go::{Connection, Frame, authority_of},
};

/// All that a kubelet 1.36 sends for GetInfo, to a server that does not accept its authority: it ends with
/// RST_STREAM and GOAWAY.
const CAPTURE: &[u8] = include_bytes!("../wire/kubelet-getinfo.bin");
const PREFACE: usize = 24;
const PLUGIN_TYPE: &str = "DRAPlugin";
const SOON: Duration = Duration::from_secs(5);

const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const GOAWAY: u8 = 0x7;
const END_HEADERS: u8 = 0x4;

fn registration_socket(root: &Path) -> PathBuf {
    root.join("plugins_registry/netferry.dev-reg.sock")
}

async fn connect(path: &Path) -> UnixStream {
    let connected = async {
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => break stream,
                Err(_) => time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    time::timeout(SOON, connected).await.unwrap()
}

async fn frame(stream: &mut UnixStream, received: &mut Vec<u8>) -> Option<Frame> {
    loop {
        if let Some((frame, rest)) = Frame::parse(received) {
            *received = rest.to_vec();
            return Some(frame);
        }
        let read = time::timeout(SOON, stream.read_buf(received)).await.expect("an answer in time");
        if !matches!(read, Ok(1..)) {
            return None;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_kubelet_are_answered() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let mut behind = &CAPTURE[PREFACE..];
    while let Some((frame, rest)) = Frame::parse(behind)
        && frame.kind != RST_STREAM
    {
        behind = rest;
    }
    assert!(!behind.is_empty(), "the capture has an end");
    let request = &CAPTURE[..CAPTURE.len() - behind.len()];

    // In one piece, and byte by byte.
    for piece in [request.len(), 1] {
        let mut stream = connect(&registration_socket(root.path())).await;
        for part in request.chunks(piece) {
            stream.write_all(part).await.unwrap();
        }
        let (mut received, mut message, mut decoder) = (Vec::new(), Vec::new(), loona_hpack::Decoder::new());
        let trailers = loop {
            let frame = frame(&mut stream, &mut received).await.expect("the connection lasts");
            assert!(![RST_STREAM, GOAWAY].contains(&frame.kind), "{frame:?}");
            match frame.kind {
                0 => message.extend_from_slice(&frame.payload),
                HEADERS => {
                    let headers = decoder.decode(&frame.payload).unwrap();
                    if frame.flags & 1 != 0 {
                        break headers;
                    }
                    assert!(headers.contains(&(b":status".to_vec(), b"200".to_vec())), "{headers:?}");
                }
                _ => {}
            }
        };
        assert_eq!(trailers, [(b"grpc-status".to_vec(), b"0".to_vec())]);
        let info = PluginInfo::decode(&message[5..]).unwrap();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), (PLUGIN_TYPE, DRIVER));
        stream.write_all(behind).await.unwrap();
        while frame(&mut stream, &mut received).await.is_some() {}
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_sends_the_header_block_of_a_kubelet() {
    let path = Path::new("/var/lib/kubelet/plugins_registry/netferry.dev-reg.sock");
    assert_eq!(authority_of(path), "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fnetferry.dev-reg.sock");
    let mut rest = &CAPTURE[PREFACE..];
    let real = loop {
        let (frame, behind) = Frame::parse(rest).expect("the capture has headers");
        if frame.kind == HEADERS {
            break loona_hpack::Decoder::new().decode(&frame.payload).unwrap();
        }
        rest = behind;
    };
    let value = |name: &str| {
        let found = real.iter().find(|(found, _)| found == name.as_bytes()).expect("the header");
        String::from_utf8(found.1.clone()).unwrap()
    };
    // The socket of the capture, as far as its name goes.
    assert!(value(":authority").starts_with("%2F"), "{}", value(":authority"));
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    connect(&registration_socket(root.path())).await;
    let mut connection = Connection::dial(&registration_socket(root.path())).await.unwrap();
    let block = connection.header_block(&value(":path"), &value("grpc-timeout"));
    let ours = loona_hpack::Decoder::new().decode(&block).unwrap();
    for ((our_name, our_value), (name, value)) in ours.iter().zip(&real) {
        assert_eq!(our_name, name);
        if name != b":authority" && name != b"user-agent" {
            assert_eq!(our_value, value);
        }
    }
    assert_eq!(ours.len(), real.len());
    // A server that stops waits for peers that do not read.
    drop(connection);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn later_calls_name_the_authority_by_its_index() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let path = registration_socket(root.path());
    connect(&path).await;
    let mut connection = Connection::dial(&path).await.unwrap();
    for _ in 0..3 {
        let method = "/pluginregistration.Registration/GetInfo";
        let info: PluginInfo = connection.unary(method, &InfoRequest {}, SOON).await.unwrap();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), (PLUGIN_TYPE, DRIVER));
    }
    let method = "/pluginregistration.Registration/NotifyRegistrationStatus";
    let status = RegistrationStatus { plugin_registered: true, error: String::new() };
    let _: RegistrationStatusResponse = connection.unary(method, &status, SOON).await.unwrap();
    assert_eq!(*daemon.state.borrow(), RegistrationState::Registered);
    // The path is in the table, too: nine headers, nine indexes.
    assert_eq!(connection.header_block(method, "5000m").len(), 9);
    drop(connection);
    daemon.stop().await;
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    fn lines(&self) -> Vec<String> {
        let bytes: MutexGuard<'_, Vec<u8>> = self.0.lock().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        text.lines().filter(|line| line.contains("refused a peer")).map(str::to_owned).collect()
    }
}

// On one thread, so that the log is this test's.
#[tokio::test]
async fn peers_refused_below_the_service_are_logged_once_a_minute() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let http2 = |frames: &[Frame]| {
        let frames = frames.iter().flat_map(Frame::bytes);
        CAPTURE[..PREFACE].iter().copied().chain([0, 0, 0, 4, 0, 0, 0, 0, 0]).chain(frames).collect()
    };
    let request = |path: &str, more: &[(&str, &str)]| {
        let mut headers = vec![(":method", "POST"), (":scheme", "http"), (":authority", "localhost")];
        if !path.is_empty() {
            headers.push((":path", path));
        }
        headers.extend(more);
        let mut payload = Vec::new();
        for (name, value) in headers {
            let mut encoder = httlib_hpack::Encoder::default();
            encoder.encode((name.as_bytes().to_vec(), value.as_bytes().to_vec(), 0), &mut payload).unwrap();
        }
        Frame { kind: HEADERS, flags: END_HEADERS | 1, stream: 1, payload }
    };
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let cases: [(&str, Vec<u8>); 5] = [
        // By the filter.
        ("it does not begin as an HTTP/2 client", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (
            "a header block that is cut short",
            http2(&[Frame { kind: HEADERS, flags: END_HEADERS, stream: 1, payload: vec![0x40] }]),
        ),
        // By the HTTP/2 server: a request without a path, and a stream of no client.
        ("RST_STREAM with PROTOCOL_ERROR (1)", http2(&[request("", &grpc)])),
        ("GOAWAY with PROTOCOL_ERROR (1)", http2(&[Frame { stream: 2, ..request("/a.B/C", &grpc) }])),
        // By the router.
        ("grpc-status 12 for /v9.DRAPlugin/NodePrepareResources", {
            http2(&[request("/v9.DRAPlugin/NodePrepareResources", &grpc)])
        }),
    ];
    for (reason, bytes) in cases {
        let root = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(root.path());
        let before = log.lines().len();
        for socket in [registration_socket(root.path()), root.path().join("plugins/netferry.dev/dra.sock")] {
            for _ in 0..3 {
                let mut stream = connect(&socket).await;
                stream.write_all(&bytes).await.unwrap();
                stream.shutdown().await.unwrap();
                let _ = time::timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("it is closed");
            }
        }
        let lines = log.lines().split_off(before);
        assert_eq!(lines.len(), 2, "one a socket for {reason}: {lines:#?}");
        assert!(lines[0].contains("netferry.dev-reg.sock") && lines[1].contains("dra.sock"), "{lines:#?}");
        assert!(
            lines.iter().all(|line| line.contains("WARN") && line.contains(reason)),
            "{reason}: {lines:#?}"
        );
        daemon.stop().await;
    }
}
