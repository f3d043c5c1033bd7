//! DHCP messages (RFC 2131, RFC 2132) in Ethernet frames, both ways: pure.

use std::net::Ipv4Addr;

use dhcproto::{
    Decodable as _, Decoder, Encodable as _,
    v4::{CLIENT_PORT, DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, SERVER_PORT},
};
use etherparse::{LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use ipnetwork::Ipv4Network;

use super::lease::Lease;
use crate::link::MacAddr;

/// Everybody on the link.
const BROADCAST: [u8; 6] = [0xff; 6];
/// Hardware type of Ethernet, which makes a client identifier of a hardware address (RFC 2132, section 9.14).
const ETHERNET: u8 = 1;
/// A lease without an end (RFC 2131, section 3.3).
const INFINITE: u32 = u32::MAX;
/// BOOTP's size, which relays and servers may insist on (RFC 1542, section 2.1).
const LEAST: usize = 300;
/// Smallest MTU that IPv4 lets a link have (RFC 791), and option 26 says (RFC 2132, section 5.1).
const LEAST_MTU: u16 = 68;
const TTL: u8 = 64;

/// What a client says. Of a request, its state is told by what it names (RFC 2131, section 4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say<'a> {
    /// Who has an address for me, this one if it may be?
    Discover(Option<Ipv4Addr>),
    /// I take the address that this server has offered.
    Select {
        /// The address.
        address: Ipv4Addr,
        /// The server.
        server: Ipv4Addr,
    },
    /// Is this address, which I do not use yet, mine? (INIT-REBOOT)
    Confirm(Ipv4Addr),
    /// To its server: may I keep it?
    Renew(&'a Lease),
    /// To every server: may I keep it?
    Rebind(&'a Lease),
    /// I do not use it any more.
    Release(&'a Lease),
}

/// What a server has granted, or offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the subnet mask.
    pub prefix: Option<u8>,
    /// The first router.
    pub router: Option<Ipv4Addr>,
    /// MTU in bytes.
    pub mtu: Option<u16>,
    /// The server.
    pub server: Ipv4Addr,
    /// Hardware address of the frame's sender.
    pub server_mac: MacAddr,
    /// How long it lasts in seconds; `None`: without an end.
    pub seconds: Option<u32>,
    /// T1 in seconds.
    pub t1: Option<u32>,
    /// T2 in seconds.
    pub t2: Option<u32>,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// DHCPOFFER.
    Offer(Grant),
    /// DHCPACK.
    Ack(Grant),
    /// DHCPNAK, and why.
    Nak(String),
}

/// A message that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write a DHCP message: {0}")]
pub struct NotWritten(String);

/// The frame of a message from a port with hardware address `mac` to a VLAN (0: untagged). `xid` tells its answers.
pub fn frame(say: Say<'_>, mac: MacAddr, vlan: u16, xid: u32) -> Result<Vec<u8>, NotWritten> {
    let failed = |error: &dyn std::fmt::Display| NotWritten(error.to_string());
    let mut payload = message(say, mac, xid).to_vec().map_err(|error| failed(&error))?;
    payload.resize(payload.len().max(LEAST), 0);
    let everybody = (BROADCAST, Ipv4Addr::BROADCAST);
    let (source, (to_mac, to)) = match say {
        Say::Discover(_) | Say::Select { .. } | Say::Confirm(_) => (Ipv4Addr::UNSPECIFIED, everybody),
        Say::Rebind(lease) => (lease.address, everybody),
        Say::Renew(lease) | Say::Release(lease) => (lease.address, (lease.server_mac.0, lease.server)),
    };
    let (source, to) = (source.octets(), to.octets());
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(mac.0, to_mac);
    let written = if vlan == 0 {
        ethernet.ipv4(source, to, TTL).udp(CLIENT_PORT, SERVER_PORT).write(&mut frame, &payload)
    } else {
        let vlan = VlanId::try_new(vlan).map_err(|error| failed(&error))?;
        let tagged = ethernet.single_vlan(vlan).ipv4(source, to, TTL);
        tagged.udp(CLIENT_PORT, SERVER_PORT).write(&mut frame, &payload)
    };
    written.map_err(|error| failed(&error))?;
    Ok(frame)
}

fn message(say: Say<'_>, mac: MacAddr, xid: u32) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let ciaddr = match say {
        Say::Renew(lease) | Say::Rebind(lease) | Say::Release(lease) => lease.address,
        _ => none,
    };
    let mut message = Message::new_with_id(xid, ciaddr, none, none, none, &mac.0);
    // Nobody has the address yet: an answer to it alone would ask for a neighbour that does not answer.
    if ciaddr == none {
        message.set_flags(Flags::default().set_broadcast());
    }
    let identity = [&[ETHERNET], mac.0.as_slice()].concat();
    let kind = match say {
        Say::Discover(_) => MessageType::Discover,
        Say::Release(_) => MessageType::Release,
        _ => MessageType::Request,
    };
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ClientIdentifier(identity));
    match say {
        Say::Discover(Some(address)) | Say::Confirm(address) => {
            options.insert(DhcpOption::RequestedIpAddress(address));
        }
        Say::Select { address, server } => {
            options.insert(DhcpOption::RequestedIpAddress(address));
            options.insert(DhcpOption::ServerIdentifier(server));
        }
        Say::Release(lease) => {
            options.insert(DhcpOption::ServerIdentifier(lease.server));
            return message;
        }
        Say::Discover(None) | Say::Renew(_) | Say::Rebind(_) => {}
    }
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::InterfaceMtu,
        OptionCode::Renewal,
        OptionCode::Rebinding,
    ]));
    message
}

