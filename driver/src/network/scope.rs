//! Which claims a node has to know: pure.
//!
//! A node needs the members of the networks that have a port on it. Whose claims may be members of a network says its
//! namespace selector, so it is enough to watch the claims of the namespaces that it selects. The node that is elected to
//! publish addresses needs every claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Network, join::may_join, spec::NetworkSpec};

/// Above this many namespaces one watch over the cluster takes the place of theirs. Each watch is a connection of its
/// own (the client speaks HTTP/1.1), held open at the API server: 5,000 nodes with as many each are 160,000.
pub const MAX_NAMESPACES: usize = 32;

/// Labels of namespaces, by name.
pub type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// What a watch over claims covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// All namespaces.
    Cluster,
    /// One.
    Namespace(String),
}

impl Scope {
    /// Whether claims of a namespace are covered.
    #[must_use]
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::Cluster => true,
            Self::Namespace(name) => name == namespace,
        }
    }

    /// Whether two watches cover claims in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match self {
            Self::Cluster => true,
            Self::Namespace(name) => other.covers(name),
        }
    }
}

/// The namespaces whose claims may be members of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admits {
    /// All of them.
    #[default]
    All,
    /// These.
    Only(BTreeSet<String>),
    /// It is not known yet. Until then none.
    Unknown,
}

impl Admits {
    /// By a network's selector. `namespaces` are all there are, if they are known.
    #[must_use]
    pub fn of(network: &NetworkSpec, namespaces: Option<&Namespaces>) -> Self {
        if network.namespace_selector.is_none() {
            return Self::Only(BTreeSet::new());
        }
        if !selects_by_label(network) {
            return Self::All;
        }
        let Some(namespaces) = namespaces else { return Self::Unknown };
        let may =
            |(name, labels): &(&String, &BTreeMap<String, String>)| may_join(network, name, labels).is_ok();
        Self::Only(namespaces.iter().filter(may).map(|(name, _)| name.clone()).collect())
    }

    /// Whether claims of a namespace may be members.
    #[must_use]
    pub fn lets(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(namespace),
            Self::Unknown => false,
        }
    }
}

/// Whether the labels of namespaces decide who may join.
fn selects_by_label(network: &NetworkSpec) -> bool {
    network.namespace_selector.as_ref().is_some_and(|selector| {
        selector.match_labels.as_ref().is_some_and(|labels| !labels.is_empty())
            || selector.match_expressions.as_ref().is_some_and(|entries| !entries.is_empty())
    })
}

/// A network whose members a node needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Whether a claim that is prepared on the node has a port.
    pub here: bool,
    /// Whose claims are members.
    pub admits: Admits,
}

/// What decides over a node's watches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Situation {
    /// The networks there are.
    pub networks: Vec<Arc<Network>>,
    /// Names of those with a port on this node.
    pub here: BTreeSet<String>,
    /// Names of those that are needed for another reason: a port is on its way or has just gone, or a policy names
    /// them.
    pub also: BTreeSet<String>,
    /// Namespaces, if they are known.
    pub namespaces: Option<Arc<Namespaces>>,
    /// Whether this node is elected to publish addresses.
    pub leads: bool,
}

/// What a node has to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Claims.
    pub claims: BTreeSet<Scope>,
    /// Whether it needs the labels of namespaces.
    pub namespaces: bool,
    /// The networks it needs the members of. As long as there are any, it needs nodes.
    pub needs: BTreeMap<String, Need>,
}

/// The watches that a situation asks for.
#[must_use]
pub fn plan(situation: &Situation) -> Plan {
    let mut plan = Plan::default();
    let (mut whole, mut names) = (situation.leads, BTreeSet::new());
    for network in &situation.networks {
        let name = &network.reference.name;
        let here = situation.here.contains(name);
        if !here && !situation.also.contains(name) {
            continue;
        }
        plan.namespaces |= selects_by_label(&network.spec);
        let admits = Admits::of(&network.spec, situation.namespaces.as_deref());
        match &admits {
            Admits::All => whole = true,
            Admits::Only(only) => names.extend(only.iter().cloned()),
            Admits::Unknown => {}
        }
        plan.needs.insert(name.clone(), Need { here, admits });
    }
    plan.claims = if whole || names.len() > MAX_NAMESPACES {
        BTreeSet::from([Scope::Cluster])
    } else {
        names.into_iter().map(Scope::Namespace).collect()
    };
    plan
}

#[cfg(test)]
#[path = "scope_tests.rs"]
mod tests;
