//! Loads over TCP.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::Sender;

use anyhow::{Context, Result};

use super::load::{Run, Sample, Window};

/// Bytes of one write of a stream.
const CHUNK: usize = 128 << 10;

fn listen(any: IpAddr, port: &Sender<u16>) -> Result<TcpListener> {
    let listener = TcpListener::bind((any, 0)).context("listen")?;
    port.send(listener.local_addr()?.port())?;
    Ok(listener)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Gives back each byte.
pub(crate) fn answer(any: IpAddr, port: &Sender<u16>) -> Result<()> {
    let (mut stream, _) = listen(any, port)?.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn transact(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [7];
    stream.write_all(&byte)?;
    Ok(stream.read_exact(&mut byte)?)
}

/// Transactions over one connection.
pub(crate) fn ask(run: &Run, to: SocketAddr) -> Result<Sample> {
    let mut stream = connect(to)?;
    let window = Window::open(run, || transact(&mut stream))?;
    let mut count = 0;
    while window.is_open() {
        for _ in 0..16 {
            transact(&mut stream)?;
        }
        count += 16;
    }
    let (took, cpu) = window.close()?;
    Ok(Sample { count, sent: count, took, cpu })
}

/// Gives back one byte on each connection, until one brings none.
pub(crate) fn answer_each(any: IpAddr, port: &Sender<u16>) -> Result<()> {
    let listener = listen(any, port)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        stream.write_all(&byte)?;
        // The client closes first, so that the ports that have to wait are its own.
        match stream.read(&mut byte) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Transactions over a connection each.
pub(crate) fn ask_each(run: &Run, to: SocketAddr) -> Result<Sample> {
    let once = || transact(&mut connect(to)?);
    let window = Window::open(run, once)?;
    let mut count = 0;
    while window.is_open() {
        once()?;
        count += 1;
    }
    let (took, cpu) = window.close()?;
    drop(connect(to)?);
    Ok(Sample { count, sent: count, took, cpu })
}

/// Reads whatever comes.
pub(crate) fn swallow(any: IpAddr, port: &Sender<u16>) -> Result<()> {
    let (mut stream, _) = listen(any, port)?.accept()?;
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk)? > 0 {}
    Ok(())
}

/// Writes as much as goes. What is counted was written, not read; the difference is a few megabytes at the most.
pub(crate) fn pour(run: &Run, to: SocketAddr) -> Result<Sample> {
    let mut stream = connect(to)?;
    let chunk = vec![7; CHUNK];
    let window = Window::open(run, || Ok(stream.write_all(&chunk)?))?;
    let mut count = 0;
    while window.is_open() {
        stream.write_all(&chunk)?;
        count += CHUNK as u64;
    }
    let (took, cpu) = window.close()?;
    stream.shutdown(Shutdown::Both)?;
    Ok(Sample { count, sent: count, took, cpu })
}
