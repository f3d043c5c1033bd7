//! What the datapath costs: the programs by themselves, and pods that talk through them, beside other ways to
//! connect two pods. `cargo xtask bench datapath` runs it as root.

#[path = "programs/assembled.rs"]
mod assembled;
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::wildcard_imports,
    reason = "shared with the tests"
)]
#[path = "../tests/vectors/bench.rs"]
mod bench;
#[allow(clippy::unwrap_used, reason = "a benchmark of programs that the tests have seen to work")]
#[path = "programs/cost.rs"]
mod cost;
#[allow(dead_code, missing_docs, unreachable_pub, reason = "shared with the tests")]
#[path = "../tests/vectors/frames.rs"]
mod frames;
#[path = "wire/machine.rs"]
mod machine;
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    clippy::wildcard_imports,
    reason = "shared with the tests"
)]
#[path = "../tests/vectors/network.rs"]
mod network;
#[allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a benchmark of programs that the tests have seen to work"
)]
#[path = "programs/varying.rs"]
mod varying;
mod wire;

use anyhow::Result;
use clap::Parser as _;

fn main() -> Result<()> {
    let options = wire::Options::parse();
    if !nix::unistd::geteuid().is_root() {
        println!("datapath: not root, nothing is measured");
        return Ok(());
    }
    wire::isolate()?;
    machine::print();
    if options.wants("programs") {
        cost::cost_of_load();
        cost::cost_of_a_frame();
        varying::cost_of_varying_flows();
    }
    wire::run(&options)
}
