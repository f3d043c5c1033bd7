//! Loads, and how one is put on a path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cpu::{self, Meter};
use super::netns::Netns;
use super::{tcp, udp};

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// A byte there and a byte back, over one TCP connection.
    Rr,
    /// The same with a connection of its own for each.
    Crr,
    /// One TCP connection, as much as goes.
    Stream,
    /// Datagrams of 18 bytes (frames of 60), as many as go.
    Udp,
}

impl Test {
    pub(crate) const ALL: [Self; 4] = [Self::Rr, Self::Crr, Self::Stream, Self::Udp];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Crr => "crr",
            Self::Stream => "stream",
            Self::Udp => "udp",
        }
    }
}

/// What came of a load in the time measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Transactions, connections, bytes or datagrams that arrived.
    pub(crate) count: u64,
    /// What the sender gave, where that can be more.
    pub(crate) sent: u64,
    /// How long it took.
    pub(crate) took: Duration,
    /// CPU time of both ends and the path between.
    pub(crate) cpu: Duration,
}

impl Sample {
    /// How many a second.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }

    /// CPU-seconds for a billion of them.
    pub(crate) fn cpu_of_billion(&self) -> f64 {
        self.cpu.as_secs_f64() / self.took.as_secs_f64() / self.rate() * 1e9
    }
}

/// How long, where, and how it is measured.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) test: Test,
    pub(crate) time: Duration,
    pub(crate) client: usize,
    pub(crate) server: usize,
    pub(crate) meter: Meter,
}

/// The time measured by a client: it begins after a warm-up.
pub(crate) struct Window {
    meter: Meter,
    cpu: Duration,
    start: Instant,
    time: Duration,
}

impl Window {
    /// Works for a tenth of the time without counting, and begins then.
    pub(crate) fn open(run: &Run, mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        let start = Instant::now();
        while start.elapsed() < run.time / 10 {
            work()?;
        }
        let cpu = run.meter.read()?;
        Ok(Self { meter: run.meter.clone(), cpu, start: Instant::now(), time: run.time })
    }

    /// Whether it is still open.
    pub(crate) fn is_open(&self) -> bool {
        self.start.elapsed() < self.time
    }

    /// Time and CPU time until now.
    pub(crate) fn close(self) -> Result<(Duration, Duration)> {
        let took = self.start.elapsed();
        Ok((took, self.meter.read()?.saturating_sub(self.cpu)))
    }
}

/// Where the parts of a load are.
pub(crate) struct Ends<'a> {
    pub(crate) client: &'a Netns,
    pub(crate) server: &'a Netns,
    pub(crate) to: IpAddr,
}

/// Puts a load on a path.
pub(crate) fn put(ends: &Ends<'_>, run: &Run) -> Result<Sample> {
    let (told, port) = channel();
    let Run { test, server, .. } = *run;
    let any = any(ends.to);
    let served = ends.server.spawn(move || {
        cpu::pin(server)?;
        serve(test, any, &told)
    });
    // What a server cannot say because it failed, it says with its answer.
    let Ok(port) = port.recv_timeout(PATIENCE) else {
        return Err(served
            .recv_timeout(PATIENCE)
            .context("the server does not start")?
            .err()
            .context("no port")?);
    };
    let (to, of) = (SocketAddr::new(ends.to, port), run.clone());
    let driven = ends.client.spawn(move || {
        cpu::pin(of.client)?;
        drive(&of, to)
    });
    // Nothing here has a time limit of its own, which would cost a timer at each wait: a path that does not
    // carry ends the process instead.
    let sample =
        driven.recv_timeout(run.time * 2 + PATIENCE).context("the client hangs: no answer comes")??;
    served.recv_timeout(PATIENCE).context("the server hangs")??;
    Ok(sample)
}

/// Every address of the family of this one.
pub(crate) const fn any(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn serve(test: Test, any: IpAddr, port: &Sender<u16>) -> Result<()> {
    match test {
        Test::Rr => tcp::answer(any, port),
        Test::Crr => tcp::answer_each(any, port),
        Test::Stream => tcp::swallow(any, port),
        Test::Udp => udp::count(any, port),
    }
}

fn drive(run: &Run, to: SocketAddr) -> Result<Sample> {
    match run.test {
        Test::Rr => tcp::ask(run, to),
        Test::Crr => tcp::ask_each(run, to),
        Test::Stream => tcp::pour(run, to),
        Test::Udp => udp::flood(run, to),
    }
}
