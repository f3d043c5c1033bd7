//! What the maps hold for endpoints against what they are to hold: compared without a lock, put right under one.

use std::collections::BTreeMap;
use std::fmt;

use aya::maps::{HashMap, MapData, MapError};
use netferry_common::endpoint::{ADDR_OWN, NETWORK_WIRE, READY, SHARED_MAC};
use netferry_common::flow::TRACK;
use netferry_common::limit::{BYTES, FRAMES, LIMIT_FROM_POD, LIMIT_TO_POD};
use netferry_common::policy::{DENY_FROM_POD, DENY_TO_POD};
use netferry_common::{
    Addr, Address, AddressKey, CounterKey, Direction, Drops, Endpoint, Limit, LimitKey, Member, MemberKey,
    Traffic,
};

use super::kernel::AyaDatapath;
use super::limits::Limits;
use super::policy::Policy;
use super::tables::{Tables, addresses, found, fresh, gone, record};
use super::{Datapath as _, DatapathError, EndpointId, EndpointSpec, bpf_error};
use crate::link::MacAddr;

/// What an endpoint that is in use is to have in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What its programs hold its pod to.
    pub spec: EndpointSpec,
    /// Index of the link its programs are on, in the host's namespace; of no meaning for a moved link.
    pub ifindex: u32,
    /// Its policy; `None`: whichever is in force is not looked at.
    pub policy: Option<Policy>,
    /// Its limits.
    pub limits: Limits,
    /// Whether the hardware address in `spec` is what its parent has now: a record that is there knows better.
    pub assumes_mac: bool,
    /// Likewise the MTU.
    pub assumes_mtu: bool,
    /// Whether its gate is to be open. What was of one that has lost its address must not pass for a moment.
    pub open: bool,
}

impl Wanted {
    /// Without what is only assumed.
    fn given(&self, record: Option<Endpoint>) -> Self {
        let mut wanted = self.clone();
        if let (true, Some(record)) = (self.assumes_mac, record) {
            wanted.spec.mac = MacAddr(record.mac);
        }
        if let (true, Some(record)) = (self.assumes_mtu, record) {
            wanted.spec.mtu = record.mtu;
        }
        wanted
    }
}

/// A part of what the maps hold for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapPart {
    /// Its record: network, hardware address, MTU, redirect target, and which checks apply to it.
    Record,
    /// Its gate, which is open once it is attached.
    Gate,
    /// The addresses it may send from.
    Addresses,
    /// Its place in its network.
    Members,
    /// Its limits.
    Limits,
    /// The entries of its policy.
    Policy,
}

impl fmt::Display for MapPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record => "its record was missing or altered",
            Self::Gate => "its gate was closed",
            Self::Addresses => "its own addresses were missing or altered",
            Self::Members => "its membership was missing or altered",
            Self::Limits => "its limits were missing or altered",
            Self::Policy => "its policy was missing or altered",
        })
    }
}

/// What the maps hold for one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) record: Option<Endpoint>,
    pub(super) addresses: BTreeMap<AddressKey, (u32, u32)>,
    pub(super) members: BTreeMap<MemberKey, (Addr, [u8; 6])>,
    /// Increment and burst: the rest of a limit is its state.
    pub(super) limits: BTreeMap<LimitKey, (u64, u64)>,
    /// Most flows.
    pub(super) most: Option<u64>,
    /// Whether its slot says what its record does.
    pub(super) slot_follows: bool,
}

/// Flags of a record that limits and placement make.
const MADE_FLAGS: u32 = LIMIT_FROM_POD | LIMIT_TO_POD | TRACK | SHARED_MAC;
const DENY_FLAGS: u32 = DENY_FROM_POD | DENY_TO_POD;

