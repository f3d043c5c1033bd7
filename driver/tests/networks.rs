//! Networks as objects: their definition and admission policy, and their way from an API server or a folder into the
//! node's slices.

mod support;

#[path = "networks/daemon.rs"]
mod daemon;
#[path = "networks/driver_admission.rs"]
mod driver_admission;
#[path = "networks/folder.rs"]
mod folder;
#[path = "networks/follow.rs"]
mod follow;
#[path = "networks/in_use.rs"]
mod in_use;
#[path = "networks/manifests.rs"]
mod manifests;
#[path = "networks/nodes.rs"]
mod nodes;
#[path = "networks/server.rs"]
mod server;

/// A table in which nobody has an address.
fn no_members() -> netferry::network::follow::SharedTable {
    std::sync::Arc::new(std::sync::Mutex::new(netferry::network::members::MemberTable::new("n1")))
}
