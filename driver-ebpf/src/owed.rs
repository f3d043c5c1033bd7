//! ICMP errors a sender is owed about a datagram that goes no further (RFC 1812 section 4.3.2, RFC 4443 section 2.4).

use netferry_common::uplink::ROUTED;
use netferry_common::{Addr, Reason, Uplink};

use crate::datagram::{Datagram, Part};
use crate::packet::{ETH_LEN, Ipv4, Packet};
use crate::transport::protocol;

const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// An ICMP message before its quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The second word, as a number: the MTU, or nothing.
    pub rest: u32,
}

/// What the sender of a datagram is owed. `None` where an answer would be wrong: about an error, to a group, about a later
/// fragment, or where the sender allowed fragments, which the programs do not make.
#[inline(always)]
pub fn owed<P: Packet>(packet: &P, ip: &Datagram, reason: Reason, mtu: u32) -> Option<Message> {
    if ip.part == Part::Later || ip.group || is_error(ip) || is_nobody(ip.source, ip.v4) {
        return None;
    }
    match (reason, ip.v4) {
        (Reason::MtuExceeded, true) => {
            let header: Ipv4 = packet.head(ETH_LEN)?;
            let asked = header.fragment & DONT_FRAGMENT != 0;
            asked.then_some(Message { kind: 3, code: 4, rest: mtu & 0xffff })
        }
        (Reason::MtuExceeded, false) => Some(Message { kind: 2, code: 0, rest: mtu }),
        (Reason::HopLimit, true) => Some(Message { kind: 11, code: 0, rest: 0 }),
        (Reason::HopLimit, false) => Some(Message { kind: 3, code: 0, rest: 0 }),
        _ => None,
    }
}

/// Whether a datagram is an ICMP error itself.
#[inline(always)]
fn is_error(ip: &Datagram) -> bool {
    let [kind, ..]: [u8; 4] = bytemuck::cast(ip.transport[0]);
    match ip.protocol {
        protocol::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        protocol::ICMPV6 => kind < 128,
        _ => false,
    }
}

/// Who says so: the gateway where the node routes, else, as there is no router, the host the datagram was for.
#[inline(always)]
pub fn speaker(uplink: Option<&Uplink>, ip: &Datagram) -> Addr {
    match uplink {
        Some(uplink) if uplink.flags == ROUTED && ip.v4 => {
            Addr::from_v4_word(u32::from_ne_bytes(uplink.gateway_v4))
        }
        Some(uplink) if uplink.flags == ROUTED => uplink.gateway_v6,
        _ => ip.destination,
    }
}

/// Whether an address is no host's.
#[inline(always)]
pub fn is_nobody(addr: Addr, v4: bool) -> bool {
    let [a, b, c, d]: [u32; 4] = bytemuck::cast(addr);
    d == 0 && (v4 || a | b | c == 0)
}
