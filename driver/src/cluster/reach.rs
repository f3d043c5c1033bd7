//! By which addresses the cluster reaches the node, and the node the cluster.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::NodeStatus;

use super::ClusterError;

/// What is known of the addresses; each set may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Each `InternalIP` of this Node.
    pub node: BTreeSet<IpAddr>,
    /// The API server as the connection names it, and the API servers behind the service `kubernetes`.
    pub api_servers: BTreeSet<IpAddr>,
}

/// Asked by the daemon, which keeps the links with these addresses on the host.
#[async_trait]
pub trait Reach: Send + Sync {
    /// The addresses now. An error if the Node or the name of the API server cannot be read.
    async fn addresses(&self) -> Result<Addresses, ClusterError>;
    /// The API server's addresses that are known without asking anybody: one that the connection names as an address.
    fn api_servers_by_configuration(&self) -> BTreeSet<IpAddr>;
}

/// Each `InternalIP` of a Node.
pub(super) fn internal(status: Option<&NodeStatus>) -> BTreeSet<IpAddr> {
    let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}
