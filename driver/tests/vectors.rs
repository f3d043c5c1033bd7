//! Packet vectors: frames run through the real programs in the real kernel with BPF_PROG_TEST_RUN.
//!
//! Needs root and an object built by `cargo xtask build-ebpf`.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "vectors/bench.rs"]
mod bench;
#[path = "vectors/beyond.rs"]
mod beyond;
#[path = "vectors/entry.rs"]
mod entry;
#[path = "vectors/frames.rs"]
mod frames;
#[path = "vectors/guard.rs"]
mod guard;
#[path = "vectors/network.rs"]
mod network;
#[path = "vectors/race.rs"]
mod race;
#[path = "vectors/refused.rs"]
mod refused;
#[path = "support/skip.rs"]
mod skip;
#[path = "vectors/table.rs"]
mod table;
#[path = "vectors/tracked.rs"]
mod tracked;
#[path = "vectors/underlay.rs"]
mod underlay;
#[path = "vectors/wire.rs"]
mod wire;

use std::collections::BTreeSet;

use bench::{Bench, Outcome, programs};
use frames::{PEER, POD, arp, udp4, udp6};
use netferry_common::{Direction, Reason, maps};

/// Frames that would pass if their endpoint were ready, both ways.
fn honest() -> Vec<(Direction, Vec<u8>)> {
    vec![
        (Direction::FromPod, udp4(POD, PEER)),
        (Direction::FromPod, udp6(POD, PEER)),
        (Direction::FromPod, arp(POD.mac, frames::BROADCAST, false, (POD.mac, POD.v4), PEER.v4)),
        (Direction::ToPod, udp4(PEER, POD)),
        (Direction::ToPod, udp6(PEER, POD)),
        (Direction::ToPod, arp(PEER.mac, frames::BROADCAST, false, (PEER.mac, PEER.v4), POD.v4)),
    ]
}

#[test]
fn every_frame_has_its_verdict_and_every_reason_a_frame() {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut bench = Bench::load();
    for (direction, frame) in honest() {
        for program in programs(direction) {
            let outcome = bench.run(program, direction, &frame);
            assert_eq!(outcome, Outcome::Drop(Reason::NoEndpoint), "{program} without an endpoint");
        }
    }
    seen.insert(Reason::NoEndpoint);

    bench.set_endpoint(0);
    for (direction, frame) in honest() {
        for program in programs(direction) {
            let outcome = bench.run(program, direction, &frame);
            assert_eq!(outcome, Outcome::Drop(Reason::NotReady), "{program} before READY");
        }
    }
    seen.insert(Reason::NotReady);

    let mut bench = Bench::ready();
    for vector in table::ready() {
        for program in programs(vector.direction) {
            let outcome = bench.run(program, vector.direction, &vector.frame);
            if outcome != vector.outcome {
                wrong.push(format!("{program}: {}: {outcome:?}, not {:?}", vector.name, vector.outcome));
            }
        }
        if let Outcome::Drop(reason) = vector.outcome {
            seen.insert(reason);
        }
    }
    seen.extend(tracked::SHOWN);
    seen.extend(network::SHOWN);
    seen.extend(refused::SHOWN);
    seen.extend(beyond::SHOWN);
    // Shown where there are tunnels, in `uplink.rs`.
    seen.insert(Reason::OuterSource);
    seen.extend(guard::SHOWN);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !seen.contains(reason)).collect();
    assert!(missing.is_empty(), "no vector for {missing:?}");
}

#[test]
fn the_verifier_lets_every_program_in() {
    let mut loaded = 0;
    for (name, program) in Bench::load().ebpf.programs_mut() {
        bench::load(program, name);
        loaded += usize::from(program.fd().is_ok());
    }
    assert_eq!(loaded, 10, "all but the one for the kernel's type information");
}

#[test]
fn the_object_has_the_maps_that_user_space_looks_for() {
    let bench = Bench::load();
    let mut names: Vec<&str> =
        bench.ebpf.maps().map(|(name, _)| name).filter(|name| !name.starts_with('.')).collect();
    names.sort_unstable();
    let mut expected = maps::ALL.to_vec();
    expected.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn bpftool_prints_the_counters_by_name() {
    let mut bench = Bench::ready();
    bench.run("from_pod", Direction::FromPod, &udp4(frames::OTHER, PEER));
    let aya::maps::Map::PerCpuHashMap(data) = bench.map(maps::DROPS) else { panic!("not a per-CPU map") };
    let id = data.info().unwrap().id().to_string();
    let dump = match std::process::Command::new("bpftool").args(["-j", "map", "dump", "id", &id]).output() {
        Ok(output) => String::from_utf8(output.stdout).unwrap(),
        Err(error) => {
            skip::skip("bpftool_prints_the_counters_by_name", &format!("bpftool does not run: {error}"));
            return;
        }
    };
    assert!(dump.contains(r#""formatted":{"key":{"endpoint":7,"direction":0}"#), "{dump}");
    for reason in Reason::ALL {
        let count = u32::from(*reason == Reason::SourceMac);
        assert!(dump.contains(&format!(r#""{}":{count}"#, reason.name())), "{}: {dump}", reason.name());
    }
}
