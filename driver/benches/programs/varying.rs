//! What a frame of an open flow costs when each frame belongs to another flow than the one before.
//!
//! A test run gives the same frame again and again. So a program of three lines goes before ours: it counts in the
//! frame's mark, writes the count into the ports, and jumps. It jumps to an empty program as well, and that time is
//! taken off.

use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use netferry_common::endpoint::READY;
use netferry_common::policy::DENY_TO_POD;
use netferry_common::{Addr, Direction, Endpoint};

use crate::assembled::{self, EXIT, Instruction, REST, call};
use crate::bench::Bench;
use crate::cost::Spread;
use crate::frames::{PEER, POD, answer, tcp_flags, tcp4, tcp6, udp4, udp6};

/// Frames in a run.
const FRAMES: u32 = 300_000;
/// Flows that are open, and gone through one after the other.
const FLOWS: [u32; 3] = [1, 10_000, 100_000];
/// `skb->mark`, `data` and `data_end` in `struct __sk_buff` of linux/bpf.h.
const MARK: i16 = 8;
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// `bpf_tail_call`.
const TAIL_CALL: i32 = 12;

/// Offsets of the ports of pod and peer in a frame. 15 bits of the count go into the pod's port, the rest into the
/// other.
struct Ports {
    pod: i16,
    peer: i16,
}

impl Ports {
    fn of(v4: bool, direction: Direction) -> Self {
        let source = if v4 { 34 } else { 54 };
        match direction {
            Direction::FromPod => Self { pod: source, peer: source + 2 },
            Direction::ToPod => Self { pod: source + 2, peer: source },
        }
    }
}

/// Goes through `flows` flows, a frame each, and on to whatever program it is told.
fn vary(flows: u32, ports: &Ports) -> Ebpf {
    let flows = i32::try_from(flows).unwrap();
    let end = i32::from(ports.pod.max(ports.peer)) + 2;
    let program: [Instruction; 24] = [
        (0xbf, 6, 1, 0, 0),          // r6 = context
        (0x61, 7, 6, MARK, 0),       // r7 = mark
        (0x07, 7, 0, 0, 1),          // r7 += 1
        (0xa5, 7, 0, 1, flows),      // if r7 < flows, over the next
        (0xb7, 7, 0, 0, 0),          // r7 = 0
        (0x63, 6, 7, MARK, 0),       // mark = r7
        (0x61, 2, 6, DATA, 0),       // r2 = start of the frame
        (0x61, 3, 6, DATA_END, 0),   // r3 = its end
        (0xbf, 4, 2, 0, 0),          // r4 = r2
        (0x07, 4, 0, 0, end),        // r4 += end of the ports
        (0x2d, 4, 3, 11, 0),         // if r4 > r3, to the end
        (0xbf, 5, 7, 0, 0),          // r5 = r7
        (0x47, 5, 0, 0, 0x8000),     // r5 |= 0x8000: never port 0
        (0x6b, 2, 5, ports.pod, 0),  // pod's port = r5
        (0x77, 7, 0, 0, 15),         // r7 >>= 15
        (0x07, 7, 0, 0, 0x1000),     // r7 += 0x1000
        (0x6b, 2, 7, ports.peer, 0), // peer's port = r7
        (0xbf, 1, 6, 0, 0),          // r1 = context
        assembled::load_targets(2),  // r2 = targets
        REST,
        (0xb7, 3, 0, 0, 0), // r3 = 0
        call(TAIL_CALL),
        (0xb7, 0, 0, 0, 2), // r0 = TC_ACT_SHOT
        EXIT,
    ];
    assembled::load(&program).unwrap()
}

/// Makes a program the one that [`vary`] jumps to.
fn target(ebpf: &mut Ebpf, program: &SchedClassifier) {
    let mut targets = ProgramArray::try_from(ebpf.map_mut(assembled::TARGETS).unwrap()).unwrap();
    targets.set(0, program.fd().unwrap(), 0).unwrap();
}

/// Nanoseconds a frame, and the program's answer to the last one.
fn run(ebpf: &mut Ebpf, frame: &[u8], repeat: u32) -> (u128, i32) {
    let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
    let result = assembled::program(ebpf).unwrap().test_run(options).unwrap();
    (result.duration.as_nanos(), result.return_value.cast_signed())
}

