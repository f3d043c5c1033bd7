//! What a network is to a claim that wants a port on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{Arc, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;
use tracing::info;

use super::{
    Network, NetworkRef, Networks,
    access::{Access, Members},
    demand::{Demand, named},
    follow::SharedTable,
    join::may_join,
    mtu, uplink,
};
use crate::{claim::ClaimRef, cluster::Cluster, device::Inventory, telemetry::chain};

/// A network, for one namespace on one node.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The network.
    pub network: Arc<Network>,
    /// Why claims of the namespace may not have a port here, if they may not.
    pub refused: Option<String>,
    /// MTU of the ports on this node, in bytes.
    pub mtu: u32,
}

/// Asked when a claim is prepared.
pub struct Offers {
    /// What is known.
    pub networks: Arc<Networks>,
    /// Where the labels of namespaces are.
    pub cluster: Arc<dyn Cluster>,
    /// The node's links.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// Who has which address, on whatever node.
    pub members: SharedTable,
    /// Asked for members before a port is given; `None` where they are known without asking.
    pub demand: Option<Arc<Demand>>,
    /// The driver, whose attributes selectors name.
    pub driver: String,
}

impl fmt::Debug for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offers").field("networks", &self.networks).finish_non_exhaustive()
    }
}

impl Offers {
    /// The network of a name; `None` if this node knows no such network. Labels that cannot be read refuse: who
    /// may join is not guessed.
    pub async fn of(&self, network: &str, namespace: &str) -> Option<Offer> {
        let network = self.networks.get(network)?;
        let inventory = Arc::clone(&self.inventory.borrow());
        let spec = &network.spec;
        let uplink = spec.transport.uplink.as_ref().map(|_| uplink::of(spec, &inventory, &self.driver));
        let refused = match &uplink {
            Some(Err(error)) => Some(error.to_string()),
            _ => self.refusal(&network, namespace).await,
        };
        let mtu = mtu::of_ports(spec, &inventory, uplink.and_then(Result::ok));
        Some(Offer { network, refused, mtu })
    }

    async fn refusal(&self, network: &Network, namespace: &str) -> Option<String> {
        let name = &network.reference.name;
        match self.cluster.namespace_labels(namespace).await {
            Ok(labels) => may_join(&network.spec, namespace, &labels)
                .err()
                .map(|error| format!("network {name} gives no ports to namespace {namespace}: {error}")),
            Err(error) => {
                Some(format!("the labels of namespace {namespace} are not known: {}", chain(&error)))
            }
        }
    }
}

impl Members for Offers {
    fn holder(&self, network: &NetworkRef, address: IpAddr, claim: &ClaimRef) -> Option<String> {
        let table = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        table.other_holder(&network.name, address, &claim.uid).map(|uid| format!("the claim with UID {uid}"))
    }
}

#[async_trait]
impl Access for Offers {
    async fn ask(&self, network: &str, namespace: &str) -> Option<Offer> {
        let offer = self.of(network, namespace).await?;
        // Who may not join does not make this node watch anybody.
        if let Some(demand) = self.demand.as_ref().filter(|_| offer.refused.is_none()) {
            let mut networks: BTreeSet<String> = offer.network.spec.policy.iter().flat_map(named).collect();
            networks.retain(|name| self.networks.get(name).is_some());
            networks.insert(network.to_owned());
            if !demand.bring(&networks).await {
                info!(?networks, "prepared before all members are known; they follow");
            }
        }
        Some(offer)
    }

    fn uplinks(&self) -> BTreeMap<String, String> {
        let inventory = Arc::clone(&self.inventory.borrow());
        let networks = self.networks.list();
        let of = |network: &Arc<Network>| {
            let link = uplink::of(&network.spec, &inventory, &self.driver).ok()?;
            Some((link.name.clone(), network.reference.name.clone()))
        };
        networks.iter().filter_map(of).collect()
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).changes()
    }
}
