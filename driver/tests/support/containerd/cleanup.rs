//! What a containerd leaves, and its removal.

use std::{
    fs,
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use tokio::time::sleep;

use super::{Containerd, image, private_apt::run};

/// What there is of pods below the runtime: none of it must be left of a pod that was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Pause containers that run.
    pub pauses: usize,
    /// Shims that run.
    pub shims: usize,
    /// Network namespaces that are mounted.
    pub namespaces: usize,
    /// Addresses that the pod network has given away.
    pub addresses: usize,
}

impl Containerd {
    /// Count what there is of pods, whether containerd knows of it or not.
    pub fn leftovers(&self) -> Leftovers {
        let pause = image::ENTRYPOINT.join("\0");
        let is_pause = |process: &Path| {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            command.strip_suffix(b"\0").is_some_and(|command| command == pause.as_bytes())
                && cgroup.contains(&self.cgroup())
        };
        let networks = folders(&self.dir.path().join("ipam"));
        let files = networks.iter().flat_map(|network| fs::read_dir(network).into_iter().flatten().flatten());
        let addresses = files.filter(|file| file.file_name().to_string_lossy().parse::<IpAddr>().is_ok());
        Leftovers {
            pauses: processes().filter(|(_, process)| is_pause(process)).count(),
            shims: self.shims().len(),
            namespaces: self.mounts().iter().filter(|point| point.components().any(is_netns)).count(),
            addresses: addresses.count(),
        }
    }

    /// Wait until there is this much of pods and no more: shims end a moment after their pods. What there is at the end,
    /// where it does not come to that.
    pub async fn wait_for_leftovers(&self, expected: Leftovers) -> Result<(), Leftovers> {
        for _ in 0..500 {
            if self.leftovers() == expected {
                return Ok(());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Err(self.leftovers())
    }

    fn shims(&self) -> Vec<Pid> {
        // Not known by id: the shims' command line names this containerd's socket.
        let ours = self.dir.path().as_os_str().as_encoded_bytes();
        let is_shim = |process: &Path| {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let has = |what: &[u8]| command.windows(what.len()).any(|part| part == what);
            has(b"containerd-shim") && has(ours)
        };
        processes().filter(|(_, process)| is_shim(process)).map(|(pid, _)| pid).collect()
    }

    /// Mount points in its folder, the last first.
    fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(self.dir.path())).collect()
    }

    /// Ends what still runs, without containerd's help.
    fn kill_sandboxes(&self) {
        for container in folders(&self.dir.path().join("runc/k8s.io")) {
            let id = container.file_name().unwrap_or_default().to_owned();
            let root = self.dir.path().join("runc/k8s.io");
            let _ = run(Command::new("runc").arg("--root").arg(root).args(["delete", "--force"]).arg(id));
        }
        for shim in self.shims() {
            let _ = kill(shim, Signal::SIGKILL);
            let _ = waitpid(shim, None);
        }
        // Those of pods that were removed ended by themselves.
        let us = format!("PPid:\t{}\n", std::process::id());
        for (pid, process) in processes() {
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            if status.contains(&us)
                && status.contains("State:\tZ")
                && status.starts_with("Name:\tcontainerd-shim")
            {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
        }
    }

    /// What containerd and its libraries keep in places that cannot be configured.
    fn remove_traces(&self) {
        for task in folders(&self.dir.path().join("state/io.containerd.runtime.v2.task/k8s.io")) {
            for record in ["address", "bootstrap.json"] {
                let record = fs::read_to_string(task.join(record)).unwrap_or_default();
                let address = record.split_once("unix://").map(|(_, rest)| rest);
                let socket = address.and_then(|rest| rest.split(['"', '\n']).next());
                let _ = socket.map(fs::remove_file);
            }
        }
        // Named by network and sandbox, also for the loopback of every sandbox.
        let sandboxes = folders(&self.dir.path().join("root/io.containerd.grpc.v1.cri/sandboxes"));
        let sandboxes: Vec<_> =
            sandboxes.iter().filter_map(|sandbox| sandbox.file_name()?.to_str()).collect();
        for result in fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten() {
            let name = result.file_name().to_string_lossy().into_owned();
            if sandboxes.iter().any(|sandbox| name.contains(sandbox)) {
                let _ = fs::remove_file(result.path());
            }
        }
        for folder in ["/run/containerd/s", "/run/containerd", "/var/lib/cni/results", "/var/lib/cni"] {
            // Stays if somebody else has something in it.
            let _ = fs::remove_dir(folder);
        }
    }

    fn unmount_all(&self) {
        for point in self.mounts() {
            let _ = umount2(&point, MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill();
        self.kill_sandboxes();
        self.unmount_all();
        // One hierarchy in cgroup v2, one for each controller in v1.
        let cgroup = self.cgroup();
        let hierarchies = folders(Path::new("/sys/fs/cgroup")).into_iter().chain(["/sys/fs/cgroup".into()]);
        for hierarchy in hierarchies {
            remove_cgroups(&hierarchy.join(cgroup.trim_start_matches('/')));
        }
        self.remove_traces();
    }
}

fn is_netns(part: std::path::Component<'_>) -> bool {
    part.as_os_str() == "netns"
}

/// Remove a cgroup and those in it. Processes that were killed leave it a moment later.
fn remove_cgroups(cgroup: &Path) {
    for inner in folders(cgroup) {
        remove_cgroups(&inner);
    }
    for _ in 0..100 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

pub(super) fn processes() -> impl Iterator<Item = (Pid, PathBuf)> {
    folders(Path::new("/proc")).into_iter().filter_map(|process| {
        let pid = process.file_name()?.to_str()?.parse().ok()?;
        Some((Pid::from_raw(pid), process))
    })
}

pub(super) fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
