//! `netferry doctor`: what the daemon needs from this machine, and what to do where it is missing.

use std::{fs, os::unix::net::UnixStream, path::Path, process::ExitCode};

use anyhow::Result;
use aya::{
    programs::{LsmAttachType, ProgramType},
    sys::is_program_supported,
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::Serialize;

use super::show;
use crate::{
    claim::store::Store,
    config::{DoctorArgs, Output, Ports},
    daemon::runtime_note::RuntimeNote,
    datapath::{Features, cgroup::unified},
    telemetry::chain,
};

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it; empty when all is well.
    advice: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// The daemon runs, but something it offers will not work.
    Warning,
    /// The daemon cannot do its work.
    Failed,
}

impl Check {
    fn of(name: &'static str, failed: State, found: Result<String, String>, advice: &str) -> Self {
        match found {
            Ok(found) => Self { name, state: State::Ok, found, advice: String::new() },
            Err(found) => Self { name, state: failed, found, advice: advice.to_owned() },
        }
    }
}

/// Look at everything and print it. Fails if the daemon could not work.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let checks = checks(args);
    let rows = checks.iter().map(|check| {
        let state = match check.state {
            State::Ok => "ok",
            State::Warning => "WARNING",
            State::Failed => "FAILED",
        };
        [check.name.to_owned(), state.to_owned(), check.found.clone(), check.advice.clone()]
    });
    show::print(args.output, &checks, ["CHECK", "STATE", "FOUND", "ADVICE"], rows)?;
    let failed = checks.iter().filter(|check| check.state == State::Failed).count();
    if failed > 0 && args.output == Output::Table {
        show::print_line(&format!("\n{failed} of {} checks failed", checks.len()))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn checks(args: &DoctorArgs) -> Vec<Check> {
    let plugins = args.kubelet_root_dir.join("plugins_registry");
    let mut checks = vec![
        Check::of(
            "capabilities",
            State::Failed,
            capabilities(),
            "run as root, or in a container with these capabilities",
        ),
        Check::of(
            "kernel BTF",
            State::Warning,
            exists(Path::new("/sys/kernel/btf/vmlinux")),
            "use a kernel with CONFIG_DEBUG_INFO_BTF; map dumps show raw bytes without it",
        ),
        Check::of("bpf file system", State::Failed, bpffs(&args.state.bpffs), "mount -t bpf bpf /sys/fs/bpf"),
        Check::of(
            "state folder",
            State::Failed,
            writable(&args.state.state_dir),
            "make it writable, or choose another with --state-dir",
        ),
        Check::of(
            "kubelet",
            State::Failed,
            exists(&plugins),
            "start the kubelet, or name its root folder with --kubelet-root-dir",
        ),
        Check::of(
            "NRI socket",
            State::Failed,
            answers(&args.nri_socket),
            "turn NRI on in the runtime (containerd: plugins.'io.containerd.nri.v1.nri'.disable = false)",
        ),
    ];
    checks.push(Check::of(
        "cgroup v2",
        State::Failed,
        unified(&args.cgroup_root).map(|path| path.display().to_string()).map_err(|error| error.to_string()),
        "strict links are refused without it; --unguarded-pods=allow attaches them all the same",
    ));
    checks.push(Check::of(
        "32-bit system calls",
        State::Warning,
        compat(),
        "add `bpf` to the kernel's lsm= list, or start it with ia32_emulation=0: a pod with NET_RAW can send around the \
         programs of its link by a 32-bit system call",
    ));
    checks.push(Check::of(
        "ports of networks",
        State::Failed,
        ports(args.ports),
        "Linux 6.7 or later with CONFIG_NETKIT; or let the daemon run with --ports=veth or --ports=auto",
    ));
    checks.push(Check::of(
        "container runtime",
        State::Warning,
        runtime(&args.state.run_dir),
        "containerd 2.2.6, 2.3.3 or later; or no NRI plugin that refuses RunPodSandbox, which this driver never does",
    ));
    checks.push(Check::of(
        "held namespaces",
        State::Warning,
        held(&args.state.netns_dir(), &args.state.claims_dir()),
        "the daemon releases them within a minute of its start; without it, netferry run --cleanup",
    ));
    checks.extend(features());
    checks
}

/// The one that the daemon is connected to.
fn runtime(run_dir: &Path) -> Result<String, String> {
    match RuntimeNote::read(run_dir) {
        Ok(Some(RuntimeNote { name, version })) if name == "containerd" && cannot_start_again(&version) => {
            Err(format!(
                "{name} {version}: after an NRI plugin has refused RunPodSandbox it may not start again (containerd issue 13609)"
            ))
        }
        Ok(Some(note)) => Ok(format!("{} {}", note.name, note.version)),
        Ok(None) => Ok("no daemon has been connected to one since the machine started".to_owned()),
        Err(error) => Err(format!("{}: {error}", run_dir.display())),
    }
}

/// Whether a version of containerd has the fault of its issue 13609: the series 2.0 and 2.1, 2.2 before 2.2.6 and 2.3 before
/// 2.3.3 (pull request 13399).
fn cannot_start_again(version: &str) -> bool {
    let numbers = version.trim_start_matches('v').split(['.', '-', '+']).map(str::parse::<u32>);
    let numbers: Vec<u32> = numbers.map_while(Result::ok).take(3).collect();
    match numbers[..] {
        [2, 0 | 1, ..] => true,
        [2, 2, patch] => patch < 6,
        [2, 3, patch] => patch < 3,
        _ => false,
    }
}

/// Network namespaces of pods that are held, which is as it should be where a checkpoint names them.
fn held(folder: &Path, claims: &Path) -> Result<String, String> {
    let found = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok("none".to_owned()),
        found => found.map_err(|error| format!("{}: {error}", folder.display()))?,
    };
    let checkpoints = Store::read(claims).map_err(|error| chain(&error))?;
    let interfaces = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
    let used: Vec<_> =
        interfaces.filter_map(|interface| Some(&interface.attachment.as_ref()?.sandbox.hold)).collect();
    let (used, unused): (Vec<_>, Vec<_>) =
        found.flatten().map(|entry| entry.path()).partition(|path| used.contains(&path));
    match unused.first() {
        None => Ok(format!("{} in {}", used.len(), folder.display())),
        Some(first) => Err(format!("{} without a claim, {} among them", unused.len(), first.display())),
    }
}

