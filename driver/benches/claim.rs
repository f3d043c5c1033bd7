//! How long a prepare, an attach and a return take, on real namespaces, links, programs and a real disk.
//!
//! `cargo xtask bench` runs it; the numbers are in docs/benchmarks.md.

#[path = "claim/host.rs"]
mod host;
#[path = "wire/machine.rs"]
mod machine;
#[path = "claim/many.rs"]
mod many;
#[path = "../tests/support/netns.rs"]
#[allow(dead_code, missing_docs, reason = "shared with the tests, which use more of it")]
mod netns;
#[path = "claim/prepare.rs"]
mod prepare;
#[path = "claim/spread.rs"]
mod spread;
#[path = "claim/watched.rs"]
mod watched;

use std::time::{Duration, Instant};

use criterion::Criterion;
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Runtime;

use host::Host;
use prepare::Node;
use spread::Spread;

/// Rounds of the pass that looks at the slowest ones.
const PASS: usize = 300;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("claim: needs root, for network namespaces and eBPF; nothing was measured");
        return;
    }
    // The process is the host: its links are made here, and the machine's own are left alone. Before any
    // other thread is there, so that all of them are in it.
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own");
    let runtime = Runtime::new().expect("runtime");
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(8))
        .sample_size(50)
        .configure_from_args();
    machine::print();
    prepare(&mut criterion, &runtime);
    let listed = attach(&mut criterion, &runtime);
    many::run(&runtime);
    criterion.final_summary();
    if let Err(why) = listed {
        eprintln!("claim: {why}");
        std::process::exit(1);
    }
}

fn prepare(criterion: &mut Criterion, runtime: &Runtime) {
    let node = Node::new();
    criterion.bench_function("prepare", |bencher| {
        bencher.iter_custom(|times| runtime.block_on(async { node.pass(times).await.iter().sum() }));
    });
    let mut spread = Spread::default();
    for took in runtime.block_on(node.pass(PASS as u64)) {
        spread.add("prepare", took);
    }
    spread.print("prepare (claim read from memory, one checkpoint written)");
}

fn attach(criterion: &mut Criterion, runtime: &Runtime) -> Result<(), String> {
    let host = Host::new(runtime);
    criterion.bench_function("attach", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async { host.pass(times).await.iter().map(|round| round.attach).sum() })
        });
    });
    criterion.bench_function("return", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async { host.pass(times).await.iter().map(|round| round.home).sum() })
        });
    });
    let mut spread = Spread::default();
    for round in runtime.block_on(host.pass(PASS as u64)) {
        spread.add("bare move", round.bare[0]);
        spread.add("attach", round.attach);
        spread.add("bare move home", round.bare[1]);
        spread.add("return", round.home);
        spread.add("programs on (at prepare)", round.protect);
        spread.add("programs off (later)", round.programs_off);
    }
    spread.print("one link, strict isolation, two addresses, three routes; in turn");
    spread.print_ratio("attach", "bare move");
    spread.print_ratio("return", "bare move home");
    for (title, stages) in runtime.block_on(host.stages(PASS / 4)) {
        stages.print(title);
        agree(title, stages.at(host::WITH, 50), stages.at(host::WITHOUT, 50))?;
    }
    Ok(())
}

/// A list of steps is worth nothing if the pass that has it does other things than the one that has not.
fn agree(title: &str, with: Duration, without: Duration) -> Result<(), String> {
    let apart = with.abs_diff(without);
    if apart > without / 4 + Duration::from_millis(2) {
        return Err(format!(
            "{title}: the medians with and without the list, {with:?} and {without:?}, disagree"
        ));
    }
    Ok(())
}

async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let start = Instant::now();
    let done = work.await;
    (start.elapsed(), done)
}
