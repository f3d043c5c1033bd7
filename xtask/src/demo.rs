//! `cargo xtask demo`: the driver's example of the same name, on a machine made ready for it.

use std::{env, os::unix::process::CommandExt as _};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    apt, build_ebpf,
    command::{cargo, is_root, run as run_command},
    linker, setup, toolchain,
};

/// Options of `demo`.
#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// The eBPF toolchain.
    #[command(flatten)]
    ebpf: build_ebpf::Options,
    /// Options for the demo itself, after `--`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the demo.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !is_root() {
        let path = env::var("PATH").unwrap_or_default();
        bail!(
            "the demo makes links and namespaces, which only root can; run: sudo env 'PATH={path}' cargo xtask demo"
        );
    }
    let mut missing = setup::missing_for_demo();
    missing.extend(toolchain::missing());
    missing.extend(linker::missing());
    if missing.is_empty() {
        println!("The demo installs nothing on this machine, and builds into target/.");
    } else {
        println!("The demo installs, and upgrades nothing:\n  {}", missing.join("\n  "));
    }
    apt::only_new();
    setup::demo()?;
    build_ebpf::run(&options.ebpf)?;
    // Built first and apart, so that what the story shows is only the story.
    run_command(cargo().args(["build", "--locked", "--package", "netferry", "--bins", "--example", "demo"]))?;
    let mut demo = cargo();
    demo.args(["run", "--quiet", "--locked", "--package", "netferry", "--example", "demo", "--"]);
    // The demo takes this process's place: Ctrl-C then reaches one process only, and the shell waits for
    // it to have cleaned up.
    Err(demo.args(&options.rest).exec()).context("cannot start the demo")
}
