//! The frames of a cell, built with a crate that is not ours. Each carries the cell's mark, so that it is known wherever
//! it comes out.

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpFragOffset, IpHeaders, IpNumber,
    Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, PacketBuilder,
};

use crate::oracle::Kind;

/// A station: hardware address and addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Station {
    pub(crate) mac: [u8; 6],
    pub(crate) v4: [u8; 4],
    pub(crate) v6: [u8; 16],
}

/// Eight bytes that name a cell.
pub(crate) type Mark = [u8; 8];

pub(crate) fn mark(cell: u32) -> Mark {
    let [a, b, c, d] = cell.to_be_bytes();
    [b'n', b'f', b'm', b'x', a, b, c, d]
}

/// Port of the sender in a cell: it marks what carries no data.
pub(crate) fn port(cell: u32) -> u16 {
    20_000 + u16::try_from(cell).expect("fewer cells than ports")
}

/// The frames of a cell.
pub(crate) fn frames(kind: Kind, v4: bool, cell: u32, from: &Station, to: &Station) -> Vec<Vec<u8>> {
    let data = [mark(cell), mark(cell)].concat();
    match kind {
        Kind::Tcp => vec![tcp(v4, cell, from, to)],
        Kind::Icmp => vec![icmp(v4, cell, from, to, &data)],
        Kind::Udp | Kind::Raw | Kind::RawBypass => vec![udp(v4, cell, from, to, &data)],
        Kind::Vlan => {
            let plain = udp(v4, cell, from, to, &data);
            vec![[&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat()]
        }
        Kind::Fragments => fragments(v4, cell, from, to, &data),
        Kind::Neighbor if v4 => vec![arp(from, to)],
        Kind::Neighbor => vec![solicitation(from, to)],
    }
}

/// Whether a frame, as it is seen somewhere, is of a cell.
pub(crate) fn is_of(kind: Kind, cell: u32, from: &Station, to: &Station, frame: &[u8]) -> bool {
    let has = |bytes: &[u8]| frame.windows(bytes.len()).any(|window| window == bytes);
    match kind {
        Kind::Tcp => has(&[port(cell).to_be_bytes(), 80_u16.to_be_bytes()].concat()),
        Kind::Neighbor => {
            let request = frame.len() > 21 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1];
            let solicitation = frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[54] == 135;
            (request && has(&from.v4) && has(&to.v4)) || (solicitation && has(&from.v6) && has(&to.v6))
        }
        _ => has(&mark(cell)),
    }
}

/// Whether a frame is the answer to the question of a cell.
pub(crate) fn is_answer(from: &Station, to: &Station, frame: &[u8]) -> bool {
    let has = |bytes: &[u8]| frame.windows(bytes.len()).any(|window| window == bytes);
    let reply =
        frame.len() > 41 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == to.v4;
    let advertised = frame.len() > 78 && frame[12..14] == [0x86, 0xdd] && frame[54] == 136 && has(&to.v6);
    (reply || advertised) && frame[..6] == from.mac && frame[6..12] == to.mac
}

fn built(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame);
    frame
}

fn udp(v4: bool, cell: u32, from: &Station, to: &Station, data: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(from.mac, to.mac);
    let ip = if v4 { link.ipv4(from.v4, to.v4, 64) } else { link.ipv6(from.v6, to.v6, 64) };
    built(|frame| ip.udp(port(cell), 7).write(frame, data).expect("a datagram"))
}

fn tcp(v4: bool, cell: u32, from: &Station, to: &Station) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(from.mac, to.mac);
    let ip = if v4 { link.ipv4(from.v4, to.v4, 64) } else { link.ipv6(from.v6, to.v6, 64) };
    built(|frame| ip.tcp(port(cell), 80, 1, 1000).syn().write(frame, &[]).expect("a segment"))
}

fn icmp(v4: bool, cell: u32, from: &Station, to: &Station, data: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(from.mac, to.mac);
    built(|frame| {
        if v4 {
            let echo = link.ipv4(from.v4, to.v4, 64).icmpv4_echo_request(port(cell), 1);
            echo.write(frame, data).expect("an echo request");
        } else {
            let echo = link.ipv6(from.v6, to.v6, 64).icmpv6_echo_request(port(cell), 1);
            echo.write(frame, data).expect("an echo request");
        }
    })
}

/// A UDP datagram of 48 bytes in two fragments, each with the mark.
fn fragments(v4: bool, cell: u32, from: &Station, to: &Station, data: &[u8]) -> Vec<Vec<u8>> {
    let header = [port(cell).to_be_bytes(), 7_u16.to_be_bytes(), 48_u16.to_be_bytes(), [0, 0]].concat();
    let parts = [(0, true, [&header, data].concat()), (3, false, [data, &data[..8]].concat())];
    let ether_type = if v4 { EtherType::IPV4 } else { EtherType::IPV6 };
    let ethernet = Ethernet2Header { source: from.mac, destination: to.mac, ether_type };
    let build = |(offset, more, payload): (u16, bool, Vec<u8>)| {
        let offset = IpFragOffset::try_new(offset).expect("13 bits");
        let length = u16::try_from(payload.len()).expect("short");
        let ip = if v4 {
            let mut ip = Ipv4Header::new(length, 64, IpNumber::UDP, from.v4, to.v4).expect("short");
            (ip.identification, ip.dont_fragment, ip.more_fragments, ip.fragment_offset) =
                (port(cell), false, more, offset);
            ip.header_checksum = ip.calc_header_checksum();
            IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
        } else {
            let mut extensions = Ipv6Extensions {
                fragment: Some(Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, cell)),
                ..Ipv6Extensions::default()
            };
            let mut ip =
                Ipv6Header { hop_limit: 64, source: from.v6, destination: to.v6, ..Ipv6Header::default() };
            ip.next_header = extensions.set_next_headers(IpNumber::UDP);
            ip.payload_length = length + 8;
            IpHeaders::Ipv6(ip, extensions)
        };
        built(|frame| {
            ethernet.write(frame).expect("a vector does not fail");
            ip.write(frame).expect("a chain");
            frame.extend(&payload);
        })
    };
    parts.into_iter().map(build).collect()
}

fn arp(from: &Station, to: &Station) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &from.mac,
        &from.v4,
        &[0; 6],
        &to.v4,
    )
    .expect("lengths agree");
    built(|frame| PacketBuilder::ethernet2(from.mac, [0xff; 6]).arp(packet).write(frame).expect("a request"))
}

/// To the target itself, as to probe a neighbour that is known.
fn solicitation(from: &Station, to: &Station) -> Vec<u8> {
    let body = [&to.v6[..], &[1, 1], &from.mac].concat();
    let ip = PacketBuilder::ethernet2(from.mac, to.mac).ipv6(from.v6, to.v6, 255);
    built(|frame| ip.icmpv6_raw(135, 0, [0; 4]).write(frame, &body).expect("a solicitation"))
}