/// What a frame says to a port with hardware address `mac` about what it asked as `xid`; `None` if it is something else,
/// or cannot be used.
#[must_use]
pub fn heard(frame: &[u8], mac: MacAddr, xid: u32) -> Option<Heard> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(LinkSlice::Ethernet2(ethernet)), Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(udp))) =
        (&packet.link, &packet.net, &packet.transport)
    else {
        return None;
    };
    if (udp.source_port(), udp.destination_port()) != (SERVER_PORT, CLIENT_PORT) {
        return None;
    }
    let message = Message::decode(&mut Decoder::new(udp.payload())).ok()?;
    if message.opcode() != Opcode::BootReply || message.xid() != xid || message.chaddr() != mac.0 {
        return None;
    }
    let options = message.opts();
    match options.get(OptionCode::MessageType)? {
        DhcpOption::MessageType(MessageType::Offer) => grant(&message, ethernet.source()).map(Heard::Offer),
        DhcpOption::MessageType(MessageType::Ack) => grant(&message, ethernet.source()).map(Heard::Ack),
        DhcpOption::MessageType(MessageType::Nak) => {
            Some(Heard::Nak(match options.get(OptionCode::Message) {
                Some(DhcpOption::Message(why)) => why.chars().filter(|c| !c.is_control()).take(128).collect(),
                _ => String::new(),
            }))
        }
        _ => None,
    }
}

fn grant(message: &Message, server_mac: [u8; 6]) -> Option<Grant> {
    let options = message.opts();
    let number = |code| match options.get(code) {
        Some(
            DhcpOption::AddressLeaseTime(value) | DhcpOption::Renewal(value) | DhcpOption::Rebinding(value),
        ) => Some(*value),
        _ => None,
    };
    let Some(DhcpOption::ServerIdentifier(server)) = options.get(OptionCode::ServerIdentifier) else {
        return None;
    };
    // A mask with holes says nothing.
    let prefix = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => {
            Some(Ipv4Network::with_netmask(Ipv4Addr::UNSPECIFIED, *mask).ok()?.prefix())
        }
        _ => None,
    };
    let router = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied(),
        _ => None,
    };
    let mtu = match options.get(OptionCode::InterfaceMtu) {
        Some(DhcpOption::InterfaceMtu(mtu)) => Some(*mtu).filter(|mtu| *mtu >= LEAST_MTU),
        _ => None,
    };
    let seconds = number(OptionCode::AddressLeaseTime).filter(|seconds| *seconds > 0)?;
    Some(Grant {
        address: Some(message.yiaddr()).filter(|address| !address.is_unspecified())?,
        prefix,
        router,
        mtu,
        server: *server,
        server_mac: MacAddr(server_mac),
        seconds: (seconds != INFINITE).then_some(seconds),
        t1: number(OptionCode::Renewal),
        t2: number(OptionCode::Rebinding),
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