impl Held {
    /// What it is to be. `flows` is the size of the flow table.
    pub(super) fn wanted(wanted: &Wanted, flows: u32) -> Self {
        let Wanted { spec, ifindex, limits, .. } = wanted;
        let mut held = Self {
            record: Some(record(*ifindex, spec)),
            most: Some(limits.open_flows.unwrap_or(u64::from(flows / 2))),
            slot_follows: true,
            ..Self::default()
        };
        let mut flags = if wanted.open { READY } else { 0 };
        for (key, value) in addresses(spec) {
            held.addresses.insert(key, (value.flags, value.prefix));
        }
        let own = held.addresses.iter().filter(|(_, (flags, _))| flags & ADDR_OWN != 0);
        if spec.network != NETWORK_WIRE {
            held.members = own
                .map(|(key, _)| {
                    (MemberKey { network: spec.network, addr: key.addr }, (Addr::UNSPECIFIED, spec.mac.0))
                })
                .collect();
        }
        for (direction, flag) in [(Direction::FromPod, LIMIT_FROM_POD), (Direction::ToPod, LIMIT_TO_POD)] {
            for (kind, limit) in limits.entries(direction) {
                let Some(limit) = limit else { continue };
                let key = LimitKey { endpoint: spec.id, direction: direction.number(), kind };
                held.limits.insert(key, (limit.increment, limit.burst));
                if matches!(kind, BYTES | FRAMES) {
                    flags |= flag;
                }
            }
        }
        let mut asked = [limits.egress, limits.ingress].into_iter().flatten();
        if asked.any(|limit| limit.new_flows_per_second.is_some()) {
            flags |= TRACK;
        }
        if let Some(record) = &mut held.record {
            record.flags |= flags;
        }
        held
    }

    /// The parts in which `self` is not as `wanted`. A policy is more than this tells.
    pub(super) fn differs(&self, wanted: &Self) -> Vec<MapPart> {
        let plain = |record: Endpoint| Endpoint { flags: record.flags & MADE_FLAGS, policy: 0, ..record };
        let ready = |record: &Endpoint| record.flags & READY;
        let parts = [
            (MapPart::Record, self.record.map(plain) == wanted.record.map(plain)),
            // Without a record there is nothing to close.
            (
                MapPart::Gate,
                self.record.is_none() || self.record.as_ref().map(ready) == wanted.record.as_ref().map(ready),
            ),
            (MapPart::Addresses, self.addresses == wanted.addresses),
            (MapPart::Members, self.members == wanted.members),
            (MapPart::Limits, self.limits == wanted.limits && self.most == wanted.most),
        ];
        let mut parts: Vec<_> = parts.into_iter().filter(|(_, same)| !same).map(|(part, _)| part).collect();
        // A gate that was closed by hand is open in the slot.
        let told = parts.iter().any(|part| matches!(part, MapPart::Record | MapPart::Gate));
        if self.slot_follows != wanted.slot_follows && !told {
            parts.insert(0, MapPart::Record);
        }
        parts
    }
}

/// Every entry; one that is removed meanwhile is left out.
fn entries<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    what: &str,
) -> Result<Vec<(K, V)>, DatapathError> {
    let there = map.iter().filter(|entry| !matches!(entry, Err(MapError::KeyNotFound)));
    there.collect::<Result<_, _>>().map_err(|source| bpf_error(format!("list the {what}"), source))
}

impl Tables {
    /// What is held for every endpoint.
    fn held(&self) -> Result<BTreeMap<EndpointId, Held>, DatapathError> {
        let mut all = BTreeMap::<EndpointId, Held>::new();
        for (id, record) in entries(&self.endpoints, "endpoints")? {
            let follows = self.slot_follows(id, &record);
            let held = all.entry(id).or_default();
            held.slot_follows = follows.map_err(|source| bpf_error("read the slots", source))?;
            held.record = Some(record);
        }
        for (key, value) in entries(&self.addresses, "addresses")? {
            all.entry(key.endpoint).or_default().addresses.insert(key, (value.flags, value.prefix));
        }
        for (key, member) in self.members()?.into_iter().filter(|(_, member)| member.is_endpoint()) {
            all.entry(member.endpoint).or_default().members.insert(key, (member.node, member.mac));
        }
        for (key, limit) in entries(&self.limits, "limits")? {
            all.entry(key.endpoint).or_default().limits.insert(key, (limit.increment, limit.burst));
        }
        for (id, budget) in entries(&self.budgets, "budgets")? {
            all.entry(id).or_default().most = Some(budget.most);
        }
        Ok(all)
    }

