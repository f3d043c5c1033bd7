//! Claims: configuration, the pure plan, and the checkpoint of what was done about them.

pub mod config;
pub mod plan;
pub mod service;
pub mod store;

use std::{fmt, path::PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::{EndpointId, Isolation, limits::Limits, policy::Policy},
    link::{Home, MacAddr, Route},
};

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

/// What is to be done for a claim, decided before the sandbox exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// For which claim.
    pub claim: ClaimRef,
    /// The pods it is reserved for (`status.reservedFor`).
    pub pods: Vec<PodRef>,
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
    /// Name of the host link that the device stands for.
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
    /// What the interface may talk to; `None` is everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// How much it may send and be sent; `None` is the datapath's own limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// The sandbox a claim's interfaces are put into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Runtime's sandbox id.
    pub id: String,
    /// Its pod.
    pub pod: PodRef,
    /// Path of its network namespace.
    pub netns: PathBuf,
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
    /// What the link was at home.
    pub home: Home,
    /// Index in the sandbox, once it is there.
    pub pod_ifindex: Option<u32>,
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
    /// Where the link is; `None` means at home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
}

impl InterfaceRecord {
    /// Planned, and nothing done yet.
    #[must_use]
    pub const fn planned(plan: InterfacePlan) -> Self {
        Self { plan, reserved: None, attachment: None }
    }
}

/// The checkpoint of one claim: one file, replaced whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Which claim.
    pub claim: ClaimRef,
    /// Pods it is reserved for.
    pub pods: Vec<PodRef>,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceRecord>,
}
