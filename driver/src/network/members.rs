//! Which addresses of networks are on which node: kept from claims and nodes, one event at a time.
//!
//! The table knows the claims that are watched, in few bytes: those of the cluster, or of the namespaces that matter on
//! this node. What it wants in the node's map are members on other nodes, of networks that have a port on this node. A
//! member is there when its claim is allocated, its namespace may join the network, its node has told its addresses, and
//! the node exists; it goes with any of them.
//!
//! Two claims that say the same address are a conflict: the one that has it from the scheduler wins, then the older
//! one. It is the same on every node, whatever came first there. An address that a port of this node has is never
//! given to another node, whoever wins: what attach wrote stays.

mod claims;
mod nodes;
mod pods;
mod sources;
#[cfg(test)]
mod sources_tests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use netferry_common::Addr;

use super::{Network, NetworkId, nodes::NodeNeed, scope::Admits, window::InUse};
use crate::link::MacAddr;
use claims::{Claim, ClaimKey};
use nodes::{Node, Place};
use pods::Pods;
use sources::Sources;
use tokio::sync::watch;

/// How a member on another node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its hardware address.
    pub mac: MacAddr,
    /// Where its node takes tunnelled frames; `None` on a network without tunnels.
    pub node: Option<IpAddr>,
}

/// A change of what the node's map is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The network.
    pub network: NetworkId,
    /// The address.
    pub address: IpAddr,
    /// Who has it on another node; `None` for nobody.
    pub member: Option<Remote>,
}

/// Two claims say the same address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Network's name.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// UID of the claim that has it.
    pub kept: String,
    /// UID of the claim that does not.
    pub refused: String,
}

/// What an event came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is to be written, in order.
    pub changes: Vec<Change>,
    /// What somebody should look at.
    pub conflicts: Vec<Conflict>,
    /// Which nodes matter, after this, and did not before, or the other way round.
    pub nodes: Vec<NodeNeed>,
}

/// Claims that use a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// How many.
    pub count: usize,
    /// Names of the first of them, as `namespace/name`.
    pub first: Vec<String>,
}

/// What of a network decides over its members.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    id: NetworkId,
    subnets: Vec<IpNetwork>,
    /// Whether members on other nodes can be reached at all.
    wide: bool,
    /// Whether they are reached through their node.
    tunnelled: bool,
    /// When it was made. Claims that were allocated before are of another network that had its name.
    since: i64,
}

#[derive(Debug, Default)]
struct Of {
    name: String,
    known: Option<Known>,
    /// Who has an address.
    holders: HashMap<Addr, ClaimKey>,
    /// Who says the same address and does not have it.
    rivals: BTreeMap<Addr, BTreeSet<ClaimKey>>,
    /// Claims with a port on this node, as far as they are watched.
    local: u32,
    /// Whether a claim that is prepared on this node has a port.
    here: bool,
    /// Whether this node needs its members.
    needed: bool,
    /// Whether its members have all come once: what was known then is not forgotten while they come again.
    complete: bool,
    /// Whose claims are members.
    admits: Admits,
    /// Members whose node was not told yet.
    waits: u32,
}

impl Of {
    /// Whether this node has a port of it: then its members are to be in the map.
    const fn has_port(&self) -> bool {
        self.local > 0 || self.here
    }
}

/// See the module.
#[derive(Debug)]
pub struct MemberTable {
    this_node: Arc<str>,
    claims: HashMap<ClaimKey, Claim>,
    nodes: HashMap<Arc<str>, Node>,
    networks: Vec<Of>,
    index: HashMap<String, u32>,
    /// Names of nodes and namespaces, each kept once.
    names: HashSet<Arc<str>>,
    /// Members on other nodes.
    places: HashMap<(NetworkId, Addr), Place>,
    sources: Sources,
    node_round: u8,
    /// Whether all nodes were told.
    nodes_listed: bool,
    /// Whether those alone are told that matter.
    asks: bool,
    own_address: watch::Sender<Option<IpAddr>>,
    /// Nodes with other members than before the event, and whether one came.
    touched: BTreeMap<Arc<str>, bool>,
    /// Whether it was said which networks are needed.
    planned: bool,
    outcome: Outcome,
    pods: Pods,
    /// Tells that claims or pods are other than they were.
    changed: watch::Sender<()>,
}

impl MemberTable {
    /// A table that knows nothing yet.
    #[must_use]
    pub fn new(this_node: &str) -> Self {
        let this_node: Arc<str> = this_node.into();
        Self {
            claims: HashMap::new(),
            nodes: HashMap::new(),
            networks: Vec::new(),
            index: HashMap::new(),
            names: HashSet::from([Arc::clone(&this_node)]),
            places: HashMap::new(),
            sources: Sources::default(),
            node_round: 0,
            planned: false,
            pods: Pods::default(),
            changed: watch::Sender::new(()),
            nodes_listed: false,
            asks: false,
            own_address: watch::Sender::new(None),
            touched: BTreeMap::new(),
            outcome: Outcome::default(),
            this_node,
        }
    }

