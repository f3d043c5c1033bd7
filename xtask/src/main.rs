//! `cargo xtask`: Netferry's build, test, demo and lint tasks. One file a task.

mod apt;
mod bench;
mod build_ebpf;
mod chart;
mod ci;
mod codegen;
mod command;
mod demo;
mod fuzz;
mod image;
mod leftovers;
mod linker;
mod lint;
mod manifests;
mod setup;
mod tally;
mod test;
mod toolchain;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Netferry's build, test and demo tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Compile the eBPF programs to target/bpf/netferry.o, installing the toolchain if need be.
    BuildEbpf(build_ebpf::Options),
    /// Set the machine up and run every test.
    Test(test::Options),
    /// Show a claimed link on its way into a pod and home again, on this machine.
    Demo(demo::Options),
    /// Formatting, clippy, licences, file sizes and words.
    Lint(lint::Options),
    /// What CI runs: lint, then test.
    Ci(ci::Options),
    /// Send random frames through the eBPF programs and compare with an oracle.
    Fuzz(fuzz::Options),
    /// Boot other kernels under QEMU, and test on them.
    Vm(vm::Options),
    /// Run the benchmarks.
    Bench(bench::Options),
    /// Make the container image as an OCI layout, without a container engine.
    Image(image::Options),
    /// Write what is made: the CustomResourceDefinition from the Rust types, the Helm chart from manifests/base.
    Codegen(codegen::Options),
    /// Check manifests/ as the API server would read it.
    Manifests,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::BuildEbpf(options) => build_ebpf::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Lint(options) => lint::run(&options),
        Task::Ci(options) => ci::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Vm(options) => vm::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Image(options) => image::run(&options),
        Task::Codegen(options) => codegen::run(&options),
        Task::Manifests => manifests::run(),
    };
    if let Err(error) = &outcome {
        eprintln!("xtask: {error:#}");
    }
    ExitCode::from(u8::from(outcome.is_err()))
}
