//! Labels of pods, and which addresses pods with given labels have.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    net::IpAddr,
};

use tokio::sync::watch;

use super::{MemberTable, Users, claims::Claim, is_link_local};
use crate::{
    datapath::policy::Action,
    network::{
        facts::{NAMESPACE_LABEL, PodFacts, Seen},
        scope::{Admits, MAX_NAMESPACES, Scope},
    },
};

/// A pod, by two hashes of `namespace/name`. Their keys are random: nobody can choose a name that is another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PodKey(u64, u64);

type Labels = BTreeMap<String, String>;

/// A watch.
#[derive(Debug, Default)]
struct Source {
    /// Whether a list was whole once.
    known: bool,
    /// Pods that came since a list began.
    seen: Option<HashSet<PodKey>>,
}

/// The pods of the namespaces whose pods may be members, from the moment in which a policy selects some by labels.
#[derive(Debug, Default)]
pub(super) struct Pods {
    hashers: [RandomState; 2],
    labels: HashMap<PodKey, Labels>,
    /// The watches. No two cover the same.
    open: BTreeMap<Scope, Source>,
    /// The networks on which policies select pods, if that was said. With whether the pods that can be members have all
    /// come once: that is not forgotten while others come.
    networks: Option<BTreeMap<u32, bool>>,
}

impl Pods {
    pub(super) fn key(&self, name: &str) -> PodKey {
        PodKey(self.hashers[0].hash_one(name), self.hashers[1].hash_one(name))
    }

    /// Whether a rule for pods with these labels is for this one. Of a pod that is not known: if it denies.
    fn is_selected(&self, pod: Option<PodKey>, labels: &Labels, action: Action) -> bool {
        match pod.and_then(|pod| self.labels.get(&pod)) {
            Some(pod) => labels.iter().all(|(key, value)| pod.get(key) == Some(value)),
            None => action == Action::Deny,
        }
    }

