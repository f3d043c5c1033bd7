//! What changes in the cluster, as it changes.

use std::sync::Arc;

use futures::stream::BoxStream;

use crate::network::{
    facts::{ClaimFacts, NamespaceFacts, NodeFacts, PodFacts, Seen},
    nodes::Needs,
    published::SliceFacts,
    scope::Scope,
};

/// Which slices of this driver are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlicesOf {
    /// Those of this node, of whichever pool.
    ThisNode,
    /// Those that belong to no node.
    NoNode,
}

/// A slice as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceVersion {
    /// Its name.
    pub name: String,
    /// Its resource version.
    pub version: String,
    /// The name of its pool.
    pub pool: String,
}

/// Watches over objects of the cluster. Each but nodes begins with a list, and with another one whenever it has missed
/// something. They go on until they are dropped; what cannot be read now is tried again.
pub trait Watch: Send + Sync {
    /// Whether a watch over a part of the claims costs less than one over all. Else only all of them are watched.
    fn narrows(&self) -> bool;
    /// Claims, by UID.
    fn claims(self: Arc<Self>, scope: &Scope) -> BoxStream<'static, Seen<ClaimFacts, String>>;
    /// Namespaces with their labels, by name. Watched only while a network selects some of them.
    fn namespaces(self: Arc<Self>) -> BoxStream<'static, Seen<NamespaceFacts, String>>;
    /// Nodes, by name: all of them with a list, or those alone that are needed, one by one, and this one.
    fn nodes(self: Arc<Self>, needs: Needs) -> BoxStream<'static, Seen<NodeFacts, String>>;
    /// Versions of this driver's slices, by name: those of this node, or those of no node. Who writes them watches whether
    /// anybody else does.
    fn slice_versions(self: Arc<Self>, of: SlicesOf) -> BoxStream<'static, Seen<SliceVersion, String>>;
    /// Slices of this driver, by name. Watched on the elected node, while a network has blocks.
    fn slices(self: Arc<Self>) -> BoxStream<'static, Seen<SliceFacts, String>>;
    /// Pods with their labels, by `namespace/name`. Watched only while a policy selects pods.
    fn pods(self: Arc<Self>, scope: &Scope) -> BoxStream<'static, Seen<PodFacts, String>>;
}
