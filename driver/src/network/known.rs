//! The networks this node knows now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::watch;

use super::{NetworkId, NetworkRef, spec::NetworkSpec, transport::Troubles};

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

#[derive(Clone, Debug, Default)]
struct Known {
    /// By name.
    networks: BTreeMap<String, Arc<Network>>,
    /// Deleted ones that pods of this node still have ports on, by UID.
    retired: BTreeMap<String, Arc<Network>>,
}

/// Networks by name. Written by whoever watches the objects, read by everybody else.
#[derive(Debug, Default)]
pub struct Networks {
    known: watch::Sender<Arc<Known>>,
    published: watch::Sender<Arc<BTreeSet<String>>>,
    troubles: watch::Sender<Arc<Troubles>>,
}

impl Networks {
    /// The network of a name. One that was deleted is not given: nothing may join it any more.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Network>> {
        self.known.borrow().networks.get(name).cloned()
    }

    /// All of them, by name, without those that were deleted.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Network>> {
        self.known.borrow().networks.values().cloned().collect()
    }

    /// The network of a UID, deleted or not: what a port that is there belongs to.
    #[must_use]
    pub fn of_uid(&self, uid: &str) -> Option<Arc<Network>> {
        let known = self.known.borrow();
        let retired = known.retired.get(uid);
        retired.or_else(|| known.networks.values().find(|network| network.reference.uid == uid)).cloned()
    }

    /// Networks that were deleted while pods of this node have ports on them.
    #[must_use]
    pub fn retired(&self) -> Vec<Arc<Network>> {
        self.known.borrow().retired.values().cloned().collect()
    }

    /// Put another set in the place of this one.
    pub fn replace(&self, networks: impl IntoIterator<Item = Network>) {
        self.replace_all(networks, []);
    }

    /// The same, with those that are deleted and still have ports.
    pub fn replace_all(
        &self,
        networks: impl IntoIterator<Item = Network>,
        retired: impl IntoIterator<Item = Network>,
    ) {
        let by_name = |network: Network| (network.reference.name.clone(), Arc::new(network));
        let by_uid = |network: Network| (network.reference.uid.clone(), Arc::new(network));
        let known = Known {
            networks: networks.into_iter().map(by_name).collect(),
            retired: retired.into_iter().map(by_uid).collect(),
        };
        self.known.send_if_modified(|before| {
            let changed = before.networks != known.networks || before.retired != known.retired;
            *before = Arc::new(known);
            changed
        });
    }

    /// Tells of changes from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.known.subscribe())
    }

    /// Say which networks this node publishes ports of.
    pub fn set_published(&self, names: BTreeSet<String>) {
        self.published.send_if_modified(|before| {
            let changed = **before != names;
            *before = Arc::new(names);
            changed
        });
    }

    /// Say which networks cannot go on beyond this node as they are to.
    pub fn set_troubles(&self, troubles: Troubles) {
        self.troubles.send_if_modified(|before| {
            let changed = **before != troubles;
            *before = Arc::new(troubles);
            changed
        });
    }

    /// Which networks cannot, now and later.
    #[must_use]
    pub fn troubles(&self) -> watch::Receiver<Arc<Troubles>> {
        self.troubles.subscribe()
    }

    /// Names of the networks that this node publishes ports of, now and later.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<Arc<BTreeSet<String>>> {
        self.published.subscribe()
    }
}

/// Tells of changes to the set of networks.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Arc<Known>>);

impl Changes {
    /// Wait for the next change.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Take what there is now as seen.
    pub fn mark_seen(&mut self) {
        self.0.mark_unchanged();
    }
}
