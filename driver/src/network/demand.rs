//! Networks whose members this node needs: those with a port on it, those a policy names, and those a claim that is being
//! prepared has asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    claim::store::Store,
    datapath::policy::{Name, Policy},
};

/// Longest that a prepare waits for the members of a network. Without them the port works, and they come later.
const LONGEST: Duration = Duration::from_secs(3);

/// Networks by what prepared claims of this node have of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// With a port.
    pub here: BTreeSet<String>,
    /// Named by the policy of an interface.
    pub named: BTreeSet<String>,
}

/// Looks for them.
pub type PortsHere = Box<dyn Fn() -> Ports + Send + Sync>;

/// The ones that the checkpoints tell.
#[must_use]
pub fn ports_here(store: &Arc<Store>) -> PortsHere {
    let store = Arc::clone(store);
    Box::new(move || {
        let mut ports = Ports::default();
        let checkpoints = store.all();
        for record in checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces) {
            ports.here.extend(record.plan.port().map(|port| port.network.name.clone()));
            ports.named.extend(record.plan.policy.iter().flat_map(named));
        }
        ports
    })
}

/// The networks that a policy names.
pub(super) fn named(policy: &Policy) -> BTreeSet<String> {
    let network = |name| match name {
        Name::Network(name) => Some(name),
        Name::Pods { .. } => None,
    };
    policy.names().filter_map(network).collect()
}

/// Between who prepares claims and who follows the cluster.
#[derive(Debug, Default)]
pub struct Demand {
    /// When a network was last asked for.
    asked: Mutex<BTreeMap<String, Instant>>,
    news: Notify,
    /// Networks whose members are known.
    ready: watch::Sender<BTreeSet<String>>,
}

impl Demand {
    fn asked(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ask for the members of networks, and wait until they are known, but not for long. Returns whether they are.
    pub async fn bring(&self, networks: &BTreeSet<String>) -> bool {
        let now = Instant::now();
        self.asked().extend(networks.iter().map(|network| (network.clone(), now)));
        self.news.notify_one();
        let mut ready = self.ready.subscribe();
        let known = ready.wait_for(|ready| networks.is_subset(ready));
        matches!(timeout(LONGEST, known).await, Ok(Ok(_)))
    }

    /// Wait for somebody to ask.
    pub(super) async fn next(&self) {
        self.news.notified().await;
    }

    /// What was asked for within this time, without what is older.
    pub(super) fn since(&self, age: Duration) -> BTreeSet<String> {
        let mut asked = self.asked();
        asked.retain(|_, at| at.elapsed() < age);
        asked.keys().cloned().collect()
    }

    /// These are needed now.
    pub(super) fn keep(&self, networks: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        self.asked().extend(networks.into_iter().map(|network| (network, now)));
    }

    /// Say whose members are known.
    pub(super) fn tell(&self, ready: BTreeSet<String>) {
        self.ready.send_if_modified(|before| {
            let changed = *before != ready;
            *before = ready;
            changed
        });
    }
}
