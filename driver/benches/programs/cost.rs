//! What the programs cost: time to load and nanoseconds a frame.

use std::time::Instant;

use aya::EbpfLoader;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use netferry_common::endpoint::READY;
use netferry_common::policy::DENY_TO_POD;
use netferry_common::{Addr, Direction, Endpoint, maps};

use crate::bench::{Bench, object, programs};
use crate::frames::{PEER, POD, answer, tcp_flags, tcp4, udp4, udp6};
use crate::network::pair;

/// Median, least and most of nine runs of a million frames, nanoseconds a frame.
pub fn nanoseconds(program: &SchedClassifier, frame: &[u8]) -> (u128, u128, u128) {
    let mut runs: Vec<_> = (0..9)
        .map(|_| {
            let options =
                TestRunOptions { data_in: Some(frame), repeat: 1_000_000, ..TestRunOptions::default() };
            program.test_run(options).unwrap().duration.as_nanos()
        })
        .collect();
    runs.sort_unstable();
    (runs[4], runs[0], runs[8])
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
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn nothing() -> u64 {
    // union bpf_attr of linux/bpf.h, as far as BPF_PROG_LOAD and BPF_PROG_TEST_RUN use it.
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        rest: [u64; 14],
    }
    #[repr(C)]
    #[derive(Default)]
    struct Run {
        program: u32,
        answer: u32,
        in_size: u32,
        out_size: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        rest: [u64; 6],
    }
    const PROG_LOAD: i64 = 5;
    const PROG_TEST_RUN: i64 = 10;
    const SCHED_CLS: u32 = 3;
    // r0 = -1; exit
    let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let load = Load {
        kind: SCHED_CLS,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        rest: [0; 14],
    };
    let frame = udp4(POD, PEER);
    // SAFETY: both structures are as long as said and outlive the calls, as do the bytes they point to.
    unsafe {
        let program = libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>());
        assert!(program >= 0, "{}", std::io::Error::last_os_error());
        let mut runs: Vec<_> = (0..9)
            .map(|_| {
                let mut run = Run {
                    program: program as u32,
                    in_size: frame.len() as u32,
                    data_in: frame.as_ptr() as u64,
                    repeat: 1_000_000,
                    ..Run::default()
                };
                assert_eq!(libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut run, size_of::<Run>()), 0);
                u64::from(run.duration)
            })
            .collect();
        libc::close(program as i32);
        runs.sort_unstable();
        runs[4]
    }
}

pub(crate) fn cost_of_a_frame() {
    println!("a program that does nothing: {} ns, to be taken off each of these", nothing());
    let mut bench = Bench::load();
    let show = |what: &str, (median, least, most): (u128, u128, u128)| {
        println!("{what}: {median} ns a frame ({least} to {most})");
    };
    show("no endpoint (a drop)", nanoseconds(bench.program("from_pod"), &udp4(POD, PEER)));
    bench = Bench::ready();
    for (what, direction, frame) in [
        ("untracked udp4", Direction::FromPod, udp4(POD, PEER)),
        ("untracked tcp4", Direction::FromPod, tcp4(POD, PEER)),
        ("untracked udp6", Direction::FromPod, udp6(POD, PEER)),
        ("untracked udp4", Direction::ToPod, udp4(PEER, POD)),
        ("untracked udp6", Direction::ToPod, udp6(PEER, POD)),
    ] {
        show(
            &format!("{what} {}", direction.name()),
            nanoseconds(bench.program(programs(direction)[0]), &frame),
        );
    }
    for rules in [1, 1000, 10_000, 100_000] {
        for at in 0..rules {
            let [_, a, b, c] = u32::to_be_bytes(at);
            bench.peer(9, Direction::FromPod, Addr::v4([10, a, b, c]), 128, at + 1);
        }
        let flags = READY | DENY_TO_POD;
        bench.write(Endpoint { flags, policy: 9, ..Endpoint::default() });
        for (what, frame) in [("tcp4", tcp4(POD, PEER)), ("udp6", udp6(POD, PEER))] {
            bench.run("from_pod", Direction::FromPod, &frame);
            let data = if what == "tcp4" { tcp_flags(frame.clone(), 16) } else { frame };
            let back = answer(&data);
            show(
                &format!("{what} of a flow, {rules} rules, from_pod"),
                nanoseconds(bench.program("from_pod"), &data),
            );
            show(
                &format!("{what} of a flow, {rules} rules, to_pod"),
                nanoseconds(bench.program("to_pod"), &back),
            );
        }
    }
}

pub(crate) fn cost_of_delivery() {
    let mut bench = pair();
    for frame in [udp4(POD, PEER), udp6(POD, PEER)] {
        bench.run("from_pod", Direction::FromPod, &frame);
        let (median, least, most) = nanoseconds(bench.program("from_pod"), &frame);
        println!("an open flow straight to a member: {median} ns a frame ({least} to {most})");
    }
}
