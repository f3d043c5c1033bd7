//! Claims in the table of members.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use netferry_common::Addr;

use super::{Conflict, MemberTable, is_link_local, pods::PodKey};
use crate::{link::MacAddr, network::facts::ClaimFacts};

/// A claim's UID in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ClaimKey(u128);

impl ClaimKey {
    /// A UUID's digits are its number. Another text (a folder may have any) is hashed by FNV-1a.
    pub(super) fn of(uid: &str) -> Self {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        let digits: String = uid.chars().filter(|char| *char != '-').collect();
        let number = (uid.len() == 36 && digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok());
        let hash = || uid.bytes().fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
        Self(number.flatten().unwrap_or_else(hash))
    }

    pub(super) fn uid(self) -> String {
        let hex = format!("{:032x}", self.0);
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }
}

/// The scheduler gave the address to the claim.
const ALLOCATED: u8 = 1;
/// The claim's node has told that its port has the address.
const TOLD: u8 = 2;
/// No address: the claim has a port of the network on this node.
const PORT: u8 = 4;

/// Something of a network that a claim has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) network: u32,
    pub(super) address: Addr,
    mac: [u8; 6],
    what: u8,
}

impl Held {
    pub(super) const fn is_allocated(&self) -> bool {
        self.what & ALLOCATED != 0
    }

    /// Whether it stands for a port, which is no address.
    pub(super) const fn is_port(&self) -> bool {
        self.what == PORT
    }

    pub(super) const fn is_told(&self) -> bool {
        self.what & TOLD != 0
    }
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) since: i64,
    pub(super) namespace: Arc<str>,
    pub(super) name: Box<str>,
    pub(super) node: Option<Arc<str>>,
    pub(super) held: Box<[Held]>,
    /// The pod it is reserved for, where it is one.
    pub(super) pod: Option<PodKey>,
}

impl Claim {
    pub(super) fn is_on(&self, node: &str) -> bool {
        self.node.as_deref() == Some(node)
    }

    /// The hardware address of the port that has an address.
    pub(super) fn told(&self, network: &str, index: &HashMap<String, u32>, address: Addr) -> Option<MacAddr> {
        let network = *index.get(network)?;
        let told = |held: &&Held| held.is_told() && held.network == network && held.address == address;
        self.held.iter().find(told).map(|held| MacAddr(held.mac))
    }
}

impl MemberTable {
    pub(super) fn take_in(&mut self, key: ClaimKey, facts: &ClaimFacts) {
        let claim = self.claim(facts);
        if self.claims.get(&key) == Some(&claim) {
            // Most events are about other parts of the claim.
            return;
        }
        self.touch();
        let mut touched = self.release(key);
        if !claim.held.is_empty() {
            touched.extend(claim.held.iter().copied());
            self.claims.insert(key, claim);
            self.hold(key);
        }
        self.refresh_all(&touched);
    }

    pub(super) fn remove_claim(&mut self, key: ClaimKey) {
        self.touch();
        let touched = self.release(key);
        self.refresh_all(&touched);
    }

    /// Give a claim again what it says it has: who may have it is another question now.
    pub(super) fn hold_again(&mut self, key: ClaimKey) {
        let Some(claim) = self.claims.get(&key).cloned() else { return };
        let touched = self.release(key);
        self.claims.insert(key, claim);
        self.hold(key);
        self.refresh_all(&touched);
    }

    fn refresh_all(&mut self, touched: &[Held]) {
        for held in touched {
            if held.what == PORT {
                self.refresh_network(held.network);
            } else {
                self.refresh(held.network, held.address);
            }
        }
    }

