//! A real containerd with NRI, beside whatever the machine runs: own root, state, sockets, networks and cgroup.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use netferry_proto::cri;
use nix::{
    mount::{MntFlags, umount2},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

pub mod image;
pub mod packages;
#[path = "../../../xtask/src/vm/private_apt.rs"]
mod private_apt;

pub use packages::Series;
use private_apt::run;

const START_LIMIT: Duration = Duration::from_secs(30);
const CNI_BIN: &str = "/usr/lib/cni";

/// Whether this machine can run containerd; else what it lacks.
pub fn prerequisites() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".into());
    }
    let needed = [
        ("/usr/sbin/runc", "runc"),
        ("/usr/lib/cni/ptp", "containernetworking-plugins"),
        ("/bin/busybox", "busybox-static"),
        ("/usr/bin/apt-get", "apt"),
        ("/usr/bin/dpkg", "dpkg"),
    ];
    for (file, package) in needed {
        if !Path::new(file).exists() {
            return Err(format!("needs {file}: apt-get install {package}"));
        }
    }
    Ok(())
}

/// A pod sandbox that runs.
#[derive(Clone, Debug)]
pub struct RunningPod {
    /// The runtime's id.
    pub id: String,
    /// `None` for a host-network pod.
    pub netns: Option<PathBuf>,
    /// Of the sandbox's first process.
    pub pid: u32,
}

/// A containerd of its own. Dropped, it takes all that it made with it.
pub struct Containerd {
    series: Series,
    bin: PathBuf,
    /// Removed last: everything below it is unmounted first.
    dir: tempfile::TempDir,
    process: Option<Child>,
    runtime: cri::runtime_service_client::RuntimeServiceClient<Channel>,
}

impl Containerd {
    /// Get the binaries if they are not there yet, and start.
    pub async fn start(series: Series) -> anyhow::Result<Self> {
        let bin = tokio::task::spawn_blocking(move || packages::binaries(series)).await??;
        // Shims leave their parent; this way they come here, to be reaped.
        nix::sys::prctl::set_child_subreaper(true)?;
        // Short: unix socket paths have 108 bytes.
        let dir = tempfile::Builder::new().prefix("nf-ctrd-").tempdir_in("/tmp")?;
        configure(series, dir.path())?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", dir.path().join("cri.sock").display()))?;
        let mut this = Self {
            series,
            bin,
            runtime: cri::runtime_service_client::RuntimeServiceClient::new(endpoint.connect_lazy()),
            dir,
            process: None,
        };
        this.launch().await?;
        this.import_pause(endpoint.connect_lazy()).await?;
        Ok(this)
    }

    /// Which series runs.
    pub fn series(&self) -> Series {
        self.series
    }

    /// Where plugins connect.
    pub fn nri_socket(&self) -> PathBuf {
        self.dir.path().join("nri.sock")
    }

    /// The runtime's name and version.
    pub async fn version(&self) -> anyhow::Result<String> {
        let version = self.runtime.clone().version(cri::VersionRequest::default()).await?.into_inner();
        Ok(format!("{} {}", version.runtime_name, version.runtime_version))
    }