/// What they will be made of.
fn ports(ports: Ports) -> Result<String, String> {
    match ports.choose() {
        Ok(kind) => Ok(format!("{} pairs", kind.as_str())),
        Err(error) => Err(format!("a netkit pair cannot be made: {error}")),
    }
}

fn features() -> Vec<Check> {
    let features = Features::probe();
    let check = |name, state, have: bool, advice: &str| {
        let found = if have { Ok("available".to_owned()) } else { Err("not available".to_owned()) };
        Check::of(name, state, found, advice)
    };
    vec![
        check(
            "kernel clock for programs",
            State::Failed,
            features.coarse_clock,
            "Linux 5.15 or later: the programs do not load without bpf_ktime_get_coarse_ns",
        ),
        check(
            "tcx",
            State::Warning,
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
    if modules.trim().split(',').any(|name| name == "bpf") && is_program_supported(lsm).unwrap_or(false) {
        return Ok("guarded by BPF as a security module".to_owned());
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

fn answers(socket: &Path) -> Result<String, String> {
    match UnixStream::connect(socket) {
        Ok(_) => Ok(socket.display().to_string()),
        Err(error) => Err(format!("{}: {error}", socket.display())),
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
    tempfile::tempfile_in(existing)
        .map(|_| folder.display().to_string())
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

    #[test]
    fn versions_of_containerd_that_do_not_start_again_are_known() {
        for version in ["2.1.9+unknown", "v2.0.0", "2.2.5", "2.3.0-rc.1"] {
            assert!(cannot_start_again(version), "{version}");
        }
        for version in ["1.7.24~ds1", "2.2.6", "2.3.3", "2.4.0", "3.0.0", "", "unknown"] {
            assert!(!cannot_start_again(version), "{version}");
        }
    }

    #[test]
    fn a_socket_nobody_listens_on_does_not_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nri.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(answers(&path).is_err());
    }
}
