//! Peers that are known by a name, and who is behind it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netferry_common::Direction;
use serde::{Deserialize, Serialize};

use super::{Action, Peer, Peers, Policy};

/// A name that a rule has for its peers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Name {
    /// The members of a network.
    Network(String),
    /// Pods with labels on the policy's own network.
    Pods {
        /// The labels.
        labels: BTreeMap<String, String>,
        /// What the rule does: who counts where it is not known depends on it.
        action: Action,
    },
}

impl Name {
    /// The name of a peer in a rule that does `action`; `None` for a prefix.
    #[must_use]
    pub fn of(peer: &Peer, action: Action) -> Option<Self> {
        let pods = || Some(Self::Pods { labels: peer.pod_selector.clone()?, action });
        peer.network.clone().map(Self::Network).or_else(pods)
    }
}

/// Who is behind the names of a policy. A name that is not in it is not known, as is one with `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved(pub BTreeMap<Name, Option<Vec<IpAddr>>>);

impl Resolved {
    /// Whether every name is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.0.values().all(Option::is_some)
    }
}

impl Peers for Resolved {
    fn network(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.0.get(&Name::Network(name.to_owned())).cloned().flatten()
    }

    fn selected(&self, labels: &BTreeMap<String, String>, action: Action) -> Option<Vec<IpAddr>> {
        self.0.get(&Name::Pods { labels: labels.clone(), action }).cloned().flatten()
    }
}

impl Policy {
    pub(crate) fn names(&self) -> impl Iterator<Item = Name> + '_ {
        let rules = [Direction::ToPod, Direction::FromPod].into_iter().flat_map(|it| &self.side(it).rules);
        rules.flat_map(|rule| {
            let peers = rule.peers.iter().flatten();
            peers.filter_map(|peer| Name::of(peer, rule.action))
        })
    }

    /// Whether a rule has peers with a name.
    #[must_use]
    pub fn names_peers(&self) -> bool {
        self.names().next().is_some()
    }

    /// Whether a rule is for pods by their labels.
    #[must_use]
    pub fn selects_pods(&self) -> bool {
        self.names().any(|name| matches!(name, Name::Pods { .. }))
    }

    /// Ask who is behind each name, sorted.
    #[must_use]
    pub fn resolve(&self, peers: &dyn Peers) -> Resolved {
        let mut resolved = BTreeMap::new();
        for name in self.names() {
            resolved.entry(name).or_insert_with_key(|name| {
                let mut addresses = match name {
                    Name::Network(name) => peers.network(name)?,
                    Name::Pods { labels, action } => peers.selected(labels, *action)?,
                };
                addresses.sort_unstable();
                addresses.dedup();
                Some(addresses)
            });
        }
        Resolved(resolved)
    }
}
