//! `cargo xtask`: Netferry's build, test, demo and lint tasks. One file a task.

mod apt;
mod bench;
mod build_ebpf;
mod chart;
mod ci;
mod codegen;
mod command;
mod demo;
mod e2e;
mod fuzz;
mod image;
mod leftovers;
mod linker;
mod lint;
mod manifests;
mod promtool;
mod setup;
mod tally;
mod task;
mod test;
mod toolchain;
mod vm;

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Netferry's build, test and demo tasks")]
struct Arguments {
    #[command(subcommand)]
    task: task::Task,
}

fn main() -> ExitCode {
    let outcome = Arguments::parse().task.run();
    if let Err(error) = &outcome {
        eprintln!("xtask: {error:#}");
    }
    ExitCode::from(u8::from(outcome.is_err()))
}
