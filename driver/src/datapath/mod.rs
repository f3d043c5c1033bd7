//! The programs on every interface handed to a pod, behind one narrow seam.

mod block;
pub mod cgroup;
mod clsact;
mod control;
pub mod events;
mod explain;
#[cfg(any(test, feature = "failpoints"))]
#[doc(hidden)]
pub mod fake;
mod fallback;
pub mod features;
mod foreign;
mod guard;
mod kernel;
pub mod limits;
mod load;
pub mod networks;
mod object;
mod pins;
pub mod policy;
mod remote;
pub mod state;
pub mod sweep;
mod sys;
mod tables;
mod upgrade;
mod verify;

pub use control::NetworkMember;
pub use explain::Explanation;
pub use features::Features;
pub use kernel::AyaDatapath;
pub use networks::{NetworkUplink, Transport};
pub use object::programs_digest;
pub use pins::DEFAULT_ROOT;
pub(crate) use sys::{namespace_type, netns_cookie, watch_socket};
pub use upgrade::Upgrade;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::link::MacAddr;

/// An endpoint: one protected interface of one pod. Never 0.
///
/// Programs know themselves by this id (a constant in their read-only data), never by interface index: an
/// index is per network namespace and collides.
pub type EndpointId = u32;

/// How an interface is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Programs on the link; no spoofing; default deny until ready. An attach fails if it cannot be had.
    #[default]
    Strict,
    /// As strict where the kernel has tcx. Without, the programs are filters inside the pod: a pod with
    /// `CAP_NET_ADMIN` can take them off until the next look at them.
    #[serde(rename = "best-effort")]
    BestEffort,
    /// No programs at all.
    Off,
}

impl Isolation {
    /// To compare: the more, the stricter.
    #[must_use]
    pub fn strength(self) -> u8 {
        match self {
            Self::Strict => 2,
            Self::BestEffort => 1,
            Self::Off => 0,
        }
    }
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::BestEffort => "best-effort",
            Self::Off => "off",
        })
    }
}

/// Where the programs of an endpoint sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// On the link itself, which is then moved into the pod: ingress is towards the pod.
    MovedLink,
    /// The same, on a link whose hardware address others have too, such as an ipvlan link.
    SharedMac,
    /// On the host end of a veth pair: ingress is from the pod.
    HostVeth,
}

/// What an endpoint may be on the wire: the facts the programs enforce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSpec {
    /// Its id.
    pub id: EndpointId,
    /// Where its programs sit.
    pub placement: Placement,
    /// The isolated network it belongs to; 0 is the wire of the moved link itself.
    pub network: u32,
    /// The only source hardware address it may send from.
    pub mac: MacAddr,
    /// Its addresses with prefix. It may send from these (and, on IPv6, from the link-local address of its
    /// MAC) and from nothing else; with none it may speak no IP.
    pub addresses: Vec<IpNetwork>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A program on a link that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    /// Hook as bpftool names it: `tcx/ingress`, `tcx/egress`, `clsact`, `xdp`.
    pub hook: String,
    /// Kernel's program id, 0 where it cannot be told.
    pub id: u32,
    /// Program name, empty where it cannot be told.
    pub name: String,
}

/// Programs found attached and pinned for an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    /// Hook: `tcx/ingress` or `tcx/egress`; `clsact/ingress` or `clsact/egress` without tcx.
    pub hook: String,
    /// Kernel's program id.
    pub id: u32,
    /// Program name.
    pub name: String,
    /// Pin of the bpf link, or of the program that a filter runs.
    pub pin: PathBuf,
    /// Interface index the link is attached to, in the namespace the device is in now; 0 once the device is gone.
    pub ifindex: u32,
}

/// Counters of one endpoint and one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Frames let through.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Frames dropped, for all reasons together.
    pub dropped: u64,
    /// Of `packets`, those sent straight into the namespace of another pod of the node. Only from the pod.
    pub fast: u64,
    /// Of `packets`, those for another pod of the node that took its own program: fragments, datagrams with options, ICMP
    /// errors, and everything on a kernel that cannot redirect to a peer.
    pub slow: u64,
    /// Of `packets`, those that the programs sent out of an uplink themselves, or took in from one.
    pub uplink: u64,
    /// Of `packets`, those that went through a tunnel to another node, or came from one.
    pub overlay: u64,
}

