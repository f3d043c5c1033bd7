//! How long a prepare, an attach and a return take, on real namespaces, links, programs and a real disk.
//!
//! `cargo xtask bench` runs it; the numbers are in docs/benchmarks.md.

#[path = "claim/host.rs"]
mod host;
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

/// Attaches and prepares of the pass that looks at the slowest ones.
const PASS: usize = 600;

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
    prepare(&mut criterion, &runtime);
    attach(&mut criterion, &runtime);
    criterion.final_summary();
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

fn attach(criterion: &mut Criterion, runtime: &Runtime) {
    let host = Host::new(runtime);
    criterion.bench_function("attach", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async { host.pass(times).await.iter().map(|(attach, _)| *attach).sum() })
        });
    });
    criterion.bench_function("return", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async { host.pass(times).await.iter().map(|(_, home)| *home).sum() })
        });
    });
    let mut spread = Spread::default();
    for (attach, home) in runtime.block_on(host.pass(PASS as u64)) {
        spread.add("attach", attach);
        spread.add("return", home);
    }
    spread.print("one link, strict isolation, two addresses, three routes");
    for (title, stages) in runtime.block_on(host.stages(PASS / 4)) {
        stages.print(title);
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let start = Instant::now();
    let done = work.await;
    (start.elapsed(), done)
}