    /// Claims with ports or addresses of networks.
    #[must_use]
    pub fn claims(&self) -> usize {
        self.claims.len()
    }

    /// The addresses of these networks that claims have, wherever they are, by the networks' names. All claims are
    /// looked at, once.
    #[must_use]
    pub fn in_use<'a>(&self, networks: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, InUse> {
        let mut found: BTreeMap<String, InUse> =
            networks.into_iter().map(|network| (network.to_owned(), InUse::default())).collect();
        if found.is_empty() {
            return found;
        }
        self.each_address(|network, address, _, allocated| {
            if let Some(in_use) = found.get_mut(network) {
                let set = if allocated { &mut in_use.allocated } else { &mut in_use.fixed };
                set.insert(address);
            }
        });
        for in_use in found.values_mut() {
            in_use.fixed = &in_use.fixed - &in_use.allocated;
        }
        found
    }

    /// Every address of networks that claims have: the network, the address, the node of the claim as far as that is
    /// told, and whether the scheduler gave it. What is not allocated and not told by a node is none.
    pub fn each_address(&self, mut visit: impl FnMut(&str, IpAddr, Option<&Arc<str>>, bool)) {
        for claim in self.claims.values() {
            for held in &claim.held {
                let Some(of) = self.networks.get(held.network as usize) else { continue };
                let fixed = held.is_told() && !is_link_local(held.address);
                if held.is_allocated() || fixed {
                    visit(&of.name, held.address.into(), claim.node.as_ref(), held.is_allocated());
                }
            }
        }
    }

    /// UID of the claim that has an address, if it is another than this one.
    #[must_use]
    pub fn other_holder(&self, network: &str, address: IpAddr, claim: &str) -> Option<String> {
        let of = self.networks.get(*self.index.get(network)? as usize)?;
        let holder = *of.holders.get(&Addr::from(address))?;
        (holder != ClaimKey::of(claim)).then(|| holder.uid())
    }

    /// The number of a network of this name, if there is one.
    #[must_use]
    pub fn number(&self, network: &str) -> Option<NetworkId> {
        let of = self.networks.get(*self.index.get(network)? as usize)?;
        of.known.as_ref().map(|known| known.id)
    }

    /// Take in the networks there are now.
    pub fn set_networks(&mut self, networks: &[Arc<Network>]) -> Outcome {
        self.set_networks_made(networks, &BTreeMap::new())
    }

    /// The same, with when they were made, by UID, in seconds since the epoch.
    pub fn set_networks_made(&mut self, networks: &[Arc<Network>], made: &BTreeMap<String, i64>) -> Outcome {
        let mut now: HashMap<&str, Known> = networks
            .iter()
            .map(|network| {
                let transport = &network.spec.transport;
                let known = Known {
                    id: network.id,
                    subnets: network.spec.subnets.clone(),
                    wide: transport.local.is_none(),
                    tunnelled: transport.overlay.is_some(),
                    since: made.get(&network.reference.uid).copied().unwrap_or(i64::MIN),
                };
                (network.reference.name.as_str(), known)
            })
            .collect();
        for network in networks {
            self.network(&network.reference.name);
        }
        let mut changed = Vec::new();
        for (index, of) in (0..).zip(&mut self.networks) {
            let known = now.remove(of.name.as_str());
            if of.known != known {
                changed.push((index, std::mem::replace(&mut of.known, known)));
            }
        }
        // All that goes before all that comes: a number may have passed from one network to another.
        for (index, before) in &changed {
            if let Some(before) = before {
                self.forget(*index, before.id);
            }
        }
        for (index, _) in changed {
            self.refresh_network(index);
        }
        self.finish()
    }

    fn forget_names(&mut self) {
        self.names.retain(|name| Arc::strong_count(name) > 1);
    }

    /// Forget a name that nobody has any more.
    fn forget_name(&mut self, name: &Arc<str>) {
        // This one, and the one that is kept.
        if Arc::strong_count(name) == 2 {
            self.names.remove(name);
        }
    }

    /// The one copy of a node's name.
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(name) = self.names.get(name) {
            return Arc::clone(name);
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    /// The number of a network in this table.
    fn network(&mut self, name: &str) -> u32 {
        if let Some(index) = self.index.get(name) {
            return *index;
        }
        let index = u32::try_from(self.networks.len()).unwrap_or(u32::MAX);
        self.networks.push(Of { name: name.to_owned(), ..Of::default() });
        self.index.insert(name.to_owned(), index);
        index
    }

    fn refresh_network(&mut self, index: u32) {
        let Some(of) = self.networks.get(index as usize) else { return };
        let addresses: Vec<Addr> = of.holders.keys().copied().collect();
        for address in addresses {
            self.refresh(index, address);
        }
    }
}

fn is_link_local(address: Addr) -> bool {
    matches!(IpAddr::from(address), IpAddr::V6(address) if address.is_unicast_link_local())
}
