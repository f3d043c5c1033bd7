//! Which watches the claims in the table come from, and what is missing as long as they have not all come.
//!
//! Each watch covers the cluster or a namespace. While one takes the place of another both cover the same claims, and
//! neither is in step with the other: then an older version of a claim does not replace a newer one, one that is gone
//! does not come back, and a list is not held against the table before the other watch is closed. Until then the
//! other may know a claim that was made after the list.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{ClaimKey, MemberTable, Of, Outcome};
use crate::network::{
    facts::{ClaimFacts, Seen},
    scope::{Admits, Need, Scope},
};

/// A claim of this version is gone: its UID is never another's.
const GONE: u64 = u64::MAX;

#[derive(Debug, Default)]
struct Source {
    /// Whether its list is whole, and no other has begun.
    listed: bool,
    /// Whether a list was whole once.
    known: bool,
    /// Claims that came since its list began, until that is held against the table.
    seen: Option<HashSet<ClaimKey>>,
}

/// The watches.
#[derive(Debug, Default)]
pub(super) struct Sources {
    open: BTreeMap<Scope, Source>,
    /// The newest version that came of a claim since two watches cover the same.
    newest: HashMap<ClaimKey, u64>,
}

impl Sources {
    /// Whether another watch covers claims that this one covers.
    fn shared(&self, scope: &Scope) -> bool {
        self.open.keys().any(|other| other != scope && other.overlaps(scope))
    }

    fn any_shared(&self) -> bool {
        self.open.len() > 1 && self.open.contains_key(&Scope::Cluster)
    }

    fn has(&self, scope: &Scope, is: impl Fn(&Source) -> bool) -> bool {
        self.open.get(scope).is_some_and(is)
    }

    /// Whether every claim that can be a member of a network has come.
    fn cover(&self, of: &Of, is: impl Fn(&Source) -> bool) -> bool {
        let cluster = self.has(&Scope::Cluster, &is);
        match &of.admits {
            Admits::Unknown => false,
            Admits::All => cluster,
            Admits::Only(names) => {
                cluster || names.iter().all(|name| self.has(&Scope::Namespace(name.clone()), &is))
            }
        }
    }
}

impl MemberTable {
    /// A watch begins.
    pub fn open(&mut self, scope: &Scope) {
        self.sources.open.entry(scope.clone()).or_default();
    }

    /// A watch is over: what no other covers goes.
    pub fn close(&mut self, scope: &Scope) -> Outcome {
        if self.sources.open.remove(scope).is_some() {
            let others: Vec<Scope> = self.sources.open.keys().cloned().collect();
            let covered = |namespace: &str| others.iter().any(|other| other.covers(namespace));
            self.remove_claims(|_, namespace| scope.covers(namespace) && !covered(namespace));
            for other in &others {
                self.sweep(other);
            }
            if !self.sources.any_shared() {
                self.sources.newest = HashMap::new();
            }
            self.forget_names();
            self.touch();
        }
        self.finish()
    }

    /// Take in what a watch over the claims of the cluster sees.
    pub fn apply(&mut self, seen: Seen<ClaimFacts, String>) -> Outcome {
        self.open(&Scope::Cluster);
        self.apply_from(&Scope::Cluster, seen)
    }

    /// Take in what a watch over claims sees. Nothing is taken from one that is not open.
    pub fn apply_from(&mut self, scope: &Scope, seen: Seen<ClaimFacts, String>) -> Outcome {
        let shared = self.sources.shared(scope);
        let Some(source) = self.sources.open.get_mut(scope) else { return Outcome::default() };
        match seen {
            Seen::Listing => {
                source.listed = false;
                source.seen = Some(HashSet::new());
            }
            Seen::Is(facts) => {
                let key = ClaimKey::of(&facts.uid);
                let newest = self.sources.newest.get(&key).copied().unwrap_or(0);
                if newest != GONE
                    && let Some(seen) = &mut source.seen
                {
                    seen.insert(key);
                }
                if newest <= facts.version || (facts.version == 0 && newest != GONE) {
                    if shared {
                        self.sources.newest.insert(key, facts.version);
                    }
                    self.take_in(key, &facts);
                }
            }
            Seen::Gone(uid) => {
                let key = ClaimKey::of(&uid);
                if let Some(seen) = &mut source.seen {
                    seen.remove(&key);
                }
                if shared {
                    self.sources.newest.insert(key, GONE);
                }
                self.remove_claim(key);
            }
            Seen::Listed => {
                (source.listed, source.known) = (true, true);
                self.sweep(scope);
                self.settle();
                self.touch();
            }
        }
        self.finish()
    }

