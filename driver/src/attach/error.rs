//! What keeps a sandbox from getting its links.

use std::{fmt::Write as _, path::PathBuf};

use super::Problem;
use crate::{
    claim::{ClaimRef, PodRef, on_host_network, store::StoreError},
    datapath::{DatapathError, cgroup::CgroupError},
    link::LinkError,
    netns::NetnsError,
    telemetry::chain,
};

/// Why an attach failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The pod has claims but no network namespace of its own.
    #[error("{}", on_host_network(.0))]
    HostNetwork(PodRef),
    /// The sandbox has no network namespace that can be entered.
    #[error("the pod's sandbox has no network namespace")]
    Namespace(#[from] NetnsError),
    /// A namespace is the sandbox of one pod.
    #[error("{} is the network namespace of pod {holder}", path.display())]
    OtherSandbox {
        /// The path that the runtime gave.
        path: PathBuf,
        /// The pod whose links are in it.
        holder: PodRef,
    },
    /// Another pod has the device.
    #[error(
        "device {device} is in pod {holder}, and a device is in one pod at a time: this pod has it when that one is gone; \
         in a Deployment, `strategy: Recreate` or `maxUnavailable: 1` ends the old pod before the new one waits for it"
    )]
    InUse {
        /// The device.
        device: String,
        /// Who has it.
        holder: PodRef,
    },
    /// Two interfaces of the pod's claims cannot both be.
    #[error("{field} {value:?} is used by two interfaces of the pod's claims: {one} and {other}")]
    Conflict {
        /// What is the same: `name` or `device`.
        field: &'static str,
        /// Its value.
        value: String,
        /// First device.
        one: String,
        /// Second device.
        other: String,
    },
    /// The link is still somewhere else.
    #[error("device {device} has not come home from sandbox {sandbox}")]
    NotHome {
        /// The device.
        device: String,
        /// Where it was last.
        sandbox: String,
    },
    /// Strict isolation needs a hardware address to hold the pod to.
    #[error("link {0} has no Ethernet address, which isolation \"strict\" needs; set isolation to \"off\"")]
    NoMac(String),
    /// The pod's cgroup is not known.
    #[error("isolation \"strict\" guards the pod's sockets, by its cgroup")]
    Cgroup(#[from] CgroupError),
    /// A checkpoint that does not say what the link is at home.
    #[error("the checkpoint does not say what link {0} is at home")]
    NoHome(String),
    /// Nothing on a link that is down can be up.
    #[error(
        "link {0} is down: a sub-interface needs a parent that is up, and the driver leaves the parent as it is"
    )]
    ParentDown(String),
    /// A port whose lease is over.
    #[error(
        "the port of network {0} has lost its address, and no DHCP server gives it again; delete the pod to have another"
    )]
    NoAddress(String),
    /// The kernel's links.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The programs.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The checkpoint.
    #[error("cannot write the checkpoint")]
    Store(#[from] StoreError),
    /// A test asked for it.
    #[error("injected at {0}")]
    Injected(&'static str),
}

/// A failed attach. Every link of the pod is home again, but for what the problems say.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct AttachFailed {
    /// Which claim, where it was one.
    pub claim: Option<Box<ClaimRef>>,
    /// Which device, where it was one.
    pub device: Option<String>,
    /// Why. Told with all its causes by the text of this error.
    pub cause: Box<AttachError>,
    /// What went wrong while things were put back.
    pub problems: Vec<Problem>,
}

impl AttachFailed {
    /// Whether it failed because the sandbox has no namespace any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(&*self.cause, AttachError::Namespace(error) if error.is_gone())
    }

    pub(super) fn of_pod(cause: impl Into<AttachError>) -> Self {
        Self { claim: None, device: None, cause: Box::new(cause.into()), problems: Vec::new() }
    }

    pub(super) fn of(claim: &ClaimRef, device: &str, cause: impl Into<AttachError>) -> Self {
        Self {
            claim: Some(Box::new(claim.clone())),
            device: Some(device.to_owned()),
            cause: Box::new(cause.into()),
            problems: Vec::new(),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if let (Some(claim), Some(device)) = (&self.claim, &self.device) {
            let _ = write!(text, "claim {claim}, device {device}: ");
        }
        text.push_str(&chain(&*self.cause));
        for problem in &self.problems {
            let _ = write!(text, "; while undoing it: {}", problem.note);
        }
        text
    }
}
