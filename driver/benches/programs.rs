//! What the programs cost: time to load, and nanoseconds a frame. `cargo xtask bench programs` runs it as root.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::wildcard_imports,
    reason = "shares the tests' bench"
)]

#[path = "../tests/vectors/bench.rs"]
mod bench;
#[path = "programs/cost.rs"]
mod cost;
#[path = "../tests/vectors/frames.rs"]
mod frames;
#[path = "../tests/vectors/network.rs"]
mod network;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("programs: not root, nothing is measured");
        return;
    }
    cost::cost_of_load();
    cost::cost_of_a_frame();
    cost::cost_of_delivery();
}
