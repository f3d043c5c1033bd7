//! `cargo xtask test`: the machine set up, the programs built, every test run and counted.

pub(crate) mod binaries;

use std::{
    env, fs,
    process::{self, Command},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build_ebpf,
    command::{cargo, is_root, root},
    leftovers::Leftovers,
    promtool, setup,
    tally::{self, Tally},
    vm,
};

/// Options of `test`.
#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// Only the unit tests: no packages, no root.
    #[arg(long)]
    fast: bool,
    /// How many tests may skip; CI allows none. Without it, skips are only told.
    #[arg(long, value_name = "N")]
    expected_skips: Option<u64>,
    /// Others test on this machine at the same time: do not look for what was left behind.
    #[arg(long)]
    shared_machine: bool,
    /// Do not boot other kernels under QEMU, which takes some minutes.
    #[arg(long)]
    no_vm: bool,
    /// The eBPF toolchain.
    #[command(flatten)]
    ebpf: build_ebpf::Options,
    /// Names or options for the test binaries, after `--`.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// Runs the tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    let whole = !options.fast && is_root();
    if whole {
        setup::tests()?;
    } else if !options.fast {
        println!(
            "not root: only the unit tests run; for all of them: sudo -E env \"PATH=$PATH\" cargo xtask test"
        );
    }
    build_ebpf::run(&options.ebpf)?;

    let before = Leftovers::look();
    let log = root().join("target/skips.log");
    match fs::remove_file(&log) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", log.display()));
        }
        _ => {}
    }
    let mut tally = Tally::default();
    let mut good = true;
    let path = if whole { promtool::path()? } else { env::var_os("PATH").unwrap_or_default() };
    for mut cargo in plan(options, whole) {
        cargo.env("NETFERRY_SKIP_LOG", &log).env("PATH", &path);
        good &= tally::run(&mut cargo, &mut tally)?;
    }
    // A filter chooses among the tests of this machine.
    if whole && !options.no_vm && options.filter.is_empty() {
        good &= vm::boot(&vm::Options::default(), &log, &mut tally)?;
    }
    let skips = tally.take_skips(&log)?;
    for skip in &skips {
        println!("skipped: {skip}");
    }
    let left = if options.shared_machine { Vec::new() } else { settle(&before) };
    for thing in &left {
        println!("left behind: {thing}");
    }
    let allowed = options.expected_skips.or_else(|| (whole && env::var_os("CI").is_some()).then_some(0));
    let verdict = judge(tally, good, allowed, left.len());
    if let Err(error) = &verdict {
        eprintln!("xtask: {error:#}");
    }
    // The sum is the last line whatever the outcome, so `main` has nothing left to say.
    println!("{tally}");
    if verdict.is_err() {
        process::exit(1);
    }
    Ok(())
}

fn judge(tally: Tally, good: bool, allowed: Option<u64>, left: usize) -> Result<()> {
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    if !good {
        bail!("a test binary could not be built or died; see above");
    }
    if tally.passed == 0 {
        bail!("no test ran");
    }
    if let Some(allowed) = allowed.filter(|&allowed| tally.skipped > allowed) {
        bail!("{} tests were skipped, {allowed} are expected", tally.skipped);
    }
    if left > 0 {
        bail!("the tests left {left} things behind");
    }
    Ok(())
}

/// The `cargo test` runs. The eBPF crate's program is for another target; its library also runs here.
fn plan(options: &Options, whole: bool) -> Vec<Command> {
    let mut host = binaries::of_host();
    if !whole {
        host.args(["--lib", "--bins"]);
    }
    let mut runs = vec![host];
    if root().join("driver-ebpf/src/lib.rs").exists() {
        let mut programs = cargo();
        programs.args(["test", "--locked", "--no-fail-fast", "--package", "netferry-ebpf", "--lib"]);
        runs.push(programs);
    }
    if !options.filter.is_empty() {
        for run in &mut runs {
            run.arg("--").args(&options.filter);
        }
    }
    runs
}

/// What is left, once dying processes had a moment to be gone.
fn settle(before: &Leftovers) -> Vec<String> {
    let mut left = Vec::new();
    for _ in 0..20 {
        left = Leftovers::look().since(before);
        if left.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(250));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Tally = Tally { passed: 9, failed: 0, skipped: 1 };

    #[test]
    fn each_fault_fails_the_run() {
        assert!(judge(GOOD, true, None, 0).is_ok());
        assert!(judge(GOOD, true, Some(1), 0).is_ok());
        assert!(judge(GOOD, true, Some(0), 0).is_err(), "a skip too many");
        assert!(judge(GOOD, false, None, 0).is_err(), "a binary that died");
        assert!(judge(GOOD, true, None, 1).is_err(), "something left behind");
        assert!(judge(Tally { failed: 1, ..GOOD }, false, None, 0).is_err(), "a failed test");
        assert!(judge(Tally::default(), true, None, 0).is_err(), "no test at all");
    }
}
