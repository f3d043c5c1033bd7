//! The cluster behind one narrow seam: an API server, or a folder of YAML objects.

mod event_object;
pub mod in_use;
pub mod kube;
pub mod lease;
pub mod pools;
pub mod reach;
pub mod rights;
pub mod standalone;
pub mod versions;
pub mod watch;

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, ResourceClaim, ResourceSlice};

use crate::{
    claim::{ClaimRef, PodRef},
    network::{Declared, NetworkRef, spec::NetworkStatus},
};

/// Object an Event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A ResourceClaim.
    Claim(ClaimRef),
    /// A Pod.
    Pod(PodRef),
    /// A Network.
    Network(NetworkRef),
    /// The node itself.
    Node,
}

/// Severity of an Event (core/v1 `Event.type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Information.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What happened, for `kubectl describe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// About what.
    pub subject: Subject,
    /// Severity.
    pub event_type: EventType,
    /// CamelCase reason, for machines (`LinkAttached`, `AttachFailed`, …).
    pub reason: &'static str,
    /// What the driver was doing (`Prepare`, `Attach`, `Return`, …).
    pub action: &'static str,
    /// For people; at most 1024 bytes are kept.
    pub note: String,
}

/// The node as the API knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRef {
    /// Node name.
    pub name: String,
    /// Node UID, owner of the slices; `None` in standalone mode.
    pub uid: Option<String>,
}

/// What a cluster verb can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The object is not there (any more).
    #[error("{kind} {name} not found")]
    NotFound {
        /// Kind.
        kind: &'static str,
        /// `namespace/name` or `name`.
        name: String,
    },
    /// Somebody else wrote first: read again and retry.
    #[error("{kind} {name} was changed by somebody else: {message}")]
    Conflict {
        /// Kind.
        kind: &'static str,
        /// `namespace/name` or `name`.
        name: String,
        /// The server's words.
        message: String,
    },
    /// The server refused for a reason that a retry will not cure (invalid, forbidden).
    #[error("{kind} {name} was refused ({code}): {message}")]
    Refused {
        /// Kind.
        kind: &'static str,
        /// `namespace/name` or `name`.
        name: String,
        /// HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// Transport, time-out, server error: worth a retry.
    #[error("{action}")]
    Unavailable {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The objects the driver reads and writes. Objects are always of resource.k8s.io/v1; an implementation
/// speaks whichever version its server serves.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// This node.
    async fn node(&self) -> Result<NodeRef, ClusterError>;
    /// One claim.
    async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, ClusterError>;
    /// Whether a pod runs in the host's network (`hostNetwork`). One that is gone, or was made again, does not.
    async fn uses_host_network(&self, pod: &PodRef) -> Result<bool, ClusterError>;
    /// Whether a pod is being deleted, is gone, or was made again under its name.
    async fn is_leaving(&self, pod: &PodRef) -> Result<bool, ClusterError>;
    /// All slices of this driver on this node.
    async fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError>;
    /// Create a slice (its `metadata.generateName` is set); returns it as stored.
    async fn create_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError>;
    /// Replace a slice; `metadata.resourceVersion` must be set and current.
    async fn update_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError>;
    /// Delete a slice; one that is gone is no error.
    async fn delete_slice(&self, name: &str) -> Result<(), ClusterError>;
    /// Server-side apply of this driver's entries of `status.devices` under its own field manager. `uid` guards
    /// against a claim that was deleted and made again under the same name.
    async fn apply_device_status(
        &self,
        claim: &ClaimRef,
        devices: &[AllocatedDeviceStatus],
    ) -> Result<(), ClusterError>;
    /// Record an Event.
    async fn event(&self, event: &Event) -> Result<(), ClusterError>;
    /// Labels of a namespace.
    async fn namespace_labels(&self, name: &str) -> Result<BTreeMap<String, String>, ClusterError> {
        Err(ClusterError::NotFound { kind: "Namespace", name: name.to_owned() })
    }
    /// Every Network, valid or not: the whole set now, and again after each change. After an error it goes on by
    /// itself; the set is what it was. A cluster that has no such objects has none for ever.
    fn networks(&self) -> BoxStream<'static, Result<Vec<Declared>, ClusterError>> {
        futures::stream::iter([Ok(Vec::new())]).chain(futures::stream::pending()).boxed()
    }
    /// Server-side apply of the conditions of a Network. The UID guards against one that was made again.
    async fn apply_network_status(
        &self,
        network: &NetworkRef,
        status: &NetworkStatus,
    ) -> Result<(), ClusterError> {
        let _ = status;
        Err(ClusterError::NotFound { kind: "Network", name: network.name.clone() })
    }
    /// The same for the counts of nodes and members, which one node of the cluster writes.
    async fn apply_network_counts(
        &self,
        network: &NetworkRef,
        nodes: u32,
        members: u32,
    ) -> Result<(), ClusterError> {
        let _ = (nodes, members);
        Err(ClusterError::NotFound { kind: "Network", name: network.name.clone() })
    }
}

/// Everything a cluster is asked.
pub trait WholeCluster:
    Cluster + in_use::NetworkUse + lease::Leases + pools::Pools + reach::Reach + watch::Watch
{
}

impl<T> WholeCluster for T where
    T: Cluster + in_use::NetworkUse + lease::Leases + pools::Pools + reach::Reach + watch::Watch
{
}
