//! What an attach, a return or a recovery tells the claim's status and its Events.

use std::fmt;

use ipnetwork::IpNetwork;

use crate::{
    claim::{ClaimRef, PodRef},
    datapath::{AttachedProgram, EndpointId},
    link::MacAddr,
};

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Interfaces that are in the pod now, protected and up.
    pub attached: Vec<AttachedInterface>,
    /// Claims whose devices have come home.
    pub returned: Vec<ClaimRef>,
    /// What somebody should know, for Events.
    pub problems: Vec<Problem>,
}

/// An interface in a pod, as the claim's status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedInterface {
    /// Its claim.
    pub claim: ClaimRef,
    /// Its pod.
    pub pod: PodRef,
    /// Request of the claim.
    pub request: String,
    /// Pool of the device.
    pub pool: String,
    /// The device.
    pub device: String,
    /// Name in the pod.
    pub name: String,
    /// Index in the pod.
    pub ifindex: u32,
    /// Hardware address in the pod.
    pub mac: Option<MacAddr>,
    /// Addresses in the pod.
    pub addresses: Vec<IpNetwork>,
    /// Its endpoint; `None` without isolation.
    pub endpoint: Option<EndpointId>,
    /// Programs on it; none without isolation.
    pub programs: Vec<AttachedProgram>,
}

/// Why somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The link's old name belongs to another link now; it is home under a new one.
    NameTaken,
    /// The link was deleted, by its pod or with its namespace.
    LinkGone,
    /// The link was gone with its pod's namespace, and has been made anew from its record.
    Remade,
    /// The link is not home yet: to be tried again.
    NotReturned,
    /// The link is home, but a part of what it was could not be put back.
    NotRestored,
    /// Programs or map entries could not be taken away: to be tried again.
    ProgramsLeft,
    /// An interface in a pod had lost its programs, and was taken out.
    Unprotected,
    /// A live sandbox could not get its interfaces at a restart.
    NotAttached,
    /// A network namespace was held for no claim: it was looked into, and let go of.
    NamespaceHeld,
}

impl Reason {
    /// As in an Event's `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NameTaken => "LinkNameTaken",
            Self::LinkGone => "LinkGone",
            Self::Remade => "LinkRemade",
            Self::NotReturned => "LinkNotReturned",
            Self::NotRestored => "LinkNotRestored",
            Self::ProgramsLeft => "ProgramsLeft",
            Self::Unprotected => "LinkUnprotected",
            Self::NotAttached => "LinkNotAttached",
            Self::NamespaceHeld => "NamespaceHeld",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that went otherwise than it should, and was handled as its note says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// About which claim; `None` for what no checkpoint knows.
    pub claim: Option<ClaimRef>,
    /// About which pod.
    pub pod: Option<PodRef>,
    /// Why.
    pub reason: Reason,
    /// What happened and how it was left, in a sentence.
    pub note: String,
}
