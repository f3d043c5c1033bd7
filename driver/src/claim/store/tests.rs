use std::fs;

use super::*;
use crate::{
    claim::{Attachment, InterfacePlan, InterfaceRecord, Made, Port, Sandbox, Step},
    datapath::Isolation,
    link::{Home, Link},
    network::NetworkRef,
};

fn claim(uid: &str) -> ClaimRef {
    ClaimRef { namespace: "default".into(), name: format!("claim-{uid}"), uid: uid.into() }
}

fn pod(uid: &str) -> PodRef {
    PodRef { namespace: "default".into(), name: format!("pod-{uid}"), uid: uid.into() }
}

pub(super) fn checkpoint(uid: &str, device: &str) -> Checkpoint {
    Checkpoint {
        claim: claim(uid),
        pods: vec![pod("p1")],
        shareable: false,
        since: None,
        interfaces: vec![InterfaceRecord {
            reserved: None,
            removing: None,
            plan: InterfacePlan {
                request: "nic".into(),
                pool: "node-1".into(),
                device: device.into(),
                share_id: None,
                host_link: device.into(),
                name: "net1".into(),
                hardware_addr: Some("02:00:00:00:00:01".parse().unwrap()),
                mtu: Some(9000),
                addresses: vec!["192.0.2.1/24".parse().unwrap(), "2001:db8::1/64".parse().unwrap()],
                routes: vec![],
                isolation: Isolation::Strict,
                early_drop: true,
                policy: None,
                limits: None,
                made: None,
            },
            attachment: None,
        }],
    }
}

pub(super) fn attachment(pod_uid: &str) -> Attachment {
    Attachment {
        step: Step::Attaching,
        sandbox: Sandbox {
            id: "s1".into(),
            pod: pod(pod_uid),
            netns: "/run/netns/x".into(),
            namespace: crate::netns::NetnsId { cookie: 1, boot_id: "b".into(), dev: 4, ino: 1 },
            hold: "/run/netferry/netns/x".into(),
        },
        endpoint: Some(7),
        home: Some(Home {
            link: Link {
                ifindex: 4,
                name: "ens5".into(),
                mac: None,
                permanent_mac: None,
                mtu: 1500,
                up: true,
                kind: None,
                blackhole: false,
                alt_names: ["enp0s5".to_owned()].into(),
            },
            addresses: vec![],
            routes: vec![],
            neighbours: vec![],
            sysctls: BTreeMap::new(),
            settings: crate::link::Settings::default(),
            recipe: None,
        }),
        pod_ifindex: None,
        lost: None,
    }
}

#[test]
fn survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (store, problems) = Store::open(dir.path()).unwrap();
    assert_eq!(problems, []);
    store.put(checkpoint("u1", "ens5")).unwrap();
    store.put(checkpoint("u2", "ens6")).unwrap();
    let updated = store
        .update("u1", |checkpoint| checkpoint.interfaces[0].attachment = Some(attachment("p9")))
        .unwrap();
    store.remove("u2").unwrap();
    store.remove("u2").unwrap();
    let error = store.remove("u1").unwrap_err();
    assert_eq!(error.to_string(), "claim default/claim-u1 still has ens5 in pod default/pod-p9");

    let (again, problems) = Store::open(dir.path()).unwrap();
    assert_eq!(problems, []);
    assert_eq!(again.all(), std::slice::from_ref(&updated));
    assert_eq!(again.get("u1"), Some(updated));
    assert_eq!(again.get("u2"), None);
    assert_eq!(again.by_pod("p1").len(), 1, "reserved for it");
    assert_eq!(again.by_pod("p9").len(), 1, "attached to it");
    assert_eq!(again.by_pod("p2").len(), 0);
    assert_eq!(again.held_devices()["ens5"], (claim("u1"), Some(pod("p9"))));
    let text = fs::read_to_string(dir.path().join("u1.json")).unwrap();
    assert!(text.starts_with("{\n  \"version\": 2,\n  \"bootId\": \""), "{text}");
}

#[test]
fn policy_and_limits_are_in_a_checkpoint_that_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    // As it was written before there were policies.
    store.put(checkpoint("u1", "ens5")).unwrap();
    let text = fs::read_to_string(dir.path().join("u1.json")).unwrap();
    assert!(!text.contains("policy") && !text.contains("limits"), "{text}");
    let with = store
        .update("u1", |checkpoint| {
            let plan = &mut checkpoint.interfaces[0].plan;
            let rules = "egress: {rules: [{action: deny, peers: [{cidr: 198.51.100.0/24}]}]}";
            plan.policy = Some(serde_yaml_ng::from_str(rules).unwrap());
            plan.limits = Some(serde_yaml_ng::from_str("ingress: {bitsPerSecond: 8000}").unwrap());
        })
        .unwrap();
    let (again, problems) = Store::open(dir.path()).unwrap();
    assert_eq!(problems, []);
    assert_eq!(again.get("u1"), Some(with));
}

#[test]
fn the_device_of_a_network_is_held_by_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    for uid in ["u1", "u2"] {
        let mut ports = checkpoint(uid, "port-blue");
        let plan = &mut ports.interfaces[0].plan;
        plan.share_id = Some(format!("share-{uid}"));
        let network = NetworkRef { name: "blue".into(), uid: "b".into() };
        plan.made = Some(Made::Port(Port::new(network, 3)));
        store.put(ports).unwrap();
    }
    assert!(store.held_devices().is_empty());
    let key = store.get("u2").unwrap().interfaces[0].plan.key();
    let updated = store.update("u2", |it| it.interface_mut(&key).unwrap().reserved = Some(4)).unwrap();
    let text = fs::read_to_string(dir.path().join("u2.json")).unwrap();
    assert!(text.contains("\"shareID\": \"share-u2\"") && text.contains("\"port\": {"), "{text}");
    assert_eq!(Store::open(dir.path()).unwrap().0.get("u2"), Some(updated));
}

