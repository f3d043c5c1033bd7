#![allow(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};

use super::*;
use crate::claim::{Attachment, ClaimRef, Given, InterfacePlan, PodRef, Port, Sandbox};
use crate::link::Home;
use crate::network::NetworkRef;

const DRIVER: &str = "netferry.dev";

fn claim(status: Value) -> ResourceClaim {
    serde_json::from_value(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": "d", "uid": "u", "generation": 2}, "spec": {}, "status": status
    }))
    .expect("claim")
}

fn allocation() -> Value {
    json!({"allocation": {"devices": {"results": [
        {"request": "r", "driver": DRIVER, "pool": "n1", "device": "eth1"},
        {"request": "x", "driver": "other.dev", "pool": "n1", "device": "gpu"}
    ]}}})
}

fn home() -> Home {
    serde_json::from_value(json!({
        "link": {"ifindex": 7, "name": "eth1", "mac": "02:00:00:00:00:01", "permanentMac": null, "mtu": 1500,
                 "up": true, "kind": null, "altNames": []},
        "addresses": [], "routes": [], "neighbours": []
    }))
    .expect("home")
}

fn checkpoint(step: Option<Step>, endpoint: Option<u32>) -> Checkpoint {
    let claim = ClaimRef { namespace: "d".to_owned(), name: "c".to_owned(), uid: "u".to_owned() };
    let pod = PodRef { namespace: "d".to_owned(), name: "p".to_owned(), uid: "pu".to_owned() };
    let plan = InterfacePlan {
        request: "r".to_owned(),
        pool: "n1".to_owned(),
        device: "eth1".to_owned(),
        share_id: None,
        host_link: "eth1".to_owned(),
        name: "net1".to_owned(),
        hardware_addr: None,
        mtu: None,
        addresses: vec!["10.0.0.2/24".parse().expect("v4"), "fd00::2/64".parse().expect("v6")],
        routes: Vec::new(),
        isolation: if endpoint.is_some() { Isolation::Strict } else { Isolation::Off },
        early_drop: true,
        policy: None,
        limits: None,
        made: None,
    };
    let attachment = step.map(|step| Attachment {
        step,
        sandbox: Sandbox {
            id: "s".to_owned(),
            pod: pod.clone(),
            netns: "/run/netns/x".into(),
            namespace: crate::netns::NetnsId { cookie: 1, boot_id: "b".into(), dev: 4, ino: 1 },
            hold: "/run/netferry/netns/x".into(),
        },
        endpoint,
        home: Some(home()),
        pod_ifindex: Some(3),
        lost: None,
    });
    Checkpoint {
        claim,
        pods: vec![pod],
        shareable: false,
        since: None,
        interfaces: vec![InterfaceRecord { plan, reserved: None, removing: None, attachment }],
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::new(second, 999).expect("timestamp")
}

fn observe(
    claim: &ResourceClaim,
    checkpoint: Option<&Checkpoint>,
    failure: Option<&Failure>,
    second: i64,
) -> Vec<AllocatedDeviceStatus> {
    device_statuses(&Observed { claim, driver: DRIVER, checkpoint, failure, now: at(second) })
}

fn condition<'a>(device: &'a AllocatedDeviceStatus, type_: &str) -> &'a Condition {
    let conditions = device.conditions.as_ref().expect("conditions");
    conditions.iter().find(|condition| condition.type_ == type_).expect(type_)
}

fn summary(device: &AllocatedDeviceStatus) -> Vec<(&str, &str)> {
    [READY, NETWORK_READY, PROGRAMS_ATTACHED]
        .map(|type_| condition(device, type_))
        .map(|condition| (condition.status.as_str(), condition.reason.as_str()))
        .into()
}

#[test]
fn an_attached_interface_is_told_in_full_and_others_are_not_touched() {
    let statuses = observe(&claim(allocation()), Some(&checkpoint(Some(Step::Attached), Some(9))), None, 10);
    assert_eq!(statuses.len(), 1, "the other driver's device is not ours to report");
    let device = &statuses[0];
    assert_eq!(summary(device), [("True", "Attached"), ("True", "Configured"), ("True", "Attached")]);
    let data = device.network_data.as_ref().expect("network data");
    assert_eq!(data.interface_name.as_deref(), Some("net1"));
    assert_eq!(data.ips.as_deref(), Some(&["10.0.0.2/24".to_owned(), "fd00::2/64".to_owned()][..]));
    assert_eq!(data.hardware_address.as_deref(), Some("02:00:00:00:00:01"));
    let ready = condition(device, READY);
    assert_eq!(ready.observed_generation, Some(2));
    assert_eq!(ready.last_transition_time.0, Timestamp::from_second(10).expect("whole second"));
}

