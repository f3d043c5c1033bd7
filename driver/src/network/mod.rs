//! Networks: what a platform team declares once, and pods claim ports on.

pub mod access;
pub mod known;
pub mod names;
pub mod spec;

pub use known::{Network, Networks};

use serde::{Deserialize, Serialize};

/// Number of a network in this node's maps. Never 0. Another node may give another number to the same network.
pub type NetworkId = u32;

/// A network by name and identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRef {
    /// Name of the object, which is cluster-scoped.
    pub name: String,
    /// UID: a network made again under the same name is another network.
    pub uid: String,
}
