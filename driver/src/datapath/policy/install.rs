//! Policies in the kernel's maps: written beside the one in force, switched by one write, deleted in slices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData, MapError, MapInfo};
use netferry_common::policy::{
    ALLOW, DENY, DENY_FROM_POD, DENY_TO_POD, PEER_BITS, PEER_BITS_ALL, RULE_BITS_ALL, RULE_BITS_ANY,
    RULE_BITS_PROTOCOL,
};
use netferry_common::{Addr, Direction, Peer, PeerKey, Rule, RuleKey, maps};

use super::{Action, Compiled, Otherwise, Peers, Policy, PolicyError, Resolved, Room, compile, flatten};
use crate::datapath::tables::{found, gone, take};
use crate::datapath::{DatapathError, EndpointId, bpf_error};

/// A policy ready for the maps: the entries of both directions, and what decides without an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledPolicy {
    /// Flows the pod opens.
    pub from_pod: Compiled,
    /// What decides about flows the pod opens that have no entry.
    pub from_pod_otherwise: Otherwise,
    /// Flows to the pod.
    pub to_pod: Compiled,
    /// What decides about flows to the pod that have no entry.
    pub to_pod_otherwise: Otherwise,
}

impl CompiledPolicy {
    /// Resolves and compiles a policy. Fails if it takes more than `room`.
    pub fn new(policy: &Policy, peers: &dyn Peers, room: Room) -> Result<Self, PolicyError> {
        let (rules, from_pod_otherwise) = flatten(policy, Direction::FromPod, peers)?;
        let from_pod = compile(&rules, room)?;
        let left =
            Room { peers: room.peers - from_pod.peers.len(), rules: room.rules - from_pod.rules.len() };
        let (rules, to_pod_otherwise) = flatten(policy, Direction::ToPod, peers)?;
        let to_pod = compile(&rules, left)?;
        Ok(Self { from_pod, from_pod_otherwise, to_pod, to_pod_otherwise })
    }

    fn sides(&self) -> [(Direction, &Compiled); 2] {
        [(Direction::FromPod, &self.from_pod), (Direction::ToPod, &self.to_pod)]
    }

    fn peer_entries(&self, version: u32) -> impl Iterator<Item = (Key<PeerKey>, Peer)> {
        self.sides().into_iter().flat_map(move |(direction, side)| {
            side.peers.iter().map(move |(prefix, class)| {
                let addr = Addr { bytes: prefix.octets() };
                let key = PeerKey { policy: version, direction: direction.number(), addr };
                (Key::new(PEER_BITS + u32::from(prefix.length()), key), Peer { class: *class })
            })
        })
    }

    fn rule_entries(&self, version: u32) -> impl Iterator<Item = (Key<RuleKey>, Rule)> {
        self.sides().into_iter().flat_map(move |(direction, side)| {
            side.rules.iter().map(move |entry| {
                let (protocol, port, bits) = match entry.block {
                    None => (0, 0, RULE_BITS_ANY),
                    Some((protocol, first, length)) => {
                        (protocol, first, RULE_BITS_PROTOCOL + u32::from(length))
                    }
                };
                let key = RuleKey {
                    policy: version,
                    class: entry.class,
                    direction: direction.byte(),
                    protocol,
                    port: port.to_be_bytes(),
                };
                let action = match entry.action {
                    Action::Allow => ALLOW,
                    Action::Deny => DENY,
                };
                (Key::new(bits, key), Rule { action, rule: entry.rule })
            })
        })
    }
}

/// A version whose entries are in the maps.
struct Installed {
    /// `None` for one found at start: its text is not known any more.
    policy: Option<Arc<CompiledPolicy>>,
    peers: Vec<Key<PeerKey>>,
    rules: Vec<Key<RuleKey>>,
    users: BTreeSet<EndpointId>,
}

/// The policy maps, and what is in them.
pub(in crate::datapath) struct PolicyTables {
    peers: LpmTrie<MapData, PeerKey, Peer>,
    rules: LpmTrie<MapData, RuleKey, Rule>,
    most: Room,
    installed: BTreeMap<u32, Installed>,
    /// Versions that no endpoint uses any more, and in which epoch that became so. A frame that is being judged may
    /// still look them up.
    retired: Vec<(u64, Installed)>,
    /// Advanced by [`Self::advance`].
    epoch: u64,
    /// No frame looks up what was retired before this epoch.
    quiet: u64,
    last: u32,
}