#[test]
fn each_step_has_its_reason_and_no_network_data() {
    let claim = claim(allocation());
    for (step, reason) in
        [(None, "Prepared"), (Some(Step::Attaching), "Attaching"), (Some(Step::Returning), "Returning")]
    {
        let statuses = observe(&claim, Some(&checkpoint(step, Some(9))), None, 10);
        assert_eq!(summary(&statuses[0]), [("False", reason); 3]);
        assert_eq!(statuses[0].network_data, None);
    }
    assert!(observe(&claim, None, None, 10).is_empty(), "unprepared: nothing to say");
}

#[test]
fn without_isolation_ready_is_true_and_programs_are_not() {
    let statuses = observe(&claim(allocation()), Some(&checkpoint(Some(Step::Attached), None)), None, 10);
    assert_eq!(
        summary(&statuses[0]),
        [("True", "Attached"), ("True", "Configured"), ("False", "IsolationOff")]
    );
    let mut unprotected = checkpoint(Some(Step::Attached), None);
    unprotected.interfaces[0].plan.isolation = Isolation::Strict;
    let statuses = observe(&claim(allocation()), Some(&unprotected), None, 10);
    assert_eq!(condition(&statuses[0], READY).status, "False", "strict without programs is never ready");
}

#[test]
fn failures_carry_their_message() {
    let claim = claim(allocation());
    let failure = |stage| Failure { stage, message: "mtu: 70000 is above 65535".to_owned() };
    let prepare = failure(Stage::Prepare);
    let statuses = observe(&claim, None, Some(&prepare), 10);
    assert_eq!(summary(&statuses[0]), [("False", "PrepareFailed"); 3]);
    assert_eq!(condition(&statuses[0], READY).message, prepare.message);
    let prepared = checkpoint(None, Some(9));
    assert_eq!(summary(&observe(&claim, Some(&prepared), Some(&prepare), 10)[0]), [("False", "Prepared"); 3]);
    let attach = failure(Stage::Attach);
    assert_eq!(
        summary(&observe(&claim, Some(&prepared), Some(&attach), 10)[0]),
        [("False", "AttachFailed"); 3]
    );
    let attached = checkpoint(Some(Step::Attached), Some(9));
    assert_eq!(condition(&observe(&claim, Some(&attached), Some(&attach), 10)[0], READY).status, "True");
}

#[test]
fn a_transition_time_changes_only_with_the_status() {
    let attached = checkpoint(Some(Step::Attached), Some(9));
    let first = observe(&claim(allocation()), Some(&attached), None, 10);
    let mut status = allocation();
    status["devices"] = serde_json::to_value(&first).expect("devices");
    let known = claim(status);
    assert_eq!(observe(&known, Some(&attached), None, 99), first, "nothing changed: nothing to write");
    let returning = observe(&known, Some(&checkpoint(Some(Step::Returning), Some(9))), None, 99);
    assert_eq!(condition(&returning[0], READY).last_transition_time.0.as_second(), 99);
}

#[test]
fn the_servers_limits_are_kept() {
    let mut long = checkpoint(Some(Step::Attached), Some(9));
    long.interfaces[0].plan.addresses =
        (0..40_u8).map(|last| format!("10.0.0.{}/24", last / 2).parse().expect("address")).collect();
    let statuses = observe(&claim(allocation()), Some(&long), None, 10);
    let ips = statuses[0].network_data.as_ref().and_then(|data| data.ips.clone()).expect("ips");
    assert_eq!(ips.len(), 16);
    assert_eq!(ips.iter().collect::<BTreeSet<_>>().len(), 16, "the server refuses one that is there twice");
    let failure = Failure { stage: Stage::Prepare, message: "é".repeat(20_000) };
    let statuses = observe(&claim(allocation()), None, Some(&failure), 10);
    assert_eq!(condition(&statuses[0], READY).message.len(), 32_768);
}

#[test]
fn one_device_given_twice_is_one_entry() {
    let twice = claim(json!({"allocation": {"devices": {"results": [
        {"request": "r", "driver": DRIVER, "pool": "n1", "device": "eth1"},
        {"request": "a", "driver": DRIVER, "pool": "n1", "device": "eth1", "adminAccess": true}
    ]}}}));
    assert_eq!(observe(&twice, Some(&checkpoint(None, None)), None, 10).len(), 1);
}