    /// A claim in the table's form.
    fn claim(&mut self, facts: &ClaimFacts) -> Claim {
        let mut held: Vec<Held> = Vec::new();
        let mut add = |network: u32, address: Addr, mac: [u8; 6], what: u8| {
            let same = |held: &&mut Held| {
                held.network == network && held.address == address && (held.what == PORT) == (what == PORT)
            };
            match held.iter_mut().find(same) {
                Some(held) if what == TOLD && !held.is_told() => {
                    held.mac = mac;
                    held.what |= what;
                }
                Some(held) => held.what |= what,
                None => held.push(Held { network, address, mac, what }),
            }
        };
        for (network, address) in &facts.addresses {
            add(self.network(network), (*address).into(), [0; 6], ALLOCATED);
        }
        for port in &facts.ports {
            let network = self.network(&port.network);
            if *port.node == *self.this_node {
                add(network, Addr::UNSPECIFIED, [0; 6], PORT);
            }
            let Some((mac, addresses)) = &port.told else { continue };
            for address in addresses.iter().map(|address| Addr::from(*address)) {
                if !is_link_local(address) && !address.is_multicast() {
                    add(network, address, mac.0, TOLD);
                }
            }
            add(network, Addr::link_local(mac.0), mac.0, TOLD);
        }
        // All devices of a claim are on one node.
        let node = facts.ports.first().map(|port| &port.node).or(facts.block_node.as_ref());
        let node = node.map(|node| self.name(node));
        Claim {
            since: facts.since,
            namespace: self.name(facts.namespace()),
            name: facts.name.split_once('/').map_or("", |(_, name)| name).into(),
            node,
            held: held.into(),
            pod: facts.pod.as_deref().map(|name| self.pods.key(name)),
        }
    }

    /// Take a claim out. Returns what it had.
    fn release(&mut self, key: ClaimKey) -> Vec<Held> {
        let held: Vec<Held> = self.claims.get(&key).map(|claim| claim.held.to_vec()).unwrap_or_default();
        for held in &held {
            let Some(of) = self.networks.get_mut(held.network as usize) else { continue };
            if held.what == PORT {
                of.local = of.local.saturating_sub(1);
            }
            let Some(holder) = of.holders.get(&held.address).copied() else { continue };
            if let Some(rivals) = of.rivals.get_mut(&held.address) {
                rivals.remove(&key);
                let empty = rivals.is_empty();
                if holder == key {
                    let best = rivals
                        .iter()
                        .min_by_key(|rival| rank(&self.claims, **rival, held.network, held.address))
                        .copied();
                    if let Some(best) = best {
                        rivals.remove(&best);
                        of.holders.insert(held.address, best);
                    } else {
                        of.holders.remove(&held.address);
                    }
                }
                if empty || rivals.is_empty() {
                    of.rivals.remove(&held.address);
                }
            } else if holder == key {
                of.holders.remove(&held.address);
            }
        }
        self.claims.remove(&key);
        held
    }

    /// Give a claim that is in the table what it says it has.
    fn hold(&mut self, key: ClaimKey) {
        let Some(claim) = self.claims.get(&key) else { return };
        let (namespace, all) = (Arc::clone(&claim.namespace), claim.held.clone());
        for held in all {
            let Some(of) = self.networks.get_mut(held.network as usize) else { continue };
            if held.what == PORT {
                of.local += 1;
            }
            if !held.is_told() || !of.admits.lets(&namespace) {
                continue;
            }
            let Some(holder) = of.holders.get(&held.address).copied() else {
                of.holders.insert(held.address, key);
                continue;
            };
            if holder == key {
                continue;
            }
            let of_rank = |key| rank(&self.claims, key, held.network, held.address);
            let (kept, refused) = if of_rank(key) < of_rank(holder) { (key, holder) } else { (holder, key) };
            of.holders.insert(held.address, kept);
            of.rivals.entry(held.address).or_default().insert(refused);
            self.outcome.conflicts.push(Conflict {
                network: of.name.clone(),
                address: IpAddr::from(held.address),
                kept: kept.uid(),
                refused: refused.uid(),
            });
        }
    }
}

/// Who of several claims has an address: the least.
fn rank(
    claims: &HashMap<ClaimKey, Claim>,
    key: ClaimKey,
    network: u32,
    address: Addr,
) -> (bool, i64, ClaimKey) {
    let claim = claims.get(&key);
    let allocated = claim.is_some_and(|claim| {
        claim
            .held
            .iter()
            .any(|held| held.is_allocated() && held.network == network && held.address == address)
    });
    (!allocated, claim.map_or(i64::MAX, |claim| claim.since), key)
}