impl PolicyTables {
    /// Takes the maps out of a prepared object. `maps` is the folder of their pins.
    pub(in crate::datapath) fn take(object: &mut Ebpf, folder: &Path) -> Result<Self, DatapathError> {
        let most = |name: &str| {
            MapInfo::from_pin(folder.join(name))
                .map(|info| info.max_entries() as usize)
                .map_err(|source| bpf_error(format!("read the size of the map {name}"), source))
        };
        Ok(Self {
            peers: take(object, maps::PEERS)?,
            rules: take(object, maps::RULES)?,
            most: Room { peers: most(maps::PEERS)?, rules: most(maps::RULES)? },
            installed: BTreeMap::new(),
            retired: Vec::new(),
            epoch: 0,
            quiet: 0,
            last: 0,
        })
    }

    /// Finds out what an earlier process left: versions in use are kept, others retired.
    pub(in crate::datapath) fn recover(
        &mut self,
        in_use: impl IntoIterator<Item = (EndpointId, u32)>,
    ) -> Result<(), DatapathError> {
        let mut found = BTreeMap::<u32, Installed>::new();
        let empty = || Installed { policy: None, peers: vec![], rules: vec![], users: BTreeSet::new() };
        let failed = |source| bpf_error("list the policies", source);
        for key in self.peers.keys() {
            let key = key.map_err(failed)?;
            found.entry(key.data().policy).or_insert_with(empty).peers.push(key);
        }
        for key in self.rules.keys() {
            let key = key.map_err(failed)?;
            found.entry(key.data().policy).or_insert_with(empty).rules.push(key);
        }
        for (endpoint, version) in in_use {
            found.entry(version).or_insert_with(empty).users.insert(endpoint);
        }
        self.last = found.keys().next_back().copied().unwrap_or_default();
        for (version, version_found) in found {
            if version_found.users.is_empty() {
                self.retired.push((self.epoch, version_found));
            } else {
                self.installed.insert(version, version_found);
            }
        }
        Ok(())
    }

    /// What is free now. Entries being deleted are not free yet.
    pub(in crate::datapath) fn room(&self) -> Room {
        let (mut peers, mut rules) = (0, 0);
        for installed in self.installed.values().chain(self.retired.iter().map(|(_, retired)| retired)) {
            peers += installed.peers.len();
            rules += installed.rules.len();
        }
        Room { peers: self.most.peers.saturating_sub(peers), rules: self.most.rules.saturating_sub(rules) }
    }

    /// Entries that the maps can hold.
    pub(in crate::datapath) const fn capacity(&self) -> Room {
        self.most
    }

    /// Sees that the entries of a policy are in the maps, and returns their version. Policies that are alike
    /// share one. The endpoint is not switched yet.
    pub(in crate::datapath) fn write(
        &mut self,
        id: EndpointId,
        policy: &Arc<CompiledPolicy>,
    ) -> Result<u32, DatapathError> {
        // An endpoint's own version is not taken again: a new one has its open flows judged again.
        let alike = self.installed.iter_mut().find(|(_, installed)| {
            installed.policy.as_ref() == Some(policy) && !installed.users.contains(&id)
        });
        if let Some((version, installed)) = alike {
            installed.users.insert(id);
            return Ok(*version);
        }
        let version = self.next_version();
        let entries = Installed {
            policy: Some(Arc::clone(policy)),
            peers: policy.peer_entries(version).map(|(key, _)| key).collect(),
            rules: policy.rule_entries(version).map(|(key, _)| key).collect(),
            users: BTreeSet::from([id]),
        };
        let room = self.room();
        for (what, needed, free) in [
            ("peer entries", entries.peers.len(), room.peers),
            ("rule entries", entries.rules.len(), room.rules),
        ] {
            if needed > free {
                let refused = PolicyError::TooLarge { what, needed, free };
                return Err(bpf_error(format!("set the policy of endpoint {id}"), refused));
            }
        }
        if let Err(source) = self.insert(version, policy) {
            self.retired.push((self.epoch, entries));
            return Err(bpf_error(format!("write the policy of endpoint {id}"), source));
        }
        self.installed.insert(version, entries);
        Ok(version)
    }