    /// Take out what a watch has not listed, if no other covers it, too.
    fn sweep(&mut self, scope: &Scope) {
        if self.sources.shared(scope) || !self.sources.has(scope, |source| source.listed) {
            return;
        }
        let Some(seen) = self.sources.open.get_mut(scope).and_then(|source| source.seen.take()) else {
            return;
        };
        self.remove_claims(|key, namespace| scope.covers(namespace) && !seen.contains(key));
    }

    fn remove_claims(&mut self, which: impl Fn(&ClaimKey, &str) -> bool) {
        let gone: Vec<ClaimKey> = self
            .claims
            .iter()
            .filter(|(key, claim)| which(key, &claim.namespace))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.remove_claim(key);
        }
    }

    /// Say which networks this node needs the members of, and whose claims are members. Nobody is a member of another.
    pub fn set_needs(&mut self, needs: &BTreeMap<String, Need>) -> Outcome {
        self.planned = true;
        for name in needs.keys() {
            self.network(name);
        }
        let mut changed = Vec::new();
        for (index, of) in (0..).zip(&mut self.networks) {
            let need = needs.get(&of.name);
            let needed = std::mem::replace(&mut of.needed, need.is_some());
            of.complete &= of.needed;
            let here = need.is_some_and(|need| need.here);
            let admits = need.map_or(Admits::Unknown, |need| need.admits.clone());
            if of.here != here || of.admits != admits || needed != of.needed {
                of.here = here;
                changed.push((index, std::mem::replace(&mut of.admits, admits)));
            }
        }
        for (index, before) in &changed {
            let Some(of) = self.networks.get(*index as usize) else { continue };
            let other = |namespace: &Arc<str>| of.admits.lets(namespace) != before.lets(namespace);
            let of_network = |claim: &&super::Claim| claim.held.iter().any(|held| held.network == *index);
            let moved: Vec<ClaimKey> = self
                .claims
                .iter()
                .filter(|(_, claim)| other(&claim.namespace) && of_network(claim))
                .map(|(key, _)| *key)
                .collect();
            for key in moved {
                self.hold_again(key);
            }
            self.refresh_network(*index);
        }
        self.settle();
        if !changed.is_empty() {
            self.touch();
        }
        self.finish()
    }

    /// Note the networks whose members have all come.
    fn settle(&mut self) {
        for of in self.networks.iter_mut().filter(|of| of.needed) {
            of.complete |= self.sources.cover(of, |source| source.known);
        }
    }

    /// Whether the members of a network have all come once.
    #[must_use]
    pub fn knows(&self, network: &str) -> bool {
        let of = self.of(network);
        let all = self.sources.has(&Scope::Cluster, |source| source.known);
        match of {
            Some(of) if self.planned => of.complete,
            _ => all,
        }
    }

    /// Whether the members of a network have all come, and the nodes they are on.
    #[must_use]
    pub fn is_ready(&self, network: &str) -> bool {
        self.knows(network) && self.of(network).is_none_or(|of| of.waits == 0)
    }

    /// Whether the list of a watch is whole.
    #[must_use]
    pub fn is_listed(&self, scope: &Scope) -> bool {
        self.sources.has(scope, |source| source.listed)
    }

    fn of(&self, network: &str) -> Option<&Of> {
        self.index.get(network).and_then(|index| self.networks.get(*index as usize))
    }

    /// Whether every claim that matters has come: only then is what is missing gone, but for members whose node is
    /// waited for.
    #[must_use]
    pub fn has_members(&self) -> bool {
        if !self.planned {
            return self.has_claims();
        }
        let mut needed = self.networks.iter().filter(|of| of.needed);
        needed.all(|of| self.sources.cover(of, |source| source.listed))
    }

    /// Whether every claim and node that matters has come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.has_members() && self.networks.iter().all(|of| of.waits == 0)
    }

    /// Whether every claim of the cluster has come.
    #[must_use]
    pub fn has_claims(&self) -> bool {
        self.is_listed(&Scope::Cluster)
    }

    /// Networks whose members this node needs.
    pub fn needed(&self) -> impl Iterator<Item = &str> + '_ {
        self.networks.iter().filter(|of| of.needed).map(|of| of.name.as_str())
    }

    /// Networks that a claim was allocated a port of on this node, as far as claims are watched.
    pub fn local(&self) -> impl Iterator<Item = &str> + '_ {
        self.networks.iter().filter(|of| of.local > 0).map(|of| of.name.as_str())
    }
}