#[test]
fn sets_aside_what_it_cannot_use() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.put(checkpoint("good", "ens5")).unwrap();
    let good = fs::read_to_string(dir.path().join("good.json")).unwrap();
    fs::write(dir.path().join("half.json"), &good[..good.len() / 2]).unwrap();
    fs::write(dir.path().join("newer.json"), good.replace("\"version\": 2", "\"version\": 3")).unwrap();
    fs::write(dir.path().join("other.json"), &good).unwrap();
    fs::write(dir.path().join("half.json.bad"), "an earlier one").unwrap();
    fs::write(dir.path().join(".write-abc"), "cut short").unwrap();

    let (store, mut problems) = Store::open(dir.path()).unwrap();
    problems.sort_by(|a, b| a.path.cmp(&b.path));
    let found: Vec<_> =
        problems.iter().map(|found| found.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(found, ["half.json.bad.2", "newer.json.bad", "other.json.bad"]);
    assert!(problems[1].problem.contains("version 3"), "{problems:?}");
    assert!(problems.iter().all(|found| found.path.exists()));
    assert_eq!(store.all(), [checkpoint("good", "ens5")]);
    assert!(!dir.path().join(".write-abc").exists());
    assert_eq!(Store::open(dir.path()).unwrap().1, []);
}

#[test]
fn refuses_uids_that_are_paths() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&dir.path().join("store")).unwrap();
    for uid in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "ä", &"x".repeat(129)] {
        assert!(matches!(store.put(checkpoint(uid, "ens5")), Err(StoreError::Uid(_))), "{uid:?}");
        assert!(matches!(store.remove(uid), Err(StoreError::Uid(_))), "{uid:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn one_device_has_one_holder() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.put(checkpoint("u1", "ens5")).unwrap();
    store.put(checkpoint("u1", "ens5")).unwrap();
    let error = store.put(checkpoint("u2", "ens5")).unwrap_err();
    assert_eq!(error.to_string(), "device ens5 is held by claim default/claim-u1");
    assert_eq!(store.get("u2"), None);
    assert!(matches!(store.update("u2", |_| {}), Err(StoreError::NotFound(_))));
    assert!(matches!(
        store.update("u1", |checkpoint| checkpoint.claim.uid = "u3".into()),
        Err(StoreError::UidChanged(_))
    ));
    assert_eq!(store.all(), [checkpoint("u1", "ens5")]);
}

#[test]
fn a_failed_write_changes_nothing_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    store.put(checkpoint("u1", "ens5")).unwrap();
    // A folder in the file's place: rename fails for root too.
    fs::remove_file(dir.path().join("u1.json")).unwrap();
    fs::create_dir(dir.path().join("u1.json")).unwrap();
    let error = store.update("u1", |checkpoint| checkpoint.pods.clear()).unwrap_err();
    assert!(matches!(error, StoreError::Io { action: "write", .. }), "{error}");
    assert_eq!(store.get("u1"), Some(checkpoint("u1", "ens5")));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}

/// What [`stopped_at_any_write_nothing_is_half_done`] runs as a process of its own; nothing otherwise.
#[cfg(feature = "failpoints")]
#[test]
fn writes_two_steps_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os("STORE_TEST_DIR") else { return };
    let _points = fail::FailScenario::setup();
    let (store, _) = Store::open(Path::new(&dir)).unwrap();
    store.put(checkpoint("u1", "ens5")).unwrap();
    store.update("u1", |checkpoint| checkpoint.interfaces[0].attachment = Some(attachment("p1"))).unwrap();
    panic!("not stopped");
}

#[cfg(feature = "failpoints")]
#[test]
fn stopped_at_any_write_nothing_is_half_done() {
    use std::os::unix::process::ExitStatusExt as _;
    let first = checkpoint("u1", "ens5");
    let mut second = first.clone();
    second.interfaces[0].attachment = Some(attachment("p1"));
    let cases = [
        ("store-before-write=return(abort)", None),
        ("store-after-write=return(abort)", Some(&first)),
        ("store-before-write=1*off->return(abort)", Some(&first)),
        ("store-after-write=1*off->return(abort)", Some(&second)),
    ];
    for (points, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "claim::store::tests::writes_two_steps_in_a_process_of_its_own"])
            .env("STORE_TEST_DIR", dir.path())
            .env("FAILPOINTS", points)
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(6), "{points}: {status}");
        let (store, problems) = Store::open(dir.path()).unwrap();
        assert_eq!(problems, []);
        assert_eq!(store.get("u1").as_ref(), expected, "{points}");
    }
}

#[test]
fn a_change_is_told_when_it_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let mut changes = store.changes();
    let mut told = || {
        let news = changes.has_changed().unwrap();
        changes.mark_unchanged();
        news
    };
    assert!(!told());
    store.put(checkpoint("c1", "ens5")).unwrap();
    assert!(told() && !told());
    store.update("c1", |checkpoint| checkpoint.pods.clear()).unwrap();
    assert!(told());
    // Refused: ens5 is held.
    store.put(checkpoint("c2", "ens5")).unwrap_err();
    store.update("c3", |_| ()).unwrap_err();
    assert!(!told());
    store.remove("c1").unwrap();
    assert!(told());
}
