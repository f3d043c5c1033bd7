//! `cargo xtask bench`: the driver's benchmarks, on real namespaces where root runs them.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build_ebpf,
    command::{cargo, is_root, run as run_command},
    setup,
};

/// Options of `bench`.
#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// The eBPF toolchain.
    #[command(flatten)]
    ebpf: build_ebpf::Options,
    /// Benchmarks to run (`claim`, `datapath`); all of them if none is named.
    names: Vec<String>,
    /// A path for `datapath` to measure that is there already: the network namespaces of two pods and the address of the second
    #[arg(long = "extern", value_name = "NAME=CLIENT_NETNS,SERVER_NETNS,ADDRESS")]
    externals: Vec<String>,
    /// Options for the benchmarks, after `--`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the benchmarks.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.externals.is_empty() && options.names != ["datapath"] {
        bail!("--extern is for the benchmark datapath: cargo xtask bench datapath --extern …");
    }
    if is_root() {
        setup::tests()?;
    }
    build_ebpf::run(&options.ebpf)?;
    let mut bench = cargo();
    bench.args(["bench", "--locked", "--package", "netferry"]);
    if options.names.is_empty() {
        bench.arg("--benches");
    }
    for name in &options.names {
        bench.args(["--bench", name]);
    }
    bench.arg("--").args(&options.rest);
    for path in &options.externals {
        bench.args(["--extern", path]);
    }
    run_command(&mut bench)
}