    /// Whether every pod that can be a member has come.
    fn cover(&self, admits: &Admits) -> bool {
        let known = |scope: &Scope| self.open.get(scope).is_some_and(|source| source.known);
        let all = known(&Scope::Cluster);
        match admits {
            Admits::Unknown => false,
            Admits::All => all,
            Admits::Only(names) => all || names.iter().all(|name| known(&Scope::Namespace(name.clone()))),
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

    /// Say on which networks policies select pods by labels. Returns what of the pods is to be watched: nothing else is
    /// taken in from now on. What was known of them stays until their lists are whole.
    pub fn select_pods(&mut self, networks: &BTreeSet<String>) -> BTreeSet<Scope> {
        let before = self.pods.networks.take().unwrap_or_default();
        let (mut whole, mut names, mut known) = (false, BTreeSet::new(), BTreeMap::new());
        for name in networks {
            let index = self.network(name);
            known.insert(index, before.get(&index).copied().unwrap_or(false));
            match self.networks.get(index as usize).map(|of| &of.admits) {
                Some(Admits::All) => whole = true,
                Some(Admits::Only(only)) => names.extend(only.iter().cloned()),
                Some(Admits::Unknown) | None => {}
            }
        }
        let wanted: BTreeSet<Scope> = if whole || names.len() > MAX_NAMESPACES {
            BTreeSet::from([Scope::Cluster])
        } else {
            names.into_iter().map(Scope::Namespace).collect()
        };
        let pods = &mut self.pods;
        pods.networks = Some(known);
        if !pods.open.keys().eq(&wanted) {
            pods.open.retain(|scope, _| wanted.contains(scope));
            pods.labels.retain(|_, labels| wanted.iter().any(|scope| scope.covers(namespace(labels))));
            for scope in &wanted {
                pods.open.entry(scope.clone()).or_default();
            }
            self.touch();
        }
        self.settle_pods();
        wanted
    }

    /// Note the networks whose pods have all come.
    fn settle_pods(&mut self) {
        let mut networks = self.pods.networks.take();
        for (index, known) in networks.iter_mut().flatten() {
            *known |= self.networks.get(*index as usize).is_some_and(|of| self.pods.cover(&of.admits));
        }
        self.pods.networks = networks;
    }

    fn knows_pods(&self, network: &str) -> bool {
        match (&self.pods.networks, self.index.get(network)) {
            (Some(known), Some(index)) => known.get(index).copied().unwrap_or(false),
            _ => self.pods.cover(&Admits::All),
        }
    }

    /// Take in what a watch over the pods of the cluster sees.
    pub fn apply_pod(&mut self, seen: Seen<PodFacts, String>) {
        self.pods.open.entry(Scope::Cluster).or_default();
        self.apply_pod_from(&Scope::Cluster, seen);
    }

    /// Take in what a watch over pods sees. Nothing is taken from one that is not open.
    pub fn apply_pod_from(&mut self, scope: &Scope, seen: Seen<PodFacts, String>) {
        let pods = &mut self.pods;
        let key = match &seen {
            Seen::Is(PodFacts { name, .. }) | Seen::Gone(name) => pods.key(name),
            Seen::Listing | Seen::Listed => PodKey(0, 0),
        };
        let Some(source) = pods.open.get_mut(scope) else { return };
        match seen {
            Seen::Listing => source.seen = Some(HashSet::new()),
            Seen::Is(pod) => {
                if let Some(seen) = &mut source.seen {
                    seen.insert(key);
                }
                if pods.labels.get(&key) != Some(&pod.labels) {
                    pods.labels.insert(key, pod.labels);
                    self.touch();
                }
            }
            Seen::Gone(_) => {
                if pods.labels.remove(&key).is_some() {
                    self.touch();
                }
            }
            Seen::Listed => {
                source.known = true;
                if let Some(seen) = source.seen.take() {
                    let others = |labels: &Labels| !scope.covers(namespace(labels));
                    pods.labels.retain(|key, labels| seen.contains(key) || others(labels));
                }
                self.settle_pods();
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
        (self.knows(network) && self.knows_pods(network)).then(|| self.held(network, is_selected).collect())
    }

    /// Whether a rule is for a pod on a network; `None` before every pod has come.
    #[must_use]
    pub fn is_selected(&self, network: &str, pod: &str, labels: &Labels, action: Action) -> Option<bool> {
        self.knows_pods(network).then(|| self.pods.is_selected(Some(self.pods.key(pod)), labels, action))
    }

    /// The nodes with a member of a network, and its members, as far as claims are told.
    #[must_use]
    pub fn counts(&self, network: &str) -> (u32, u32) {
        let Some(index) = self.index.get(network) else { return (0, 0) };
        let mut nodes = HashSet::new();
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

    /// Names of the nodes that have told ports of a network.
    #[must_use]
    pub fn nodes_with_ports(&self, network: &str) -> BTreeSet<String> {
        let Some(index) = self.index.get(network) else { return BTreeSet::new() };
        let has = |claim: &&Claim| {
            claim.held.iter().any(|held| held.network == *index && !held.is_port() && held.is_told())
        };
        self.claims.values().filter(has).filter_map(|claim| Some(claim.node.as_ref()?.to_string())).collect()
    }

    /// The claims with ports or addresses of a network, and the names of the first of them, sorted.
    #[must_use]
    pub fn users(&self, network: &str, names: usize) -> Users {
        let Some(index) = self.index.get(network) else { return Users::default() };
        let uses = |claim: &&Claim| claim.held.iter().any(|held| held.network == *index);
        let using = self.claims.values().filter(uses);
        if names == 0 {
            return Users { count: using.count(), first: Vec::new() };
        }
        let all: BTreeSet<String> =
            using.map(|claim| format!("{}/{}", claim.namespace, claim.name)).collect();
        Users { count: all.len(), first: all.into_iter().take(names).collect() }
    }

    fn held(&self, network: &str, is_one: impl Fn(Option<PodKey>) -> bool) -> impl Iterator<Item = IpAddr> {
        let index = self.index.get(network).copied();
        let of = index.and_then(|index| self.networks.get(index as usize));
        let lets = move |namespace: &str| of.is_some_and(|of| of.admits.lets(namespace));
        let since = of.and_then(|of| of.known.as_ref()).map_or(i64::MIN, |known| known.since);
        let is_new = move |claim: &Claim| claim.since >= since;
        let claims = self
            .claims
            .values()
            .filter(move |claim| is_new(claim) && lets(&claim.namespace) && is_one(claim.pod));
        let held = claims.flat_map(|claim| &claim.held);
        held.filter(move |held| Some(held.network) == index && !held.is_port())
            .map(|held| held.address.into())
    }
}

fn local(address: IpAddr) -> bool {
    is_link_local(address.into())
}

/// The namespace of a pod with these labels.
fn namespace(labels: &Labels) -> &str {
    labels.get(NAMESPACE_LABEL).map_or("", String::as_str)
}
