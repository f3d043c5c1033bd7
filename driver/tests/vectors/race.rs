//! Two CPUs at one flow.

use std::sync::Barrier;

use aya::maps::HashMap;
use aya::programs::{TestRun as _, TestRunOptions};
use netferry_common::{Budget, Direction, maps};

use super::bench::ID;
use super::frames::*;
use super::network::pair;

/// Rounds, each with a flow that both CPUs open at the same time; and frames of each CPU in a round.
const ROUNDS: u16 = 1000;
const FRAMES: u32 = 16;

#[test]
fn two_cpus_that_open_one_flow_make_one_entry() {
    let mut bench = pair();
    let budget = Budget { most: 1 << 20, counted_at: 1, ..Budget::default() };
    HashMap::<_, u32, Budget>::try_from(bench.map(maps::BUDGETS)).unwrap().insert(ID, budget, 0).unwrap();
    let program = bench.program("from_pod");
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let barrier = &barrier;
            scope.spawn(move || {
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                let mut set = nix::sched::CpuSet::new();
                set.set(cpu % cpus).unwrap();
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
                for round in 0..ROUNDS {
                    let frame = patched(udp4(POD, PEER), 34, &(3000 + round).to_be_bytes());
                    barrier.wait();
                    let options =
                        TestRunOptions { data_in: Some(&frame), repeat: FRAMES, ..TestRunOptions::default() };
                    let result = program.test_run(options).unwrap();
                    assert_eq!(result.return_value, 7, "TC_ACT_REDIRECT, in round {round}");
                }
            });
        }
    });
    let flows = bench.flows();
    assert_eq!(flows.len(), usize::from(ROUNDS));
    let traffic = bench.traffic(Direction::FromPod);
    let frames = u64::from(ROUNDS) * u64::from(FRAMES) * 2;
    assert_eq!((traffic.packets, traffic.fast, traffic.dropped), (frames, frames, 0));
    let budgets = HashMap::<_, u32, Budget>::try_from(bench.map(maps::BUDGETS)).unwrap();
    assert_eq!(budgets.get(&ID, 0).unwrap().open, u64::from(ROUNDS), "each is counted once");
}
