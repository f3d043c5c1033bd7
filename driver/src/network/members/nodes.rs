//! Nodes in the table of members: where they are reached, and which of them matter.
//!
//! A node matters while a member of a network that this node needs is on it. Nodes are told in one of two ways: all of
//! them, with a list, or those alone that matter (then somebody asks for them, see [`NodeNeed`]). What was not told is
//! waited for: a member on such a node is not reached, but what an earlier process wrote of it stays.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use netferry_common::Addr;
use tokio::sync::watch;

use super::{Change, Known, MemberTable, Of, Outcome, Remote, is_link_local};
use crate::{
    link::MacAddr,
    network::{
        NetworkId,
        facts::{NodeFacts, Seen},
        nodes::NodeNeed,
    },
};

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It is there, and says where it is reached.
    Is(Option<IpAddr>),
    /// It is not there.
    Gone,
}

/// A node.
#[derive(Debug, Default)]
pub(super) struct Node {
    told: Option<Told>,
    round: u8,
    /// The addresses of members on it, with the numbers of their networks in the table.
    members: HashSet<(u32, Addr)>,
    /// Whether it was said to matter.
    said: bool,
}

/// A member on another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    node: Arc<str>,
    mac: MacAddr,
    /// As the map is to say it; `None` if it is not to be there.
    remote: Option<Remote>,
    /// Whether its node was not told yet.
    waits: bool,
}

impl MemberTable {
    /// From now on those nodes are told that matter, and no others. Returns those that do now.
    pub fn need_nodes(&mut self) -> Vec<NodeNeed> {
        self.asks = true;
        let matter = self.nodes.iter().filter(|(_, node)| node.said);
        matter.map(|(name, _)| NodeNeed::Begins(Arc::clone(name))).collect()
    }

    /// Where this node is reached, as far as the cluster has told.
    #[must_use]
    pub fn own_address(&self) -> Option<IpAddr> {
        *self.own_address.borrow()
    }

    /// Told when that is another.
    #[must_use]
    pub fn own_address_changes(&self) -> watch::Receiver<Option<IpAddr>> {
        self.own_address.subscribe()
    }

    /// Where the other nodes that were told are reached.
    pub fn other_nodes(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let others = self.nodes.iter().filter(|(name, _)| **name != self.this_node);
        others.filter_map(|(_, node)| match node.told {
            Some(Told::Is(address)) => address,
            _ => None,
        })
    }

