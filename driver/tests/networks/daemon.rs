//! The daemon in whole: networks of its folder, their numbers over a kill, and the command that shows them.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::support::daemon::Home;

const BINARY: &str = env!("CARGO_BIN_EXE_netferry");

fn network(name: &str, vni: u32) -> String {
    format!(
        "
apiVersion: netferry.dev/v1alpha1
kind: Network
metadata: {{name: {name}}}
spec:
  subnets: [10.1.0.0/16]
  transport: {{overlay: {{vni: {vni}}}}}
"
    )
}

fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1200 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("not within 30 s: {what}");
}

/// What `netferry networks -o json` prints: name and number.
fn shown(home: &Home) -> Vec<(String, u64)> {
    let out = Command::new(BINARY)
        .args(["networks", "-o", "json", "--state-dir"])
        .arg(home.state_dir())
        .output()
        .expect("netferry networks");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let all: Vec<Value> = serde_json::from_slice(&out.stdout).expect("JSON");
    all.iter()
        .map(|one| (one["name"].as_str().expect("a name").to_owned(), one["id"].as_u64().expect("a number")))
        .collect()
}

fn published(home: &Home, device: &str) -> bool {
    let slices = fs::read_dir(home.objects().join("slices")).into_iter().flatten().flatten();
    // A file that is still being written has another name.
    let slices = slices.filter(|file| file.path().extension().is_some_and(|extension| extension == "yaml"));
    slices.filter_map(|file| fs::read_to_string(file.path()).ok()).any(|text| text.contains(device))
}

fn row(name: &str, id: u64) -> (String, u64) {
    (name.to_owned(), id)
}

#[test]
fn numbers_survive_a_kill() {
    let home = Home::new();
    home.write_object("blue.yaml", &network("blue", 7));
    home.write_object("red.yaml", &network("red", 7));
    let daemon = home.start(Path::new(BINARY));
    until("blue is published", || published(&home, "port-blue"));
    assert_eq!(shown(&home), [row("blue", 1)], "red wants blue's VNI");
    home.write_object("red.yaml", &network("red", 8));
    until("red is published", || published(&home, "port-red"));
    daemon.kill();

    fs::remove_file(home.objects().join("blue.yaml")).expect("remove");
    home.write_object("green.yaml", &network("green", 7));
    let daemon = home.start(Path::new(BINARY));
    until("green is published", || published(&home, "port-green") && !published(&home, "port-blue"));
    assert_eq!(shown(&home), [row("green", 3), row("red", 2)]);
    assert!(daemon.stop().success());
    let log = home.log();
    assert!(log.contains("not accepted") && log.contains("spec.transport.overlay.vni"), "{log}");

    // Without its numbers it does not guess.
    fs::write(home.state_dir().join("networks.json"), "{").expect("write");
    let mut daemon = home.start(Path::new(BINARY));
    let start = std::time::Instant::now();
    while !daemon.has_ended() {
        assert!(start.elapsed() < Duration::from_secs(30), "it runs all the same");
        std::thread::sleep(Duration::from_millis(25));
    }
    assert!(home.log().contains("networks.json cannot be used"), "{}", home.log());
}