fn runs(ebpf: &mut Ebpf, frame: &[u8], expected: i32) -> Spread {
    run(ebpf, frame, FRAMES);
    Spread::of((0..7).map(|_| {
        let (took, answer) = run(ebpf, frame, FRAMES);
        assert_eq!(answer, expected, "what became of the frame");
        took
    }))
}

/// The table: rules down, flows across.
pub(crate) fn cost_of_varying_flows() {
    // TC_ACT_UNSPEC
    const PASS: i32 = -1;
    let mut nothing = assembled::load(&[(0xb7, 0, 0, 0, PASS), EXIT]).unwrap();
    println!("\nEstablished flows, each frame of another one: nanoseconds a frame less an empty program");
    println!("\n| frame | rules | 1 flow | 10,000 flows | 100,000 flows |\n|---|---|---|---|---|");
    let mut medians = Vec::new();
    for rules in [1_u32, 1000, 10_000, 100_000] {
        for (name, v4, open, data) in [
            ("tcp4", true, tcp4(POD, PEER), tcp_flags(tcp4(POD, PEER), 16)),
            ("tcp6", false, tcp6(POD, PEER), tcp_flags(tcp6(POD, PEER), 16)),
            ("udp4", true, udp4(POD, PEER), udp4(POD, PEER)),
            ("udp6", false, udp6(POD, PEER), udp6(POD, PEER)),
        ] {
            for direction in Direction::ALL {
                let cells: Vec<Spread> = FLOWS
                    .into_iter()
                    .map(|flows| {
                        // Maps of its own: the table of flows has room for one case, not for all.
                        let mut bench = policed(rules);
                        let mut opener = vary(flows, &Ports::of(v4, Direction::FromPod));
                        target(&mut opener, bench.program("from_pod"));
                        let (_, answered) = run(&mut opener, &open, flows);
                        assert_eq!(answered, PASS, "a flow is opened");
                        assert_eq!(bench.flows().len(), flows as usize, "all flows are open");
                        let (program, frame) = match direction {
                            Direction::FromPod => ("from_pod", data.clone()),
                            Direction::ToPod => ("to_pod", answer(&data)),
                        };
                        let mut varying = vary(flows, &Ports::of(v4, direction));
                        target(&mut varying, assembled::program(&mut nothing).unwrap());
                        let empty = runs(&mut varying, &frame, PASS);
                        target(&mut varying, bench.program(program));
                        runs(&mut varying, &frame, PASS).less(empty.median)
                    })
                    .collect();
                medians.push((rules, cells.iter().map(|cell| cell.median).collect()));
                let cells: Vec<String> = cells.iter().map(Spread::to_string).collect();
                println!("| {name} {} | {rules} | {} |", direction.name(), cells.join(" | "));
            }
        }
    }
    println!();
    goal(&medians);
}

/// An endpoint with a policy of so many rules, half of them for each family.
fn policed(rules: u32) -> Bench {
    let mut bench = Bench::ready();
    for at in 0..rules {
        let [_, a, b, c] = u32::to_be_bytes(at);
        let addr = if at % 2 == 0 {
            Addr::v4([10, a, b, c])
        } else {
            Addr::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c])
        };
        bench.peer(9, Direction::FromPod, addr, 128, at + 1);
    }
    bench.write(Endpoint { flags: READY | DENY_TO_POD, policy: 9, ..Endpoint::default() });
    bench
}

/// Compares with the goal: 60 ns, and 5 % from the fewest rules to the most.
fn goal(medians: &[(u32, Vec<u128>)]) {
    for (column, flows) in FLOWS.into_iter().enumerate() {
        let mean = |rules| {
            let these = medians.iter().filter(|(had, _)| *had == rules).map(|(_, row)| row[column] as f64);
            let these: Vec<f64> = these.collect();
            these.iter().sum::<f64>() / these.len() as f64
        };
        let most = medians.iter().map(|(_, row)| row[column]).max().unwrap_or(0);
        let (few, many) = (mean(1), mean(100_000));
        let apart = (many / few - 1.0) * 100.0;
        println!(
            "flows: {flows}; goal ≤ 60 ns: {most} at the most; \
             goal ≤ 5 % from 1 to 100,000 rules: {apart:+.1} % ({few:.1} and {many:.1} ns)"
        );
    }
}
