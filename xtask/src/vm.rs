//! `cargo xtask vm`: our tests on other kernels, booted under QEMU.
//!
//! The kernels are Debian's. A virtual machine has an initramfs of ours only: busybox, a few programs of this
//! machine, the kernel's modules, and the test binaries as `cargo test` builds them. What they report goes over the
//! serial console into the same tally as the tests of this machine. The processor is emulated, so that nothing but
//! QEMU is needed, and so it is slow: each series runs a choice of tests.

mod debian;
mod emulator;
mod initramfs;
mod machine;
mod modules;
pub(crate) mod private_apt;
mod series;

use std::{collections::BTreeMap, fs::OpenOptions, io::Write as _, path::Path, process};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::{
    emulator::Emulator,
    initramfs::Contents,
    machine::Outcome,
    series::{SERIES, Series},
};
use crate::{
    build_ebpf,
    command::{is_root, root},
    setup,
    tally::Tally,
    test::binaries,
};

/// Options of `vm`.
#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// The eBPF toolchain.
    #[command(flatten)]
    ebpf: build_ebpf::Options,
    /// Boot this kernel only (`5.10`, `6.1`, `6.12`, `newest`); may be given several times.
    #[arg(long = "kernel", value_name = "SERIES", value_parser = series::NAMES)]
    kernels: Vec<String>,
    /// Run this test binary instead of those chosen for the kernel, with the variables chosen for it there; may be given
    /// several times.
    #[arg(long = "test", value_name = "BINARY")]
    tests: Vec<String>,
    /// Names or options for the test binaries, after `--`.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// Boots the kernels and reports like `test`.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("only root can install QEMU and unpack kernels; run it as root");
    }
    build_ebpf::run(&options.ebpf)?;
    let log = root().join("target/skips-vm.log");
    let _ = std::fs::remove_file(&log);
    let mut tally = Tally::default();
    let outcome = boot(options, &log, &mut tally);
    for skip in tally.take_skips(&log)? {
        println!("skipped: {skip}");
    }
    let verdict = outcome.and_then(|good| match tally {
        _ if tally.failed > 0 => bail!("{} tests failed", tally.failed),
        _ if !good => bail!("a kernel did not run all of its tests; see above"),
        _ if tally.passed == 0 => bail!("no test ran"),
        _ => Ok(()),
    });
    if let Err(error) = &verdict {
        eprintln!("xtask: {error:#}");
    }
    println!("{tally}");
    if verdict.is_err() {
        process::exit(1);
    }
    Ok(())
}

/// Runs the tests of every series and adds their counts. The eBPF object is built already. Whether all of them
/// could be run to their end.
pub(crate) fn boot(options: &Options, log: &Path, tally: &mut Tally) -> Result<bool> {
    setup::virtual_machines()?;
    let wanted: Vec<&Series> = SERIES
        .iter()
        .filter(|series| options.kernels.is_empty() || options.kernels.iter().any(|name| name == series.name))
        .collect();
    let mut binaries: Vec<&str> =
        wanted.iter().flat_map(|series| series.runs).map(|run| run.binary).collect();
    binaries.extend(options.tests.iter().map(String::as_str));
    binaries.sort_unstable();
    binaries.dedup();
    let built = binaries::build(&binaries)?;
    let emulator = Emulator::find()?;
    let mut good = true;
    for series in wanted {
        good &= boot_one(&emulator, series, options, &built, log, tally)
            .with_context(|| format!("Debian's kernel {}", series.name))?;
    }
    Ok(good)
}

fn boot_one(
    emulator: &Emulator,
    series: &Series,
    options: &Options,
    built: &BTreeMap<String, std::path::PathBuf>,
    log: &Path,
    tally: &mut Tally,
) -> Result<bool> {
    let kernel = debian::kernel(series)?;
    println!("== kernel {} (Debian {})", kernel.version, series.suite);
    let mut contents = Contents::new(&kernel)?;
    let mut add = |binary: &str, arguments: &[&str], variables| {
        let file = built.get(binary).with_context(|| format!("no binary {binary} was built"))?;
        let arguments = arguments.iter().copied().chain(options.filter.iter().map(String::as_str));
        contents.run(binary, file, &arguments.collect::<Vec<_>>(), variables)
    };
    if options.tests.is_empty() {
        for run in series.runs {
            add(run.binary, run.arguments, run.variables)?;
        }
    }
    for name in &options.tests {
        let mut chosen: Vec<_> =
            series.runs.iter().filter(|run| run.binary == name).map(|run| run.variables).collect();
        if chosen.is_empty() {
            chosen.push(&[]);
        }
        for variables in chosen {
            add(name, &[], variables)?;
        }
    }
    let image = root().join("target/kernels").join(series.name).join("initramfs");
    contents.write(&image)?;
    let Outcome { good, skips } = machine::run(emulator, &kernel.image, &image, tally)?;
    let mut file = OpenOptions::new().create(true).append(true).open(log).context("the log of skips")?;
    for skip in skips {
        writeln!(file, "[{}] {skip}", series.name)?;
    }
    Ok(good)
}
