//! The table of flows under attack, in use from two CPUs, and swept. Needs root; skips without, and says so.
#![allow(missing_docs, dead_code, reason = "a test binary that shares the world of the matrix")]

#[path = "matrix/frames.rs"]
mod frames;
#[path = "datapath/world.rs"]
mod host;
#[path = "matrix/oracle.rs"]
mod oracle;
#[path = "conntrack/overfill.rs"]
mod overfill;
#[path = "conntrack/sweep.rs"]
mod sweep;
#[path = "matrix/tap.rs"]
mod tap;
#[path = "matrix/world.rs"]
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use netferry::datapath::events::{FlowEvents, FlowRecord, Flows};
use netferry::datapath::{AyaDatapath, Datapath as _, Features, Placement};

use frames::{Station, frames};
use host::{able, ifindex};
use oracle::{Destination, Kind};
use tap::Tap;
use world::{MEMBER, Node, PEER, POD, SENDER, spec, station_at};

/// A third pod, on the same network as the others.
pub(crate) const THIRD: u32 = 3;

/// Frames of each CPU, and how long it waits for those before.
const FRAMES: u64 = 5000;
const PAUSE: Duration = Duration::from_millis(100);
/// Frames that are dropped.
const FLOOD: u64 = 3000;

/// Waits until `done`; whether it came to that.
pub(crate) fn waited(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Three pods on one network, with room for that many flows.
pub(crate) fn network(flows: Option<u32>) -> (Node, AyaDatapath) {
    let node = Node::new();
    let datapath = AyaDatapath::open_sized(&node.pins, Features::probe(), flows).expect("open the datapath");
    let third = station_at(Destination::Other);
    for (id, of, station) in [(SENDER, "pod", POD), (MEMBER, "peer", PEER), (THIRD, "other", third)] {
        let host = node.pair(of, &station);
        let spec = spec(id, Placement::HostVeth, 11, &station);
        datapath.attach(ifindex(&host), &spec).expect("attach");
        datapath.set_ready(id, true).expect("ready");
    }
    (node, datapath)
}

pub(crate) fn flows(node: &Node) -> Vec<FlowRecord> {
    Flows::open(&node.pins).expect("the table").list().expect("flows")
}

pub(crate) fn dropped(datapath: &AyaDatapath, id: u32, reason: &str) -> u64 {
    datapath.stats(id).expect("stats").drops.get(reason).copied().unwrap_or(0)
}

/// Sends frames of a pod, each once the programs have judged the one before. On a busy machine one may be lost before any
/// program; it is sent again.
pub(crate) fn send_all(
    datapath: &AyaDatapath,
    id: u32,
    from: &Tap,
    frames: impl Iterator<Item = Vec<u8>>,
    mut meanwhile: impl FnMut(),
) {
    let judged = || {
        let seen = datapath.stats(id).expect("stats").from_pod;
        seen.packets + seen.dropped
    };
    for (nth, frame) in frames.enumerate() {
        let before = judged();
        let seen = (0..3).any(|_| {
            from.send(&frame);
            waited(|| judged() > before)
        });
        assert!(seen, "frame {nth} got nowhere");
        meanwhile();
    }
}

/// A frame of the sender's to its peer with other bytes at an offset, and nothing to check them by: the programs leave
/// checksums to the receiver.
pub(crate) fn patched(kind: Kind, from: &Station, to: &Station, patches: &[(usize, &[u8])]) -> Vec<u8> {
    let mut frame = frames(kind, true, 0, from, to).remove(0);
    for (offset, bytes) in patches {
        frame[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    frame
}

#[test]
fn one_flow_on_two_cpus_is_one_flow() {
    if !able("one_flow_on_two_cpus_is_one_flow") {
        return;
    }
    let (node, datapath) = network(None);
    let peer = node.within("peer", || Tap::new("eth0"));
    let taps = [0, 1].map(|_| node.within("pod", || Tap::new("eth0")));
    let frame = frames(Kind::Udp, true, 7, &POD, &PEER).remove(0);
    let (seen, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let senders: Vec<_> = taps
        .into_iter()
        .enumerate()
        .map(|(cpu, tap)| {
            let (frame, seen, sent) = (frame.clone(), Arc::clone(&seen), Arc::clone(&sent));
            std::thread::spawn(move || {
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                let mut cpu_set = nix::sched::CpuSet::new();
                cpu_set.set(cpu % cpus).expect("a CPU");
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpu_set).expect("pin");
                for _ in 0..FRAMES {
                    tap.send(&frame);
                    // No more on their way than the receiver's queue takes.
                    let sent = sent.fetch_add(1, Ordering::Relaxed);
                    if sent % 16 == 15 {
                        // Those that are lost are not waited for.
                        let start = Instant::now();
                        while seen.load(Ordering::Relaxed) + 64 < sent && start.elapsed() < PAUSE {
                            std::thread::yield_now();
                        }
                    }
                }
            })
        })
        .collect();
    let look = || {
        let more = peer.seen(|seen| frames::is_of(Kind::Udp, 7, &POD, &PEER, seen)) as u64;
        seen.fetch_add(more, Ordering::Relaxed) + more
    };
    while senders.iter().any(|sender| !sender.is_finished()) {
        look();
    }
    for sender in senders {
        sender.join().expect("a sender");
    }
    let counted = || datapath.paths(SENDER).expect("counters");
    assert!(waited(|| look() >= counted().fast), "{} of {:?}", look(), counted());
    let (arrived, counted) = (look(), counted());
    let flows = flows(&node);
    assert_eq!(flows.iter().filter(|flow| flow.protocol == 17).count(), 1, "{flows:?}");
    // On a busy machine a few may be lost before any program.
    assert!(arrived > 2 * FRAMES - 1000, "{arrived} of {}", 2 * FRAMES);
    assert_eq!((counted.packets, counted.fast), (arrived, arrived), "{counted:?}");
    // What answers the receiver its own questions is counted too.
    assert!(datapath.stats(MEMBER).expect("stats").to_pod.packets >= arrived);
}

#[test]
fn a_flood_of_drops_leaves_room_for_the_events_of_others() {
    if !able("a_flood_of_drops_leaves_room_for_the_events_of_others") {
        return;
    }
    let (node, datapath) = network(None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut events = FlowEvents::open(&node.pins).expect("the ring");
        let stranger = Station { v4: [10, 99, 0, 1], ..PEER };
        let pod = node.within("pod", || Tap::new("eth0"));
        let denied = frames(Kind::Udp, true, 1, &POD, &stranger).remove(0);
        let flood = std::iter::repeat_n(denied, FLOOD.try_into().expect("few"));
        send_all(&datapath, SENDER, &pod, flood, || ());
        let drops = dropped(&datapath, SENDER, "not_member");
        assert!(drops >= FLOOD, "{drops}");
        let third = station_at(Destination::Other);
        let other = node.within("other", || Tap::new("eth0"));
        other.send(&frames(Kind::Udp, true, 2, &third, &stranger)[0]);
        let mut told = 0;
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
            let event = next.expect("the other pod's drop is told").expect("an event");
            match event.endpoint {
                // A pod's kernel has something to ask now and then.
                _ if event.destination != Some(stranger.v4.into()) => {}
                THIRD => break,
                _ => told += 1,
            }
        }
        assert!(told >= 1);
        assert_eq!(events.lost().expect("a count"), 0);
        let held = events.held().expect("a count");
        assert!(held > 0 && told + held >= FLOOD, "{told} told, {held} held back");
    });
}
