//! Networks: what a platform team declares once, and pods claim ports on.
//!
//! [`spec`] is the object, [`validate`] and [`accept`] say which objects count, [`identity`] gives them numbers,
//! [`watch`] keeps [`Networks`] as the cluster has them, [`join`] says who may have a port, and
//! [`offer`] what a claim finds when it is prepared.

pub mod accept;
pub mod access;
pub mod addresses;
pub mod block_pools;
pub mod blocks;
pub mod changeover;
pub mod cleanup;
pub mod conditions;
pub mod demand;
pub mod facts;
pub mod follow;
pub mod identity;
pub mod in_use;
pub mod join;
pub mod known;
mod labels;
pub mod leader;
pub mod members;
pub mod mtu;
pub mod names;
pub mod nodes;
pub mod offer;
pub mod peers;
pub mod pools;
pub mod published;
pub mod report;
pub mod scope;
pub mod share;
pub mod spec;
pub mod status;
mod streams;
pub mod transport;
pub mod uplink;
pub mod validate;
pub mod watch;
pub mod window;

pub use accept::Declared;
pub use known::{Network, Networks};

use serde::{Deserialize, Serialize};

/// Number of a network in this node's maps. Never 0. Another node may give another number to the same network.
pub type NetworkId = u32;

/// A network by name and identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRef {
    /// Name of the object, which is cluster-scoped.
    pub name: String,
    /// UID: a network made again under the same name is another network.
    pub uid: String,
}