    /// What the node's map is to hold of other nodes.
    pub fn wanted(&self) -> impl Iterator<Item = Change> + '_ {
        self.places.iter().filter(|(_, place)| place.remote.is_some()).map(|((network, address), place)| {
            Change { network: *network, address: (*address).into(), member: place.remote }
        })
    }

    /// Members whose node was not told yet.
    pub fn awaited(&self) -> impl Iterator<Item = (NetworkId, IpAddr, MacAddr)> + '_ {
        let waiting = self.places.iter().filter(|(_, place)| place.waits);
        waiting.map(|((network, address), place)| (*network, (*address).into(), place.mac))
    }

    /// Take in what is told of nodes.
    pub fn apply_node(&mut self, seen: Seen<NodeFacts, String>) -> Outcome {
        match seen {
            Seen::Listing => {
                self.node_round = self.node_round.wrapping_add(1);
                self.nodes_listed = false;
            }
            Seen::Is(node) => self.tell(&node.name, Some(Told::Is(node.address))),
            Seen::Gone(name) => self.tell(&name, Some(Told::Gone)),
            Seen::Listed => {
                self.nodes_listed = true;
                let round = self.node_round;
                let old = self.nodes.iter().filter(|(_, node)| node.round != round || node.told.is_none());
                for name in old.map(|(name, _)| Arc::clone(name)).collect::<Vec<_>>() {
                    self.tell(&name, Some(Told::Gone));
                }
            }
        }
        self.finish()
    }

    /// Nobody tells of nodes any more.
    pub fn close_nodes(&mut self) -> Outcome {
        self.nodes_listed = false;
        for name in self.nodes.keys().map(Arc::clone).collect::<Vec<_>>() {
            self.tell(&name, None);
        }
        self.finish()
    }

    fn tell(&mut self, name: &str, told: Option<Told>) {
        let own = *name == *self.this_node;
        // An answer that came too late.
        if self.asks && !own && self.nodes.get(name).is_none_or(|node| node.members.is_empty()) {
            return;
        }
        let (name, round) = (self.name(name), self.node_round);
        let node = self.nodes.entry(Arc::clone(&name)).or_default();
        node.round = round;
        let changed = std::mem::replace(&mut node.told, told) != told;
        if own {
            let address = match told {
                Some(Told::Is(address)) => address,
                _ => None,
            };
            self.own_address.send_if_modified(|before| std::mem::replace(before, address) != address);
        }
        if changed {
            let members: Vec<(u32, Addr)> = node.members.iter().copied().collect();
            for (network, address) in members {
                self.refresh(network, address);
            }
        }
        self.touched.entry(name).or_default();
    }

    /// Who has an address on another node.
    fn place(&self, of: &Of, known: &Known, address: Addr) -> Option<Place> {
        let ip: IpAddr = address.into();
        let inside = is_link_local(address) || known.subnets.iter().any(|subnet| subnet.contains(ip));
        if !known.wide || !inside || !(of.needed || of.has_port()) {
            return None;
        }
        let holder = of.holders.get(&address)?;
        let here =
            |key: &super::ClaimKey| self.claims.get(key).is_some_and(|claim| claim.is_on(&self.this_node));
        if here(holder) || of.rivals.get(&address).is_some_and(|rivals| rivals.iter().any(here)) {
            return None;
        }
        let claim = self.claims.get(holder).filter(|claim| claim.since >= known.since)?;
        let mac = claim.told(&of.name, &self.index, address)?;
        let node = Arc::clone(claim.node.as_ref()?);
        // All that were told, and not this one: it is not there.
        let unlisted = self.nodes_listed.then_some(Told::Gone);
        let told = self.nodes.get(&node).and_then(|node| node.told).or(unlisted);
        let reached = match told {
            Some(Told::Is(address)) if known.tunnelled => address.map(Some),
            Some(Told::Is(_)) => Some(None),
            _ => None,
        };
        let remote = reached.filter(|_| of.has_port()).map(|node| Remote { mac, node });
        Some(Place { node, mac, remote, waits: told.is_none() })
    }

    /// Compare who has an address with who had it.
    pub(super) fn refresh(&mut self, index: u32, address: Addr) {
        let Some(of) = self.networks.get(index as usize) else { return };
        let Some(known) = &of.known else { return };
        let (id, now) = (known.id, self.place(of, known, address));
        self.replace(index, (id, address), now.as_ref());
    }

    /// Take a network's members out of the map.
    pub(super) fn forget(&mut self, index: u32, id: NetworkId) {
        let gone: Vec<(NetworkId, Addr)> =
            self.places.keys().filter(|(network, _)| *network == id).copied().collect();
        for key in gone {
            self.replace(index, key, None);
        }
    }

    fn replace(&mut self, index: u32, key: (NetworkId, Addr), now: Option<&Place>) {
        let before = match now {
            Some(place) => self.places.insert(key, place.clone()),
            None => self.places.remove(&key),
        };
        let before = before.as_ref();
        if before == now {
            return;
        }
        let member = now.and_then(|place| place.remote);
        if before.and_then(|place| place.remote) != member {
            self.outcome.changes.push(Change { network: key.0, address: key.1.into(), member });
        }
        let waits = |place: Option<&Place>| u32::from(place.is_some_and(|place| place.waits));
        if let Some(of) = self.networks.get_mut(index as usize) {
            of.waits = (of.waits + waits(now)).saturating_sub(waits(before));
        }
        let who = |place: &Place| (Arc::clone(&place.node), place.mac);
        let (was, is, member) = (before.map(who), now.map(who), (index, key.1));
        if was == is {
            return;
        }
        if let Some((node, _)) = was {
            if let Some(node) = self.nodes.get_mut(&node) {
                node.members.remove(&member);
            }
            self.touched.entry(node).or_default();
        }
        if let Some((node, _)) = is {
            self.nodes.entry(Arc::clone(&node)).or_default().members.insert(member);
            self.touched.insert(node, true);
        }
    }

    /// What an event came to.
    pub(super) fn finish(&mut self) -> Outcome {
        for (name, news) in std::mem::take(&mut self.touched) {
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            let matters = !node.members.is_empty();
            match (std::mem::replace(&mut node.said, matters), matters) {
                (false, true) => self.outcome.nodes.push(NodeNeed::Begins(Arc::clone(&name))),
                (true, true) if news => self.outcome.nodes.push(NodeNeed::News(Arc::clone(&name))),
                (true, false) => self.outcome.nodes.push(NodeNeed::Ends(Arc::clone(&name))),
                _ => {}
            }
            let known = matches!(node.told, Some(Told::Is(_))) && (!self.asks || name == self.this_node);
            if !matters && !known {
                self.nodes.remove(&name);
                self.forget_name(&name);
            }
        }
        std::mem::take(&mut self.outcome)
    }
}
