//! The image's program: a static one that is built here, or a given one with the libraries that it needs.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::layer::Layer;
use crate::{
    apt,
    command::{cargo, foreign, output, root, run, which},
};

/// Where the image's entry point is.
const INSIDE: &str = "usr/local/bin/netferry";

/// A processor that images are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

impl Arch {
    /// As OCI names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust and GNU name it.
    fn cpu(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// This machine's, if images are made for it.
    pub(crate) fn of_host() -> Option<Self> {
        [Self::Amd64, Self::Arm64].into_iter().find(|arch| arch.cpu() == env::consts::ARCH)
    }

    fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.cpu())
    }

    /// A C compiler for it, and Debian's package of that. `ring` has C and assembler.
    fn compiler(self) -> (String, String) {
        if Some(self) == Self::of_host() {
            ("musl-gcc".into(), "musl-tools".into())
        } else {
            (
                format!("{}-linux-gnu-gcc", self.cpu()),
                format!("gcc-{}-linux-gnu", self.cpu().replace('_', "-")),
            )
        }
    }
}

/// Builds a program that needs nothing of the image, and adds it.
pub(crate) fn add_static(layer: &mut Layer, arch: Arch, profile: &str) -> Result<()> {
    let target = arch.target();
    standard_library(&target)?;
    let (compiler, package) = arch.compiler();
    if which(&compiler).is_none() {
        apt::install(&[&package], "a static program")?;
    }
    let variable = target.replace('-', "_");
    let mut build = cargo();
    build
        .args(["build", "--locked", "--package", "netferry", "--bin", "netferry", "--profile", profile])
        .args(["--target", &target])
        .env(format!("CC_{variable}"), &compiler)
        .env("CARGO_ENCODED_RUSTFLAGS", flags()?)
        .env_remove("RUSTFLAGS");
    if Some(arch) != Arch::of_host() {
        build.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &compiler);
    }
    run(&mut build).with_context(|| format!("cannot build the program for {target}"))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    let target_dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = target_dir.join(target).join(folder).join("netferry");
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    layer.file(INSIDE, 0o755, bytes);
    Ok(())
}

/// Paths of this machine are not in the program, and its debug information neither.
fn flags() -> Result<String> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let flags = [
        format!("--remap-path-prefix={}=/netferry", root().display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        "-Cstrip=debuginfo".to_owned(),
    ];
    Ok(flags.join("\u{1f}"))
}

/// Rust's standard library for a target, by rustup if it is missing.
fn standard_library(target: &str) -> Result<()> {
    let rustc = env::var_os("CARGO")
        .map_or_else(|| "rustc".into(), |cargo| PathBuf::from(cargo).with_file_name("rustc"));
    let there = || {
        let folder = output(foreign(&rustc).args(["--print", "target-libdir", "--target", target]));
        folder.is_some_and(|folder| Path::new(&folder).is_dir())
    };
    if there() {
        return Ok(());
    }
    ensure!(
        which("rustup").is_some(),
        "this Rust has no standard library for {target}, and no rustup that could install it"
    );
    let mut command = foreign("rustup");
    command.args(["target", "add", target]);
    if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
        command.arg("--toolchain").arg(toolchain);
    }
    run(&mut command)?;
    ensure!(there(), "rustup installed no standard library for {target}");
    Ok(())
}

/// Adds a program of this machine without its debug information, and the shared libraries that it needs here.
pub(crate) fn add_dynamic(layer: &mut Layer, program: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("nf-program-").tempdir()?;
    let stripped = scratch.path().join("netferry");
    run(foreign("objcopy").arg("--strip-debug").arg(program).arg(&stripped))?;
    let bytes = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    layer.file(INSIDE, 0o755, bytes);
    for library in output(foreign("ldd").arg(program)).unwrap_or_default().split_whitespace() {
        if library.starts_with('/') {
            let bytes = fs::read(library).with_context(|| format!("cannot read {library}"))?;
            layer.file(library, 0o755, bytes);
        }
    }
    Ok(())
}

/// The program that `cargo test` builds for the driver's tests.
#[cfg(test)]
pub(crate) fn of_tests() -> Result<PathBuf> {
    let target = env::current_exe()?;
    let folder = target.ancestors().nth(2).context("the test has no folder")?.to_owned();
    let program = folder.join("netferry");
    if !program.is_file() {
        run(cargo().args(["build", "--locked", "--package", "netferry", "--bin", "netferry"]))?;
    }
    ensure!(program.is_file(), "{} is missing", program.display());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_are_named_as_debian_does() {
        assert!([Arch::Amd64, Arch::Arm64].iter().all(|arch| {
            let (compiler, package) = arch.compiler();
            [("musl-gcc", "musl-tools"), ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")]
                .iter()
                .chain(&[("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu")])
                .any(|known| *known == (compiler.as_str(), package.as_str()))
        }));
        assert_eq!(Arch::Arm64.target(), "aarch64-unknown-linux-musl");
    }
}
