//! A run of the demo: alone on the machine, ended by a signal or by itself, and what it or an earlier one left taken away.

use std::{
    env, fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            net::{SocketAddr, UnixListener},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};

use crate::{LINKS, ip, story::say};

/// Every folder of a run is below one with this name and the process's id.
const PREFIX: &str = "netferry-demo-";

/// Makes the run's folder and starts this program again with it for temporary files, unless that is done.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = env::temp_dir();
    let own = format!("{PREFIX}{}", std::process::id());
    if folder.file_name().is_some_and(|name| *name == *own) {
        return Ok(folder);
    }
    // Short, because names of sockets have an end.
    let folder = Path::new("/tmp").join(own);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut again = Command::new(env::current_exe()?);
    Err(again.args(env::args_os().skip(1)).env("TMPDIR", folder).exec()).context("cannot start again")
}

/// The signal that ends the run, once it came.
pub(crate) fn signals() -> Result<watch::Receiver<Option<Signal>>> {
    let (to, received) = watch::channel(None);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            let came = select! {
                _ = interrupt.recv() => Signal::SIGINT,
                _ = terminate.recv() => Signal::SIGTERM,
                _ = hangup.recv() => Signal::SIGHUP,
            };
            to.send_replace(Some(came));
        }
    });
    Ok(received)
}

/// Waits for a signal, or finds that it came.
pub(crate) async fn came(received: &mut watch::Receiver<Option<Signal>>) -> Signal {
    loop {
        if let Some(signal) = *received.borrow_and_update() {
            return signal;
        }
        if received.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Kept while the demo runs: links and addresses have names that two demos would share. A killed process has it no more.
pub(crate) struct Alone {
    _listener: UnixListener,
}

impl Alone {
    /// Waits until no other demo runs.
    pub(crate) async fn wait() -> Result<Self> {
        let address = SocketAddr::from_abstract_name("netferry-demo")?;
        let mut waits = false;
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Self { _listener: listener }),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("cannot see whether another demo runs"),
            }
            if !waits {
                say("another demo runs on this machine; this one begins when it has ended");
                waits = true;
            }
            sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Takes away what earlier runs have left that were killed: while this runs no other does but those that wait. How many
/// there were.
pub(crate) fn sweep_others() -> usize {
    let own = std::process::id();
    let left: Vec<PathBuf> = entries(Path::new("/tmp"))
        .into_iter()
        .filter(|path| id(path).is_some_and(|id| id != own && !waits(id)))
        .collect();
    for run in &left {
        remove(run);
    }
    left.len()
}

/// The process whose run a folder is of.
fn id(folder: &Path) -> Option<u32> {
    folder.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// Whether a process is a demo that waits for its turn.
fn waits(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "demo")
}

/// Takes away what a run made, its folder the last.
pub(crate) fn remove(folder: &Path) {
    let Some(id) = id(folder) else { return };
    // The daemons of the run have its folder in their arguments.
    let mark = format!("{}/", folder.display());
    for process in entries(Path::new("/proc")) {
        let pid = process.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&arguments).contains(&mark);
        if let Some(pid) = pid.filter(|pid| ours && *pid != std::process::id().cast_signed()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            for _ in 0..100 {
                if fs::read(process.join("cmdline")).unwrap_or_default().is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if mount.starts_with(&mark) {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
    for link in LINKS {
        let _ = ip(&["link", "delete", link]);
    }
    // Named by the support of the tests, with the process's id.
    let (spaces, pins) = (format!("nf-{:x}n", id & 0xf_ffff), format!("nf-{id}-"));
    for path in named("/run/netns", &spaces) {
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&path);
    }
    for path in named("/sys/fs/bpf", &pins) {
        let _ = fs::remove_dir_all(&path);
    }
    let _ = fs::remove_dir_all(folder);
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn named(folder: &str, prefix: &str) -> Vec<PathBuf> {
    let is = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    entries(Path::new(folder)).into_iter().filter(is).collect()
}
