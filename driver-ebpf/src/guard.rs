//! What is dropped before the kernel has made anything of a frame to the pod.
//!
//! Only what the program behind, [`crate::judge`], would drop as well, for the same reason, and what comes from the
//! block list. All else is left to it: it sees flows and policy.

use netferry_common::endpoint::{ADDR_OWN, SHARED_MAC};
use netferry_common::event::{self, Event};
use netferry_common::{Direction, Reason};

use crate::datagram::Datagram;
use crate::packet::{self, Ethernet, Packet, ethertype};
use crate::tables::{Tables, address_flags};
use crate::transport::protocol::ICMPV6;

/// The block list.
pub trait BlockList {
    /// Whether frames from an address are dropped.
    fn blocked(&self, addr: netferry_common::Addr) -> bool;
}

/// Looks at a frame to endpoint `id`; counts and reports it if it is dropped. What is let through is counted by the
/// program behind.
#[inline(always)]
pub fn guard<P: Packet, T: Tables + BlockList>(packet: &P, tables: &T, id: u32) -> Result<(), Reason> {
    let mut ip = Datagram::UNREAD;
    let outcome = inspect(packet, tables, id, &mut ip);
    if let Err(reason) = outcome {
        let direction = Direction::ToPod;
        tables.dropped(id, direction, reason);
        tables.report(&Event {
            time: tables.now(),
            kind: event::DENY,
            endpoint: id,
            direction: direction.number(),
            reason: reason.number(),
            rule: 0,
            source: ip.source,
            destination: ip.destination,
            source_port: [0; 2],
            destination_port: [0; 2],
            protocol: u32::from(ip.protocol),
            pad: 0,
        });
    }
    outcome
}

#[inline(always)]
fn inspect<P: Packet, T: Tables + BlockList>(
    packet: &P,
    tables: &T,
    id: u32,
    ip: &mut Datagram,
) -> Result<(), Reason> {
    let endpoint = tables.endpoint(id).ok_or(Reason::NoEndpoint)?;
    if !endpoint.is_ready() {
        return Err(Reason::NotReady);
    }
    let eth: Ethernet = packet.head(0).ok_or(Reason::MalformedEthernet)?;
    if eth.ethertype == ethertype::VLAN || eth.ethertype == ethertype::QINQ {
        return Err(Reason::VlanTagged);
    }
    if packet::is_group(eth.src) {
        return Err(Reason::MalformedEthernet);
    }
    let mac = packet::mac(endpoint.mac);
    if eth.src == mac && endpoint.flags & SHARED_MAC == 0 {
        return Err(Reason::OwnMac);
    }
    if !packet::is_group(eth.dst) && eth.dst != mac {
        return Err(Reason::NotForUs);
    }
    match eth.ethertype {
        ethertype::IPV4 | ethertype::IPV6 => {}
        ethertype::ARP => return Ok(()),
        _ => return Err(Reason::Ethertype),
    }
    packet.datagram(eth.ethertype == ethertype::IPV4, ip)?;
    if tables.blocked(ip.source) {
        return Err(Reason::Blocked);
    }
    // Neighbour discovery has reasons of its own, and `::` for a source.
    let icmpv6 = ip.protocol == ICMPV6 && !ip.v4;
    if !icmpv6 && address_flags(tables, id, ip.source) & ADDR_OWN != 0 {
        return Err(Reason::OwnAddress);
    }
    Ok(())
}
