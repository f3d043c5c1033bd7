//! The one decision about a frame, whatever hook it came through.

use netferry_common::endpoint::{ADDR_OWN, READY};
use netferry_common::{Addr, Direction, Endpoint, Reason};

use crate::packet::{self, Ethernet, Mac, Packet, ethertype};
use crate::tables::{Tables, address_flags};
use crate::{arp, ipv4, ipv6};

/// What becomes of a frame.
#[must_use = "a verdict that is not returned lets the frame through"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program, and then to where it was going.
    Pass,
    /// Nowhere.
    Drop(Reason),
}

/// What every check needs to know about the frame at hand.
pub struct Case<'a, P, T> {
    /// The frame.
    pub packet: &'a P,
    /// The maps.
    pub tables: &'a T,
    /// Id of the endpoint.
    pub id: u32,
    /// Its record.
    pub endpoint: &'a Endpoint,
    /// Its hardware address.
    pub mac: Mac,
    /// Which way the frame goes.
    pub direction: Direction,
    /// The Ethernet header.
    pub eth: Ethernet,
}

impl<P: Packet, T: Tables> Case<'_, P, T> {
    /// Whether the frame was sent by the pod.
    #[inline(always)]
    #[must_use]
    pub fn from_pod(&self) -> bool {
        matches!(self.direction, Direction::FromPod)
    }

    /// Whether an address is one the pod may send from.
    #[inline(always)]
    #[must_use]
    pub fn owns(&self, addr: Addr) -> bool {
        self.flags(addr) & ADDR_OWN != 0
    }

    /// Flags of an address for this endpoint.
    #[inline(always)]
    #[must_use]
    pub fn flags(&self, addr: Addr) -> u32 {
        address_flags(self.tables, self.id, addr)
    }
}

/// Decides about a frame of endpoint `id` and counts it.
#[inline(always)]
pub fn judge<P: Packet, T: Tables>(packet: &P, tables: &T, id: u32, direction: Direction) -> Verdict {
    match inspect(packet, tables, id, direction) {
        Ok(()) => {
            tables.passed(id, direction, 1, packet.len() as u64);
            Verdict::Pass
        }
        Err(reason) => {
            tables.dropped(id, direction, reason);
            Verdict::Drop(reason)
        }
    }
}

#[inline(always)]
fn inspect<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    id: u32,
    direction: Direction,
) -> Result<(), Reason> {
    let endpoint = tables.endpoint(id).ok_or(Reason::NoEndpoint)?;
    if endpoint.flags & READY == 0 {
        return Err(Reason::NotReady);
    }
    let eth: Ethernet = packet.head(0).ok_or(Reason::MalformedEthernet)?;
    if packet.vlan_tagged() || eth.ethertype == ethertype::VLAN || eth.ethertype == ethertype::QINQ {
        return Err(Reason::VlanTagged);
    }
    if packet::is_group(eth.src) {
        return Err(Reason::MalformedEthernet);
    }
    let mac = packet::mac(endpoint.mac);
    let own_source = eth.src == mac;
    match direction {
        Direction::FromPod if !own_source => return Err(Reason::SourceMac),
        Direction::ToPod if own_source => return Err(Reason::OwnMac),
        Direction::ToPod if !packet::is_group(eth.dst) && eth.dst != mac => {
            return Err(Reason::NotForUs);
        }
        _ => {}
    }
    let case = Case { packet, tables, id, endpoint, mac, direction, eth };
    match eth.ethertype {
        ethertype::IPV4 => ipv4::check(&case),
        ethertype::IPV6 => ipv6::check(&case),
        ethertype::ARP => arp::check(&case),
        _ => Err(Reason::Ethertype),
    }
}
