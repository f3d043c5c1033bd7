//! `netferry doctor`: what the daemon needs, what it says of itself, and what to do where something is wrong. It writes
//! nothing.

mod cluster;
mod daemon;
mod leftovers;

use std::{fs, path::Path, process::ExitCode};

use anyhow::Result;
use aya::{
    programs::{LsmAttachType, ProgramType},
    sys::is_program_supported,
};
use nix::{
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::{AccessFlags, access},
};
use serde::Serialize;

use super::show;
use crate::{
    config::{DoctorArgs, Output, Ports},
    datapath::{Features, cgroup::unified, features::is_not_permitted},
};

/// One thing looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    cure: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// The daemon runs, but something it offers will not work.
    Warn,
    /// The daemon cannot do its work.
    Fail,
}

impl Check {
    fn of(name: &'static str, failed: State, found: Result<String, String>, cure: &str) -> Self {
        match found {
            Ok(found) => Self { name, state: State::Ok, found, cure: String::new() },
            Err(found) => Self { name, state: failed, found, cure: cure.to_owned() },
        }
    }
}

/// Look at everything and print it. Fails if the daemon could not work.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let checks = checks(args);
    let rows = checks.iter().map(|check| {
        let state = match check.state {
            State::Ok => "ok",
            State::Warn => "WARN",
            State::Fail => "FAIL",
        };
        [check.name.to_owned(), state.to_owned(), check.found.clone(), check.cure.clone()]
    });
    show::print(args.output, &checks, ["CHECK", "STATE", "FOUND", "CURE"], rows)?;
    let failed = checks.iter().filter(|check| check.state == State::Fail).count();
    if failed > 0 && args.output == Output::Table {
        show::print_line(&format!("\n{failed} of {} checks failed", checks.len()))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn checks(args: &DoctorArgs) -> Vec<Check> {
    let (status, daemon) = daemon::status(args);
    let status = status.as_ref();
    let mut checks = vec![
        daemon,
        daemon::kubelet(args, status),
        daemon::nri(args, status),
        daemon::runtime(&args.state.run_dir, status),
        Check::of("capabilities", State::Fail, capabilities(), RIGHTS_CURE),
        Check::of(
            "kernel BTF",
            State::Warn,
            exists(Path::new("/sys/kernel/btf/vmlinux")),
            "use a kernel with CONFIG_DEBUG_INFO_BTF; map dumps show raw bytes without it",
        ),
        Check::of("bpf file system", State::Fail, bpffs(&args.state.bpffs), "mount -t bpf bpf /sys/fs/bpf"),
        Check::of(
            "state folder",
            State::Fail,
            writable(&args.state.state_dir),
            "make it writable, or choose another with --state-dir",
        ),
    ];
    checks.push(Check::of(
        "cgroup v2",
        State::Fail,
        unified(&args.cgroup_root).map(|path| path.display().to_string()).map_err(|error| error.to_string()),
        "strict links are refused without it; --unguarded-pods=allow attaches them all the same",
    ));
    checks.push(Check::of(
        "32-bit system calls",
        State::Warn,
        compat(),
        "add `bpf` to the kernel's lsm= list, or start it with ia32_emulation=0: a pod with NET_RAW can send around the \
         programs of its link by a 32-bit system call",
    ));
    checks.push(Check::of(
        "ports of networks",
        State::Fail,
        ports(args.ports),
        "Linux 6.7 or later with CONFIG_NETKIT; or let the daemon run with --ports=veth or --ports=auto",
    ));
    checks.extend(features());
    checks.extend(status.map(daemon::slices));
    checks.extend(cluster::checks(args, status));
    checks.extend(leftovers::checks(&args.state));
    checks
}

/// What they will be made of.
fn ports(ports: Ports) -> Result<String, String> {
    match ports.choose() {
        Ok(kind) => Ok(format!("{} pairs", kind.as_str())),
        Err(error) if is_not_permitted(&error) => Err(format!("cannot be tried: {NO_RIGHTS}")),
        Err(error) => Err(format!("a netkit pair cannot be made: {error}")),
    }
}

/// Said where a trial was refused, which says nothing about the kernel.
const NO_RIGHTS: &str = "not enough rights (needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)";
const RIGHTS_CURE: &str = "run as root, or in a container with these capabilities";

fn features() -> Vec<Check> {
    let features = Features::probe();
    if !features.permitted {
        let found = Err(format!("cannot be tried: {NO_RIGHTS}"));
        return vec![Check::of("kernel features", State::Fail, found, RIGHTS_CURE)];
    }
    let check = |name, state, have: bool, advice: &str| {
        let found = if have { Ok("available".to_owned()) } else { Err("not available".to_owned()) };
        Check::of(name, state, found, advice)
    };
    vec![
        check(
            "kernel clock for programs",
            State::Fail,
            features.coarse_clock,
            "Linux 5.15 or later: the programs do not load without bpf_ktime_get_coarse_ns",
        ),
        check(
            "tcx",
            State::Warn,
            features.tcx,
            "Linux 6.6 or later: on older kernels a moved link cannot have isolation: strict, only best-effort",
        ),
    ]
}

/// The hook for socket options is not called for 32-bit system calls (`do_sock_setsockopt`, net/socket.c), that of the BPF
/// security module is.
fn compat() -> Result<String, String> {
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let lsm = ProgramType::Lsm(LsmAttachType::Cgroup);
    if modules.trim().split(',').any(|name| name == "bpf") {
        match is_program_supported(lsm) {
            Ok(true) => return Ok("guarded by BPF as a security module".to_owned()),
            Err(error) if is_not_permitted(&error) => return Err(format!("cannot be tried: {NO_RIGHTS}")),
            Ok(false) | Err(_) => {}
        }
    }
    // The machine's own word for a kernel that takes them (kernel/sysctl.c, since Linux 2.6).
    if !Path::new("/proc/sys/abi/vsyscall32").exists() {
        return Ok("this kernel takes none".to_owned());
    }
    Err("taken, and BPF is no security module that programs can be loaded for (/sys/kernel/security/lsm)"
        .to_owned())
}

fn exists(path: &Path) -> Result<String, String> {
    match fs::metadata(path) {
        Ok(_) => Ok(path.display().to_string()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// The folder, or the nearest parent that exists, must lie on a bpf file system.
fn bpffs(folder: &Path) -> Result<String, String> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statfs(existing) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(existing.display().to_string()),
        Ok(_) => Err(format!("{} is not on one", folder.display())),
        Err(error) => Err(format!("{}: {error}", existing.display())),
    }
}

fn writable(folder: &Path) -> Result<String, String> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    access(existing, AccessFlags::W_OK | AccessFlags::X_OK)
        .map(|()| folder.display().to_string())
        .map_err(|error| format!("{}: {error}", existing.display()))
}

/// Bits of `CapEff` (linux/capability.h).
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];

fn capabilities() -> Result<String, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or("no CapEff in /proc/self/status")?;
    let missing: Vec<_> =
        NEEDED.iter().filter(|(_, bit)| effective & (1 << bit) == 0).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        Ok(NEEDED.map(|(name, _)| name).join(", "))
    } else {
        Err(format!("missing {}", missing.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_on_an_ordinary_file_system_is_no_place_for_pins() {
        let folder = tempfile::tempdir().unwrap();
        let error = bpffs(&folder.path().join("deep/er")).unwrap_err();
        assert!(error.ends_with("is not on one"), "{error}");
    }

    #[test]
    fn ports_are_what_this_kernel_makes() {
        let netkit = ports(Ports::Netkit);
        let auto = ports(Ports::Auto).unwrap();
        match &netkit {
            Ok(found) => assert_eq!((found.as_str(), auto.as_str()), ("netkit pairs", "netkit pairs")),
            Err(found) => {
                assert!(found.starts_with("a netkit pair cannot be made: "), "{found}");
                assert_eq!(auto, "veth pairs");
            }
        }
    }
}
