//! The shared maps, as the daemon writes and reads them.

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use ipnetwork::IpNetwork;
use netferry_common::endpoint::{ADDR_BROADCAST, ADDR_OWN, NETWORK_WIRE, READY, SHARED_MAC};
use netferry_common::flow::TRACK;
use netferry_common::limit::{self, LIMIT_FROM_POD, LIMIT_TO_POD};
use netferry_common::{
    Addr, Address, AddressKey, Budget, CounterKey, Direction, Drops, Endpoint, Fast, Limit, LimitKey, Member,
    MemberKey, Slot, Traffic as Counted, Tunnel, Uplink, Way, Wire, WireKey, counters, maps,
};

use super::limits::Limits;
use super::{DatapathError, EndpointId, EndpointSpec, Placement, bpf_error, not_protected};

mod beyond;
mod counts;
mod slots;
mod ways;

/// Typed handles of the pinned maps.
pub(super) struct Tables {
    pub(super) endpoints: HashMap<MapData, EndpointId, Endpoint>,
    /// The records once more, see [`Slot`].
    slots: Array<MapData, Slot>,
    fast: PerCpuArray<MapData, Fast>,
    pub(super) addresses: HashMap<MapData, AddressKey, Address>,
    pub(super) members: HashMap<MapData, MemberKey, Member>,
    pub(super) limits: HashMap<MapData, LimitKey, Limit>,
    pub(super) budgets: HashMap<MapData, EndpointId, Budget>,
    /// Flows that fit the table of all.
    pub(super) flows: u32,
    uplinks: HashMap<MapData, u32, Uplink>,
    wires: HashMap<MapData, WireKey, Wire>,
    tunnel: Array<MapData, Tunnel>,
    ways: Array<MapData, Way>,
    pub(super) traffic: PerCpuHashMap<MapData, CounterKey, Counted>,
    pub(super) drops: PerCpuHashMap<MapData, CounterKey, Drops>,
}

/// Takes one map out of a prepared object.
pub(super) fn take<M>(object: &mut Ebpf, name: &'static str) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = object
        .take_map(name)
        .ok_or_else(|| bpf_error(format!("find the map {name}"), "the eBPF object has no such map"))?;
    M::try_from(map).map_err(|source| bpf_error(format!("use the map {name}"), source))
}

/// A removal of what is not there has succeeded.
pub(super) fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