    /// Whether every entry of an endpoint's policy is in the maps under the version in force, and `denies` (flags of its
    /// record) is what the policy says. Entries beside them are not looked for.
    pub(in crate::datapath) fn intact(
        &self,
        id: EndpointId,
        version: u32,
        denies: u32,
        policy: &Policy,
    ) -> Result<bool, DatapathError> {
        let Some(installed) = self.installed.get(&version).filter(|it| it.users.contains(&id)) else {
            return Ok(false);
        };
        let compiled = match &installed.policy {
            Some(compiled) => Arc::clone(compiled),
            // Written by an earlier process: what it was is known if the policy alone says it.
            None if !policy.names_peers() => {
                let compiled = CompiledPolicy::new(policy, &Resolved::default(), self.most);
                let failed = |source| bpf_error(format!("compile the policy of endpoint {id}"), source);
                Arc::new(compiled.map_err(failed)?)
            }
            None => return Ok(true),
        };
        let failed = |source| bpf_error(format!("read the policy of endpoint {id}"), source);
        for (key, value) in compiled.rule_entries(version) {
            if found(self.rules.get(&key, 0)).map_err(failed)? != Some(value) {
                return Ok(false);
            }
        }
        for (key, value) in compiled.peer_entries(version) {
            if found(self.peers.get(&key, 0)).map_err(failed)? != Some(value) {
                return Ok(false);
            }
        }
        let flag = |otherwise, flag| if otherwise == Otherwise::Deny { flag } else { 0 };
        let wanted =
            flag(compiled.from_pod_otherwise, DENY_FROM_POD) | flag(compiled.to_pod_otherwise, DENY_TO_POD);
        Ok(denies == wanted)
    }

    /// Has nobody share a version whose entries are damaged. Returns what the endpoint's policy was, if it is known.
    pub(in crate::datapath) fn disown(
        &mut self,
        id: EndpointId,
        version: u32,
    ) -> Option<Arc<CompiledPolicy>> {
        let damaged = self.installed.get_mut(&version).filter(|it| it.users.contains(&id));
        if let Some(installed) = damaged {
            return installed.policy.take();
        }
        // The record has lost its version: what was last put in force for the endpoint is its policy.
        let last = self.installed.values_mut().rev().find(|it| it.users.contains(&id));
        last.and_then(|installed| installed.policy.clone())
    }

    fn insert(&mut self, version: u32, policy: &CompiledPolicy) -> Result<(), MapError> {
        for (key, value) in policy.rule_entries(version) {
            self.rules.insert(&key, value, 0)?;
        }
        for (key, value) in policy.peer_entries(version) {
            self.peers.insert(&key, value, 0)?;
        }
        Ok(())
    }

    /// Notes that an endpoint uses no version but this (0 for none). What nobody uses is retired.
    pub(in crate::datapath) fn release(&mut self, id: EndpointId, but: u32) {
        let mut unused = Vec::new();
        for (version, installed) in &mut self.installed {
            if *version != but && installed.users.remove(&id) && installed.users.is_empty() {
                unused.push(*version);
            }
        }
        let epoch = self.epoch;
        let unused = unused.iter().filter_map(|version| Some((epoch, self.installed.remove(version)?)));
        self.retired.extend(unused);
    }

    /// Begins an epoch, if there is something to delete. After the kernel's grace period that follows, pass the epoch
    /// to [`Self::reclaim`].
    pub(in crate::datapath) fn advance(&mut self) -> Option<u64> {
        if self.retired.is_empty() {
            return None;
        }
        self.epoch += 1;
        Some(self.epoch)
    }

    /// Deletes at most `slice` entries of versions retired before the epoch. True when none is left.
    pub(in crate::datapath) fn reclaim(&mut self, epoch: u64, slice: usize) -> Result<bool, DatapathError> {
        self.quiet = self.quiet.max(epoch);
        let failed = |source| bpf_error("delete entries of an old policy", source);
        for _ in 0..slice {
            let Some(at) = self.retired.iter().position(|(since, _)| *since < self.quiet) else {
                return Ok(true);
            };
            let retired = &mut self.retired[at].1;
            if let Some(key) = retired.peers.pop() {
                gone(self.peers.remove(&key)).map_err(failed)?;
            } else if let Some(key) = retired.rules.pop() {
                gone(self.rules.remove(&key)).map_err(failed)?;
            } else {
                self.retired.swap_remove(at);
            }
        }
        Ok(false)
    }

    /// The class of an address, by the kernel's own look-up.
    pub(in crate::datapath) fn peer(&self, key: PeerKey) -> Result<Option<Peer>, DatapathError> {
        found(self.peers.get(&Key::new(PEER_BITS_ALL, key), 0))
            .map_err(|source| bpf_error("look up a peer of a policy", source))
    }

    /// The rule for a port, likewise.
    pub(in crate::datapath) fn rule(&self, key: RuleKey) -> Result<Option<Rule>, DatapathError> {
        found(self.rules.get(&Key::new(RULE_BITS_ALL, key), 0))
            .map_err(|source| bpf_error("look up a rule of a policy", source))
    }

    /// Never used before since the machine started: flows in the table remember theirs. So it follows the clock,
    /// which survives a restart of the daemon, in steps of 10 ms.
    fn next_version(&mut self) -> u32 {
        let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map_or(0, |now| now.tv_sec() * 100 + now.tv_nsec() / 10_000_000);
        let clock = u32::try_from(clock).unwrap_or(0);
        self.last = self.last.saturating_add(1).max(clock).max(1);
        self.last
    }
}
