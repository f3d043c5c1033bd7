//! The sub-commands as a user runs them: with a daemon, where none has ever been, and without rights.
#![allow(missing_docs, reason = "a test binary")]
#![expect(clippy::unwrap_used, reason = "a test may stop where it cannot go on")]

#[path = "support/skip.rs"]
mod skip;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_netferry");

/// Folders of a node, with a bpf file system of their own.
struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    /// `None` where a bpf file system cannot be mounted.
    fn new(test: &str) -> Option<Self> {
        let node = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(node.bpffs()).unwrap();
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(node.bpffs()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            skip::skip(test, "a bpf file system cannot be mounted here");
            return None;
        }
        Some(node)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bpffs(&self) -> PathBuf {
        self.at("bpf")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(words).arg("--state-dir").arg(self.at("state")).arg("--run-dir").arg(self.at("run"));
        command.arg("--bpffs").arg(self.bpffs().join("netferry"));
        for variable in ["KUBECONFIG", "NETFERRY_PUBLISH", "NETFERRY_SHARE", "KUBERNETES_SERVICE_HOST"] {
            command.env_remove(variable);
        }
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Every file and folder.
    fn tree(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                found.push(entry.path());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        found.sort();
        found
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.bpffs()).output();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const READING: [&[&str]; 8] = [
    &["devices"],
    &["devices", "--preview"],
    &["pods"],
    &["networks"],
    &["flows"],
    &["policy", "show", "a/b"],
    &["policy", "explain", "--from", "a/b", "--to", "192.0.2.1", "--port", "tcp/1"],
    &["block", "list"],
];

#[test]
fn reading_commands_write_nothing_and_say_where_no_daemon_is() {
    let Some(node) = Node::new("reading_commands_write_nothing_and_say_where_no_daemon_is") else { return };
    let before = node.tree();
    for words in READING {
        let output = node.run(words);
        let said = text(&output.stderr);
        assert_eq!(node.tree(), before, "{words:?} wrote something");
        if words[0] == "devices" {
            assert!(output.status.success(), "{words:?}: {said}");
            assert!(words.len() > 1 || said.contains("no daemon answers at "), "{said}");
        } else {
            assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
            assert!(said.contains("Netferry does not run on this node"), "{words:?}: {said}");
        }
        assert!(
            !said.contains('\u{1b}') && !text(&output.stdout).contains('\u{1b}'),
            "colors in a pipe: {said}"
        );
    }
    let checks = doctor(&node);
    assert_eq!(node.tree(), before, "doctor wrote something");
    let daemon = check(&checks, "daemon");
    assert!(
        daemon["state"] == "warn" && daemon["cure"].as_str().unwrap().contains("netferry run"),
        "{daemon}"
    );
}

fn doctor(node: &Node) -> Vec<Value> {
    let mut command = node.command(&["doctor", "-o", "json"]);
    let output = command
        .arg("--kubelet-root-dir")
        .arg(node.at("kubelet"))
        .arg("--nri-socket")
        .arg(node.at("nri.sock"))
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

fn check<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {checks:?}"))
}

/// A daemon that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_running_daemon_is_asked() {
    let Some(node) = Node::new("the_running_daemon_is_asked") else { return };
    for folder in ["cluster", "kubelet"] {
        fs::create_dir(node.at(folder)).unwrap();
    }
    let rule = "device.attributes[\"netferry.dev\"].ifName == \"nothing-is-called-so\"";
    let mut command =
        node.command(&["run", "--node-name", "n1", "--http-address", "none", "--publish", rule]);
    command.arg("--standalone").arg(node.at("cluster")).arg("--kubelet-root-dir").arg(node.at("kubelet"));
    command.arg("--nri-socket").arg(node.at("nri.sock")).stderr(Stdio::piped());
    let daemon = Running(command.spawn().unwrap());
    let socket = node.at("state/query.sock");
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < Duration::from_mins(2), "the daemon does not answer");
        sleep(Duration::from_millis(50));
    }
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.0.id())).unwrap();
    let files: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "{files:?}");

    let output = node.run(&["devices", "-o", "json"]);
    assert!(text(&output.stderr).contains("as the running daemon says"), "{}", text(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&shown["source"], &shown["rule"]["publish"]), (&Value::from("daemon"), &Value::from(rule)));
    let loopback =
        shown["devices"].as_array().unwrap().iter().find(|device| device["ifName"] == "lo").unwrap();
    assert_eq!((&loopback["published"], &loopback["reason"]), (&false.into(), &"loopback".into()));

    let other = node.run(&["devices", "--publish", "true"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("--preview"), "{}", text(&other.stderr));
    let pods = node.run(&["pods", "-o", "json"]);
    assert_eq!((pods.status.code(), text(&pods.stdout).trim()), (Some(0), "[]"), "{}", text(&pods.stderr));
    let policy = node.run(&["policy", "show", "a/b"]);
    let said = text(&policy.stderr);
    assert!(policy.status.code() == Some(1) && said.contains("as the running daemon says"), "{said}");

    let checks = doctor(&node);
    let is = |name: &str, state: &str| assert_eq!(check(&checks, name)["state"], state, "{checks:?}");
    is("daemon", "ok");
    is("kubelet", "fail");
    is("NRI", "fail");
    assert!(check(&checks, "kubelet")["found"].as_str().unwrap().starts_with("not registered"), "{checks:?}");
}

#[test]
fn missing_rights_are_not_called_missing_features() {
    let Some(node) = Node::new("missing_rights_are_not_called_missing_features") else { return };
    fs::set_permissions(node.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = node.at("netferry");
    fs::copy(BINARY, &copy).unwrap();
    let doctor = Command::new(&copy).args(["doctor", "-o", "json"]).uid(65534).gid(65534).output();
    let doctor = match doctor {
        Ok(output) => output,
        Err(error) => {
            skip::skip("missing_rights_are_not_called_missing_features", &format!("no other user: {error}"));
            return;
        }
    };
    let said = text(&doctor.stdout);
    assert!(said.contains("not enough rights (needs CAP_BPF"), "{said}{}", text(&doctor.stderr));
    assert!(!said.contains("not available") && !said.contains("Linux 6.6"), "{said}");
    assert_eq!(doctor.status.code(), Some(1));
    let pods = Command::new(&copy).arg("pods").uid(65534).gid(65534).output().unwrap();
    let said = text(&pods.stderr);
    assert!(pods.status.code() == Some(1) && !said.contains("this kernel lacks"), "{said}");
}
