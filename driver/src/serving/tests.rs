//! Peers that do not behave.

use std::net::SocketAddr;

use axum::routing::get;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// A server of `/` that answers `hello`.
async fn start(bounds: Bounds) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let router = Router::new().route("/", get(|| async { "hello" }));
    tokio::spawn(serve(listener, router, bounds, stop.clone()));
    (address, stop)
}

async fn ask(peer: &mut TcpStream) -> std::io::Result<String> {
    peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let mut text = String::new();
    while !text.ends_with("hello") {
        let mut bytes = [0; 512];
        match peer.read(&mut bytes).await? {
            0 => break,
            read => text.push_str(&String::from_utf8_lossy(&bytes[..read])),
        }
    }
    Ok(text)
}

/// Whether the server has closed the connection.
async fn closed(peer: &mut TcpStream) -> bool {
    let mut bytes = [0; 512];
    loop {
        match peer.read(&mut bytes).await {
            Ok(0) | Err(_) => return true,
            Ok(_) => {}
        }
    }
}

#[tokio::test]
async fn half_a_header_and_an_idle_connection_are_closed() {
    let bounds = Bounds { header: Duration::from_millis(100), ..Bounds::default() };
    let (address, _stop) = start(bounds).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nx-slow: ").await.unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut idle).await.unwrap().starts_with("HTTP/1.1 200"));
    let all = async { (closed(&mut slow).await, closed(&mut silent).await, closed(&mut idle).await) };
    assert_eq!(timeout(Duration::from_secs(30), all).await.unwrap(), (true, true, true));
}

#[tokio::test]
async fn a_connection_ends_though_its_peer_goes_on_asking() {
    let bounds = Bounds { lifetime: Duration::from_millis(200), ..Bounds::default() };
    let (address, _stop) = start(bounds).await;
    let mut peer = TcpStream::connect(address).await.unwrap();
    let asking = async {
        while ask(&mut peer).await.is_ok_and(|text| !text.is_empty()) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), asking).await.expect("the connection was never closed");
}

#[tokio::test]
async fn many_slow_peers_keep_nobody_out() {
    let bounds = Bounds { connections: 8, header: Duration::from_mins(10), ..Bounds::default() };
    let (address, _stop) = start(bounds).await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(b"GET / HTTP/1.1\r\nx-slow: ").await.unwrap();
        slow.push(peer);
    }
    let mut honest = TcpStream::connect(address).await.unwrap();
    let answer = timeout(Duration::from_secs(30), ask(&mut honest)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // All but those that fit beside the honest one are closed.
    for peer in &mut slow[..92] {
        assert!(timeout(Duration::from_secs(30), closed(peer)).await.unwrap());
    }
}

#[tokio::test]
async fn a_header_that_is_too_long_is_refused() {
    let (address, _stop) = start(Bounds::default()).await;
    let mut peer = TcpStream::connect(address).await.unwrap();
    let line = format!("x: {}\r\n", "a".repeat(8 * 1024));
    let sending = async {
        peer.write_all(b"GET / HTTP/1.1\r\n").await?;
        for _ in 0..1000 {
            peer.write_all(line.as_bytes()).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let sent = timeout(Duration::from_secs(30), sending).await.expect("the header was read on and on");
    assert!(sent.is_err() || closed(&mut peer).await);
}
