//! `cargo xtask build-ebpf`: the eBPF object that the driver embeds.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    command::{self, foreign, root, which},
    linker,
    toolchain::{self, Toolchain},
};

/// Options of `build-ebpf`.
#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// Use this rustup toolchain; it must have rust-src.
    #[arg(long, value_name = "NAME", env = "NETFERRY_BPF_TOOLCHAIN")]
    pub(crate) toolchain: Option<String>,
}

/// Where the driver's build script looks for the object.
pub(crate) fn object() -> PathBuf {
    root().join("target/bpf/netferry.o")
}

/// Builds the object.
pub(crate) fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let toolchain = toolchain::find(options.toolchain.as_deref())?;
    println!("eBPF compiler: {toolchain}");
    let linker = linker::find(&toolchain)?;
    println!("eBPF linker: {}", linker.display());

    let target = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    // A folder of its own: with the host's, each build would throw away the other's work.
    let folder = root().join("target/bpf-build");
    compile(&toolchain, &linker, target, &folder)?;

    let built = folder.join(target).join("release/netferry-ebpf");
    let fresh = without_debug(&built, toolchain.llvm)?;
    let object = object();
    // An untouched file keeps its time, and the driver is not built again for nothing.
    let changed = fs::read(&object).ok().as_deref() != Some(fresh.as_slice());
    if changed {
        fs::create_dir_all(object.parent().context("the object has no folder")?)?;
        let partial = object.with_extension("partial");
        fs::write(&partial, &fresh).with_context(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &object)?;
    }
    println!(
        "eBPF object: {} ({} bytes, {}, {:.1} s)",
        object.display(),
        fresh.len(),
        if changed { "new" } else { "unchanged" },
        begin.elapsed().as_secs_f32()
    );
    Ok(())
}

/// The object without DWARF, which only a debugger reads and which makes each load of it slower. BTF stays: the
/// kernel and bpftool name types and fields by it.
fn without_debug(built: &Path, llvm: u32) -> Result<Vec<u8>> {
    let Some(objcopy) = objcopy(llvm) else {
        println!("eBPF object keeps its debug sections: no llvm-objcopy of LLVM {llvm} here");
        return fs::read(built).with_context(|| format!("cannot read {}", built.display()));
    };
    let stripped = built.with_extension("stripped");
    command::run(foreign(&objcopy).arg("--strip-debug").arg(built).arg(&stripped))?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// The objcopy of this LLVM; another one may not know the target.
fn objcopy(llvm: u32) -> Option<PathBuf> {
    let own = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/llvm-objcopy"));
    let matches = |found: &PathBuf| {
        command::output(foreign(found).arg("--version"))
            .is_some_and(|version| version.contains(&format!("version {llvm}.")))
    };
    [Some(own).filter(|own| own.is_file()), which(&format!("llvm-objcopy-{llvm}")), which("llvm-objcopy")]
        .into_iter()
        .flatten()
        .find(matches)
}

fn compile(toolchain: &Toolchain, linker: &Path, target: &str, folder: &Path) -> Result<()> {
    let mut cargo = toolchain.cargo();
    // Apart by a character that is in no path.
    let flags =
        ["-Cdebuginfo=2", "-Clink-arg=--btf", &format!("-Clinker={}", linker.display())].join("\u{1f}");
    cargo
        .args(["build", "--release", "--locked", "--package", "netferry-ebpf", "--target", target])
        .arg("-Zbuild-std=core")
        .env("CARGO_TARGET_DIR", folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    command::run(&mut cargo).context("cannot build the eBPF programs")
}
