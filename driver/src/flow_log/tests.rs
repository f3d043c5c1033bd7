use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::UnixStream,
    sync::mpsc,
};

use super::*;
use crate::{
    metrics::{Sources, format::Format},
    readiness::Readiness,
};

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(Sources {
        followed: Arc::default(),
        network_drops: Box::new(Vec::new),
        readiness: Arc::new(Readiness::new()),
        publisher: Arc::default(),
        pods_waiting: Box::new(|| 0),
        namespaces_held: Box::new(|| 0),
        holdings: Box::new(Vec::new),
    }))
}

fn line(endpoint: EndpointId) -> FlowLine {
    FlowLine {
        at: Timestamp::UNIX_EPOCH,
        kind: "deny".into(),
        holder: None,
        from: None,
        to: None,
        decision: None,
        endpoint,
        direction: "from_pod".into(),
        reason: Some("source_mac".into()),
        rule: None,
        source: None,
        source_port: 0,
        destination: None,
        destination_port: 0,
        protocol: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_is_dropped_and_the_others_miss_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.sock");
    // Left by an earlier daemon.
    std::fs::write(&path, "").unwrap();
    let (metrics, stop) = (metrics(), CancellationToken::new());
    let (lines, _) = broadcast::channel(BACKLOG);
    let readers = Readers::new(lines.clone(), Arc::clone(&metrics), stop.clone());
    let serving = tokio::spawn(socket::serve(LocalSocket::bind(&path).unwrap(), readers));
    let (good, mut idle) = (UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap());
    let (to, read) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(good).lines().map_while(Result::ok).try_for_each(|line| to.send(line))
    });
    while lines.receiver_count() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let all = 20_000;
    // A sender that waited for the idle reader would never end. The other reader has the lines before more are sent.
    for first in (0..all).step_by(500) {
        for id in first..first + 500 {
            tell(&lines, &line(id));
        }
        for id in first..first + 500 {
            let next = tokio::task::block_in_place(|| read.recv_timeout(Duration::from_mins(1))).unwrap();
            assert_eq!(serde_json::from_str::<FlowLine>(&next).unwrap(), line(id));
        }
    }
    let dropped = "netferry_flow_readers_dropped_total 1\n";
    for _ in 0..1200 {
        if metrics.encode(Format::OpenMetrics).unwrap().contains(dropped) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(metrics.encode(Format::OpenMetrics).unwrap().contains(dropped), "the idle reader is still there");
    // It is told so by the end of its stream, after what its buffer had.
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > 1000);
    stop.cancel();
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_reader_that_leaves_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.sock");
    let (lines, _) = broadcast::channel(BACKLOG);
    let readers = Readers::new(lines.clone(), metrics(), CancellationToken::new());
    let serving = tokio::spawn(socket::serve(LocalSocket::bind(&path).unwrap(), readers));
    let until = async |count: usize| {
        for _ in 0..400 {
            if lines.receiver_count() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} readers, not {count}", lines.receiver_count());
    };
    let mut streams: Vec<_> = (0..16).map(|_| UnixStream::connect(&path).unwrap()).collect();
    until(16).await;
    let mut refused = UnixStream::connect(&path).unwrap();
    tokio::task::yield_now().await;
    refused.set_nonblocking(true).unwrap();
    let mut end = Err(io::ErrorKind::WouldBlock.into());
    for _ in 0..400 {
        end = refused.read(&mut [0; 8]);
        if end.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(end.unwrap(), 0, "the seventeenth reader was taken");
    // Nothing happens, and still it is noticed.
    streams.pop();
    until(15).await;
    streams.push(UnixStream::connect(&path).unwrap());
    until(16).await;
    serving.abort();
}