/// A claim with two shares of a network's device and an address for each.
fn ports() -> (ResourceClaim, Checkpoint) {
    let port = |request: &str, share: &str| json!({"request": request, "driver": DRIVER, "pool": "n1", "device": "port-blue", "shareID": share});
    let address =
        |device: &str| json!({"request": "v4", "driver": DRIVER, "pool": "networks/blue", "device": device});
    let results = [port("r", "s1"), port("r", "s2"), address("ip-10-0-0-2"), address("ip-10-0-0-3")];
    let claim = claim(json!({"allocation": {"devices": {"results": results}}}));
    let mut checkpoint = checkpoint(Some(Step::Attached), Some(9));
    let record = checkpoint.interfaces.remove(0);
    for (share, last) in [("s1", 2), ("s2", 3)] {
        let mut record = record.clone();
        record.plan.device = "port-blue".to_owned();
        record.plan.share_id = Some(share.to_owned());
        record.plan.hardware_addr = Some(format!("02:00:00:00:00:0{last}").parse().expect("a MAC"));
        record.plan.addresses = vec![format!("10.0.0.{last}/24").parse().expect("an address")];
        record.plan.made = Some(Made::Port(Port {
            network: NetworkRef { name: "blue".to_owned(), uid: "b".to_owned() },
            id: 3,
            given: vec![Given {
                request: "v4".to_owned(),
                pool: "networks/blue".to_owned(),
                device: format!("ip-10-0-0-{last}"),
                address: format!("10.0.0.{last}").parse().expect("an address"),
            }],
            ..Port::new(NetworkRef::default(), 3)
        }));
        if let Some(attachment) = &mut record.attachment {
            attachment.home = None;
        }
        checkpoint.interfaces.push(record);
    }
    (claim, checkpoint)
}

#[test]
fn each_share_of_a_device_has_its_own_entry_and_so_has_each_address() {
    let (claim, mut checkpoint) = ports();
    let statuses = observe(&claim, Some(&checkpoint), None, 10);
    assert_eq!(statuses.len(), 4);
    for device in &statuses[..2] {
        assert_eq!(summary(device), [("True", "Attached"), ("True", "Configured"), ("True", "Attached")]);
    }
    for address in &statuses[2..] {
        assert_eq!(condition(address, READY).status, "True");
        assert_eq!(address.conditions.as_ref().map(Vec::len), Some(1), "the others are its port's");
    }
    for (device, share, last) in [(&statuses[0], "s1", 2), (&statuses[1], "s2", 3)] {
        assert_eq!(device.share_id.as_deref(), Some(share));
        let data = device.network_data.as_ref().expect("network data");
        assert_eq!(data.ips, Some(vec![format!("10.0.0.{last}/24")]));
        assert_eq!(data.hardware_address, Some(format!("02:00:00:00:00:0{last}")));
        let ready = condition(device, READY);
        assert!(ready.message.starts_with("the port of network \"blue\" is in pod d/p"), "{}", ready.message);
    }
    for device in &statuses[2..] {
        assert_eq!((device.pool.as_str(), &device.network_data), ("networks/blue", &None));
    }
    // The address says how its own port is.
    if let Some(attachment) = &mut checkpoint.interfaces[1].attachment {
        attachment.step = Step::Attaching;
    }
    let statuses = observe(&claim, Some(&checkpoint), None, 10);
    let reasons: Vec<_> = statuses.iter().map(|device| condition(device, READY).reason.as_str()).collect();
    assert_eq!(reasons, ["Attached", "Attaching", "Attached", "Attaching"]);
}

#[test]
fn a_port_that_has_lost_its_address_is_not_ready_and_tells_none() {
    for step in [Some(Step::Attached), None] {
        let (claim, mut checkpoint) = ports();
        for record in &mut checkpoint.interfaces {
            record.plan.addresses.clear();
            record.attachment = record.attachment.take().filter(|_| step.is_some());
        }
        let statuses = observe(&claim, Some(&checkpoint), None, 10);
        assert_eq!(summary(&statuses[0])[..2], [("False", "LeaseLost"); 2]);
        let ips = statuses[0].network_data.as_ref().and_then(|data| data.ips.as_ref());
        assert_eq!(ips, None);
    }
}
