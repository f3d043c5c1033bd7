//! The tasks of the command line, and which file runs each.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::{bench, build_ebpf, ci, codegen, demo, e2e, fuzz, image, lint, manifests, test, vm};

/// One task.
#[derive(Subcommand)]
pub(crate) enum Task {
    /// Compile the eBPF programs to target/bpf/netferry.o, installing the toolchain if need be.
    BuildEbpf(build_ebpf::Options),
    /// Set the machine up and run every test.
    Test(test::Options),
    /// Run stories on a cluster that has the driver: claims, networks, restarts, upgrades, removal.
    E2e(Box<e2e::Options>),
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
    Manifests {
        /// Instead, write down which requests the driver made, of an API server's audit log
        #[arg(long, value_name = "AUDIT_LOG")]
        record: Option<PathBuf>,
    },
}

impl Task {
    /// Runs the task to its end.
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Task::BuildEbpf(options) => build_ebpf::run(options),
            Task::Test(options) => test::run(options),
            Task::E2e(options) => e2e::run(options),
            Task::Demo(options) => demo::run(options),
            Task::Lint(options) => lint::run(options),
            Task::Ci(options) => ci::run(options),
            Task::Fuzz(options) => fuzz::run(options),
            Task::Vm(options) => vm::run(options),
            Task::Bench(options) => bench::run(options),
            Task::Image(options) => image::run(options),
            Task::Codegen(options) => codegen::run(options),
            Task::Manifests { record: None } => manifests::run(),
            Task::Manifests { record: Some(log) } => manifests::record(log),
        }
    }
}
