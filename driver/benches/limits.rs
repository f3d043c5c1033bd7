//! How exact rate limits are: more than the limit is offered over a real veth pair, and what comes out is counted by the
//! receiver's kernel. `cargo xtask bench limits` runs it as root; five minutes once built.
#![allow(missing_docs, dead_code, reason = "shares the world of the matrix")]

#[path = "../tests/matrix/frames.rs"]
mod frames;
#[path = "../tests/datapath/world.rs"]
mod host;
#[path = "wire/machine.rs"]
mod machine;
#[path = "../tests/matrix/oracle.rs"]
mod oracle;
#[path = "../tests/matrix/tap.rs"]
mod tap;
#[path = "../tests/matrix/world.rs"]
mod world;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use netferry::datapath::{Datapath as _, limits::Limits};
use world::{MEMBER, Node, PEER, POD, SENDER, station_at};

/// Data of a datagram that fills a frame of 1500 bytes.
const DATA: usize = 1472;
/// Bytes of such a frame as a limit counts them.
const FRAME: f64 = 1514.0;
/// Data of a full TCP segment, with timestamps.
const SEGMENT: f64 = 1448.0;
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(10);

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("limits: not root, nothing is measured");
        return;
    }
    machine::print();
    let node = Node::new();
    for (of, station) in [("pod", POD), ("peer", PEER), ("other", station_at(oracle::Destination::Other))] {
        node.pair(of, &station);
    }
    let datapath = node.datapath();
    Node::protect(&datapath);
    println!("bits a second on the wire, Ethernet headers included, over {MEASURED:?}");
    println!("what is offered is no more than the machine can send: below the limit, nothing is limited");
    println!(
        "{:<10} {:<22} {:>13} {:>13} {:>13} {:>8}",
        "limit of", "traffic", "limit", "offered", "measured", "off by"
    );
    for (limited, direction) in [(SENDER, "egress"), (MEMBER, "ingress")] {
        for rate in [100_000_000_u64, 5_000_000_000] {
            let text = format!("{direction}: {{bitsPerSecond: {rate}}}");
            let limits: Limits = serde_yaml_ng::from_str(&text).expect("limits");
            datapath.set_limits(limited, &limits).expect("set the limits");
            let show = |traffic: &str, (offered, measured): (f64, f64)| {
                #[allow(clippy::cast_precision_loss, reason = "of a rate")]
                let off = (measured / rate as f64 - 1.0) * 100.0;
                println!(
                    "{direction:<10} {traffic:<22} {rate:>13} {offered:>13.0} {measured:>13.0} {off:>+7.3}%"
                );
            };
            show("UDP", udp(&node, rate, 1, 1));
            show("UDP, GSO", udp(&node, rate, 1, 44));
            show("UDP, GSO, two CPUs", udp(&node, rate, 2, 44));
            for control in ["reno", "cubic", "bbr"] {
                match tcp(&node, control) {
                    Some(measured) => show(&format!("TCP, {control}"), (f64::NAN, measured)),
                    None => println!("{direction:<10} TCP, {control}: this kernel has it not"),
                }
            }
            datapath.set_limits(limited, &Limits::default()).expect("take them back");
        }
    }
}

