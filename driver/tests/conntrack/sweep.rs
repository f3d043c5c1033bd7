//! The sweep of the table, by the program in the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::{HashMap, Map, MapData};
use netferry::datapath::Datapath as _;
use netferry::datapath::sweep::FlowSweeper;
use netferry_common::flow::{HIGH_SENT, LOW_SENT};
use netferry_common::{Addr, Budget, Flow, FlowKey, Fragment, FragmentKey, Side, maps};

use crate::frames::{frames, is_of};
use crate::oracle::Kind;
use crate::tap::Tap;
use crate::world::{MEMBER, Node, PEER, POD, SENDER};
use crate::{able, network, waited};

/// Flows that are over.
const OVER: u32 = 10_000;
/// UDP that was answered lives for 180 s.
const LIFETIME: u64 = 180_000_000_000;
/// Segments sent while the table is swept.
const FRAMES: usize = 3000;

fn pinned(node: &Node, map: &str) -> MapData {
    MapData::from_pin(node.pins.join("maps").join(map)).expect("a pinned map")
}

fn budget(node: &Node, id: u32) -> Budget {
    let map = HashMap::try_from(Map::HashMap(pinned(node, maps::BUDGETS))).expect("a hash map");
    map.get(&id, 0).expect("a budget")
}

/// The clock of the programs.
fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    u64::try_from(time.tv_sec()).expect("positive") * 1_000_000_000
        + u64::try_from(time.tv_nsec()).expect("positive")
}

fn flow(seen: u64, low: u32, high: u32) -> Flow {
    let side = |endpoint| Side { endpoint, policy: 0 };
    Flow { seen, state: LOW_SENT | HIGH_SENT, rule: 0, low: side(low), high: side(high) }
}

fn key(nth: u32) -> FlowKey {
    let [_, a, b, c] = nth.to_be_bytes();
    FlowKey {
        scope: 11,
        low: Addr::v4([10, a, b, c]),
        high: Addr::v4([11, 0, 0, 1]),
        protocol: 17,
        ..FlowKey::default()
    }
}

#[test]
fn what_is_over_goes_and_the_rest_is_counted() {
    if !able("what_is_over_goes_and_the_rest_is_counted") {
        return;
    }
    let (node, datapath) = network(None);
    let mut flows: HashMap<_, FlowKey, Flow> =
        HashMap::try_from(Map::LruHashMap(pinned(&node, maps::FLOWS))).expect("a hash map");
    let mut fragments: HashMap<_, FragmentKey, Fragment> =
        HashMap::try_from(Map::LruHashMap(pinned(&node, maps::FRAGMENTS))).expect("a hash map");
    let now = now();
    for nth in 0..OVER {
        flows
            .insert(key(nth), flow(now.saturating_sub(LIFETIME + 10_000_000_000).max(1), SENDER, MEMBER), 0)
            .expect("room");
    }
    for nth in 0..5 {
        flows.insert(key(OVER + nth), flow(now, SENDER, MEMBER), 0).expect("room");
        // Opened from another node: the pod that is here pays.
        flows.insert(key(OVER + 5 + nth), flow(now, 0, MEMBER), 0).expect("room");
        let at = |seen| Fragment { seen, ..Fragment::default() };
        let fragment = |id| FragmentKey { id, ..FragmentKey::default() };
        fragments.insert(fragment(nth), at(now), 0).expect("room");
        fragments.insert(fragment(100 + nth), at(now.saturating_sub(60_000_000_000)), 0).expect("room");
    }
    // It has just ended: a frame that found it alive may still be on its way.
    let ended = now.saturating_sub(LIFETIME + 500_000_000);
    flows.insert(key(OVER + 10), flow(ended, MEMBER, SENDER), 0).expect("room");

    let sweeper = FlowSweeper::open(&datapath).expect("the sweep loads");
    assert_eq!(sweeper.sweep().expect("a sweep"), OVER as usize + 5);
    let mut left: Vec<u32> = (0..OVER + 20).filter(|nth| flows.get(&key(*nth), 0).is_ok()).collect();
    left.sort_unstable();
    assert!(left.iter().copied().eq(OVER..OVER + 11), "{left:?}");
    assert_eq!(fragments.keys().count(), 5);
    assert_eq!((budget(&node, SENDER).open, budget(&node, MEMBER).open), (5, 6));
    assert!(budget(&node, SENDER).counted_at >= now);
    assert_eq!(budget(&node, SENDER).counting, 0);
    assert_eq!(sweeper.sweep().expect("a sweep"), 0);
    assert_eq!((budget(&node, SENDER).open, budget(&node, MEMBER).open), (5, 6), "counted anew, not added");
}

#[test]
fn a_sweep_under_traffic_loses_nothing() {
    if !able("a_sweep_under_traffic_loses_nothing") {
        return;
    }
    let (node, datapath) = network(None);
    let sweeper = FlowSweeper::open(&datapath).expect("the sweep loads");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let sweeping = std::thread::spawn(move || {
        let mut sweeps = 0;
        while !stopped.load(Ordering::Relaxed) {
            sweeper.sweep().expect("a sweep");
            sweeps += 1;
        }
        (sweeps, sweeper)
    });
    let pod = node.within("pod", || Tap::new("eth0"));
    let peer = node.within("peer", || Tap::new("eth0"));
    // The first opens the flow; the others belong to it, and would be dropped without it.
    let open = frames(Kind::Tcp, true, 0, &POD, &PEER).remove(0);
    let mut segment = open.clone();
    segment[47] = 16;
    pod.send(&open);
    let mut came = 0;
    for sent in 1..=FRAMES {
        let so_far = came;
        let arrived = (0..3).any(|_| {
            pod.send(&segment);
            waited(|| {
                came += peer.seen(|frame| is_of(Kind::Tcp, 0, &POD, &PEER, frame));
                came > so_far.max(1)
            })
        });
        assert!(arrived, "segment {sent} did not come");
    }
    stop.store(true, Ordering::Relaxed);
    let (sweeps, sweeper) = sweeping.join().expect("the sweeps");
    println!("{FRAMES} segments under {sweeps} sweeps");
    assert!(sweeps > 0);
    let drops = datapath.stats(SENDER).expect("stats").drops;
    assert_eq!(drops.get("no_flow"), None, "{drops:?}");
    sweeper.sweep().expect("a sweep");
    assert_eq!(budget(&node, SENDER).open, 1);
}
