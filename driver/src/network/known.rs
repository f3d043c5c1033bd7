//! The networks this node knows now.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::{NetworkId, NetworkRef, spec::NetworkSpec};

/// A network that is valid, with its number on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Which.
    pub reference: NetworkRef,
    /// Its number in this node's maps.
    pub id: NetworkId,
    /// What it is to be.
    pub spec: NetworkSpec,
}

/// Networks by name. Written by whoever watches the objects, read by everybody else.
#[derive(Debug, Default)]
pub struct Networks {
    known: RwLock<BTreeMap<String, Arc<Network>>>,
}

impl Networks {
    /// The network of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Network>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Network>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Put another set in the place of this one.
    pub fn replace(&self, networks: impl IntoIterator<Item = Network>) {
        let known =
            networks.into_iter().map(|network| (network.reference.name.clone(), Arc::new(network))).collect();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }
}
