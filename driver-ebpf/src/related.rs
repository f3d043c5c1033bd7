//! ICMP errors: let through if they are about a flow, which the datagram inside names.

use netferry_common::{Addr, Reason};

use crate::datagram::Part;
use crate::flows;
use crate::judge::Case;
use crate::packet::{ETH_LEN, Ipv4, Ipv6, Packet};
use crate::tables::Tables;
use crate::transport::{OPENS, Segment, TIMESTAMP_PORT, protocol};

/// The datagram an error carries: addresses, protocol, and the first 8 bytes after its IP header.
struct Inner {
    source: Addr,
    destination: Addr,
    protocol: u8,
    transport: [u32; 2],
}

/// Checks that the datagram inside an ICMP error is of a flow that the endpoint allowed under the policy in force,
/// and that the error, from `offset` to `end`, goes to the host that sent it.
#[inline(always)]
pub fn check<P: Packet, T: Tables>(
    case: &Case<'_, P, T>,
    offset: usize,
    end: usize,
    v4: bool,
) -> Result<(), Reason> {
    let at = offset + 8;
    let inner = if v4 { inner_v4(case.packet, at, end) } else { inner_v6(case.packet, at, end) };
    let inner = inner.ok_or(Reason::MalformedTransport)?;
    let destination = if v4 {
        Addr::from_v4_word(case.packet.head::<Ipv4>(ETH_LEN).ok_or(Reason::MalformedIpv4)?.dst)
    } else {
        Addr::from_words(case.packet.head::<Ipv6>(ETH_LEN).ok_or(Reason::MalformedIpv6)?.dst)
    };
    if inner.source != destination {
        return Err(Reason::NoFlow);
    }
    let ports: [u16; 2] = bytemuck::cast(inner.transport[0]);
    let identifier: [u16; 2] = bytemuck::cast(inner.transport[1]);
    let [kind, ..]: [u8; 4] = bytemuck::cast(inner.transport[0]);
    let (source, destination) = match (inner.protocol, kind) {
        (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => (identifier[0], 0),
        (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => (0, identifier[0]),
        (protocol::ICMP, 13) => (identifier[0], TIMESTAMP_PORT),
        (protocol::ICMP, 14) => (TIMESTAMP_PORT, identifier[0]),
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => (ports[0], ports[1]),
        _ => (0, 0),
    };
    let scope = flows::scope(case.endpoint, case.id);
    let place = flows::Place::of(
        scope,
        &flows::Between {
            protocol: inner.protocol,
            source: &inner.source,
            source_port: source,
            destination: &inner.destination,
            destination_port: destination,
        },
    );
    let segment =
        Segment { source_port: source, destination_port: destination, message: 0, means: OPENS, pad: 0 };
    // The endpoint sent the datagram inside if the error is on its way to it.
    let sender = !case.from_pod();
    match case.tables.flow(&place.key) {
        Some(flow)
            if flow.lives(&place, &segment, case.tables.now())
                && flow.allowed(&place, sender, case.id, case.endpoint.policy) =>
        {
            Ok(())
        }
        _ => Err(Reason::NoFlow),
    }
}

#[inline(always)]
fn inner_v4<P: Packet>(packet: &P, at: usize, end: usize) -> Option<Inner> {
    let ip: Ipv4 = packet.load(at)?;
    let header_len = usize::from(ip.version_ihl & 0x0f) * 4;
    if ip.version_ihl >> 4 != 4
        || header_len < size_of::<Ipv4>()
        || at + header_len + 8 > end
        || ip.fragment & 0x1fff_u16.to_be() != 0
    {
        return None;
    }
    Some(Inner {
        source: Addr::from_v4_word(ip.src),
        destination: Addr::from_v4_word(ip.dst),
        protocol: ip.protocol,
        transport: packet.load(at + header_len)?,
    })
}

#[inline(always)]
fn inner_v6<P: Packet>(packet: &P, at: usize, end: usize) -> Option<Inner> {
    let ip: Ipv6 = packet.load(at)?;
    let upper = packet.extensions(ip.next, at + size_of::<Ipv6>(), end).ok()?;
    if ip.version_class >> 4 != 6 || upper.part == Part::Later || upper.offset + 8 > end {
        return None;
    }
    Some(Inner {
        source: Addr::from_words(ip.src),
        destination: Addr::from_words(ip.dst),
        protocol: upper.protocol,
        transport: packet.load(upper.offset)?,
    })
}
