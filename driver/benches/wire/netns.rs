//! Network namespaces without a name: they, and all that is in them, go with the process, however it ends.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Gives the process a bpf file system of its own, which goes with it. Before there is any other thread.
pub(crate) fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of its own")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("keep mounts private")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("mount a bpf file system on /sys/fs/bpf")
}

/// A network namespace.
#[derive(Clone)]
pub(crate) struct Netns(Arc<File>);

impl Netns {
    /// A new one, with `lo` up and without IPv6, whose own traffic would be measured too.
    pub(crate) fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let file = joined(made.join()).context("make a network namespace")?;
        let netns = Self(Arc::new(file));
        netns.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        netns.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        netns.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
        // A load that opens connections would otherwise run out of ports.
        netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// One that is there: by its name below `/run/netns`, or by a path.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let path = if name.contains('/') { name.into() } else { format!("/run/netns/{name}") };
        let netns =
            Self(Arc::new(File::open(&path).with_context(|| format!("no network namespace at {path}"))?));
        netns.run(|| Ok(())).with_context(|| format!("{path} is no network namespace"))?;
        Ok(netns)
    }

    /// What `ip link set DEV netns` takes.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs something on a thread inside, and waits for it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| joined(scope.spawn(|| self.enter().and_then(|()| work())).join()))
    }

    /// Runs something on a thread inside; its answer comes through the channel.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Receiver<Result<T>> {
        let (sender, receiver) = channel();
        let netns = self.clone();
        thread::spawn(move || sender.send(netns.enter().and_then(|()| work())));
        receiver
    }

    fn enter(&self) -> Result<()> {
        setns(self.0.as_ref(), CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }

    /// `ip` with these words.
    pub(crate) fn ip(&self, words: &str) -> Result<()> {
        self.exec(&format!("ip {words}"), "")
    }

    /// Runs a command inside, words separated by spaces, with this input.
    pub(crate) fn exec(&self, command: &str, input: &str) -> Result<()> {
        self.run(|| {
            let mut words = command.split(' ');
            let program = words.next().unwrap_or_default();
            let mut child = Command::new(program)
                .args(words)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {program}"))?;
            if let Some(mut pipe) = child.stdin.take() {
                pipe.write_all(input.as_bytes()).context(program.to_owned())?;
            }
            let output = child.wait_with_output()?;
            if !output.status.success() {
                bail!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(())
        })
    }

    /// Writes a setting below `/proc/sys/net`.
    pub(crate) fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| std::fs::write(&path, value).with_context(|| format!("write {value} to {path}")))
    }

    /// Reads a number below `/proc/sys/net`.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| Ok(std::fs::read_to_string(&path).context(path)?.trim().parse()?))
    }

    /// Frames that a link has sent.
    pub(crate) fn sent(&self, link: &str) -> Result<u64> {
        let counters = self.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
        let fields = counters.lines().find_map(|line| line.trim().strip_prefix(link)?.strip_prefix(':'));
        // Eight fields of what was received come first, then bytes and frames sent.
        let sent = fields.and_then(|fields| fields.split_whitespace().nth(9));
        Ok(sent.with_context(|| format!("no counters of {link}"))?.parse()?)
    }
}

fn joined<T>(outcome: thread::Result<Result<T>>) -> Result<T> {
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
