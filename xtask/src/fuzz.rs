//! `cargo xtask fuzz`: random frames through the eBPF programs, against an oracle, and random connections through
//! the filter on the kubelet's sockets.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build_ebpf,
    command::{cargo, is_root, run as run_command},
};

/// Options of `fuzz`.
#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// The eBPF toolchain.
    #[command(flatten)]
    ebpf: build_ebpf::Options,
    /// How many frames.
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// Seed of the first frame; each further one takes the next.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many connections to the kubelet's sockets, for each property.
    #[arg(long, default_value_t = 20_000)]
    connections: u32,
}

/// Runs the fuzz.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("only root may run eBPF programs");
    }
    build_ebpf::run(&options.ebpf)?;
    let mut test = cargo();
    test.args(["test", "--locked", "--package", "netferry", "--test", "differential", "--"])
        .args(["--exact", "--nocapture", "programs_and_oracle_agree"])
        .env("NETFERRY_FUZZ_PACKETS", options.packets.to_string())
        .env("NETFERRY_FUZZ_SEED", options.seed.to_string());
    run_command(&mut test)?;
    let mut test = cargo();
    test.args(["test", "--locked", "--package", "netferry", "--lib", "--", "dra::authority"])
        .env("NETFERRY_FUZZ_CONNECTIONS", options.connections.to_string());
    run_command(&mut test)
}
