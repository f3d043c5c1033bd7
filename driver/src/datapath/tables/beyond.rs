//! What the shared maps say of the ways of networks beyond the node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::MapError;
use netferry_common::member::GATEWAY;
use netferry_common::{Drops, Member, Tunnel, Uplink, Wire, WireKey};

use super::{Tables, found, gone, network_key};
use crate::datapath::networks::NetworkUplink;
use crate::datapath::{DatapathError, bpf_error};

impl Tables {
    /// Ways of all networks beyond the node.
    pub(in crate::datapath) fn uplinks(&self) -> Result<Vec<(u32, Uplink)>, DatapathError> {
        self.uplinks
            .iter()
            .filter(|entry| !matches!(entry, Err(MapError::KeyNotFound)))
            .collect::<Result<_, _>>()
            .map_err(|source| bpf_error("list the uplinks", source))
    }

    /// Where frames come in, and of which network.
    pub(in crate::datapath) fn wires(&self) -> Result<Vec<(WireKey, u32)>, DatapathError> {
        self.wires
            .iter()
            .filter(|entry| !matches!(entry, Err(MapError::KeyNotFound)))
            .map(|entry| entry.map(|(key, wire)| (key, wire.network)))
            .collect::<Result<_, _>>()
            .map_err(|source| bpf_error("list the wires", source))
    }

    /// Where tunnels start and end.
    pub(in crate::datapath) fn tunnel(&self) -> Result<Tunnel, DatapathError> {
        self.tunnel.get(&0, 0).map_err(|source| bpf_error("read where tunnels start and end", source))
    }

    /// Says where they do.
    pub(in crate::datapath) fn set_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), DatapathError> {
        self.tunnel.set(0, tunnel, 0).map_err(|source| bpf_error("write where tunnels start and end", source))
    }

    /// Writes the way of a network beyond the node. What comes in by another is closed first, and by this one opened last.
    pub(in crate::datapath) fn set_uplink(
        &mut self,
        network: u32,
        uplink: &NetworkUplink,
    ) -> Result<(), DatapathError> {
        let failed = |source| bpf_error(format!("write the uplink of network {network}"), source);
        let key = uplink.wire();
        let gateways = uplink.gateways();
        for (address, _) in &gateways {
            if self.member(network, *address)?.is_some_and(|member| member.endpoint != GATEWAY) {
                let problem = format!("{address} is a member's, and cannot be the gateway's");
                return Err(bpf_error(format!("set the uplink of network {network}"), problem));
            }
        }
        self.empty_way(network)?;
        self.remove_wires(network, Some(key))?;
        self.remove_gateways(network, |addr| gateways.iter().any(|(gateway, _)| *gateway == addr))?;
        for (address, mac) in gateways {
            self.set_member(network, address, Some(Member::new(GATEWAY, mac)))?;
        }
        self.uplinks.insert(network, uplink.record(), 0).map_err(failed)?;
        self.wires.insert(key, Wire { network }, 0).map_err(failed)?;
        self.fill_way(network, &uplink.record())
    }

    /// Removes the way of a network beyond the node, and what was counted there.
    pub(in crate::datapath) fn remove_uplink(&mut self, network: u32) -> Result<(), DatapathError> {
        let failed = |source| bpf_error(format!("remove the uplink of network {network}"), source);
        self.empty_way(network)?;
        self.remove_wires(network, None)?;
        gone(self.uplinks.remove(&network)).map_err(failed)?;
        self.remove_gateways(network, |_| false)?;
        let key = network_key(network);
        gone(self.traffic.remove(&key)).map_err(failed)?;
        gone(self.drops.remove(&key)).map_err(failed)
    }

    fn remove_wires(&mut self, network: u32, keep: Option<WireKey>) -> Result<(), DatapathError> {
        for (key, _) in self.wires()?.iter().filter(|(key, owner)| *owner == network && Some(*key) != keep) {
            gone(self.wires.remove(key))
                .map_err(|source| bpf_error(format!("remove a wire of network {network}"), source))?;
        }
        Ok(())
    }

    fn remove_gateways(&mut self, network: u32, keep: impl Fn(IpAddr) -> bool) -> Result<(), DatapathError> {
        for (key, member) in self.members()? {
            if key.network == network && member.endpoint == GATEWAY && !keep(key.addr.into()) {
                self.set_member(network, key.addr.into(), None)?;
            }
        }
        Ok(())
    }

    /// Drops of a network before an endpoint was found.
    pub(in crate::datapath) fn network_drops(
        &self,
        network: u32,
    ) -> Result<BTreeMap<String, u64>, DatapathError> {
        let cpus = found(self.drops.get(&network_key(network), 0))
            .map_err(|source| bpf_error(format!("read the counters of network {network}"), source))?;
        let mut drops = BTreeMap::new();
        for (reason, count) in cpus.iter().flat_map(|cpus| cpus.iter()).flat_map(Drops::nonzero) {
            *drops.entry(reason.name().to_owned()).or_default() += count;
        }
        Ok(drops)
    }
}
