//! The daemon in whole: networks of its folder, their numbers over a kill, and the command that shows them.

use std::{fs, path::Path, process::Command, time::Duration};

use k8s_openapi::api::resource::v1::ResourceSlice;
use netferry::network::published::GIVEN;
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

/// The slices of a pool.
fn slices(home: &Home, pool: &str) -> Vec<ResourceSlice> {
    let files = fs::read_dir(home.objects().join("slices")).into_iter().flatten().flatten();
    let files = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "yaml"));
    let read = |path| serde_yaml_ng::from_str(&fs::read_to_string(path).ok()?).ok();
    let all = files.filter_map(|file| read(file.path()));
    all.filter(|slice: &ResourceSlice| slice.spec.pool.name == pool).collect()
}

fn devices(slices: &[ResourceSlice]) -> usize {
    slices.iter().map(|slice| slice.spec.devices.as_ref().map_or(0, Vec::len)).sum()
}

#[test]
fn a_node_alone_has_its_block_over_a_kill_and_none_without_the_network() {
    let home = Home::new();
    let blocks = network("blue", 7)
        .replace("subnets: [10.1.0.0/16]", "subnets: [10.1.0.0/16, 'fd00:1::/64']\n  addresses: blocks");
    home.write_object("blue.yaml", &blocks);
    let daemon = home.start(Path::new(BINARY));
    let pool = format!("networks/blue/{}", home.node_name);
    let whole = || devices(&slices(&home, &pool)) == 63 + 63;
    until("the node's blocks are published", whole);
    let before = slices(&home, &pool);
    assert_eq!((before.len(), before[0].spec.node_name.as_deref()), (1, Some(home.node_name.as_str())));
    let record = slices(&home, "networks/blue");
    let given = record[0].metadata.annotations.as_ref().expect("annotations");
    assert_eq!((record.len(), devices(&record)), (1, 0));
    assert_eq!(given[GIVEN], "10.1.0.0/16=1,fd00:1::/64=1");
    let status = home.objects().join("status/_networks/blue.yaml");
    let says = |words: &str| fs::read_to_string(&status).is_ok_and(|text| text.contains(words));
    until("the status says so", || says("10.1.0.0/16: nodes have 1 of 1024 blocks"));
    let out = Command::new(BINARY).args(["networks", "--state-dir"]).arg(home.state_dir()).output();
    let out = String::from_utf8(out.expect("netferry networks").stdout).expect("text");
    assert!(out.contains("ADDRESSES") && out.contains("blocks"), "{out}");
    daemon.kill();

    let daemon = home.start(Path::new(BINARY));
    // The slices of its ports and of its blocks are told apart, and what is right is left.
    until("it is elected again", || home.log().matches("election for the addresses").count() > 1);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(slices(&home, &pool), before);
    fs::remove_file(home.objects().join("blue.yaml")).expect("remove");
    until("its blocks are gone", || {
        slices(&home, &pool).is_empty() && slices(&home, "networks/blue").is_empty()
    });
    assert!(daemon.stop().success());
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
