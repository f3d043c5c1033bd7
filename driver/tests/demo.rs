//! The demo, ended at several moments by each signal that ends it: the machine is as before.

#![expect(clippy::unwrap_used, reason = "a test may stop where it cannot go on")]

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A demo waits for another one: one test after the other.
static ONE: Mutex<()> = Mutex::new(());

/// What a demo makes, as far as names tell.
fn machine() -> BTreeSet<String> {
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect()
    };
    let mut found = BTreeSet::new();
    found.extend(names("/sys/class/net").into_iter().filter(|path| path.contains("/nfdemo")));
    found.extend(names("/tmp").into_iter().filter(|path| path.contains("/netferry-demo-")));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains("/netferry-demo-")).map(str::to_owned));
    for process in names("/proc") {
        let command = fs::read(Path::new(&process).join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains("/netferry-demo-") {
            found.insert(format!("{process} {command}"));
        }
    }
    found
}

/// What names of a process's id are left.
fn named_after(id: u32) -> Vec<PathBuf> {
    let (spaces, pins) = (format!("nf-{:x}n", id & 0xf_ffff), format!("nf-{id}-"));
    let entries =
        ["/run/netns", "/sys/fs/bpf"].map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let paths = entries.into_iter().flatten().map(|entry| entry.path());
    paths
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(&spaces) || name.starts_with(&pins)
        })
        .collect()
}

struct Demo {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Demo {
    fn start() -> Self {
        let folder = Path::new(env!("CARGO_BIN_EXE_netferry")).parent().unwrap();
        let mut child = Command::new(folder.join("examples/demo"))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// Reads until a line has the words; all that was read.
    fn until(&mut self, words: &str) -> String {
        let mut all = String::new();
        while !all.lines().last().is_some_and(|line| line.contains(words)) {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "no {words:?} in:\n{all}");
            all += &line;
        }
        all
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// The status, and what was still printed.
    fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        while self.out.read_line(&mut rest).unwrap() > 0 {}
        (self.child.wait().unwrap(), rest)
    }
}

fn able() -> bool {
    let able = nix::unistd::geteuid().is_root();
    if !able {
        println!("only root can run the demo");
    }
    able
}

fn clean(id: u32, when: &str) {
    let begin = Instant::now();
    loop {
        let (left, named) = (machine(), named_after(id));
        if left.is_empty() && named.is_empty() {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{when}: {left:#?} {named:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn each_signal_ends_it_clean_at_any_line() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !able() {
        return;
    }
    for (signal, words) in [
        (Signal::SIGINT, "A node with two network links"),
        (Signal::SIGTERM, "The daemon starts"),
        (Signal::SIGHUP, "The pods reach each other"),
        (Signal::SIGTERM, "Members reach each other"),
        (Signal::SIGINT, "on the wire is VNI"),
    ] {
        let mut demo = Demo::start();
        let id = demo.child.id();
        demo.until(words);
        demo.send(signal);
        let (status, rest) = demo.end();
        assert_eq!(status.code(), Some(128 + signal as i32), "{signal} at {words:?}: {rest}");
        assert!(rest.contains(&format!("{signal}: everything that the demo made is removed")), "{rest}");
        clean(id, &format!("{signal} at {words:?}"));
    }
}

#[test]
fn a_closed_terminal_ends_it_clean() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !able() {
        return;
    }
    let mut demo = Demo::start();
    let id = demo.child.id();
    demo.until("The daemon starts");
    // Nobody reads any more.
    let Demo { mut child, out } = demo;
    drop(out);
    kill(Pid::from_raw(id.cast_signed()), Signal::SIGHUP).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGHUP as i32));
    clean(id, "a closed terminal");
}

#[test]
fn the_next_one_takes_away_what_a_killed_one_left_and_others_wait() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !able() {
        return;
    }
    let mut killed = Demo::start();
    let first = killed.child.id();
    killed.until("The pods reach each other");
    killed.send(Signal::SIGKILL);
    assert_eq!(killed.end().0.signal(), Some(9));
    assert!(!machine().is_empty(), "a killed demo leaves things");
    let mut next = Demo::start();
    let second = next.child.id();
    let said = next.until("A node with two network links");
    assert!(said.contains("what an earlier demo left is taken away"), "{said}");
    assert_eq!(named_after(first), [""; 0].map(PathBuf::from));
    let mut waiting = Demo::start();
    let third = waiting.child.id();
    waiting.until("another demo runs on this machine");
    waiting.send(Signal::SIGINT);
    assert_eq!(waiting.end().0.code(), Some(130));
    // The one that waited took nothing from the one that runs.
    let (status, rest) = next.end();
    assert!(status.success(), "{rest}");
    let long: Vec<_> = rest.lines().filter(|line| line.chars().count() > 100).collect();
    assert_eq!(long, [""; 0], "lines of more than 100 columns");
    for words in ["kind: Network", "policy:", "action: deny"] {
        assert!(rest.contains(words), "{words} is not shown");
    }
    for id in [first, second, third] {
        clean(id, "at the end");
    }
}