impl Tables {
    /// Takes the maps out of a prepared object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, DatapathError> {
        let flows = match object.map(maps::FLOWS) {
            Some(Map::LruHashMap(data)) => data
                .info()
                .map_err(|source| bpf_error("read the size of the flow table", source))?
                .max_entries(),
            _ => return Err(bpf_error("find the flow table", "the eBPF object has no such map")),
        };
        Ok(Self {
            endpoints: take(object, maps::ENDPOINTS)?,
            slots: take(object, maps::SLOTS)?,
            fast: take(object, maps::FAST)?,
            addresses: take(object, maps::ADDRESSES)?,
            members: take(object, maps::MEMBERS)?,
            limits: take(object, maps::LIMITS)?,
            budgets: take(object, maps::BUDGETS)?,
            flows,
            uplinks: take(object, maps::UPLINKS)?,
            wires: take(object, maps::WIRES)?,
            tunnel: take(object, maps::TUNNEL)?,
            ways: take(object, maps::WAYS)?,
            traffic: take(object, maps::TRAFFIC)?,
            drops: take(object, maps::DROPS)?,
        })
    }

    /// Writes an endpoint that is not ready: its addresses, its place in its network, and the limit of new flows
    /// that everybody has; the record last.
    pub(super) fn write(&mut self, ifindex: u32, spec: &EndpointSpec) -> Result<(), DatapathError> {
        let failed = |what: &str| {
            let action = format!("write {what} of endpoint {}", spec.id);
            move |source| bpf_error(action, source)
        };
        for (key, value) in addresses(spec) {
            self.addresses.insert(key, value, 0).map_err(failed("the addresses"))?;
            if spec.network != NETWORK_WIRE && value.flags & ADDR_OWN != 0 {
                let key = MemberKey { network: spec.network, addr: key.addr };
                let member = Member::new(spec.id, spec.mac.0);
                self.members.insert(key, member, 0).map_err(failed("the membership"))?;
            }
        }
        self.write_limits(spec.id, &Limits::default())?;
        // No frame has to wait for memory then, nor goes uncounted for the lack of it.
        for direction in Direction::ALL {
            let key = CounterKey { endpoint: spec.id, direction: direction.number() };
            fresh(&mut self.traffic, key, Counted::ZERO).map_err(failed("the counters"))?;
            fresh(&mut self.drops, key, Drops::ZERO).map_err(failed("the counters"))?;
        }
        self.put_record(spec.id, &record(ifindex, spec)).map_err(failed("the record"))
    }

    /// The record of an endpoint, if it has one.
    pub(super) fn record(&self, id: EndpointId) -> Result<Option<Endpoint>, DatapathError> {
        found(self.endpoints.get(&id, 0)).map_err(|source| bpf_error(format!("read endpoint {id}"), source))
    }

    /// Changes the record of an endpoint that has one, by one write. The flags of `clear` go, those of `set` come.
    pub(super) fn change(
        &mut self,
        id: EndpointId,
        clear: u32,
        set: u32,
        policy: Option<u32>,
    ) -> Result<(), DatapathError> {
        let mut endpoint = self
            .record(id)?
            .ok_or_else(|| not_protected(id, "it is not in the map of endpoints, so it cannot be changed"))?;
        endpoint.flags = endpoint.flags & !clear | set;
        endpoint.policy = policy.unwrap_or(endpoint.policy);
        self.put_record(id, &endpoint).map_err(|source| bpf_error(format!("write endpoint {id}"), source))
    }

    /// Opens or closes the gate. Closing that of an endpoint that is not there is done already.
    pub(super) fn set_ready(&mut self, id: EndpointId, ready: bool) -> Result<(), DatapathError> {
        if !ready && self.record(id)?.is_none() {
            return Ok(());
        }
        if ready { self.change(id, 0, READY, None) } else { self.change(id, READY, 0, None) }
    }

    /// Writes the limits of an endpoint and removes those it no longer has. Returns the flags its record needs.
    pub(super) fn write_limits(&mut self, id: EndpointId, limits: &Limits) -> Result<u32, DatapathError> {
        let failed = |source| bpf_error(format!("write the limits of endpoint {id}"), source);
        let mut flags = 0;
        for (direction, flag) in [(Direction::FromPod, LIMIT_FROM_POD), (Direction::ToPod, LIMIT_TO_POD)] {
            for (kind, limit) in limits.entries(direction) {
                let key = LimitKey { endpoint: id, direction: direction.number(), kind };
                match limit {
                    Some(limit) => self.limits.insert(key, limit, 0).map_err(failed)?,
                    None => gone(self.limits.remove(&key)).map_err(failed)?,
                }
                if limit.is_some() && matches!(kind, limit::BYTES | limit::FRAMES) {
                    flags |= flag;
                }
            }
        }
        self.write_budget(id, limits.open_flows).map_err(failed)?;
        // Flows are not followed where nothing asks for it, and then nothing counts the new ones.
        let mut asked = [limits.egress, limits.ingress].into_iter().flatten();
        if asked.any(|limit| limit.new_flows_per_second.is_some()) {
            flags |= TRACK;
        }
        Ok(flags)
    }

    /// Sets how many flows an endpoint may hold; what it holds stays counted.
    pub(super) fn write_budget(&mut self, id: EndpointId, most: Option<u64>) -> Result<(), MapError> {
        // A count that starts at nothing is right.
        let none = Budget { counted_at: super::events::now(), ..Budget::default() };
        let before = found(self.budgets.get(&id, 0))?.unwrap_or(none);
        let most = most.unwrap_or(u64::from(self.flows / 2));
        self.budgets.insert(id, Budget { most, ..before }, 0)
    }

    /// Says where an address of a network is, or with `None` that it is nowhere.
    pub(super) fn set_member(
        &mut self,
        network: u32,
        addr: IpAddr,
        member: Option<Member>,
    ) -> Result<(), DatapathError> {
        let key = MemberKey { network, addr: addr.into() };
        match member {
            Some(member) => self.members.insert(key, member, 0),
            None => gone(self.members.remove(&key)),
        }
        .map_err(|source| bpf_error(format!("write the member {addr} of network {network}"), source))
    }

    /// Who has an address of a network.
    pub(super) fn member(&self, network: u32, addr: IpAddr) -> Result<Option<Member>, DatapathError> {
        found(self.members.get(&MemberKey { network, addr: addr.into() }, 0))
            .map_err(|source| bpf_error(format!("read the member {addr} of network {network}"), source))
    }

    /// Endpoints that have an address as their own.
    pub(super) fn owners(&self, addr: IpAddr) -> Result<Vec<EndpointId>, DatapathError> {
        let mut owners = Vec::new();
        for entry in &self.addresses {
            let (key, value) = entry.map_err(|source| bpf_error("list the addresses", source))?;
            if key.addr == addr.into() && value.flags & ADDR_OWN != 0 {
                owners.push(key.endpoint);
            }
        }
        Ok(owners)
    }

    /// Members of all networks.
    pub(super) fn members(&self) -> Result<Vec<(MemberKey, Member)>, DatapathError> {
        self.members
            .iter()
            .filter(|entry| !matches!(entry, Err(MapError::KeyNotFound)))
            .collect::<Result<_, _>>()
            .map_err(|source| bpf_error("list the members of networks", source))
    }

    /// Policy version of every endpoint that has one.
    pub(super) fn policies(&self) -> Result<Vec<(EndpointId, u32)>, DatapathError> {
        let mut versions = Vec::new();
        for id in self.endpoints.keys() {
            let id = id.map_err(|source| bpf_error("list the endpoints", source))?;
            versions.extend(
                self.record(id)?.filter(|record| record.policy > 0).map(|record| (id, record.policy)),
            );
        }
        Ok(versions)
    }

    /// Removes every entry of an endpoint: the record first, so that its programs drop from then on.
    pub(super) fn forget(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        let failed = |source| bpf_error(format!("remove the map entries of endpoint {id}"), source);
        self.remove_record(id).map_err(failed)?;
        let members = self.members()?;
        for (key, _) in members.iter().filter(|(_, member)| member.endpoint == id) {
            gone(self.members.remove(key)).map_err(failed)?;
        }
        let own: Vec<AddressKey> = self
            .addresses
            .keys()
            .filter(|key| key.as_ref().map_or(true, |key| key.endpoint == id))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        for key in own {
            gone(self.addresses.remove(&key)).map_err(failed)?;
        }
        gone(self.budgets.remove(&id)).map_err(failed)?;
        for direction in Direction::ALL {
            let key = CounterKey { endpoint: id, direction: direction.number() };
            gone(self.traffic.remove(&key)).map_err(failed)?;
            gone(self.drops.remove(&key)).map_err(failed)?;
            for kind in [limit::BYTES, limit::FRAMES, limit::FLOWS, limit::DENIES] {
                let key = LimitKey { endpoint: id, direction: direction.number(), kind };
                gone(self.limits.remove(&key)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Ids of all endpoints with entries.
    pub(super) fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        let ids = self
            .endpoints
            .keys()
            .chain(self.addresses.keys().map(|key| key.map(|key| key.endpoint)))
            .chain(self.limits.keys().map(|key| key.map(|key| key.endpoint)))
            .chain(self.budgets.keys());
        let ids = ids.collect::<Result<Vec<_>, _>>();
        let mut ids = ids.map_err(|source| bpf_error("list the endpoints", source))?;
        ids.extend(
            self.members()?.iter().filter(|(_, member)| member.is_endpoint()).map(|(_, it)| it.endpoint),
        );
        Ok(ids)
    }
}

const fn network_key(network: u32) -> CounterKey {
    CounterKey { endpoint: network | counters::NETWORK, direction: Direction::ToPod as u32 }
}

/// A look-up of what is not there is a `None`.
pub(super) fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a counter that stands at 0 on every CPU.
pub(super) fn fresh<V: aya::Pod>(
    map: &mut PerCpuHashMap<MapData, CounterKey, V>,
    key: CounterKey,
    zero: V,
) -> Result<(), MapError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    map.insert(key, PerCpuValues::try_from(vec![zero; cpus]).map_err(MapError::IoError)?, 0)
}

/// The record of an endpoint that is not ready.
pub(super) fn record(ifindex: u32, spec: &EndpointSpec) -> Endpoint {
    Endpoint {
        flags: if spec.placement == Placement::SharedMac { SHARED_MAC } else { 0 },
        network: spec.network,
        mtu: spec.mtu,
        policy: 0,
        ifindex: match spec.placement {
            Placement::MovedLink | Placement::SharedMac => 0,
            Placement::HostVeth => ifindex,
        },
        mac: spec.mac.0,
        pad: [0; 2],
    }
}

/// The entries that say from where an endpoint may send, as [`Address`] lists them.
pub(super) fn addresses(spec: &EndpointSpec) -> Vec<(AddressKey, Address)> {
    let entry = |addr, flags, prefix| {
        (AddressKey { endpoint: spec.id, addr }, Address { flags, prefix: u32::from(prefix) })
    };
    let mut entries = vec![entry(Addr::link_local(spec.mac.0), ADDR_OWN, 64)];
    for network in &spec.addresses {
        if let IpNetwork::V4(v4) = network
            && v4.prefix() < 31
        {
            entries.push(entry(IpAddr::V4(v4.broadcast()).into(), ADDR_BROADCAST, v4.prefix()));
        }
    }
    // Last, so that an own address that is also some subnet's broadcast address stays its own.
    entries
        .extend(spec.addresses.iter().map(|network| entry(network.ip().into(), ADDR_OWN, network.prefix())));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::MacAddr;

    fn spec(addresses: &[&str]) -> EndpointSpec {
        EndpointSpec {
            id: 9,
            placement: Placement::MovedLink,
            network: 0,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            mtu: 1500,
        }
    }

    fn listed(spec: &EndpointSpec) -> Vec<(String, u32, u32)> {
        addresses(spec)
            .into_iter()
            .map(|(key, value)| {
                assert_eq!(key.endpoint, 9);
                (IpAddr::from(key.addr).to_string(), value.flags, value.prefix)
            })
            .collect()
    }

    #[test]
    fn addresses_with_link_local_and_broadcast() {
        let listed = listed(&spec(&["192.0.2.10/24", "2001:db8::1/64", "198.51.100.1/31"]));
        let expected = [
            ("fe80::ff:fe00:1", ADDR_OWN, 64),
            ("192.0.2.255", ADDR_BROADCAST, 24),
            ("192.0.2.10", ADDR_OWN, 24),
            ("2001:db8::1", ADDR_OWN, 64),
            ("198.51.100.1", ADDR_OWN, 31),
        ];
        assert_eq!(listed, expected.map(|(addr, flags, prefix)| (addr.to_owned(), flags, prefix)));
    }

    #[test]
    fn a_record_starts_closed() {
        assert_eq!(record(7, &spec(&[])).flags, 0);
        let shared = EndpointSpec { placement: Placement::SharedMac, ..spec(&[]) };
        assert_eq!((record(7, &shared).flags, record(7, &shared).ifindex), (SHARED_MAC, 0));
        assert_eq!(record(7, &spec(&[])).ifindex, 0);
        let veth = EndpointSpec { placement: Placement::HostVeth, ..spec(&[]) };
        assert_eq!(record(7, &veth).ifindex, 7);
    }
}
