//! Frames from beyond the node: which network and which endpoint they are for, and whether they may say who sent them.

use netferry_common::counters::path;
use netferry_common::uplink::{BRIDGED, ROUTED};
use netferry_common::{Addr, Member, MemberKey, Reason, Uplink};

use crate::answer;
use crate::arp;
use crate::datagram::{Datagram, Part};
use crate::depart::is_link_local;
use crate::forward::take_hop;
use crate::judge::{Case, Scratch};
use crate::opaque::anew;
use crate::packet::{self, Arp, ETH_LEN, Ethernet, Ipv6, Packet, ethertype, hook, is_group};
use crate::tables::Tables;
use crate::transport::protocol::ICMPV6;

const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// No endpoint of the network. On an untagged uplink it is the host's own; else it is dropped for this reason.
    Nobody(Reason),
    /// [`Arrival::of_the_link`] tells: it asks for, or tells, who has an address.
    Link,
    /// Whoever asked: it is the answer now.
    Asker,
    /// This endpoint, which is to judge it.
    Endpoint(u32),
}

/// A frame of a network, as it came in.
pub struct Arrival<'a, P, T> {
    /// The frame.
    pub packet: &'a P,
    /// The maps.
    pub tables: &'a T,
    /// The network.
    pub network: u32,
    /// Its Ethernet header.
    pub eth: Ethernet,
}

impl<P: Packet, T: Tables> Arrival<'_, P, T> {
    #[inline(always)]
    fn member(&self, addr: Addr) -> Option<Member> {
        self.tables.member(&MemberKey { network: self.network, addr })
    }

    /// The endpoint that has an address, if it is one of this node.
    #[inline(always)]
    fn endpoint(&self, addr: Addr) -> Result<Option<Member>, Reason> {
        let Some(member) = self.member(addr).filter(Member::is_endpoint) else { return Ok(None) };
        let endpoint = self.tables.endpoint(member.endpoint).ok_or(Reason::TargetNotReady)?;
        if !endpoint.is_ready() || endpoint.network != self.network {
            return Err(Reason::TargetNotReady);
        }
        if endpoint.ifindex == 0 {
            return Err(Reason::NoRoute);
        }
        Ok(Some(member))
    }

    /// On the wire, nobody speaks for a member of this node or its gateway, and for a member of another node only under that
    /// member's hardware address. Who is no member is left to policy.
    #[inline(always)]
    fn check_source(&self, addr: Addr) -> Result<(), Reason> {
        match self.member(addr) {
            None => Ok(()),
            Some(member) if member.endpoint == 0 && packet::mac(member.mac) == self.eth.src => Ok(()),
            Some(_) => Err(Reason::WireSource),
        }
    }

    /// Finds whom a frame from an uplink is for.
    #[inline(always)]
    pub fn from_wire(&self, uplink: &Uplink, ip: &mut Datagram) -> Result<Entrance, Reason> {
        if is_group(self.eth.src) {
            return Ok(Entrance::Nobody(Reason::MalformedEthernet));
        }
        let bridged = uplink.flags & BRIDGED != 0;
        match self.eth.ethertype {
            ethertype::IPV4 | ethertype::IPV6 => {}
            ethertype::ARP if bridged => return Ok(Entrance::Link),
            ethertype::ARP => return Ok(Entrance::Nobody(Reason::NoReceiver)),
            ethertype::VLAN | ethertype::QINQ => return Ok(Entrance::Nobody(Reason::VlanTagged)),
            _ => return Ok(Entrance::Nobody(Reason::Ethertype)),
        }
        if let Err(reason) = self.packet.datagram(self.eth.ethertype == ethertype::IPV4, ip) {
            return Ok(Entrance::Nobody(reason));
        }
        if bridged && message(ip) == Some(NEIGHBOR_SOLICITATION) {
            return Ok(Entrance::Link);
        }
        if ip.group {
            return Ok(Entrance::Nobody(Reason::NoReceiver));
        }
        // Neighbour discovery and multicast listening go no further than their link, and nor do its addresses.
        let of_the_link = matches!(message(ip), Some(130..=137 | 143));
        if !bridged && (of_the_link || is_link_local(ip.source) || is_link_local(ip.destination)) {
            return Ok(Entrance::Nobody(Reason::NoReceiver));
        }
        // The deepest chain of functions goes through here: what was read stays in the scratch, not on the stack.
        let ip = anew(ip);
        let Some(member) = self.endpoint(ip.destination)? else {
            return Ok(Entrance::Nobody(Reason::Nobody));
        };
        if bridged {
            self.check_source(ip.source)?;
            if message(ip) == Some(NEIGHBOR_ADVERTISEMENT) {
                // It speaks for its target, whoever sent it.
                let target = self.packet.load(ip.offset as usize + 8).ok_or(Reason::MalformedNd)?;
                self.check_source(Addr::from_words(target))?;
            }
            if self.eth.dst != packet::mac(member.mac) {
                return Err(Reason::NotForUs);
            }
        } else {
            // A router takes only what was sent to it.
            if !self.packet.is_to_host() {
                return Ok(Entrance::Nobody(Reason::NotForUs));
            }
            if self.member(ip.source).is_some_and(|member| member.endpoint != 0) {
                return Err(Reason::WireSource);
            }
        }
        Ok(Entrance::Endpoint(member.endpoint))
    }

    /// Answers for a member of this node, as [`Entrance::Link`] asked to. `ip` is read already, if it is IPv6.
    #[inline(always)]
    pub fn of_the_link(&self, ip: &Datagram) -> Result<Entrance, Reason> {
        if self.eth.ethertype == ethertype::ARP { self.arp() } else { self.solicitation(ip) }
    }

    #[inline(always)]
    fn arp(&self) -> Result<Entrance, Reason> {
        let Some(arp) = self.packet.head::<Arp>(ETH_LEN).filter(arp::is_sound) else {
            return Ok(Entrance::Nobody(Reason::MalformedArp));
        };
        let Some(member) = self.endpoint(arp::address(arp.target_ip))? else {
            return Ok(Entrance::Nobody(Reason::Nobody));
        };
        self.check_source(arp::address(arp.sender_ip))?;
        if arp.sender_mac != self.eth.src {
            return Err(Reason::WireSource);
        }
        if arp.operation != arp::REQUEST {
            let told = self.eth.dst == packet::mac(member.mac);
            return if told { Ok(Entrance::Endpoint(member.endpoint)) } else { Err(Reason::NotForUs) };
        }
        answer::reply(self.packet, &arp, packet::mac(member.mac))?;
        Ok(Entrance::Asker)
    }

    /// A neighbour solicitation. Who asks without an address, to find out whether it is free, gets no answer.
    #[inline(always)]
    fn solicitation(&self, ip: &Datagram) -> Result<Entrance, Reason> {
        let header: Ipv6 = self.packet.head(ETH_LEN).ok_or(Reason::MalformedIpv6)?;
        let code: [u8; 2] = self.packet.load(ip.offset as usize).ok_or(Reason::MalformedNd)?;
        let Some(target) = self.packet.load::<[u32; 4]>(ip.offset as usize + 8) else {
            return Ok(Entrance::Nobody(Reason::MalformedNd));
        };
        if header.hop_limit != 255 || code[1] != 0 || ip.fragment {
            return Ok(Entrance::Nobody(Reason::MalformedNd));
        }
        if ip.source == Addr::UNSPECIFIED {
            return Ok(Entrance::Nobody(Reason::NoReceiver));
        }
        let Some(member) = self.endpoint(Addr::from_words(target))? else {
            return Ok(Entrance::Nobody(Reason::Nobody));
        };
        self.check_source(ip.source)?;
        answer::advertise(self.packet, self.eth.src, packet::mac(member.mac), target, header.src)?;
        Ok(Entrance::Asker)
    }

    /// Finds whom a frame is for that came through a tunnel from the node at `outer`. What is for nobody is dropped.
    #[inline(always)]
    pub fn from_tunnel(&self, outer: &Addr, ip: &mut Datagram) -> Result<Entrance, Reason> {
        if is_group(self.eth.src) {
            return Err(Reason::MalformedEthernet);
        }
        match self.eth.ethertype {
            ethertype::IPV4 | ethertype::IPV6 => {}
            // Answered where it is asked, from membership.
            ethertype::ARP => return Err(Reason::NoReceiver),
            ethertype::VLAN | ethertype::QINQ => return Err(Reason::VlanTagged),
            _ => return Err(Reason::Ethertype),
        }
        self.packet.datagram(self.eth.ethertype == ethertype::IPV4, ip)?;
        if ip.group {
            return Err(Reason::NoReceiver);
        }
        let sender = self.member(ip.source).ok_or(Reason::NotMember)?;
        if sender.node == Addr::UNSPECIFIED || sender.node != *outer {
            return Err(Reason::OuterSource);
        }
        if self.eth.src != packet::mac(sender.mac) {
            return Err(Reason::WireSource);
        }
        let member = self.endpoint(ip.destination)?.ok_or(Reason::Nobody)?;
        if self.eth.dst != packet::mac(member.mac) {
            return Err(Reason::NotForUs);
        }
        Ok(Entrance::Endpoint(member.endpoint))
    }
}

