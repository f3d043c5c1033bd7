//! The answers of the query socket, in JSON as Kubernetes writes it: names in camelCase, absent values left out.

use std::{collections::BTreeMap, path::PathBuf};

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    claim::{Checkpoint, ClaimRef, PodRef},
    device::{Device, Inventory, rule::Rule},
    link::MacAddr,
    network::{Network, names::port_device, peers::Told},
    publish::view::view,
};

/// The daemon and its peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the release.
    pub version: String,
    /// Commit it was built from.
    pub commit: String,
    /// Digest of its eBPF programs.
    pub programs: String,
    /// Its process.
    pub pid: u32,
    /// When it was started.
    pub started: Timestamp,
    /// Name of its node.
    pub node: String,
    /// Name of the driver.
    pub driver: String,
    /// Parts that must work before the node can serve claims.
    pub parts: Vec<Part>,
    /// Tasks that have ended and must not.
    pub ended: Vec<String>,
    /// The kubelet's side.
    pub kubelet: Kubelet,
    /// The container runtime's side.
    pub runtime: Runtime,
    /// The slices of the node.
    pub publishing: Publishing,
}

/// Whether a part of the daemon works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// `kubelet`, `runtime` or `slices`.
    pub name: String,
    /// Whether it works.
    pub ready: bool,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The driver's registration with the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubelet {
    /// Whether the kubelet has accepted the driver.
    pub registered: bool,
    /// Why the kubelet refused it, as the kubelet said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// The last call on one of the sockets that was refused before it reached a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refused_call: Option<String>,
    /// Where the kubelet finds the driver.
    pub registration_socket: PathBuf,
    /// Where the kubelet calls it.
    pub plugin_socket: PathBuf,
}

/// The session with the container runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Whether the runtime calls the driver.
    pub connected: bool,
    /// Name of the runtime, such as `containerd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Version of the runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its NRI socket.
    pub socket: PathBuf,
    /// Sessions since the daemon was started.
    pub sessions: u64,
    /// Attempts and sessions that failed since then.
    pub failures: u64,
    /// Why the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What became of the node's slices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Publishing {
    /// Devices in the slices.
    pub devices: u64,
    /// Slices.
    pub slices: u64,
    /// Generation of the pool.
    pub generation: i64,
    /// Attempts that failed since the daemon was started.
    pub failures: u64,
    /// When the slices were last found or made right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Timestamp>,
}

/// Everything that is published or could be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Devices {
    /// `daemon`: as the running daemon decides; `discovery`: as a daemon with the settings of this command would.
    pub source: Source,
    /// The rule in force.
    pub rule: RuleInForce,
    /// Links and ports of networks, those that are published first.
    pub devices: Vec<Shown>,
    /// Networks that are not possible on this node, and why.
    pub problems: Vec<String>,
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The running daemon.
    Daemon,
    /// The command itself.
    Discovery,
}

/// Which links are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleInForce {
    /// Name of the driver.
    pub driver: String,
    /// CEL expression that says which links are published.
    pub publish: String,
    /// CEL expression that says which of them may be allocated several times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
    /// Whether the link of the default route may be published.
    pub allow_default_route: bool,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeviceType {
    /// A link of the host.
    Link,
    /// What ports of a network are allocated from.
    Port,
}

/// One device, published or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Name in the slice.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub of: DeviceType,
    /// Whether it is in the node's slices.
    pub published: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it may be allocated several times.
    pub shared: bool,
    /// Claims and pods that have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    /// Name of the link on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_name: Option<String>,
    /// The kernel's kind of the link, or the driver of its hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Operational state as the kernel names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oper_state: Option<String>,
    /// Addresses with prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNetwork>,
    /// Speed in Mbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mbps: Option<u32>,
    /// PCI address of the device under the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<String>,
    /// NUMA node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// The network, of a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// A claim that has a device, and its pod once the interface is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The claim.
    pub claim: ClaimRef,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Name of the interface in the pod.
    pub interface: String,
}

/// Claims that are prepared, with the policies and limits in force, and who the named peers of the policies are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// The claims.
    pub claims: Vec<Checkpoint>,
    /// The peers.
    pub peers: Vec<Told>,
}

impl Devices {
    /// What `rule` makes of the links and networks, and who has them.
    #[must_use]
    pub fn decide(
        source: Source,
        inventory: &Inventory,
        networks: &[std::sync::Arc<Network>],
        rule: &Rule,
        checkpoints: &[Checkpoint],
    ) -> Self {
        let decided = view(inventory, networks, rule);
        let mut users = users(checkpoints);
        let mut used_by = |device: &str| users.remove(device).unwrap_or_default();
        let links = decided.links.into_iter().map(|(device, decision)| {
            let mut shown = link(device, decision.err());
            shown.users = used_by(&shown.name);
            shown
        });
        let mut devices: Vec<_> = links.collect();
        devices.extend(decided.ports.into_iter().map(|(network, device)| Shown {
            users: used_by(&port_device(&network)),
            mtu: mtu(&device),
            network: Some(network),
            ..Shown::new(device.name, DeviceType::Port, true, true)
        }));
        devices.sort_by(|a, b| (!a.published, a.of, &a.name).cmp(&(!b.published, b.of, &b.name)));
        let rule = RuleInForce {
            driver: rule.driver().to_owned(),
            publish: rule.to_string(),
            share: rule.share_text().map(str::to_owned),
            allow_default_route: rule.allows_default_route(),
        };
        Self { source, rule, devices, problems: decided.problems }
    }
}

impl Shown {
    fn new(name: String, of: DeviceType, published: bool, shared: bool) -> Self {
        Self {
            name,
            of,
            published,
            reason: None,
            shared,
            users: Vec::new(),
            if_name: None,
            kind: None,
            mac: None,
            mtu: None,
            oper_state: None,
            addresses: Vec::new(),
            speed_mbps: None,
            pci_address: None,
            numa_node: None,
            network: None,
        }
    }
}

fn link(device: Device, left_out: Option<String>) -> Shown {
    let mut shown = Shown {
        if_name: Some(device.ifname),
        kind: device.kind.or(device.driver),
        mac: device.mac,
        mtu: Some(device.mtu),
        oper_state: Some(device.oper_state),
        addresses: device.addresses,
        speed_mbps: device.speed_mbps,
        pci_address: device.pci_address,
        numa_node: device.numa_node,
        ..Shown::new(device.name, DeviceType::Link, left_out.is_none(), device.shared)
    };
    shown.reason = left_out;
    shown
}

fn mtu(port: &k8s_openapi::api::resource::v1::Device) -> Option<u32> {
    let mtu = port.attributes.as_ref()?.get("mtu")?.int?;
    u32::try_from(mtu).ok()
}

/// Who has which device.
fn users(checkpoints: &[Checkpoint]) -> BTreeMap<String, Vec<User>> {
    let mut users: BTreeMap<String, Vec<User>> = BTreeMap::new();
    for checkpoint in checkpoints {
        for interface in &checkpoint.interfaces {
            let attachment = interface.attachment.as_ref();
            users.entry(interface.plan.device.clone()).or_default().push(User {
                claim: checkpoint.claim.clone(),
                pod: attachment.map(|attachment| attachment.sandbox.pod.clone()),
                interface: interface.plan.name.clone(),
            });
        }
    }
    users
}
