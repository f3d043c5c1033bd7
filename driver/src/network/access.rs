//! What preparing a claim asks about networks.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{NetworkRef, offer::Offer};
use crate::claim::ClaimRef;

/// Who has which address of a network, on whatever node.
pub trait Members: fmt::Debug + Send + Sync {
    /// Who has the address, in words, if it is somebody else than `claim`.
    fn holder(&self, network: &NetworkRef, address: IpAddr, claim: &ClaimRef) -> Option<String>;
}

/// Members of all networks: each with the claim that has the address.
impl Members for BTreeMap<(NetworkRef, IpAddr), ClaimRef> {
    fn holder(&self, network: &NetworkRef, address: IpAddr, claim: &ClaimRef) -> Option<String> {
        let holder = self.get(&(network.clone(), address))?;
        (holder.uid != claim.uid).then(|| format!("claim {holder}"))
    }
}

/// The networks that claims of this node may name.
#[async_trait]
pub trait Access: Members {
    /// The network of a name, for a claim in `namespace`; `None` if this node knows no such network.
    async fn ask(&self, network: &str, namespace: &str) -> Option<Offer>;
    /// Device names of the links that networks use as uplinks on this node, each with the name of such a network.
    fn uplinks(&self) -> BTreeMap<String, String>;
    /// Changes when somebody else has got or given up an address.
    fn changes(&self) -> watch::Receiver<()>;
}

/// A node that follows no networks: there are none to have ports on.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNetworks;

impl Members for NoNetworks {
    fn holder(&self, _: &NetworkRef, _: IpAddr, _: &ClaimRef) -> Option<String> {
        None
    }
}

#[async_trait]
impl Access for NoNetworks {
    async fn ask(&self, _: &str, _: &str) -> Option<Offer> {
        None
    }

    fn uplinks(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn changes(&self) -> watch::Receiver<()> {
        watch::channel(()).1
    }
}
