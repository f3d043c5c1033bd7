//! DHCP messages (RFC 2131, RFC 2132) in Ethernet frames, both ways: pure.

use std::net::Ipv4Addr;

use dhcproto::{
    Encodable as _,
    v4::{CLIENT_PORT, DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, SERVER_PORT, borrowed},
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
/// Characters of what a server says for people that are kept.
const WORDS: usize = 128;

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
    let message = borrowed::Message::new(udp.payload()).ok()?;
    if message.opcode() != Opcode::BootReply || message.xid() != xid {
        return None;
    }
    // The length of `chaddr` is the sender's word, and may be more than there is.
    if usize::from(message.hlen()) != mac.0.len() || message.chaddr() != mac.0 {
        return None;
    }
    let [kind] = option(&message, OptionCode::MessageType)?[..] else { return None };
    match MessageType::from(kind) {
        MessageType::Offer => grant(&message, ethernet.source()).map(Heard::Offer),
        MessageType::Ack => grant(&message, ethernet.source()).map(Heard::Ack),
        MessageType::Nak => {
            let why = option(&message, OptionCode::Message).unwrap_or_default();
            let why = String::from_utf8_lossy(&why);
            Some(Heard::Nak(why.chars().filter(|it| !it.is_control()).take(WORDS).collect()))
        }
        _ => None,
    }
}

/// The data of an option, as it came. `dhcproto` could read it too, but its decoder takes lengths on trust: an answer can be
/// made that it panics at.
fn option(message: &borrowed::Message<'_>, code: OptionCode) -> Option<Vec<u8>> {
    message.opts().find(|option| option.code() == code).map(|option| option.data().to_vec())
}

fn grant(message: &borrowed::Message<'_>, server_mac: [u8; 6]) -> Option<Grant> {
    let of = |code| option(message, code);
    let address = |data: &[u8]| <[u8; 4]>::try_from(data).map(Ipv4Addr::from).ok();
    let number = |code| <[u8; 4]>::try_from(&of(code)?[..]).map(u32::from_be_bytes).ok();
    // A mask with holes says nothing, and nor does one of another length.
    let prefix = match of(OptionCode::SubnetMask) {
        Some(mask) => Some(Ipv4Network::with_netmask(Ipv4Addr::UNSPECIFIED, address(&mask)?).ok()?.prefix()),
        None => None,
    };
    let router = of(OptionCode::Router).and_then(|routers| address(routers.get(..4)?));
    let mtu = of(OptionCode::InterfaceMtu).and_then(|mtu| Some(u16::from_be_bytes(mtu[..].try_into().ok()?)));
    let seconds = number(OptionCode::AddressLeaseTime).filter(|seconds| *seconds > 0)?;
    Some(Grant {
        address: Some(message.yiaddr()).filter(|address| !address.is_unspecified())?,
        prefix,
        router,
        mtu: mtu.filter(|mtu| *mtu >= LEAST_MTU),
        server: address(&of(OptionCode::ServerIdentifier)?)?,
        server_mac: MacAddr(server_mac),
        seconds: (seconds != INFINITE).then_some(seconds),
        t1: number(OptionCode::Renewal),
        t2: number(OptionCode::Rebinding),
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
