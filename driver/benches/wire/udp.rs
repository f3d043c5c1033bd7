//! Datagrams, as many as go.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::load::{Run, Sample, Window, any};

/// Data of a datagram: with its headers a frame of the least length that Ethernet has, without its checksum.
const DATA: [u8; 18] = [7; 18];
/// What the receiver's socket holds: what is sent while the sender has the CPU.
const BUFFER: usize = 64 << 20;

/// Datagrams that arrived in this process; one load runs at a time.
static ARRIVED: AtomicU64 = AtomicU64::new(0);
/// Whether the receiver has seen the end.
static ENDED: AtomicBool = AtomicBool::new(false);

/// Counts datagrams until one of a single byte.
pub(crate) fn count(any: IpAddr, port: &Sender<u16>) -> Result<()> {
    let socket = UdpSocket::bind((any, 0)).context("bind")?;
    setsockopt(&socket, RcvBufForce, &BUFFER).context("enlarge the buffer of the receiver")?;
    ENDED.store(false, Ordering::Release);
    port.send(socket.local_addr()?.port())?;
    let mut data = [0; 64];
    while socket.recv(&mut data)? == DATA.len() {
        ARRIVED.fetch_add(1, Ordering::Relaxed);
    }
    ENDED.store(true, Ordering::Release);
    Ok(())
}

/// Sends as many as go. Those are counted that the receiver read meanwhile.
pub(crate) fn flood(run: &Run, to: SocketAddr) -> Result<Sample> {
    let any = any(to.ip());
    let socket = UdpSocket::bind((any, 0)).context("bind")?;
    socket.connect(to)?;
    let give = || {
        socket.send(&DATA).context("send")?;
        Ok(())
    };
    let window = Window::open(run, give)?;
    let before = ARRIVED.load(Ordering::Relaxed);
    let mut sent = 0;
    while window.is_open() {
        for _ in 0..16 {
            give()?;
        }
        sent += 16;
    }
    let (took, cpu) = window.close()?;
    let count = ARRIVED.load(Ordering::Relaxed) - before;
    while !ENDED.load(Ordering::Acquire) {
        // The last of these may be refused: nobody is there any more.
        let _ = socket.send(&[0]);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Sample { count, sent, took, cpu })
}
