//! bpf-linker, built for the LLVM of the compiler whose bitcode it reads.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt,
    command::{foreign, is_root, output, root, run, which},
    toolchain::{self, Toolchain},
};

/// The release that builds are tried with.
const VERSION: &str = "0.13.0";

/// Finds a bpf-linker for the toolchain's LLVM: on PATH, among this workspace's tools, or by building it.
pub(crate) fn find(toolchain: &Toolchain) -> Result<PathBuf> {
    let llvm = toolchain.llvm;
    if let Some(linker) = env::var_os("NETFERRY_BPF_LINKER").map(PathBuf::from) {
        if !linker.is_file() {
            bail!("NETFERRY_BPF_LINKER: {} is not a file", linker.display());
        }
        return Ok(linker);
    }
    let tools = root().join("target/tools").join(format!("llvm-{llvm}"));
    let ours = tools.join("bin/bpf-linker");
    let on_path = which("bpf-linker");
    for linker in on_path.iter().chain([&ours]) {
        match llvm_of(linker) {
            Some(found) if found == llvm => return Ok(linker.clone()),
            Some(found) => println!("{} is built for LLVM {found}, not {llvm}", linker.display()),
            None if linker.exists() => println!("{} does not tell its LLVM", linker.display()),
            None => {}
        }
    }
    install(llvm, &tools)?;
    match llvm_of(&ours) {
        Some(found) if found == llvm => Ok(ours),
        found => bail!("{} was built for LLVM {found:?}, not {llvm}", ours.display()),
    }
}

/// What would be installed if a build of the eBPF programs began now, in words.
pub(crate) fn missing() -> Vec<String> {
    let ours = toolchain::LLVM.map(|llvm| root().join(format!("target/tools/llvm-{llvm}/bin/bpf-linker")));
    let here = env::var_os("NETFERRY_BPF_LINKER").is_some()
        || which("bpf-linker").into_iter().chain(ours).any(|linker| llvm_of(&linker).is_some());
    if here {
        return Vec::new();
    }
    vec![format!(
        "bpf-linker {VERSION} (into target/tools, with Debian's headers of the compiler's LLVM if they are missing)"
    )]
}

/// The LLVM that a linker was built for: its `--version` tells only its own. Cargo keeps the features it
/// installed with; otherwise the shared library tells.
fn llvm_of(linker: &Path) -> Option<u32> {
    let version = output(Command::new(linker).arg("--version"))?;
    if !version.contains(VERSION) {
        return None;
    }
    of_shared_library(linker).or_else(|| of_cargo_record(linker))
}

fn of_shared_library(linker: &Path) -> Option<u32> {
    let libraries = output(Command::new("ldd").arg(linker))?;
    let name = libraries.split_whitespace().find(|word| word.starts_with("libLLVM"))?;
    name.split(['.', '-']).find_map(|part| part.parse().ok())
}

fn of_cargo_record(linker: &Path) -> Option<u32> {
    let record = linker.parent()?.parent()?.join(".crates2.json");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    let (_, install) =
        record.get("installs")?.as_object()?.iter().find(|(name, _)| name.starts_with("bpf-linker "))?;
    install
        .get("features")?
        .as_array()?
        .iter()
        .find_map(|feature| feature.as_str()?.strip_prefix("llvm-")?.parse().ok())
}

fn install(llvm: u32, tools: &Path) -> Result<()> {
    let prefix = llvm_prefix(llvm)?;
    println!("installing bpf-linker {VERSION} for LLVM {llvm} into {}", tools.display());
    let mut cargo = foreign("cargo");
    cargo
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(tools)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        // Its build script asks for this one too: an older llvm-config may come first on PATH.
        .env("LLVM_PREFIX", &prefix);
    run(&mut cargo).context("cannot build bpf-linker")
}

/// The folder of LLVM's headers, libraries and llvm-config.
fn llvm_prefix(llvm: u32) -> Result<PathBuf> {
    if let Some(prefix) = installed_llvm(llvm) {
        return Ok(prefix);
    }
    let (dev, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
    let packages = [dev.as_str(), polly.as_str(), "libzstd-dev", "zlib1g-dev"];
    let why = format!("bpf-linker needs LLVM {llvm}'s libraries, which");
    if apt::is_debian() && is_root() {
        apt::install(&packages, "LLVM's libraries for bpf-linker")?;
        if let Some(prefix) = installed_llvm(llvm) {
            return Ok(prefix);
        }
    }
    bail!(
        "{why} are not here; on Debian run: {}\n(elsewhere install LLVM {llvm} with its headers, or set \
         NETFERRY_BPF_LINKER to a bpf-linker that was built for LLVM {llvm})",
        apt::advice(&packages)
    )
}

fn installed_llvm(llvm: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if debian.join("include/llvm-c/Core.h").is_file() {
        return Some(debian);
    }
    [format!("llvm-config-{llvm}"), "llvm-config".into()].iter().find_map(|name| {
        let config = which(name)?;
        let version = output(Command::new(&config).arg("--version"))?;
        let prefix = PathBuf::from(output(Command::new(&config).arg("--prefix"))?);
        let same = version.split('.').next().and_then(|major| major.parse().ok()) == Some(llvm);
        (same && prefix.join("include/llvm-c/Core.h").is_file()).then_some(prefix)
    })
}
