//! The image in a container: imported and run by a containerd of its own, with its folders apart from the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{full_name, layout::Labels};
use crate::{
    command::{root, which},
    setup,
    vm::private_apt::{self, run as capture},
};

/// How long containerd has to answer, on a busy machine.
const START: Duration = Duration::from_mins(1);

/// Stopped when dropped.
struct Containerd {
    process: Child,
    ctr: PathBuf,
    folder: tempfile::TempDir,
}

/// Imports the tarball and runs `netferry --version` in a container of it.
pub(crate) fn run(tarball: &Path, name: &str, labels: &Labels) -> Result<()> {
    setup::containers()?;
    let containerd = Containerd::start()?;
    let name = full_name(name);
    let import = ["images", "import", "--local", "--snapshotter", "native"];
    capture(containerd.ctr().args(import).arg(tarball))?;
    let listed = capture(containerd.ctr().args(["images", "list", "--quiet"]))?;
    ensure!(listed.lines().any(|line| line == name), "containerd has no image {name}, but: {listed}");

    let (config, digest) = containerd.config(&name)?;
    let found = &config["config"]["Labels"];
    for (label, value) in labels {
        ensure!(found[label] == value.as_str(), "label {label} is {}, not {value}", found[label]);
    }
    ensure!(config["config"]["User"] == "0", "the image's user is {}", config["config"]["User"]);

    // Without a cgroup of its own, which would stay behind.
    let run = ["run", "--rm", "--snapshotter", "native", "--cgroup", "", "--runc-binary"];
    let runc = which("runc").context("runc is missing")?;
    let id = format!("nf-image-{}", std::process::id());
    // ctr takes its arguments in place of the entry point.
    let program = config["config"]["Entrypoint"][0].as_str().context("the image has no entry point")?;
    let said =
        capture(containerd.ctr().args(run).arg(runc).args([name.as_str(), &id, program, "--version"]))?;
    let version = format!("netferry {}", env!("CARGO_PKG_VERSION"));
    ensure!(said.starts_with(&version), "the container said {said:?}, not {version}");
    println!("containerd runs the image: {} (configuration {digest})", said.trim());
    Ok(())
}

impl Containerd {
    fn start() -> Result<Self> {
        let home = root().join("target/runtimes/2.1");
        fs::create_dir_all(&home)?;
        // The driver's tests keep the same folder.
        let lock = fs::File::create(home.join("lock"))?;
        lock.lock().context("lock the runtimes' cache")?;
        private_apt::keep(&home.join("root"), "forky", |_| Ok(vec!["containerd".to_owned()]))
            .context("get containerd from Debian forky")?;
        drop(lock);
        let bin = home.join("root/usr/bin");
        let folder = tempfile::Builder::new().prefix("nf-image-").tempdir()?;
        let dir = folder.path().display();
        let config = format!(
            "version = 3\nroot = '{dir}/root'\nstate = '{dir}/state'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.nri.v1.nri']\n\
             [grpc]\naddress = '{dir}/containerd.sock'\n[ttrpc]\naddress = '{dir}/ttrpc.sock'\n\
             [plugins.'io.containerd.internal.v1.opt']\npath = '{dir}/opt'\n"
        );
        fs::write(folder.path().join("config.toml"), config)?;
        let log = fs::File::create(folder.path().join("log"))?;
        // The shim is found through PATH alone.
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
        let process = Command::new(bin.join("containerd"))
            .arg("--config")
            .arg(folder.path().join("config.toml"))
            .env("PATH", path)
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let mut this = Self { process, ctr: bin.join("ctr"), folder };
        let began = Instant::now();
        while let Err(error) = capture(this.ctr().arg("version")) {
            let log = fs::read_to_string(this.folder.path().join("log")).unwrap_or_default();
            if let Some(status) = this.process.try_wait()? {
                bail!("containerd ended: {status}\n{log}");
            }
            ensure!(began.elapsed() < START, "containerd does not answer: {error:#}\n{log}");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(this)
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new(&self.ctr);
        command
            .arg("--address")
            .arg(self.folder.path().join("containerd.sock"))
            .env_remove("LD_LIBRARY_PATH");
        command
    }

    /// An image's configuration, and its digest.
    fn config(&self, name: &str) -> Result<(Value, String)> {
        let listed = capture(self.ctr().args(["images", "list", &format!("name=={name}")]))?;
        let mut digest = listed
            .split_whitespace()
            .find(|word| word.starts_with("sha256:"))
            .with_context(|| format!("no digest in {listed:?}"))?
            .to_owned();
        // From an index to this machine's manifest, and from that to the configuration.
        for _ in 0..3 {
            let blob: Value = serde_json::from_str(&capture(self.ctr().args(["content", "get", &digest]))?)?;
            if blob.get("rootfs").is_some() {
                return Ok((blob, digest));
            }
            let here = super::Arch::of_host().map_or("", super::Arch::name);
            let of_here = |entry: &&Value| entry["platform"]["architecture"] == here;
            let next = match blob["manifests"].as_array() {
                Some(manifests) => manifests.iter().find(of_here).map(|entry| &entry["digest"]),
                None => Some(&blob["config"]["digest"]),
            };
            next.and_then(Value::as_str)
                .with_context(|| format!("{digest} leads nowhere"))?
                .clone_into(&mut digest);
        }
        bail!("{name} has no configuration")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).map(nix::unistd::Pid::from_raw);
        let asked =
            pid.is_ok_and(|pid| nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).is_ok());
        if !asked {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}
