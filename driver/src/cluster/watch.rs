//! What changes in the cluster, as it changes.

use std::sync::Arc;

use futures::stream::BoxStream;

use crate::network::facts::{ClaimFacts, NodeFacts, PodFacts, Seen};

/// Watches over objects of the whole cluster. Each begins with a list, and with another one whenever it has missed
/// something. They go on until they are dropped; what cannot be read now is tried again.
pub trait Watch: Send + Sync {
    /// Claims of all namespaces, by UID.
    fn claims(self: Arc<Self>) -> BoxStream<'static, Seen<ClaimFacts, String>>;
    /// Nodes, by name.
    fn nodes(self: Arc<Self>) -> BoxStream<'static, Seen<NodeFacts, String>>;
    /// Pods with their labels, by `namespace/name`. Watched only while a policy selects pods.
    fn pods(self: Arc<Self>) -> BoxStream<'static, Seen<PodFacts, String>>;
}