/// Everything counted for one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStats {
    /// Sent by the pod.
    pub from_pod: Traffic,
    /// Sent to the pod.
    pub to_pod: Traffic,
    /// Drops by reason name (the list in driver-common), only those above 0.
    pub drops: BTreeMap<String, u64>,
}

/// What a datapath verb can fail with.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel lacks something `strict` needs.
    #[error("this kernel lacks {feature}: {consequence}")]
    Unsupported {
        /// For example `tcx (Linux 6.6)`.
        feature: &'static str,
        /// What can therefore not be done.
        consequence: &'static str,
    },
    /// This process may not use BPF. Nothing is said about the kernel.
    #[error(
        "not enough rights for BPF: CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN are needed; run this as root"
    )]
    NotPermitted,
    /// No daemon has made its maps there.
    #[error("Netferry does not run on this node: its programs and maps are not below {}", root.display())]
    Absent {
        /// Where they would be.
        root: PathBuf,
    },
    /// Programs of somebody else sit on the link.
    #[error("link {link} carries programs that are not ours: {programs}")]
    Foreign {
        /// The link.
        link: String,
        /// Hook, id and name of each.
        programs: String,
    },
    /// The programs are not where they must be.
    #[error("endpoint {id}: {problem}")]
    NotProtected {
        /// Which endpoint.
        id: EndpointId,
        /// What is wrong with its protection.
        problem: String,
    },
    /// Loading, attaching, pinning or a map operation failed.
    #[error("{action}")]
    Bpf {
        /// What was tried.
        action: String,
        /// What the kernel or loader said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The kernel's programs and maps, in the verbs an attach needs. All calls are bpf system calls: short, and
/// safe to repeat. Links are named by index in the namespace of the daemon, before they move.
pub trait Datapath: Send + Sync {
    /// Programs of others on the host link.
    fn foreign_programs(&self, ifindex: u32) -> Result<Vec<ForeignProgram>, DatapathError>;
    /// Load the endpoint's programs, attach them first on the host link and pin the links. The endpoint is
    /// written but not ready: everything is dropped, in both directions, until [`Datapath::set_ready`].
    fn attach(&self, ifindex: u32, spec: &EndpointSpec) -> Result<Vec<AttachedProgram>, DatapathError>;
    /// Load ahead, without a link, what attach would load: most of its time is the kernel's verifier. For the time
    /// between the kubelet's prepare and the sandbox; an attach without it works too. A detach forgets it.
    fn preload(&self, spec: &EndpointSpec) -> Result<(), DatapathError>;
    /// Whether programs stay on a device that moves to another namespace. Where they do not, an attach to a moved
    /// link is refused, and [`Datapath::attach_inside`] is all there is for it.
    fn travels(&self) -> bool;
    /// As [`Datapath::attach`], after the move: on a link, still down, in the namespace at `netns`, with its index
    /// there. Whoever may change links in that namespace can take the programs off.
    fn attach_inside(
        &self,
        netns: &Path,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<Vec<AttachedProgram>, DatapathError>;
    /// Check that both programs are pinned, attached to `ifindex` (as numbered in the namespace the link is in
    /// now) and, where the kernel can tell, first.
    fn verify(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError>;
    /// As [`Datapath::verify`], from a thread in the namespace the link is in now: there the kernel tells the
    /// order, and it must be ours first.
    fn verify_inside(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError>;
    /// Whether the programs of an endpoint are on the link with this index in the namespace at `netns`.
    fn serves(&self, id: EndpointId, netns: &Path, ifindex: u32) -> Result<bool, DatapathError>;
    /// Put a policy in force for an attached endpoint, in the place of the one before: a frame is judged by one
    /// of them whole. Nothing is changed if it does not fit into the maps. Peers with a name are not known: a rule that
    /// allows is for none of them, one that denies for everybody.
    /// It is pinned with the endpoint, and goes with it at detach.
    fn set_policy(&self, id: EndpointId, policy: &policy::Policy) -> Result<(), DatapathError>;
    /// As [`Datapath::set_policy`], with who the peers with a name are.
    fn set_policy_for(
        &self,
        id: EndpointId,
        policy: &policy::Policy,
        peers: &policy::Resolved,
    ) -> Result<(), DatapathError>;
    /// Set the rate limits of an attached endpoint, in the place of those before. Their state starts afresh. They
    /// are pinned with the endpoint, and go with it at detach.
    fn set_limits(&self, id: EndpointId, limits: &limits::Limits) -> Result<(), DatapathError>;
    /// Put the early drop (XDP) on the host link of an attached endpoint, in the link's driver. `Some` if that cannot be
    /// had, and why: all that it drops the other programs drop too. It is pinned with the endpoint, moves with the link,
    /// and goes at detach.
    fn guard_link(&self, id: EndpointId, ifindex: u32) -> Result<Option<String>, DatapathError>;
    /// Refuse the sockets of the pod with this cgroup (a folder of the unified hierarchy) that send around the programs of
    /// an attached endpoint. May be called again; goes at detach.
    fn guard_pod(&self, id: EndpointId, cgroup: &Path) -> Result<(), DatapathError>;
    /// The guards of an endpoint that are in force: `xdp`, `cgroup/setsockopt`, `cgroup/lsm`.
    fn guards(&self, id: EndpointId) -> Result<Vec<AttachedProgram>, DatapathError>;
    /// The parts of what the maps hold that are not as wanted, of the endpoints of which any is not.
    fn compare(
        &self,
        wanted: &[state::Wanted],
    ) -> Result<BTreeMap<EndpointId, Vec<state::MapPart>>, DatapathError>;
    /// Put right what the maps hold for an attached endpoint, and its gate. Its counters go on.
    fn mend(&self, wanted: &state::Wanted) -> Result<(), DatapathError>;
    /// Open or close the gate of an endpoint.
    fn set_ready(&self, id: EndpointId, ready: bool) -> Result<(), DatapathError>;
    /// The interface index the endpoint's pinned links are attached to now, in whatever namespace the device
    /// is; `None` when the device or the pins are gone. An error where the kernel does not tell, because there are
    /// no links.
    fn attached_ifindex(&self, id: EndpointId) -> Result<Option<u32>, DatapathError>;
    /// Close the gate, detach, unpin, and forget the endpoint's map entries. Succeeds if there is nothing.
    fn detach(&self, id: EndpointId) -> Result<(), DatapathError>;
    /// Ids of all endpoints that have pins or map entries.
    fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError>;
    /// The highest id that an endpoint has had since the maps were made: what is left of its flows must not become those of
    /// another.
    fn last_endpoint(&self) -> Result<EndpointId, DatapathError>;
    /// Counters of an endpoint.
    fn stats(&self, id: EndpointId) -> Result<EndpointStats, DatapathError>;
}

fn bpf_error(
    action: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> DatapathError {
    DatapathError::Bpf { action: action.into(), source: source.into() }
}

fn not_protected(id: EndpointId, problem: impl Into<String>) -> DatapathError {
    DatapathError::NotProtected { id, problem: problem.into() }
}

/// Answer [`DatapathError::Foreign`] if there are programs of others.
fn refuse_foreign(ifindex: u32, programs: &[ForeignProgram]) -> Result<(), DatapathError> {
    if programs.is_empty() {
        return Ok(());
    }
    let each: Vec<String> = programs
        .iter()
        .map(|program| match (program.id, program.name.as_str()) {
            (0, "") => program.hook.clone(),
            (0, name) => format!("{} {name}", program.hook),
            (id, "") => format!("{} id {id}", program.hook),
            (id, name) => format!("{} {name} (id {id})", program.hook),
        })
        .collect();
    Err(DatapathError::Foreign { link: format!("with index {ifindex}"), programs: each.join(", ") })
}
