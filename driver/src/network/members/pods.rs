//! Labels of pods, and which addresses pods with given labels have.

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    net::IpAddr,
};

use tokio::sync::watch;

use super::{MemberTable, is_link_local};
use crate::{
    datapath::policy::Action,
    network::facts::{PodFacts, Seen},
};

/// A pod, by two hashes of `namespace/name`. Their keys are random: nobody can choose a name that is another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PodKey(u64, u64);

#[derive(Debug)]
struct Labels {
    labels: BTreeMap<String, String>,
    round: u8,
}

/// The pods of the cluster, from the moment in which a policy needs them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    hashers: [RandomState; 2],
    labels: HashMap<PodKey, Labels>,
    round: u8,
    /// Whether every pod has come once.
    known: bool,
}

impl Pods {
    pub(super) fn key(&self, name: &str) -> PodKey {
        PodKey(self.hashers[0].hash_one(name), self.hashers[1].hash_one(name))
    }

    /// Whether a rule for pods with these labels is for this one. Of a pod that is not known: if it denies.
    fn is_selected(&self, pod: Option<PodKey>, labels: &BTreeMap<String, String>, action: Action) -> bool {
        match pod.and_then(|pod| self.labels.get(&pod)) {
            Some(pod) => labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)),
            None => action == Action::Deny,
        }
    }
}

impl MemberTable {
    /// Told when claims or pods have changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn touch(&self) {
        self.changed.send_replace(());
    }

    /// Take in what the watch over pods sees.
    pub fn apply_pod(&mut self, seen: Seen<PodFacts, String>) {
        let pods = &mut self.pods;
        match seen {
            Seen::Listing => pods.round = pods.round.wrapping_add(1),
            Seen::Is(pod) => {
                let (key, round) = (pods.key(&pod.name), pods.round);
                let labels = Labels { labels: pod.labels, round };
                let same = pods.labels.get(&key).is_some_and(|before| before.labels == labels.labels);
                pods.labels.insert(key, labels);
                if !same {
                    self.touch();
                }
            }
            Seen::Gone(name) => {
                let key = pods.key(&name);
                if pods.labels.remove(&key).is_some() {
                    self.touch();
                }
            }
            Seen::Listed => {
                let round = pods.round;
                pods.labels.retain(|_, pod| pod.round == round);
                pods.known = true;
                self.touch();
            }
        }
    }

    /// Addresses of the members of a network, on all nodes; `None` before all of them have come. `link_local` ones mean
    /// nothing outside the network.
    #[must_use]
    pub fn addresses(&self, network: &str, link_local: bool) -> Option<Vec<IpAddr>> {
        self.knows(network)
            .then(|| self.held(network, |_| true).filter(|it| link_local || !local(*it)).collect())
    }

    /// Addresses on a network of the pods that a rule with this action and these labels is for; `None` before every
    /// claim and pod has come.
    #[must_use]
    pub fn selected(
        &self,
        network: &str,
        labels: &BTreeMap<String, String>,
        action: Action,
    ) -> Option<Vec<IpAddr>> {
        let is_selected = |pod| self.pods.is_selected(pod, labels, action);
        (self.knows(network) && self.pods.known).then(|| self.held(network, is_selected).collect())
    }

    /// Whether a rule is for a pod; `None` before every pod has come.
    #[must_use]
    pub fn is_selected(&self, pod: &str, labels: &BTreeMap<String, String>, action: Action) -> Option<bool> {
        self.pods.known.then(|| self.pods.is_selected(Some(self.pods.key(pod)), labels, action))
    }

    /// The nodes with a member of a network, and its members, as far as claims are told.
    #[must_use]
    pub fn counts(&self, network: &str) -> (u32, u32) {
        let Some(index) = self.index.get(network) else { return (0, 0) };
        let mut nodes = std::collections::HashSet::new();
        let mut members = 0_u32;
        for claim in self.claims.values() {
            // A port has one link-local address, whatever else it has.
            let ports = claim.held.iter().filter(|held| {
                held.network == *index && !held.is_port() && held.is_told() && is_link_local(held.address)
            });
            let ports = u32::try_from(ports.count()).unwrap_or(u32::MAX);
            members = members.saturating_add(ports);
            if ports > 0
                && let Some(node) = &claim.node
            {
                nodes.insert(node);
            }
        }
        (u32::try_from(nodes.len()).unwrap_or(u32::MAX), members)
    }

    fn held(&self, network: &str, is_one: impl Fn(Option<PodKey>) -> bool) -> impl Iterator<Item = IpAddr> {
        let index = self.index.get(network).copied();
        let of = index.and_then(|index| self.networks.get(index as usize));
        let lets = move |namespace: &str| of.is_some_and(|of| of.admits.lets(namespace));
        let claims = self.claims.values().filter(move |claim| lets(&claim.namespace) && is_one(claim.pod));
        let held = claims.flat_map(|claim| &claim.held);
        held.filter(move |held| Some(held.network) == index && !held.is_port())
            .map(|held| held.address.into())
    }
}

fn local(address: IpAddr) -> bool {
    is_link_local(address.into())
}
