//! Ways of networks through tunnels where programs find them without a search, see [`Way`].

use aya::maps::MapError;
use netferry_common::tunnel::{way_of_network, way_of_vni};
use netferry_common::uplink::OVERLAY;
use netferry_common::{Uplink, Way};

use super::Tables;
use crate::datapath::{DatapathError, bpf_error};

impl Tables {
    /// Fills the places of every network that goes through tunnels, where no other network has them.
    pub(in crate::datapath) fn fill_ways(&mut self) -> Result<(), DatapathError> {
        for (network, uplink) in self.uplinks()? {
            self.fill_way(network, &uplink)?;
        }
        Ok(())
    }

    pub(super) fn fill_way(&mut self, network: u32, uplink: &Uplink) -> Result<(), DatapathError> {
        let Uplink { flags, ifindex, tag, mtu, .. } = *uplink;
        if flags != OVERLAY {
            return Ok(());
        }
        let way = Way { network, vni: tag, device: ifindex, mtu };
        let mut fill = || {
            for place in [way_of_network(network), way_of_vni(tag)] {
                let there = self.ways.get(&place, 0)?;
                if there != way && (there.network == 0 || there.network == network) {
                    self.ways.set(place, way, 0)?;
                }
            }
            Ok(())
        };
        fill().map_err(|source: MapError| bpf_error(format!("write the way of network {network}"), source))
    }

    /// Empties the places of a network.
    pub(super) fn empty_way(&mut self, network: u32) -> Result<(), DatapathError> {
        let mut empty = || {
            let way = self.ways.get(&way_of_network(network), 0)?;
            let tagged = self.uplinks.get(&network, 0).map_or(way.vni, |uplink| uplink.tag);
            for place in [way_of_network(network), way_of_vni(tagged), way_of_vni(way.vni)] {
                if self.ways.get(&place, 0)?.network == network {
                    self.ways.set(place, Way::default(), 0)?;
                }
            }
            Ok(())
        };
        empty().map_err(|source: MapError| bpf_error(format!("empty the way of network {network}"), source))
    }
}
