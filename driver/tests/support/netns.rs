//! Network namespaces and links that clean up after themselves, also on panic.
#![allow(unreachable_pub, reason = "a module of test binaries")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use serde_json::Value;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test and no other process uses, at most 15 characters, starting with `nf-`.
pub fn unique(what: &str) -> String {
    let pid = std::process::id() & 0xfffff;
    format!("nf-{pid:x}{what}{}", COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Whether this process may make namespaces at all.
pub fn may_make_namespaces() -> bool {
    thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok()).join().unwrap_or(false)
}

/// A network namespace under /run/netns, as `ip netns add` makes it, with `lo` up.
#[derive(Debug)]
pub struct NetNs {
    pub name: String,
    pub path: PathBuf,
}

impl NetNs {
    #[allow(clippy::new_without_default, reason = "it makes a namespace")]
    pub fn new() -> Self {
        let name = unique("n");
        let path = PathBuf::from("/run/netns").join(&name);
        fs::create_dir_all("/run/netns").expect("/run/netns");
        File::create(&path).expect("file for the namespace");
        let target = path.clone();
        let made = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        })
        .join()
        .expect("thread of the namespace");
        let netns = Self { name, path };
        made.expect("make a network namespace (root?)");
        netns.ip("link set lo up");
        netns
    }

    /// Run a command in it; its output, or a panic with what it said.
    pub fn exec(&self, command: &str) -> String {
        let out = self.try_exec(command);
        out.unwrap_or_else(|said| panic!("in {}: {command}: {said}", self.name))
    }

    /// Run a command in it, words separated by spaces.
    pub fn try_exec(&self, command: &str) -> Result<String, String> {
        let mut words = command.split_whitespace();
        let program = words.next().expect("a command").to_owned();
        let words: Vec<String> = words.map(str::to_owned).collect();
        self.run(move || {
            let out = Command::new(program)
                .args(words)
                .stdin(Stdio::null())
                .output()
                .map_err(|error| error.to_string())?;
            if out.status.success() {
                return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
            }
            Err(format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
        })
    }

    /// `ip` with these words.
    pub fn ip(&self, words: &str) -> String {
        self.exec(&format!("ip {words}"))
    }

    /// Run a closure on a thread inside it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = self.path.clone();
        let inside = thread::spawn(move || {
            setns(File::open(path).expect("namespace"), CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Likewise with a closure that borrows. A process that it starts is in the namespace, too.
    pub fn scoped<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(File::open(&self.path).expect("namespace"), CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        };
        thread::scope(|scope| {
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Everything that must be the same after a link went and came back: the output of `ip -j`, byte for
    /// byte, for links (details without counters), addresses, routes of every table and neighbours.
    pub fn snapshot(&self) -> Snapshot {
        self.settle();
        let shows = [
            "ip -j -d link show",
            "ip -j addr show",
            "ip -j -4 route show table all",
            "ip -j -6 route show table all",
            "ip -j neigh show nud permanent",
            "ip -j rule show",
            "ip token list",
        ];
        // A link that is down has the queueing discipline of its last time up, or none where it was never up in this
        // namespace: nothing that anybody has set.
        let exec = |show: &str| self.exec(show).replace(r#""qdisc":"noop""#, r#""qdisc":"noqueue""#);
        let text = |show: &&str| ((*show).to_owned(), exec(show));
        Snapshot(shows.iter().map(text).collect())
    }

    /// A snapshot as soon as it is like another, or the last one after three seconds: the kernel tells
    /// carrier and operational state a moment after a link is up.
    pub fn snapshot_like(&self, like: &Snapshot) -> Snapshot {
        for _ in 0..60 {
            let now = self.snapshot();
            if now == *like {
                return now;
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
        self.snapshot()
    }

    /// Wait until duplicate address detection is over: until then the kernel shows `tentative`, and the
    /// routes are still on their way.
    pub fn settle(&self) {
        for _ in 0..80 {
            if !self.ip("addr show").contains("tentative") {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("addresses in {} stay tentative", self.name);
    }

    /// `ip -j link show NAME`, if there is such a link.
    pub fn link(&self, name: &str) -> Option<Value> {
        let text = self.try_exec(&format!("ip -j link show dev {name}")).ok()?;
        serde_json::from_str::<Value>(&text).ok()?.get(0).cloned()
    }

    /// Names of all links but `lo`.
    pub fn links(&self) -> Vec<String> {
        let all: Value = serde_json::from_str(&self.ip("-j link show")).expect("JSON of ip");
        let names = all.as_array().expect("a list").iter().filter_map(|link| link["ifname"].as_str());
        names.filter(|name| *name != "lo").map(str::to_owned).collect()
    }

    pub fn ifindex(&self, name: &str) -> u32 {
        let link = self.link(name).unwrap_or_else(|| panic!("no link {name} in {}", self.name));
        u32::try_from(link["ifindex"].as_u64().expect("ifindex")).expect("ifindex")
    }

    /// Let the namespace die while the guard lives, as when its pod is killed: unmount the path.
    pub fn vanish(&self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        self.vanish();
    }
}

/// See [`NetNs::snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(pub BTreeMap<String, String>);

impl Snapshot {
    /// Panic with the first line that differs.
    pub fn assert_same(&self, after: &Self, when: &str) {
        for (show, before) in &self.0 {
            let after = &after.0[show];
            assert_eq!(before, after, "{when}: `{show}` differs");
        }
    }
}

/// A veth pair between two namespaces. It dies with either of them.
#[derive(Debug)]
pub struct Veth {
    pub left: String,
    pub right: String,
}

impl Veth {
    /// `left` in `one`, `right` in `other`, both down.
    pub fn pair(one: &NetNs, left: &str, other: &NetNs, right: &str) -> Self {
        one.ip(&format!("link add {left} type veth peer name {right} netns {}", other.name));
        Self { left: left.to_owned(), right: right.to_owned() }
    }
}