    /// Writes what an endpoint lacks and removes what it has too much. A record that is missing is written closed; one
    /// that is there keeps its gate and its policy. Counters go on.
    fn mend(&mut self, wanted: &Wanted) -> Result<(), DatapathError> {
        let id = wanted.spec.id;
        let failed =
            |source: MapError| bpf_error(format!("put right the map entries of endpoint {id}"), source);
        let is = self.held()?.remove(&id).unwrap_or_default();
        let wanted = wanted.given(is.record);
        let goal = Held::wanted(&wanted, self.flows);
        for key in is.addresses.keys().filter(|key| !goal.addresses.contains_key(key)) {
            gone(self.addresses.remove(key)).map_err(failed)?;
        }
        for (key, (flags, prefix)) in &goal.addresses {
            if is.addresses.get(key) != Some(&(*flags, *prefix)) {
                let value = Address { flags: *flags, prefix: *prefix };
                self.addresses.insert(key, value, 0).map_err(failed)?;
            }
        }
        for key in is.members.keys().filter(|key| !goal.members.contains_key(key)) {
            gone(self.members.remove(key)).map_err(failed)?;
        }
        for (key, value) in &goal.members {
            if is.members.get(key) != Some(value) {
                self.members.insert(key, Member::new(id, wanted.spec.mac.0), 0).map_err(failed)?;
            }
        }
        for key in is.limits.keys().filter(|key| !goal.limits.contains_key(key)) {
            gone(self.limits.remove(key)).map_err(failed)?;
        }
        for (key, (increment, burst)) in &goal.limits {
            if is.limits.get(key) != Some(&(*increment, *burst)) {
                let limit = Limit { paid_at: 0, increment: *increment, burst: *burst };
                self.limits.insert(key, limit, 0).map_err(failed)?;
            }
        }
        if is.most != goal.most {
            self.write_budget(id, wanted.limits.open_flows).map_err(failed)?;
        }
        for direction in Direction::ALL {
            let key = CounterKey { endpoint: id, direction: direction.number() };
            if found(self.traffic.get(&key, 0)).map_err(failed)?.is_none() {
                fresh(&mut self.traffic, key, Traffic::ZERO).map_err(failed)?;
            }
            if found(self.drops.get(&key, 0)).map_err(failed)?.is_none() {
                fresh(&mut self.drops, key, Drops::ZERO).map_err(failed)?;
            }
        }
        let Some(goal) = goal.record else { return Ok(()) };
        let (kept, policy) = is.record.map_or((0, 0), |was| (was.flags & !MADE_FLAGS, was.policy));
        let put = Endpoint { flags: kept | goal.flags & MADE_FLAGS, policy, ..goal };
        if is.record != Some(put) || !is.slot_follows {
            self.put_record(id, &put).map_err(failed)?;
        }
        Ok(())
    }
}

impl AyaDatapath {
    pub(super) fn compare_with(
        &self,
        all: &[Wanted],
    ) -> Result<BTreeMap<EndpointId, Vec<MapPart>>, DatapathError> {
        let mut written = self.written();
        written.recover()?;
        let held = written.tables.held()?;
        let nothing = Held::default();
        let mut differing = BTreeMap::new();
        for wanted in all {
            let is = held.get(&wanted.spec.id).unwrap_or(&nothing);
            let mut parts = is.differs(&Held::wanted(&wanted.given(is.record), written.tables.flows));
            if let (Some(policy), Some(record)) = (&wanted.policy, is.record) {
                let denies = record.flags & DENY_FLAGS;
                if !written.policies.intact(wanted.spec.id, record.policy, denies, policy)? {
                    parts.push(MapPart::Policy);
                }
            }
            if !parts.is_empty() {
                differing.insert(wanted.spec.id, parts);
            }
        }
        Ok(differing)
    }

