//! Objects that the tests share.

use std::sync::Mutex;

use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, ResourceSlice};
use netferry::{
    claim::{Attachment, Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord, PodRef, Step},
    datapath::Isolation,
    link::Home,
    status::Checkpoints,
};
use serde_json::{Value, json};

pub(crate) const DRIVER: &str = "netferry.dev";
pub(crate) const NODE: &str = "node-1";

pub(crate) fn slice(index: u32, devices: &[&str]) -> ResourceSlice {
    let devices: Vec<Value> = devices
        .iter()
        .map(|name| json!({"name": name, "attributes": {"netferry.dev/ifName": {"string": name}}}))
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
        "metadata": {"generateName": format!("{NODE}-{index}-")},
        "spec": {"driver": DRIVER, "nodeName": NODE, "devices": devices,
                 "pool": {"name": NODE, "generation": 1, "resourceSliceCount": 1}}
    }))
    .expect("slice")
}

pub(crate) fn claim(name: &str) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "net", "count": 1}}]}},
        "status": {
            "allocation": {"devices": {"results": [
                {"request": "r", "driver": DRIVER, "pool": NODE, "device": "eth1"},
                {"request": "x", "driver": "other.dev", "pool": "p", "device": "gpu"}]}},
            "reservedFor": [{"resource": "pods", "name": "pod", "uid": "pod-uid"}]
        }
    })
}

pub(crate) fn reference(claim: &Value) -> ClaimRef {
    let text = |field: &str| claim["metadata"][field].as_str().expect(field).to_owned();
    ClaimRef { namespace: text("namespace"), name: text("name"), uid: text("uid") }
}

pub(crate) fn pod() -> PodRef {
    PodRef { namespace: "default".to_owned(), name: "pod".to_owned(), uid: "pod-uid".to_owned() }
}

pub(crate) fn status(ready: &str) -> AllocatedDeviceStatus {
    serde_json::from_value(json!({
        "driver": DRIVER, "pool": NODE, "device": "eth1",
        "conditions": [{"type": "Ready", "status": ready, "reason": "Test", "message": "",
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "networkData": {"interfaceName": "net1", "ips": ["10.0.0.2/24"], "hardwareAddress": "02:00:00:00:00:01"}
    }))
    .expect("status")
}

fn home() -> Home {
    serde_json::from_value(json!({
        "link": {"ifindex": 7, "name": "eth1", "mac": "02:00:00:00:00:01", "permanentMac": null, "mtu": 1500,
                 "up": true, "kind": null, "altNames": []},
        "addresses": [], "routes": [], "neighbours": []
    }))
    .expect("home")
}

pub(crate) fn checkpoint(claim: &ClaimRef, step: Option<Step>) -> Checkpoint {
    let attachment = step.map(|step| Attachment {
        step,
        sandbox: serde_json::from_value(json!({
            "id": "s", "pod": pod(), "netns": "/run/netns/none", "hold": "/run/netferry/netns/none",
            "namespace": {"cookie": 1, "bootId": "b", "dev": 4, "ino": 1},
        }))
        .expect("sandbox"),
        endpoint: Some(9),
        home: Some(home()),
        pod_ifindex: Some(3),
        lost: None,
    });
    let plan = InterfacePlan {
        request: "r".to_owned(),
        pool: NODE.to_owned(),
        device: "eth1".to_owned(),
        share_id: None,
        host_link: "eth1".to_owned(),
        name: "net1".to_owned(),
        hardware_addr: None,
        mtu: None,
        addresses: vec!["10.0.0.2/24".parse().expect("address")],
        routes: Vec::new(),
        isolation: Isolation::Strict,
        early_drop: true,
        policy: None,
        limits: None,
        made: None,
    };
    let interfaces = vec![InterfaceRecord { plan, reserved: None, removing: None, attachment }];
    Checkpoint::new(claim.clone(), vec![pod()], interfaces)
}

/// Checkpoints in memory.
#[derive(Default)]
pub(crate) struct Memory(pub(crate) Mutex<Vec<Checkpoint>>);

impl Memory {
    pub(crate) fn set(&self, checkpoint: Checkpoint) {
        let mut all = self.0.lock().expect("memory");
        all.retain(|known| known.claim != checkpoint.claim);
        all.push(checkpoint);
    }
}

impl Checkpoints for Memory {
    fn get(&self, uid: &str) -> Option<Checkpoint> {
        self.all().into_iter().find(|checkpoint| checkpoint.claim.uid == uid)
    }

    fn all(&self) -> Vec<Checkpoint> {
        self.0.lock().expect("memory").clone()
    }
}