/// Datagrams for a socket that nobody reads: each is counted as an error once its queue is full.
fn udp(node: &Node, rate: u64, senders: usize, segments: usize) -> (f64, f64) {
    let peer = Ipv4Addr::from(PEER.v4);
    let receiver = node.within("peer", move || UdpSocket::bind((peer, 0)).expect("bind"));
    let to = receiver.local_addr().expect("an address");
    let stop = Arc::new(AtomicBool::new(false));
    let offered = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..senders)
        .map(|cpu| {
            let socket = node.within("pod", move || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
                socket.connect(to).expect("connect");
                socket
            });
            let (stop, offered) = (Arc::clone(&stop), Arc::clone(&offered));
            std::thread::spawn(move || {
                if senders > 1 {
                    pin(cpu);
                }
                if segments > 1 {
                    segment(&socket);
                }
                let (data, start) = (vec![0; segments * DATA], Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    // One and a half times the limit, so that the machine has time for the rest.
                    let due = start.elapsed().as_micros() * u128::from(rate) * 3 / 2 / 8_000_000;
                    if u128::from(offered.load(Ordering::Relaxed)) > due {
                        std::thread::sleep(Duration::from_micros(200));
                        continue;
                    }
                    // A frame that a program drops is no error here, or ENOBUFS.
                    let _ = socket.send(&data);
                    offered.fetch_add((segments * 1514) as u64, Ordering::Relaxed);
                }
            })
        })
        .collect();
    std::thread::sleep(WARM_UP);
    let offering = || offered.load(Ordering::Relaxed);
    let (before, offered_before, start) = (received(node), offering(), Instant::now());
    std::thread::sleep(MEASURED);
    let (after, offered_after, took) = (received(node), offering(), start.elapsed());
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a sender");
    }
    #[allow(clippy::cast_precision_loss, reason = "of some billions")]
    let (frames, bytes) = ((after - before) as f64, (offered_after - offered_before) as f64);
    (bytes * 8.0 / took.as_secs_f64(), frames * FRAME * 8.0 / took.as_secs_f64())
}

/// Datagrams that came to the receiver's sockets, read or not.
fn received(node: &Node) -> u64 {
    let table =
        node.within("peer", || std::fs::read_to_string("/proc/thread-self/net/snmp").expect("counters"));
    let mut lines = table.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let counters = names.split_whitespace().zip(values.split_whitespace());
    let wanted = counters.filter(|(name, _)| ["InDatagrams", "InErrors"].contains(name));
    wanted.map(|(_, value)| value.parse::<u64>().expect("a number")).sum()
}

/// A bulk transfer; the data that arrives, as the full segments it came in. TCP slows down when frames are dropped: how much
/// depends on the sender's congestion control.
fn tcp(node: &Node, control: &str) -> Option<f64> {
    let peer = Ipv4Addr::from(PEER.v4);
    let listener = node.within("peer", move || TcpListener::bind((peer, 0)).expect("listen"));
    let to = listener.local_addr().expect("an address");
    let stop = Arc::new(AtomicBool::new(false));
    let stream = node.within("pod", move || TcpStream::connect(to).expect("connect"));
    controls(&stream, control).then_some(())?;
    let (mut receiver, _) = listener.accept().expect("accept");
    let stopped = Arc::clone(&stop);
    let sender = std::thread::spawn(move || {
        let mut stream = stream;
        let data = vec![0; 1 << 17];
        while !stopped.load(Ordering::Relaxed) && stream.write_all(&data).is_ok() {}
    });
    let mut data = vec![0; 1 << 18];
    let begin = Instant::now();
    while begin.elapsed() < WARM_UP {
        assert!(receiver.read(&mut data).expect("data") > 0);
    }
    let (mut bytes, start) = (0_u64, Instant::now());
    while start.elapsed() < MEASURED {
        bytes += receiver.read(&mut data).expect("data") as u64;
    }
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    drop(receiver);
    sender.join().expect("the sender");
    #[allow(clippy::cast_precision_loss, reason = "of some billions")]
    let segments = bytes as f64 / SEGMENT;
    Some(segments * FRAME * 8.0 / took.as_secs_f64())
}

fn pin(cpu: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu % cpus).expect("a CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("pin");
}

/// Whether the kernel has this congestion control; then the connection uses it.
fn controls(stream: &TcpStream, control: &str) -> bool {
    let length = libc::socklen_t::try_from(control.len()).expect("short");
    // SAFETY: the name outlives the call, and its length is told.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            control.as_ptr().cast(),
            length,
        )
    };
    set == 0
}

/// One call sends a train of datagrams as one frame, as far as the wire.
fn segment(socket: &UdpSocket) {
    let size = libc::c_int::try_from(DATA).expect("small");
    // SAFETY: the option is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), 4)
    };
    assert_eq!(result, 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
}
