//! Objects as an API server sends them, managed fields included: their size is what a watch costs.

use serde_json::{Value, json};

/// A claim in one moment of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Made from a template, for a pod that is not scheduled.
    Made,
    /// Allocated and reserved by the scheduler.
    Allocated,
    /// Told by its node's driver.
    Told,
}

/// Where a claim is in the simulated cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Which claim; never used twice.
    pub(crate) claim: u32,
    /// Its node.
    pub(crate) node: u32,
    /// Its network.
    pub(crate) network: u32,
    /// Its address in the network.
    pub(crate) host: u32,
}

pub(crate) fn node_name(node: u32) -> String {
    format!("node-{node:05}.eu-central-1.compute.internal")
}

pub(crate) fn network_name(network: u32) -> String {
    format!("tenant-{network:05}")
}

/// The namespace whose claims may join a network.
pub(crate) fn namespace_name(network: u32) -> String {
    format!("{}-prod", network_name(network))
}

/// A namespace as who asks for metadata alone gets it.
pub(crate) fn namespace(number: u32) -> Value {
    let name = namespace_name(number);
    let labels = json!({"kubernetes.io/metadata.name": name, "team": network_name(number),
        "pod-security.kubernetes.io/enforce": "restricted"});
    let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:kubernetes.io/metadata.name": {}, "f:team": {},
        "f:pod-security.kubernetes.io/enforce": {}}}});
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {
        "name": name, "uid": format!("8d0f2b61-5a3c-4e7f-b219-{number:012x}"), "resourceVersion": "700000001",
        "creationTimestamp": "2026-01-01T08:00:00Z", "labels": labels, "managedFields": [
            {"manager": "kubectl-create", "operation": "Update", "apiVersion": "v1",
                "time": "2026-01-01T08:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields}]}})
}

fn address(host: u32) -> [u8; 4] {
    (0x0a00_0000 | host).to_be_bytes()
}

/// A claim with a port and an address of its network.
pub(crate) fn claim(place: Place, stage: Stage) -> Value {
    let Place { claim, node, network, host } = place;
    let space = namespace_name(network);
    let (node, network) = (node_name(node), network_name(network));
    let [a, b, c, d] = address(host);
    let uid = format!("5f3c1e8a-7b2d-4c6e-9a10-{claim:012x}");
    let name = format!("web-7d9f8b6c5d-{claim:05x}-net-{:05x}", claim ^ 0x3ffff);
    let selector = format!(r#"device.attributes["netferry.dev"].network == "{network}""#);
    let request = |name: &str, class: &str| {
        json!({"name": name, "exactly": {"deviceClassName": class, "allocationMode": "ExactCount", "count": 1,
            "selectors": [{"cel": {"expression": selector}}]}})
    };
    let mut object = json!({
        "kind": "ResourceClaim",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {
            "name": name, "generateName": "web-7d9f8b6c5d-net-", "namespace": space,
            "uid": uid, "resourceVersion": format!("{}", 700_000_000 + claim),
            "creationTimestamp": "2026-11-01T08:15:42Z",
            "annotations": {"resource.kubernetes.io/pod-claim-name": "net"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": format!("web-7d9f8b6c5d-{claim:05x}"),
                "uid": format!("0b6a7c1d-93e4-4f52-8d21-{claim:012x}"), "controller": true, "blockOwnerDeletion": true}],
            "managedFields": [made_by_controller()],
        },
        "spec": {"devices": {
            "requests": [request("port", "network-ports"), request("ip", "network-addresses")],
            "constraints": [{"requests": ["port", "ip"], "matchAttribute": "netferry.dev/network"}],
        }},
        "status": {},
    });
    if stage == Stage::Made {
        return object;
    }
    object["metadata"]["finalizers"] = json!(["resource.kubernetes.io/delete-protection"]);
    let devices = json!([
        {"request": "port", "driver": "netferry.dev", "pool": node, "device": format!("port-{network}"),
            "shareID": format!("c1a5c0de-0000-4000-8000-{claim:012x}")},
        {"request": "ip", "driver": "netferry.dev", "pool": format!("networks/{network}"),
            "device": format!("ip-{a}-{b}-{c}-{d}")},
    ]);
    object["status"] = json!({
        "allocation": {
            "allocationTimestamp": "2026-11-01T08:15:43Z",
            "devices": {"results": devices, "config": [{"source": "FromClass", "requests": ["port"],
                "opaque": {"driver": "netferry.dev", "parameters": {"apiVersion": "netferry.dev/v1alpha1",
                    "kind": "InterfaceConfig", "isolation": "strict"}}}]},
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [node]}]}]},
        },
        "reservedFor": [{"resource": "pods", "name": format!("web-7d9f8b6c5d-{claim:05x}"),
            "uid": format!("0b6a7c1d-93e4-4f52-8d21-{claim:012x}")}],
    });
    add(&mut object["metadata"]["managedFields"], allocated_by_scheduler());
    if stage == Stage::Allocated {
        return object;
    }
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-01T08:15:44Z"})
    };
    let hardware = format!(
        "02:4e:{:02x}:{:02x}:{:02x}:{:02x}",
        claim >> 24,
        claim >> 16 & 255,
        claim >> 8 & 255,
        claim & 255
    );
    object["status"]["devices"] = json!([
        {"driver": "netferry.dev", "pool": node, "device": format!("port-{network}"),
            "shareID": format!("c1a5c0de-0000-4000-8000-{claim:012x}"),
            "conditions": [
                condition("Ready", "Attached", "link \"nf1a2b3c4d\" is in pod tenant-prod/web as \"net1\""),
                condition("NetworkReady", "Configured", "1 addresses and 2 routes are set"),
                condition("ProgramsAttached", "Attached", "the programs of endpoint 17 are on \"net1\""),
            ],
            "networkData": {"interfaceName": "net1", "ips": [format!("{a}.{b}.{c}.{d}/16")],
                "hardwareAddress": hardware}},
    ]);
    add(&mut object["metadata"]["managedFields"], told_by_driver(&node, &network));
    object
}