/// Sends a datagram from beyond the node on to its endpoint.
#[inline(always)]
pub fn arrive<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    hook: u32,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    let Scratch { note, ip, target, .. } = scratch;
    if note.size > case.endpoint.mtu {
        note.mtu = case.endpoint.mtu;
        return Err(Reason::MtuExceeded);
    }
    if hook == hook::WIRE
        && let Some(uplink) = case.tables.uplink(case.endpoint.network)
        && uplink.flags == ROUTED
    {
        take_hop(case.packet, ip)?;
        let eth = Ethernet { dst: case.mac, src: packet::mac(uplink.mac), ethertype: case.eth.ethertype };
        if !case.packet.set_link(&eth) {
            return Err(Reason::NoRoute);
        }
    }
    target.ifindex = case.endpoint.ifindex;
    target.path = way(hook);
    Ok(())
}

/// Type of an ICMPv6 message.
#[inline(always)]
fn message(ip: &Datagram) -> Option<u8> {
    let [kind, ..]: [u8; 4] = bytemuck::cast(ip.transport[0]);
    (ip.protocol == ICMPV6 && !ip.v4 && ip.part != Part::Later).then_some(kind)
}

/// Which way a frame came that was met there.
#[inline(always)]
pub const fn way(hook: u32) -> u32 {
    if hook == hook::WIRE { path::UPLINK } else { path::OVERLAY }
}
