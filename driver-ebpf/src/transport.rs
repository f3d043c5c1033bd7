//! Transport headers: ports, and what a segment means for its flow.

use netferry_common::Reason;

use crate::datagram::Datagram;
use crate::packet::Packet;

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// May open a flow.
pub const OPENS: u8 = 1;
/// Opens one and nothing else: a flow that was closed starts anew.
pub const RESTARTS: u8 = 2;
/// Says that its sender will send no more.
pub const CLOSES: u8 = 4;
/// Ends the flow at once.
pub const RESETS: u8 = 8;
/// Is an ICMP error about another datagram.
pub const ERROR: u8 = 16;
/// Is an ICMP message that no flow has: neither request nor reply nor error.
pub const ALONE: u8 = 32;

/// Port of the side that is asked for a timestamp (RFC 792), memory order.
pub const TIMESTAMP_PORT: u16 = 13_u16.to_be();

/// What the transport header says.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Source port, memory order; of an ICMP request the identifier.
    pub source_port: u16,
    /// Destination port, memory order; of an ICMP reply the identifier.
    pub destination_port: u16,
    /// For ICMP the type and code of the message that opens such a flow, as policy sees them; else 0.
    pub message: u16,
    /// Bits above.
    pub means: u8,
    /// Nothing.
    pub pad: u8,
}

impl Segment {
    /// Of no frame.
    pub const NONE: Self = Self { source_port: 0, destination_port: 0, message: 0, means: 0, pad: 0 };
}

/// Reads the transport header of a datagram that has one here (not of a later fragment).
#[inline(always)]
pub fn read<P: Packet>(packet: &P, ip: &Datagram) -> Result<Segment, Reason> {
    let room = ip.end.saturating_sub(ip.offset) as usize;
    let ports: [u16; 2] = bytemuck::cast(ip.transport[0]);
    let mut segment =
        Segment { source_port: ports[0], destination_port: ports[1], message: 0, means: OPENS, pad: 0 };
    match ip.protocol {
        protocol::TCP => {
            if room < 20 {
                return Err(Reason::MalformedTransport);
            }
            // Constant where it can be, so that it is a plain load.
            let word: [u8; 4] = match ip.offset {
                34 => packet.head(34 + 12),
                54 => packet.head(54 + 12),
                offset => packet.load(offset as usize + 12),
            }
            .ok_or(Reason::MalformedTransport)?;
            if word[0] < 0x50 || usize::from(word[0] >> 4) * 4 > room {
                return Err(Reason::MalformedTransport);
            }
            segment.means = tcp(word[1]);
        }
        protocol::UDP if room < 8 => return Err(Reason::MalformedTransport),
        protocol::SCTP => {
            if room < 16 {
                return Err(Reason::MalformedTransport);
            }
            let chunk: [u8; 4] = packet.load(ip.offset as usize + 12).ok_or(Reason::MalformedTransport)?;
            segment.means = sctp(chunk[0]);
        }
        protocol::ICMP | protocol::ICMPV6 => {
            if room < 8 {
                return Err(Reason::MalformedTransport);
            }
            segment = icmp(ip);
        }
        protocol::UDP => {}
        _ => {
            segment.source_port = 0;
            segment.destination_port = 0;
        }
    }
    Ok(segment)
}

/// TCP flags (RFC 9293). A segment in the middle of a connection may open a flow: policy decides about it as about
/// the first one, so an entry that was evicted comes back, and nothing is let through that policy denies.
#[inline(always)]
fn tcp(flags: u8) -> u8 {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    if flags & RST != 0 {
        return RESETS;
    }
    match (flags & SYN != 0, flags & ACK != 0) {
        (true, false) => OPENS | RESTARTS,
        (true, true) | (false, false) => 0,
        (false, true) => OPENS | if flags & FIN != 0 { CLOSES } else { 0 },
    }
}

/// Type of the first SCTP chunk (RFC 9260).
#[inline(always)]
fn sctp(chunk: u8) -> u8 {
    match chunk {
        1 => OPENS | RESTARTS,
        6 => RESETS,
        7 | 8 | 14 => CLOSES,
        // INIT ACK and COOKIE ACK answer somebody.
        2 | 11 => 0,
        _ => OPENS,
    }
}

/// ICMP (RFC 792) and ICMPv6 (RFC 4443): requests open, replies belong to a request, errors to another flow.
///
/// The identifier stands for the port of the side that asked, and the port of the other is 0: so a reply finds the
/// flow of its request, and a request from the other side does not. For a timestamp it is [`TIMESTAMP_PORT`]: an echo
/// is no answer to it.
#[inline(always)]
fn icmp(ip: &Datagram) -> Segment {
    let [kind, code, ..]: [u8; 4] = bytemuck::cast(ip.transport[0]);
    let identifier: [u16; 2] = bytemuck::cast(ip.transport[1]);
    let request = |kind: u8, asked: u16| Segment {
        source_port: identifier[0],
        destination_port: asked,
        message: u16::from_be_bytes([kind, code]),
        means: OPENS,
        pad: 0,
    };
    let reply = |kind: u8, asked: u16| Segment {
        source_port: asked,
        destination_port: identifier[0],
        message: u16::from_be_bytes([kind, 0]),
        means: 0,
        pad: 0,
    };
    let other = |means| Segment { source_port: 0, destination_port: 0, message: 0, means, pad: 0 };
    if ip.protocol == protocol::ICMP {
        match kind {
            8 => request(kind, 0),
            13 => request(kind, TIMESTAMP_PORT),
            0 => reply(8, 0),
            14 => reply(13, TIMESTAMP_PORT),
            3 | 4 | 5 | 11 | 12 => other(ERROR),
            _ => other(ALONE),
        }
    } else {
        match kind {
            128 => request(kind, 0),
            129 => reply(128, 0),
            0..128 => other(ERROR),
            _ => other(ALONE),
        }
    }
}