    pub(super) fn mend_maps(&self, wanted: &Wanted) -> Result<(), DatapathError> {
        let id = wanted.spec.id;
        let damaged = {
            let mut written = self.written();
            written.recover()?;
            written.tables.mend(wanted)?;
            let record = written.tables.record(id)?.unwrap_or_default();
            match &wanted.policy {
                Some(policy)
                    if !written.policies.intact(id, record.policy, record.flags & DENY_FLAGS, policy)? =>
                {
                    Some((policy, written.policies.disown(id, record.policy)))
                }
                _ => None,
            }
        };
        match damaged {
            Some((_, Some(known))) => drop(self.set_compiled(id, &known)?),
            Some((policy, None)) => self.set_policy(id, policy)?,
            None => {}
        }
        self.set_ready(id, wanted.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Placement;

    fn wanted() -> Wanted {
        let limits = "egress: {bitsPerSecond: 8000000, newFlowsPerSecond: 10}\nopenFlows: 7";
        Wanted {
            spec: EndpointSpec {
                id: 9,
                placement: Placement::HostVeth,
                network: 3,
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                addresses: ["192.0.2.1/24", "2001:db8::1/64"].map(|it| it.parse().unwrap()).to_vec(),
                mtu: 1400,
            },
            ifindex: 12,
            policy: None,
            limits: serde_yaml_ng::from_str(limits).unwrap(),
            assumes_mac: false,
            assumes_mtu: false,
            open: true,
        }
    }

    #[test]
    fn what_is_as_wanted_does_not_differ() {
        let goal = Held::wanted(&wanted(), 1000);
        assert_eq!(goal.record.unwrap().flags, READY | LIMIT_FROM_POD | TRACK);
        assert_eq!((goal.addresses.len(), goal.members.len(), goal.most), (4, 3, Some(7)));
        assert_eq!(goal.clone().differs(&goal), []);
        // Which policy is in force is compared by its entries.
        let mut other = goal.clone();
        let record = other.record.as_mut().unwrap();
        (record.policy, record.flags) = (77, record.flags | DENY_FROM_POD);
        assert_eq!(other.differs(&goal), []);
    }

    #[test]
    fn what_is_assumed_yields_to_the_record() {
        let mut wanted = wanted();
        let goal = Held::wanted(&wanted, 1000);
        (wanted.spec.mac, wanted.spec.mtu) = (MacAddr([2, 0, 0, 0, 0, 5]), 9000);
        assert!(!goal.differs(&Held::wanted(&wanted.given(goal.record), 1000)).is_empty());
        (wanted.assumes_mac, wanted.assumes_mtu) = (true, true);
        assert_eq!(goal.differs(&Held::wanted(&wanted.given(goal.record), 1000)), []);
    }

    #[test]
    fn each_part_is_seen_by_itself() {
        type Change = fn(&mut Held);
        let changes: [(Change, MapPart); 14] = [
            (|held| held.record = None, MapPart::Record),
            (|held| held.record.as_mut().unwrap().mac[5] = 9, MapPart::Record),
            (|held| held.record.as_mut().unwrap().network = 4, MapPart::Record),
            (|held| held.record.as_mut().unwrap().ifindex = 4, MapPart::Record),
            (|held| held.record.as_mut().unwrap().mtu = 4, MapPart::Record),
            (|held| held.record.as_mut().unwrap().flags &= !LIMIT_FROM_POD, MapPart::Record),
            (|held| held.record.as_mut().unwrap().flags &= !READY, MapPart::Gate),
            (|held| _ = held.addresses.pop_first(), MapPart::Addresses),
            (
                |held| {
                    let key = AddressKey { endpoint: 9, addr: Addr::link_local([2, 0, 0, 0, 0, 9]) };
                    held.addresses.insert(key, (ADDR_OWN, 64));
                },
                MapPart::Addresses,
            ),
            (|held| _ = held.members.pop_first(), MapPart::Members),
            (|held| held.members.values_mut().next().unwrap().1[0] = 4, MapPart::Members),
            (|held| _ = held.limits.pop_first(), MapPart::Limits),
            (|held| held.limits.values_mut().next().unwrap().0 = 1, MapPart::Limits),
            (|held| held.most = Some(8), MapPart::Limits),
        ];
        let goal = Held::wanted(&wanted(), 1000);
        for (nth, (change, part)) in changes.into_iter().enumerate() {
            let mut held = goal.clone();
            change(&mut held);
            assert_eq!(held.differs(&goal), [part], "change {nth}");
        }
    }
}
