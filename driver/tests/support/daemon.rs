//! The real daemon as a child process, with folders of its own.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
    unistd::Pid,
};
use tempfile::TempDir;

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// Where a daemon keeps everything: it survives the daemon, so that another can be started on it.
pub struct Home {
    folder: Arc<Folder>,
    bpffs: PathBuf,
    http: SocketAddr,
    /// The node's name in the cluster.
    pub node_name: String,
    /// Where claims come from.
    pub cluster: ClusterArgs,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Fail points, in the form of crate `fail`.
    pub failpoints: String,
    /// The runtime's socket; one in the folder if not set.
    pub nri_socket: Option<PathBuf>,
}

/// Which cluster the daemon is given.
pub enum ClusterArgs {
    /// A folder of YAML objects below the home's.
    Standalone,
    /// An API server.
    Kubeconfig(PathBuf),
}

/// The folder of everything, with the namespaces that are held in it.
struct Folder(TempDir);

impl Folder {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn holds(&self) -> Vec<PathBuf> {
        let found = fs::read_dir(self.0.path().join("run/netns")).into_iter().flatten().flatten();
        found.map(|entry| entry.path()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for hold in self.holds() {
            let _ = umount2(&hold, MntFlags::MNT_DETACH);
        }
    }
}

impl Home {
    /// Fresh folders, a free port, and a folder for pins on the mounted bpf file system.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("nf-").tempdir().expect("temporary folder");
        for name in ["kubelet/plugins", "kubelet/plugins_registry", "state", "cluster"] {
            fs::create_dir_all(folder.path().join(name)).expect("folder");
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/nf-{}-{serial}", std::process::id()));
        // The port is free now, and nobody else on a test machine is after it.
        let http = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("free port");
        Self {
            folder: Arc::new(Folder(folder)),
            bpffs,
            http,
            node_name: "node-1".to_owned(),
            cluster: ClusterArgs::Standalone,
            arguments: Vec::new(),
            failpoints: String::new(),
            nri_socket: None,
        }
    }

    pub fn kubelet_root(&self) -> PathBuf {
        self.folder.path().join("kubelet")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Paths at which network namespaces are held.
    pub fn holds(&self) -> Vec<PathBuf> {
        self.folder.holds()
    }

    /// The folder of YAML objects.
    pub fn objects(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    pub fn nri_socket(&self) -> PathBuf {
        self.nri_socket.clone().unwrap_or_else(|| self.folder.path().join("nri.sock"))
    }

    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Write an object for the standalone cluster.
    pub fn write_object(&self, name: &str, yaml: &str) {
        fs::write(self.objects().join(name), yaml).expect("write object");
    }

    fn arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.to_str().expect("UTF-8 path").to_owned();
        let mut all = vec!["run".to_owned(), "--node-name".to_owned(), self.node_name.clone()];
        let mut pair = |name: &str, value: String| all.extend([name.to_owned(), value]);
        pair("--kubelet-root-dir", path(&self.kubelet_root()));
        pair("--state-dir", path(&self.state_dir()));
        pair("--run-dir", path(&self.run_dir()));
        pair("--bpffs", path(&self.bpffs));
        pair("--nri-socket", path(&self.nri_socket()));
        pair("--http-address", self.http.to_string());
        // The runtime that is played makes no cgroups.
        pair("--unguarded-pods", "allow".to_owned());
        match &self.cluster {
            ClusterArgs::Standalone => pair("--standalone", path(&self.objects())),
            ClusterArgs::Kubeconfig(file) => pair("--kubeconfig", path(file)),
        }
        all.extend(self.arguments.iter().cloned());
        all
    }

    /// Start the daemon. Its log goes to `daemon.log`, after what earlier ones wrote.
    pub fn start(&self, binary: &Path) -> Daemon {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("log");
        let child = Command::new(binary)
            .args(self.arguments())
            .env("RUST_LOG", "netferry=debug")
            .env("FAILPOINTS", &self.failpoints)
            .env_remove("KUBECONFIG")
            .env_remove("NETFERRY_PUBLISH")
            .stdin(Stdio::null())
            // Ctrl-C at a terminal goes to the whole group: the demo ends the daemon itself.
            .process_group(0)
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", binary.display()));
        Daemon { child, http: self.http, _folder: Arc::clone(&self.folder) }
    }

    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- daemon's log\n{}---", self.log());
        }
        let _ = fs::remove_dir_all(&self.bpffs);
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    http: SocketAddr,
    /// Not removed before the daemon is gone, which would make what it needs of it again.
    _folder: Arc<Folder>,
}

impl Daemon {
    /// Status and body of an HTTP request.
    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.http, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: netferry\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((status, body))
    }

    /// Wait until `/readyz` says yes. Blocks: call it off the event loop that plays the daemon's peers.
    pub fn wait_ready(&mut self) {
        let start = Instant::now();
        let mut last = String::new();
        while start.elapsed() < Duration::from_mins(1) {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the daemon ended with {status}");
            }
            match self.get("/readyz") {
                Ok((200, _)) => return,
                Ok((_, body)) => last = body,
                Err(error) => last = error.to_string(),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the daemon did not become ready: {last}");
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        let status = self.child.wait().expect("wait");
        assert_eq!(status.signal(), Some(9));
    }

    /// SIGTERM, then the exit status.
    pub fn stop(mut self) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("pid"));
        nix::sys::signal::kill(pid, Signal::SIGTERM).expect("SIGTERM");
        self.child.wait().expect("wait")
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
