//! A real containerd with NRI, beside whatever the machine runs: own root, state, sockets, networks and cgroup.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use netferry_proto::cri;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

mod cleanup;
mod containers;
pub mod image;
pub mod packages;
mod pods;
#[path = "../../../xtask/src/vm/private_apt.rs"]
mod private_apt;

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub use self::{
    cleanup::Leftovers,
    containers::ContainerSpec,
    packages::Series,
    pods::{ListedPod, PodSpec, RunningPod},
};
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

    /// Kill containerd and start it again; the sandboxes run on.
    pub async fn crash(&mut self) -> anyhow::Result<()> {
        self.kill();
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
