//! The networks this node knows now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::watch;

use super::{Declared, NetworkId, NetworkRef, spec::NetworkSpec, transport::Troubles};

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

/// Networks by UID.
pub type ByUid = BTreeMap<String, Arc<Network>>;

/// The networks of one moment, those among them that are deleted while pods of this node have ports on them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// All of them.
    pub networks: ByUid,
    /// `metadata.generation` of what counts of each, by UID, where the cluster has told it.
    pub generations: BTreeMap<String, i64>,
}

/// What of a network is in force on this node's ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// The generation that was last put in force on all of them; `None` where it is not known, or not all have it.
    pub generation: Option<i64>,
    /// What is not in force, a sentence for each port.
    pub problems: Vec<String>,
}

/// The same for each network that has ports on this node.
pub type AllInForce = BTreeMap<NetworkRef, InForce>;

#[derive(Clone, Debug, Default)]
struct Known {
    /// By name.
    networks: BTreeMap<String, Arc<Network>>,
    /// Deleted ones that pods of this node still have ports on, by UID.
    retired: BTreeMap<String, Arc<Network>>,
    /// By UID.
    generations: BTreeMap<String, i64>,
}

/// Networks by name. Written by whoever watches the objects, read by everybody else.
#[derive(Debug, Default)]
pub struct Networks {
    known: watch::Sender<Arc<Known>>,
    published: watch::Sender<Arc<BTreeSet<String>>>,
    troubles: watch::Sender<Arc<Troubles>>,
    in_force: watch::Sender<Arc<AllInForce>>,
    /// What the cluster declares, valid or not; `None` before it has told.
    declared: watch::Sender<Option<Arc<Vec<Declared>>>>,
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

    /// The networks whose members matter on this node: those there are, and those that are deleted and still have ports here.
    /// Claims name networks: a deleted one whose name another has now is none of them.
    #[must_use]
    pub fn with_members(&self) -> Vec<Arc<Network>> {
        let known = self.known.borrow();
        let retired = known.retired.values().filter(|it| !known.networks.contains_key(&it.reference.name));
        known.networks.values().chain(retired).cloned().collect()
    }

    /// When networks were made, by UID, in seconds since the epoch, as far as the cluster tells. A claim that was allocated
    /// before has its port from another network of the name, which was deleted.
    #[must_use]
    pub fn made(&self) -> BTreeMap<String, i64> {
        let declared = self.declared.borrow().clone();
        let one = |network: &Declared| Some((network.reference.uid.clone(), network.created?.as_second()));
        declared.iter().flat_map(|all| all.iter()).filter_map(one).collect()
    }

    /// All of this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let known = self.known.borrow();
        let live =
            known.networks.values().map(|network| (network.reference.uid.clone(), Arc::clone(network)));
        Snapshot {
            networks: live.chain(known.retired.clone()).collect(),
            generations: known.generations.clone(),
        }
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
        self.replace_at(networks, retired, BTreeMap::new());
    }

    /// The same, with the generations of what counts of them, by UID.
    pub fn replace_at(
        &self,
        networks: impl IntoIterator<Item = Network>,
        retired: impl IntoIterator<Item = Network>,
        generations: BTreeMap<String, i64>,
    ) {
        let by_name = |network: Network| (network.reference.name.clone(), Arc::new(network));
        let by_uid = |network: Network| (network.reference.uid.clone(), Arc::new(network));
        let known = Known {
            networks: networks.into_iter().map(by_name).collect(),
            retired: retired.into_iter().map(by_uid).collect(),
            generations,
        };
        self.known.send_if_modified(|before| {
            let changed = before.networks != known.networks
                || before.retired != known.retired
                || before.generations != known.generations;
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

    /// Say what is in force on this node's ports.
    pub fn set_in_force(&self, in_force: AllInForce) {
        self.in_force.send_if_modified(|before| {
            let changed = **before != in_force;
            *before = Arc::new(in_force);
            changed
        });
    }

    /// What is in force on this node's ports, now and later.
    #[must_use]
    pub fn in_force(&self) -> watch::Receiver<Arc<AllInForce>> {
        self.in_force.subscribe()
    }

    /// Say what the cluster declares.
    pub fn set_declared(&self, declared: Vec<Declared>) {
        self.declared.send_replace(Some(Arc::new(declared)));
    }

    /// What the cluster declares, now and later; `None` before it has told.
    #[must_use]
    pub fn declared(&self) -> watch::Receiver<Option<Arc<Vec<Declared>>>> {
        self.declared.subscribe()
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
