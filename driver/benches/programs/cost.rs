//! What the programs cost: time to load and nanoseconds a frame.

use std::fmt;
use std::time::Instant;

use aya::EbpfLoader;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use netferry_common::{Direction, maps};

use crate::assembled::{self, EXIT};
use crate::bench::{Bench, object, programs};
use crate::frames::{PEER, POD, tcp4, udp4, udp6};
use crate::network::pair;

/// Nanoseconds a frame, of some runs.
pub(crate) struct Spread {
    pub(crate) median: u128,
    least: u128,
    most: u128,
}

impl Spread {
    pub(crate) fn of(runs: impl Iterator<Item = u128>) -> Self {
        let mut runs: Vec<_> = runs.collect();
        runs.sort_unstable();
        Self { median: runs[runs.len() / 2], least: runs[0], most: runs[runs.len() - 1] }
    }

    /// With what the measuring itself costs taken off.
    pub(crate) fn less(self, nothing: u128) -> Self {
        let [median, least, most] =
            [self.median, self.least, self.most].map(|time| time.saturating_sub(nothing));
        Self { median, least, most }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", self.median, self.least, self.most)
    }
}

/// Nine runs of a million frames.
fn nanoseconds(program: &SchedClassifier, frame: &[u8]) -> Spread {
    Spread::of((0..9).map(|_| {
        let options = TestRunOptions { data_in: Some(frame), repeat: 1_000_000, ..TestRunOptions::default() };
        program.test_run(options).unwrap().duration.as_nanos()
    }))
}

pub(crate) fn cost_of_load() {
    // As on a node: the maps are there, and each endpoint loads its two programs.
    let pins = std::path::Path::new("/sys/fs/bpf").join(format!("nf-cost-{}", std::process::id()));
    std::fs::create_dir_all(&pins).expect("bpffs is mounted");
    let mut times = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        let mut loader = EbpfLoader::new();
        for name in maps::ALL {
            loader.map_pin_path(name, pins.join(name));
        }
        let mut ebpf = loader.load_file(object()).unwrap();
        let parsed = start.elapsed();
        for name in ["link_ingress", "link_egress"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        times.push((start.elapsed(), parsed));
    }
    std::fs::remove_dir_all(&pins).expect("pins can be removed");
    times.sort_unstable();
    println!(
        "two programs: median {:?} (of it parse and maps {:?}), worst {:?}",
        times[10].0, times[10].1, times[19].0
    );
}

/// Nanoseconds a frame of a program that does nothing, measured as the others: what the test run itself costs.
fn nothing() -> Spread {
    // r0 = TC_ACT_UNSPEC
    let mut ebpf = assembled::load(&[(0xb7, 0, 0, 0, -1), EXIT]).unwrap();
    nanoseconds(assembled::program(&mut ebpf).unwrap(), &udp4(POD, PEER))
}

pub(crate) fn cost_of_a_frame() {
    let nothing = nothing();
    println!("\nThe same frame again and again: nanoseconds a frame less an empty program ({nothing})\n");
    println!("| case | ns |\n|---|---|");
    let show = |what: &str, spread: Spread| println!("| {what} | {} |", spread.less(nothing.median));
    let mut bench = Bench::load();
    show("no endpoint (a drop)", nanoseconds(bench.program("from_pod"), &udp4(POD, PEER)));
    let mut bench = Bench::ready();
    for (what, direction, frame) in [
        ("untracked udp4", Direction::FromPod, udp4(POD, PEER)),
        ("untracked tcp4", Direction::FromPod, tcp4(POD, PEER)),
        ("untracked udp6", Direction::FromPod, udp6(POD, PEER)),
        ("untracked udp4", Direction::ToPod, udp4(PEER, POD)),
        ("untracked udp6", Direction::ToPod, udp6(PEER, POD)),
    ] {
        let what = format!("{what} {}", direction.name());
        show(&what, nanoseconds(bench.program(programs(direction)[0]), &frame));
    }
    let mut bench = pair();
    for (what, frame) in [("udp4", udp4(POD, PEER)), ("udp6", udp6(POD, PEER))] {
        bench.run("from_pod", Direction::FromPod, &frame);
        let what = format!("open flow straight to a member, both pods judged: {what}");
        show(&what, nanoseconds(bench.program("from_pod"), &frame));
    }
}
