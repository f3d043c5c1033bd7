//! Puts the eBPF object where the crate embeds it.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// `EM_BPF` of <elf.h>.
const EM_BPF: u16 = 247;

fn main() {
    println!("cargo::rerun-if-env-changed=NETFERRY_BPF_OBJECT");
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

fn fail(why: &str) -> ! {
    println!("cargo::error={why}");
    process::exit(1)
}
