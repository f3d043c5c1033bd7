//! The node's addresses, and those of its API servers.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;
use k8s_openapi::api::{core::v1::Node, discovery::v1::EndpointSlice};
use kube::Api;
use tokio::net::lookup_host;
use tracing::debug;

use super::{
    KubeCluster,
    errors::{Object, unavailable},
};
use crate::cluster::{
    ClusterError,
    reach::{Addresses, Reach, internal},
};

#[async_trait]
impl Reach for KubeCluster {
    async fn addresses(&self) -> Result<Addresses, ClusterError> {
        let object = Object::new("Node", &self.node, "read");
        let node = self.request(&object, Api::<Node>::all(self.client.clone()).get(&self.node)).await?;
        let mut api_servers = self.named().await?;
        api_servers.extend(self.behind_the_service().await);
        Ok(Addresses { node: internal(node.status.as_ref()), api_servers })
    }

    fn api_servers_by_configuration(&self) -> BTreeSet<IpAddr> {
        let host = self.server.0.trim_start_matches('[').trim_end_matches(']');
        host.parse().into_iter().collect()
    }
}

impl KubeCluster {
    /// The API server as the connection names it. In a pod that is the service `kubernetes`.
    async fn named(&self) -> Result<BTreeSet<IpAddr>, ClusterError> {
        let (host, port) = &self.server;
        let found = lookup_host((host.as_str(), *port)).await;
        let found =
            found.map_err(|error| unavailable(format!("resolve the API server's name {host}"), error))?;
        Ok(found.map(|address| address.ip()).collect())
    }

    /// Packets to the service's address are redirected to these. A server that does not show them leaves the route to the
    /// service's address.
    async fn behind_the_service(&self) -> BTreeSet<IpAddr> {
        let object = Object::new("EndpointSlice", "default/kubernetes", "read");
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), "default");
        match self.request(&object, slices.get("kubernetes")).await {
            Ok(slice) => slice
                .endpoints
                .into_iter()
                .flatten()
                .flat_map(|endpoint| endpoint.addresses)
                .filter_map(|address| address.parse().ok())
                .collect(),
            Err(error) => {
                debug!(%error, "the addresses of the API servers are not known");
                BTreeSet::new()
            }
        }
    }
}
