//! Which Rust compiler builds the eBPF programs.
//!
//! They need the `core` library's source, because no release ships `core` for the BPF target, and unstable
//! cargo flags. A nightly has both; a stable compiler does it with `RUSTC_BOOTSTRAP=1`.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt,
    command::{foreign, is_root, output, run, which},
};

/// The nightly that builds are tried with. Its LLVM (22) is one that [`crate::linker`] can be built for.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";
/// Major versions of LLVM that the pinned bpf-linker can be built for.
pub(crate) const LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// Oldest compiler the workspace accepts.
const RUST: (u32, u32) = (1, 95);
/// Debian's packages of a compiler with `core`'s source.
const PACKAGES: [&str; 3] = ["cargo-web", "rustc-web", "rust-web-src"];

/// A compiler and its cargo, able to build for BPF.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// Where it was found.
    origin: String,
    rustc: PathBuf,
    cargo: PathBuf,
    release: String,
    /// Major version of its LLVM: the linker's must be the same to read its bitcode.
    pub(crate) llvm: u32,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rustc {}, LLVM {}, from {} ({})",
            self.release,
            self.llvm,
            self.origin,
            self.rustc.display()
        )
    }
}

impl Toolchain {
    /// A cargo command of this toolchain that may use unstable flags.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = foreign(&self.cargo);
        command.env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        command
    }

    /// Looks at a compiler; the error says what it lacks.
    fn inspect(origin: &str, rustc: PathBuf, cargo: PathBuf) -> Result<Self> {
        let version = output(foreign(&rustc).arg("-vV"))
            .with_context(|| format!("{} does not run", rustc.display()))?;
        let field = |name: &str| {
            version.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        let release = field("release:").context("rustc -vV names no release")?;
        let llvm = field("LLVM version:")
            .and_then(|llvm| llvm.split('.').next().and_then(|major| major.parse().ok()))
            .context("rustc -vV names no LLVM version")?;
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if number < RUST {
            bail!("rustc {release} is older than {}.{}", RUST.0, RUST.1);
        }
        if !LLVM.contains(&llvm) {
            bail!("its LLVM {llvm} is not one of {} to {}", LLVM.start(), LLVM.end());
        }
        let sysroot = output(foreign(&rustc).args(["--print", "sysroot"])).context("no sysroot")?;
        if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            bail!("it has no rust-src");
        }
        if !cargo.is_file() {
            bail!("{} is missing", cargo.display());
        }
        Ok(Self { origin: origin.to_owned(), rustc, cargo, release, llvm })
    }

    fn of_rustup(name: &str) -> Result<Self> {
        if which("rustup").is_none() {
            bail!("rustup is not installed");
        }
        let find = |program| output(foreign("rustup").args(["which", "--toolchain", name, program]));
        match (find("rustc"), find("cargo")) {
            (Some(rustc), Some(cargo)) => {
                Self::inspect(&format!("rustup toolchain {name}"), rustc.into(), cargo.into())
            }
            _ => bail!("rustup has no such toolchain"),
        }
    }

    /// The toolchain that is running this task.
    fn active() -> Result<Self> {
        let cargo = PathBuf::from(env::var_os("CARGO").context("not started by cargo")?);
        let rustc = cargo.with_file_name("rustc");
        Self::inspect("the active toolchain", rustc, cargo)
    }

    fn of_system() -> Result<Self> {
        Self::inspect("the system's packages", "/usr/bin/rustc".into(), "/usr/bin/cargo".into())
    }
}

/// Finds a toolchain, installs one if none is there, or says exactly how to.
pub(crate) fn find(named: Option<&str>) -> Result<Toolchain> {
    if let Some(name) = named {
        return Toolchain::of_rustup(name).with_context(|| format!("toolchain {name}"));
    }
    if let Some(rustc) = env::var_os("NETFERRY_BPF_RUSTC") {
        let rustc = PathBuf::from(rustc);
        let cargo =
            env::var_os("NETFERRY_BPF_CARGO").map_or_else(|| rustc.with_file_name("cargo"), PathBuf::from);
        return Toolchain::inspect("NETFERRY_BPF_RUSTC", rustc, cargo).context("NETFERRY_BPF_RUSTC");
    }
    let mut refused = Vec::new();
    let mut found = |place: &str, looked: Result<Toolchain>| {
        looked.map_err(|why| refused.push(format!("{place}: {why:#}"))).ok()
    };
    if let Some(toolchain) = found(NIGHTLY, Toolchain::of_rustup(NIGHTLY))
        .or_else(|| found("active toolchain", Toolchain::active()))
        .or_else(|| found("/usr/bin/rustc", Toolchain::of_system()))
        .or_else(|| found("install by rustup", install_nightly()))
        .or_else(|| found("install by apt", install_packages()))
    {
        return Ok(toolchain);
    }
    bail!(
        "no Rust toolchain here can build for BPF:\n  {}\nrun one of these and try again:\n  {}\n  {}",
        refused.join("\n  "),
        advice_nightly(),
        apt::advice(&PACKAGES)
    )
}

/// What would be installed if a build of the eBPF programs began now, in words.
pub(crate) fn missing() -> Vec<String> {
    let here = env::var_os("NETFERRY_BPF_RUSTC").is_some()
        || Toolchain::of_rustup(NIGHTLY).is_ok()
        || Toolchain::active().is_ok()
        || Toolchain::of_system().is_ok();
    if here {
        return Vec::new();
    }
    let by_rustup = which("rustup").is_some();
    vec![if by_rustup {
        format!("Rust {NIGHTLY} (by rustup)")
    } else {
        format!("Debian's {}", PACKAGES.join(", "))
    }]
}

fn advice_nightly() -> String {
    format!("rustup toolchain install {NIGHTLY} --profile minimal --component rust-src")
}

fn install_nightly() -> Result<Toolchain> {
    if which("rustup").is_none() {
        bail!("rustup is not installed");
    }
    println!("installing {NIGHTLY} with rust-src (builds the eBPF programs)");
    run(foreign("rustup")
        .args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"])
        .arg("--no-self-update"))?;
    Toolchain::of_rustup(NIGHTLY)
}

fn install_packages() -> Result<Toolchain> {
    if !apt::is_debian() {
        bail!("this is not Debian");
    }
    if !is_root() {
        bail!("only root can");
    }
    apt::install(&PACKAGES, "a Rust compiler that can build for BPF")?;
    Toolchain::of_system()
}
