//! Claims: configuration, the pure plan, and the checkpoint of what was done about them.

pub mod config;
pub mod made;
pub mod plan;
pub mod service;
pub mod store;
pub mod wait;

use std::{fmt, path::PathBuf};

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::{EndpointId, Isolation, limits::Limits, policy::Policy},
    link::{Home, MacAddr, Namespace, Route, SubInterface},
    netns::NetnsId,
};

pub use made::{Asked, Given, Made, Port, Upper};

/// A ResourceClaim by name and identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClaimRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID: a claim made again under the same name is another claim.
    pub uid: String,
}

impl fmt::Display for ClaimRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod by name and identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why a pod of the host's network gets no interface, in a sentence.
#[must_use]
pub fn on_host_network(pod: &PodRef) -> String {
    format!(
        "pod {pod} uses the host's network (hostNetwork: true) and claims network devices: a claimed device is put into the \
         pod's own network namespace; remove the claim or hostNetwork"
    )
}

/// What is to be done for a claim, decided before the sandbox exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// For which claim.
    pub claim: ClaimRef,
    /// The pods it is reserved for (`status.reservedFor`).
    pub pods: Vec<PodRef>,
    /// Whether later pods may name it; see [`Checkpoint::shareable`].
    pub shareable: bool,
    /// One per allocated device of this driver.
    pub interfaces: Vec<InterfacePlan>,
}

/// One interface to put into the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfacePlan {
    /// Request of the claim (`request` or `request/subrequest`).
    pub request: String,
    /// Pool of the allocated device.
    pub pool: String,
    /// Allocated device.
    pub device: String,
    /// Which share of the device, where it is shared (`shareID` of the allocation).
    #[serde(default, rename = "shareID", skip_serializing_if = "Option::is_none")]
    pub share_id: Option<String>,
    /// Name of the link on the host: the one that the device stands for, which is moved or gets a sub-interface, or, of
    /// a port, the host's end of its pair.
    pub host_link: String,
    /// Name in the pod; unique over the pod's claims.
    pub name: String,
    /// Hardware address in the pod; `None` keeps the link's own.
    pub hardware_addr: Option<MacAddr>,
    /// MTU in the pod; `None` keeps the link's own.
    pub mtu: Option<u32>,
    /// Addresses in the pod.
    pub addresses: Vec<IpNetwork>,
    /// Routes in the pod.
    pub routes: Vec<Route>,
    /// Protection.
    pub isolation: Isolation,
    /// Whether a moved link of isolation `strict` gets the early drop (XDP), where it can be had.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub early_drop: bool,
    /// What the interface may talk to; `None` is everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// How much it may send and be sent; `None` is the datapath's own limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What is made for the claim; `None` for a link of the host, which is moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
const fn is_yes(value: &bool) -> bool {
    *value
}

/// What tells an interface of a claim from the claim's others. The device alone does not: a claim may have several
/// ports of one network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceKey {
    /// Request of the claim.
    pub request: String,
    /// Allocated device.
    pub device: String,
    /// Which share of the device.
    pub share_id: Option<String>,
}

impl InterfacePlan {
    /// See [`InterfaceKey`].
    #[must_use]
    pub fn key(&self) -> InterfaceKey {
        let Self { request, device, share_id, .. } = self;
        InterfaceKey { request: request.clone(), device: device.clone(), share_id: share_id.clone() }
    }

    /// The port that is made, if it is one.
    #[must_use]
    pub const fn port(&self) -> Option<&Port> {
        match &self.made {
            Some(Made::Port(port)) => Some(port),
            _ => None,
        }
    }

    /// Whether it is a port without an address. It has yet to be leased, or was lost: nothing is attached like this.
    #[must_use]
    pub const fn lacks_address(&self) -> bool {
        self.port().is_some() && self.addresses.is_empty()
    }

    /// The sub-interface that is made, if it is one.
    #[must_use]
    pub const fn sub_interface(&self) -> Option<SubInterface> {
        match &self.made {
            Some(Made::SubInterface(upper)) => Some(upper.sub_interface),
            _ => None,
        }
    }
}

/// The sandbox a claim's interfaces are put into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Runtime's sandbox id.
    pub id: String,
    /// Its pod.
    pub pod: PodRef,
    /// Path that the runtime gave for its network namespace. The sandbox lives as long as it leads to `namespace`.
    pub netns: PathBuf,
    /// Its network namespace.
    pub namespace: NetnsId,
    /// Where the driver holds the namespace, whatever becomes of the sandbox.
    pub hold: PathBuf,
}