fn add(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn made_by_controller() -> Value {
    json!({"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "resource.k8s.io/v1",
        "time": "2026-11-01T08:15:42Z", "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:annotations": {".": {}, "f:resource.kubernetes.io/pod-claim-name": {}},
                "f:generateName": {}, "f:ownerReferences": {".": {},
                "k:{\"uid\":\"0b6a7c1d-93e4-4f52-8d21-000000000000\"}": {}}},
            "f:spec": {"f:devices": {".": {}, "f:constraints": {}, "f:requests": {}}}}})
}

fn allocated_by_scheduler() -> Value {
    json!({"manager": "kube-scheduler", "operation": "Update", "apiVersion": "resource.k8s.io/v1",
        "time": "2026-11-01T08:15:43Z", "fieldsType": "FieldsV1", "subresource": "status", "fieldsV1": {
            "f:metadata": {"f:finalizers": {".": {}, "v:\"resource.kubernetes.io/delete-protection\"": {}}},
            "f:status": {"f:allocation": {".": {}, "f:allocationTimestamp": {}, "f:devices": {".": {}, "f:config": {},
                "f:results": {}}, "f:nodeSelector": {}}, "f:reservedFor": {".": {},
                "k:{\"uid\":\"0b6a7c1d-93e4-4f52-8d21-000000000000\"}": {}}}}})
}

fn told_by_driver(node: &str, network: &str) -> Value {
    let device = format!(
        "k:{{\"device\":\"port-{network}\",\"driver\":\"netferry.dev\",\"pool\":\"{node}\",\
         \"shareID\":\"c1a5c0de-0000-4000-8000-000000000000\"}}"
    );
    let condition = json!({".": {}, "f:lastTransitionTime": {}, "f:message": {}, "f:reason": {}, "f:status": {},
        "f:type": {}});
    let conditions = json!({"k:{\"type\":\"NetworkReady\"}": condition, "k:{\"type\":\"ProgramsAttached\"}": condition,
        "k:{\"type\":\"Ready\"}": condition});
    let mut fields = serde_json::Map::new();
    fields.insert(
        device,
        json!({".": {}, "f:conditions": conditions, "f:device": {}, "f:driver": {}, "f:networkData": {
            "f:hardwareAddress": {}, "f:interfaceName": {}, "f:ips": {}}, "f:pool": {}, "f:shareID": {}}),
    );
    json!({"manager": "netferry.dev", "operation": "Apply", "apiVersion": "resource.k8s.io/v1",
        "time": "2026-11-01T08:15:44Z", "fieldsType": "FieldsV1", "subresource": "status",
        "fieldsV1": {"f:status": {"f:devices": fields}}})
}

