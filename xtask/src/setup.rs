//! What the tests and the demo need of the machine: programs from Debian's packages, and a mounted bpffs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::{
    apt,
    command::{is_root, which},
};

const BPFFS: &str = "/sys/fs/bpf";

/// What must be there, and the Debian package that brings it.
enum Need {
    Program(&'static str),
    File(&'static str),
}

impl Need {
    fn found(&self) -> Option<PathBuf> {
        match self {
            Self::Program(name) => which(name),
            Self::File(path) => Path::new(path).exists().then(|| path.into()),
        }
    }
}

const DEMO: [(Need, &str); 3] = [
    (Need::Program("bpftool"), "bpftool"),
    (Need::Program("ip"), "iproute2"),
    (Need::Program("ping"), "iputils-ping"),
];

/// The tests also run container runtimes, which need an OCI runtime, CNI plugins and a root file system.
const TESTS: [(Need, &str); 7] = [
    (Need::Program("runc"), "runc"),
    (Need::File("/usr/lib/cni/ptp"), "containernetworking-plugins"),
    // `busybox` itself may be the one that is linked dynamically, which is of no use in an empty root.
    (Need::File("/usr/share/doc/busybox-static"), "busybox-static"),
    (Need::Program("ethtool"), "ethtool"),
    // Sees what goes through the host's stack; the benchmarks compare with it.
    (Need::Program("nft"), "nftables"),
    // The program alone: no server is started for the machine.
    (Need::Program("dnsmasq"), "dnsmasq-base"),
    (Need::File("/etc/ssl/certs/ca-certificates.crt"), "ca-certificates"),
];

/// The packages that `cargo xtask demo` would install.
pub(crate) fn missing_for_demo() -> Vec<String> {
    missing(&DEMO).into_iter().map(|package| format!("Debian's {package}")).collect()
}

/// Sets up what `cargo xtask demo` needs. Only root can run it.
pub(crate) fn demo() -> Result<()> {
    install(&DEMO, "the demo")?;
    bpffs()
}

/// Sets up what `cargo xtask test` and `cargo xtask bench` need when root runs them.
pub(crate) fn tests() -> Result<()> {
    install(&DEMO, "the tests")?;
    install(&TESTS, "the tests")?;
    bpffs()
}

/// Sets up what runs a container.
pub(crate) fn containers() -> Result<()> {
    install(&[(Need::Program("runc"), "runc")], "running the image")
}

/// What `cargo xtask vm` needs besides: an emulator, and what unpacks kernels and packs what they boot.
const VIRTUAL_MACHINES: [(Need, &str); 3] = [
    (Need::Program("qemu-system-x86_64"), "qemu-system-x86"),
    (Need::Program("objcopy"), "binutils"),
    (Need::Program("xz"), "xz-utils"),
];

/// Sets up what `cargo xtask vm` needs.
pub(crate) fn virtual_machines() -> Result<()> {
    tests()?;
    install(&VIRTUAL_MACHINES, "kernels under QEMU")
}

fn install(needs: &[(Need, &'static str)], why: &str) -> Result<()> {
    apt::install(&missing(needs), why)
}

fn missing(needs: &[(Need, &'static str)]) -> Vec<&'static str> {
    needs.iter().filter(|(need, _)| need.found().is_none()).map(|(_, package)| *package).collect()
}

/// Mounts the file system that pinned programs and maps live in, if it is not.
fn bpffs() -> Result<()> {
    if mounted()? {
        return Ok(());
    }
    if !is_root() {
        bail!("no bpf file system is mounted; run: sudo mount -t bpf bpf {BPFFS}");
    }
    println!("mounting a bpf file system on {BPFFS}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=700"))
        .with_context(|| format!("cannot mount a bpf file system on {BPFFS}"))
}

fn mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    }))
}