impl Sandbox {
    /// The namespace, by the driver's own path.
    #[must_use]
    pub fn held(&self) -> Namespace {
        Namespace::at(&self.hold)
    }
}

/// How far an interface has come. Written before the action it names, so that a crash is always found in the
/// state that the next start must clear up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Programs, move and settings are being made: on restart, roll back.
    Attaching,
    /// In the pod, protected and up.
    Attached,
    /// On the way home: on restart, go on.
    Returning,
}

/// An interface on its way into, in, or on its way out of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// How far.
    pub step: Step,
    /// Which sandbox.
    pub sandbox: Sandbox,
    /// The endpoint whose programs are on it; `None` without isolation.
    pub endpoint: Option<EndpointId>,
    /// What the link was at home; `None` for one that is made for the claim and has no home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Home>,
    /// Index in the sandbox, once it is there.
    pub pod_ifindex: Option<u32>,
    /// Why the pod does not have it any more although the sandbox lives: it was deleted, or its NIC is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

impl Attachment {
    /// Whether the sandbox has the interface, as far as the driver has seen.
    #[must_use]
    pub fn is_in(&self, sandbox_id: &str) -> bool {
        self.sandbox.id == sandbox_id && self.step == Step::Attached && self.lost.is_none()
    }
}

/// What was done about one planned interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceRecord {
    /// The plan.
    pub plan: InterfacePlan,
    /// The endpoint whose closed programs are on the link already while it waits at home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<EndpointId>,
    /// The endpoint whose closed programs have yet to be taken off the link, which is home again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removing: Option<EndpointId>,
    /// Where the link is; `None` means at home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
}

impl InterfaceRecord {
    /// Planned, and nothing done yet.
    #[must_use]
    pub const fn planned(plan: InterfacePlan) -> Self {
        Self { plan, reserved: None, removing: None, attachment: None }
    }
}

/// The checkpoint of one claim: one file, replaced whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Which claim.
    pub claim: ClaimRef,
    /// Pods it is reserved for, as far as the driver has seen. One of them has the interfaces at a time.
    pub pods: Vec<PodRef>,
    /// Whether later pods may name the claim: it was not made from a template for one pod. The kubelet prepares a claim
    /// once, however many pods name it.
    #[serde(default)]
    pub shareable: bool,
    /// When it was prepared; `None` in a checkpoint of a build that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceRecord>,
}

impl Checkpoint {
    /// The checkpoint of a claim that was made for these pods alone.
    #[must_use]
    pub const fn new(claim: ClaimRef, pods: Vec<PodRef>, interfaces: Vec<InterfaceRecord>) -> Self {
        Self { claim, pods, shareable: false, since: None, interfaces }
    }

    /// The pods in whose sandboxes interfaces of the claim are.
    pub fn holders(&self) -> impl Iterator<Item = &PodRef> {
        self.interfaces.iter().filter_map(|interface| Some(&interface.attachment.as_ref()?.sandbox.pod))
    }

    /// Whether another checkpoint differs from this one in its steps at most.
    #[must_use]
    pub fn plans_as(&self, other: &Self) -> bool {
        let Self { claim, pods, shareable, since, interfaces } = other;
        let plans = |interfaces: &[InterfaceRecord], others: &[InterfaceRecord]| {
            interfaces.iter().map(|it| &it.plan).eq(others.iter().map(|it| &it.plan))
        };
        self.claim == *claim
            && self.pods == *pods
            && self.shareable == *shareable
            && self.since == *since
            && plans(&self.interfaces, interfaces)
    }

    /// Whether the claim is reserved for the pod.
    #[must_use]
    pub fn is_for(&self, pod_uid: &str) -> bool {
        self.pods.iter().any(|pod| pod.uid == pod_uid)
    }

    /// The record of an interface.
    #[must_use]
    pub fn interface(&self, key: &InterfaceKey) -> Option<&InterfaceRecord> {
        self.interfaces.iter().find(|interface| interface.plan.key() == *key)
    }

    /// The same, to change it.
    pub fn interface_mut(&mut self, key: &InterfaceKey) -> Option<&mut InterfaceRecord> {
        self.interfaces.iter_mut().find(|interface| interface.plan.key() == *key)
    }
}