fn written_by_kubelet() -> Value {
    let entry = |subresource: &str, fields: Value| {
        let mut entry = json!({"manager": "kubelet", "operation": "Update", "apiVersion": "v1",
            "time": "2026-11-01T08:15:42Z", "fieldsType": "FieldsV1", "fieldsV1": fields});
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        entry
    };
    let condition = json!({".": {}, "f:lastHeartbeatTime": {}, "f:lastTransitionTime": {}, "f:message": {},
        "f:reason": {}, "f:status": {}, "f:type": {}});
    let resources = json!({".": {}, "f:cpu": {}, "f:ephemeral-storage": {}, "f:memory": {}, "f:pods": {}});
    let address = json!({".": {}, "f:address": {}, "f:type": {}});
    json!([
        entry(
            "",
            json!({"f:metadata": {
            "f:annotations": {".": {}, "f:volumes.kubernetes.io/controller-managed-attach-detach": {}},
            "f:labels": {".": {}, "f:kubernetes.io/arch": {}, "f:kubernetes.io/hostname": {}, "f:kubernetes.io/os": {},
                "f:topology.kubernetes.io/zone": {}}}, "f:spec": {"f:providerID": {}}})
        ),
        entry(
            "status",
            json!({"f:status": {
            "f:addresses": {".": {}, "k:{\"type\":\"Hostname\"}": address, "k:{\"type\":\"InternalIP\"}": address},
            "f:allocatable": resources, "f:capacity": resources,
            "f:conditions": {".": {}, "k:{\"type\":\"DiskPressure\"}": condition,
                "k:{\"type\":\"MemoryPressure\"}": condition, "k:{\"type\":\"PIDPressure\"}": condition,
                "k:{\"type\":\"Ready\"}": condition},
            "f:images": {}, "f:nodeInfo": {"f:bootID": {}, "f:containerRuntimeVersion": {}, "f:kernelVersion": {},
                "f:kubeletVersion": {}, "f:machineID": {}, "f:osImage": {}, "f:systemUUID": {}}}})
        ),
    ])
}

/// A node whose kubelet tells the 50 largest images, as it does by default.
pub(crate) fn node(node: u32) -> Value {
    let images: Vec<Value> = (0..50)
        .map(|image| {
            json!({"names": [
                format!("registry.example.com/platform/service-{image}@sha256:{}", "5d".repeat(32)),
                format!("registry.example.com/platform/service-{image}:v1.{image}.0")],
                "sizeBytes": 104_857_600 + image})
        })
        .collect();
    let condition = |kind: &str| {
        json!({"type": kind, "status": "False", "lastHeartbeatTime": "2026-11-01T08:15:42Z",
            "lastTransitionTime": "2026-10-01T08:15:42Z", "reason": "KubeletHasNoProblem",
            "message": "kubelet has sufficient of what it needs"})
    };
    let [_, b, c, d] = address(node);
    json!({"kind": "Node", "apiVersion": "v1",
        "metadata": {"name": node_name(node), "uid": format!("2b1a7c1d-93e4-4f52-8d21-{node:012x}"),
            "resourceVersion": "700000000", "creationTimestamp": "2026-10-01T08:15:42Z",
            "labels": {"kubernetes.io/hostname": node_name(node), "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "eu-central-1a"},
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            "managedFields": written_by_kubelet()},
        "spec": {"podCIDR": "10.64.0.0/24", "providerID": format!("cloud:///eu-central-1a/i-{node:017x}")},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("172.{b}.{c}.{d}")},
                {"type": "Hostname", "address": node_name(node)}],
            "capacity": {"cpu": "64", "memory": "263856128Ki", "pods": "110", "ephemeral-storage": "209702892Ki"},
            "allocatable": {"cpu": "63", "memory": "253856128Ki", "pods": "110", "ephemeral-storage": "199702892Ki"},
            "conditions": (["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(condition)),
            "nodeInfo": {"architecture": "amd64", "kernelVersion": "6.12.0", "kubeletVersion": "v1.36.0",
                "containerRuntimeVersion": "containerd://2.1.9", "operatingSystem": "linux",
                "osImage": "Debian GNU/Linux 13", "machineID": "ab".repeat(16), "systemUUID": "ab".repeat(16),
                "bootID": "ab".repeat(16), "kubeProxyVersion": ""},
            "images": images}})
}
