//! Puts the eBPF object where the crate embeds it, and finds out which commit is built.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// `EM_BPF` of <elf.h>.
const EM_BPF: u16 = 247;

fn main() {
    println!("cargo::rerun-if-env-changed=NETFERRY_BPF_OBJECT");
    println!("cargo::rerun-if-env-changed=NETFERRY_COMMIT");
    println!("cargo::rustc-env=NETFERRY_COMMIT={}", commit());
    let object = object();
    println!("cargo::rerun-if-changed={}", object.display());
    let Ok(bytes) = fs::read(&object) else {
        fail(&format!(
            "there is no eBPF object at {}; make it with: cargo xtask build-ebpf",
            object.display()
        ));
    };
    let machine = bytes.get(18..20).map(|field| u16::from_le_bytes([field[0], field[1]]));
    if !bytes.starts_with(b"\x7fELF") || machine != Some(EM_BPF) {
        fail(&format!(
            "{} is not an eBPF object; make it again with: cargo xtask build-ebpf",
            object.display()
        ));
    }
    let Some(out) = env::var_os("OUT_DIR") else { fail("cargo gave no OUT_DIR") };
    if let Err(error) = fs::write(Path::new(&out).join("netferry.o"), bytes) {
        fail(&format!("cannot copy the eBPF object to {}: {error}", Path::new(&out).display()));
    }
}

/// `NETFERRY_BPF_OBJECT`, or where `cargo xtask build-ebpf` puts it.
fn object() -> PathBuf {
    if let Some(path) = env::var_os("NETFERRY_BPF_OBJECT") {
        return path.into();
    }
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    workspace.join("target/bpf/netferry.o")
}

/// `NETFERRY_COMMIT`, or the commit that is checked out; `unknown` outside of a repository.
fn commit() -> String {
    let given = env::var("NETFERRY_COMMIT").ok().filter(|given| !given.is_empty());
    let commit = given.or_else(|| {
        // Written by each commit and each checkout, of this work tree alone.
        if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
            println!("cargo::rerun-if-changed={log}");
        }
        git(&["rev-parse", "--short=12", "HEAD"])
    });
    commit.unwrap_or_else(|| "unknown".to_owned())
}

/// What git answers in this package's folder, if that is part of this repository and not of one around it.
fn git(arguments: &[&str]) -> Option<String> {
    let folder = env::var_os("CARGO_MANIFEST_DIR")?;
    let run = |arguments: &[&str]| {
        let output = process::Command::new("git").args(arguments).current_dir(&folder).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    if run(&["ls-files", "--error-unmatch", "build.rs"])? != "build.rs" {
        return None;
    }
    run(arguments)
}

fn fail(why: &str) -> ! {
    println!("cargo::error={why}");
    process::exit(1)
}