    /// What containerd wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Make a pod's sandbox.
    pub async fn run_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        host_network: bool,
    ) -> anyhow::Result<RunningPod> {
        let network = if host_network { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
        let namespaces = cri::NamespaceOption { network: network.into(), ..Default::default() };
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: uid.into(),
                namespace: namespace.into(),
                attempt: 0,
            }),
            hostname: if host_network { String::new() } else { name.into() },
            log_directory: self.dir.path().join("pods").display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod{uid}", self.cgroup()),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                }),
            }),
            ..Default::default()
        };
        let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let id = self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
        let status = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        let info: serde_json::Value = serde_json::from_str(status.info.get("info").context("no info")?)?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("no namespaces")?;
        let netns = namespaces.iter().find(|namespace| namespace["type"] == "network");
        let netns = netns.and_then(|netns| netns["path"].as_str()).map(PathBuf::from);
        let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("no pid")?;
        Ok(RunningPod { id, netns, pid })
    }

    /// Stop a pod's sandbox; its netns goes.
    pub async fn stop_pod(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().stop_pod_sandbox(request).await?;
        Ok(())
    }

    /// Remove a pod's sandbox.
    pub async fn remove_pod(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().remove_pod_sandbox(request).await?;
        Ok(())
    }

    /// Kill containerd; the sandboxes run on, as in an upgrade or a crash.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Stop containerd and start it again; the sandboxes run on.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGTERM)?;
            tokio::task::spawn_blocking(move || process.wait()).await??;
        }
        self.launch().await
    }

    /// Start containerd, after a [`Self::kill`], and wait until it answers.
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        // The shim is found beside containerd only through PATH.
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.bin.display());
        let process = Command::new(self.bin.join("containerd"))
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .env("PATH", path)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let process = self.process.insert(process);
        let started = Instant::now();
        loop {
            let request = cri::VersionRequest::default();
            match timeout(START_LIMIT, self.runtime.clone().version(request)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) if started.elapsed() > START_LIMIT => {
                    bail!("containerd does not answer: {status}\n{}", self.log())
                }
                Err(_) => bail!("containerd does not answer\n{}", self.log()),
                Ok(Err(_)) => {}
            }
            if let Some(status) = process.try_wait()? {
                bail!("containerd ended: {status}\n{}", self.log());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn import_pause(&self, channel: Channel) -> anyhow::Result<()> {
        let tarball = self.dir.path().join("pause.tar");
        image::write_pause_image(&self.dir.path().join("image"), &tarball)?;
        let mut import = Command::new(self.bin.join("ctr"));
        import.arg("--address").arg(self.dir.path().join("cri.sock"));
        import.args(["--namespace", "k8s.io", "images", "import", "--local", "--snapshotter", "native"]);
        run(import.arg(&tarball))?;
        // CRI hears of the image through an event.
        let mut images = cri::image_service_client::ImageServiceClient::new(channel);
        let started = Instant::now();
        loop {
            let image = Some(cri::ImageSpec { image: image::PAUSE.into() });
            let status = images.image_status(cri::ImageStatusRequest { image }).await?.into_inner();
            if status.image.is_some() {
                return Ok(());
            }
            if started.elapsed() > START_LIMIT {
                bail!("the imported image {} does not appear\n{}", image::PAUSE, self.log());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Parent of the pods' cgroups.
    fn cgroup(&self) -> String {
        format!("/{}", self.dir.path().file_name().unwrap_or_default().to_string_lossy())
    }

    /// Ends what still runs, without containerd's help.
    fn kill_sandboxes(&self) {
        for container in folders(&self.dir.path().join("runc/k8s.io")) {
            let id = container.file_name().unwrap_or_default().to_owned();
            let root = self.dir.path().join("runc/k8s.io");
            let _ = run(Command::new("runc").arg("--root").arg(root).args(["delete", "--force"]).arg(id));
        }
        // Not known by id: the shims' command line names this containerd's socket.
        let ours = self.dir.path().as_os_str().as_encoded_bytes();
        for (pid, process) in processes() {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let has = |what: &[u8]| command.windows(what.len()).any(|part| part == what);
            if has(b"containerd-shim") && has(ours) {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
            }
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
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for point in points.filter(|point| point.starts_with(self.dir.path())) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
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

fn processes() -> impl Iterator<Item = (Pid, PathBuf)> {
    folders(Path::new("/proc")).into_iter().filter_map(|process| {
        let pid = process.file_name()?.to_str()?.parse().ok()?;
        Some((Pid::from_raw(pid), process))
    })
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Counts the containerds of this process.
static NEXT: AtomicU8 = AtomicU8::new(0);

/// Write containerd's and the pod network's configuration.
fn configure(series: Series, dir: &Path) -> anyhow::Result<()> {
    for folder in ["cni", "plugins", "plugin-config", "pods", "image"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    let config = match series {
        Series::V1_7 => include_str!("containerd/config-1.7.toml"),
        Series::V2_1 => include_str!("containerd/config-2.1.toml"),
    };
    let dir_text = dir.to_str().context("the folder's name is not UTF-8")?;
    let config = config.replace("@DIR@", dir_text).replace("@PAUSE@", image::PAUSE).replace("@CNI@", CNI_BIN);
    fs::write(dir.join("config.toml"), config)?;
    // A subnet for each containerd that runs at once, of the range for benchmarks (RFC 2544).
    let mixed = std::process::id().wrapping_mul(37).to_le_bytes()[0];
    let subnet = mixed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let network = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": dir.file_name().unwrap_or_default().to_string_lossy(),
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("ipam"),
                "ranges": [[{"subnet": format!("198.18.{subnet}.0/24")}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    fs::write(dir.join("cni/10-netferry-test.conflist"), network.to_string())?;
    Ok(())
}
