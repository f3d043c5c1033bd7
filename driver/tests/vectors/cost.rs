//! What the programs cost: time to load and nanoseconds a frame. Prints; run with `--ignored --nocapture`.

use std::time::Instant;

use aya::programs::{TestRun as _, TestRunOptions};
use netferry_common::Direction;

use super::bench::{Bench, object, programs};
use super::frames::{PEER, POD, tcp4, udp4, udp6};

#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_load_and_of_a_frame() {
    let mut times: Vec<_> = (0..20)
        .map(|_| {
            let start = Instant::now();
            let mut ebpf = aya::EbpfLoader::new().load_file(object()).unwrap();
            let maps = start.elapsed();
            for name in ["link_ingress", "link_egress"] {
                let program: &mut aya::programs::SchedClassifier =
                    ebpf.program_mut(name).unwrap().try_into().unwrap();
                program.load().unwrap();
            }
            (start.elapsed(), maps)
        })
        .collect();
    times.sort_unstable();
    println!(
        "load of two programs with new maps: median {:?}, worst {:?} (maps and parse {:?})",
        times[10].0, times[19].0, times[10].1
    );

    let bench = Bench::ready();
    for (what, direction, frame) in [
        ("udp4", Direction::FromPod, udp4(POD, PEER)),
        ("tcp4", Direction::FromPod, tcp4(POD, PEER)),
        ("udp6", Direction::FromPod, udp6(POD, PEER)),
        ("udp4", Direction::ToPod, udp4(PEER, POD)),
        ("udp6", Direction::ToPod, udp6(PEER, POD)),
    ] {
        let mut nanoseconds: Vec<_> = (0..9)
            .map(|_| {
                let options =
                    TestRunOptions { data_in: Some(&frame), repeat: 1_000_000, ..TestRunOptions::default() };
                bench.program(programs(direction)[0]).test_run(options).unwrap().duration.as_nanos()
            })
            .collect();
        nanoseconds.sort_unstable();
        println!(
            "{what} {}: median {} ns a frame, from {} to {}",
            direction.name(),
            nanoseconds[4],
            nanoseconds[0],
            nanoseconds[8]
        );
    }
}
