//! Frames as hosts send them, built with a crate that is not ours.

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpFragOffset, IpHeaders, IpNumber, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder,
};

/// A host on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub mac: [u8; 6],
    pub v4: [u8; 4],
    pub v6: [u8; 16],
}

const fn v6(last: u8) -> [u8; 16] {
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// The pod whose endpoint is under test.
pub const POD: Host = Host { mac: [2, 0, 0, 0, 0, 7], v4: [192, 0, 2, 7], v6: v6(7) };
/// Somebody on the same wire.
pub const PEER: Host = Host { mac: [2, 0, 0, 0, 0, 9], v4: [192, 0, 2, 9], v6: v6(9) };
/// A third host, whom neither may pretend to be.
pub const OTHER: Host = Host { mac: [2, 0, 0, 0, 0, 11], v4: [192, 0, 2, 11], v6: v6(11) };

pub const BROADCAST: [u8; 6] = [0xff; 6];
pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
pub const UNSPECIFIED: [u8; 16] = [0; 16];

/// Offsets of what a vector changes.
pub mod at {
    pub const ETHERTYPE: usize = 12;
    pub const IP: usize = 14;
    pub const ARP_OPERATION: usize = 20;
}

/// `frame` with bytes replaced from `offset` on.
pub fn patched(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The first `length` bytes of `frame`.
pub fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// `frame` with a VLAN tag of that ethertype put in.
pub fn tagged(frame: &[u8], ethertype: u16) -> Vec<u8> {
    let tag = [ethertype.to_be_bytes(), [0, 5]].concat();
    [&frame[..12], &tag, &frame[12..]].concat()
}

pub fn udp4(from: Host, to: Host) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, to.mac).ipv4(from.v4, to.v4, 64).udp(4000, 53);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"twenty bytes of data").expect("a valid packet");
    frame
}

pub fn tcp4(from: Host, to: Host) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(from.mac, to.mac).ipv4(from.v4, to.v4, 64).tcp(4000, 80, 1, 1000).syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).expect("a valid packet");
    frame
}

pub fn icmp4(from: Host, to: Host) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(from.mac, to.mac).ipv4(from.v4, to.v4, 64).icmpv4_echo_request(1, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"ping").expect("a valid packet");
    frame
}

pub fn udp6(from: Host, to: Host) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, to.mac).ipv6(from.v6, to.v6, 64).udp(4000, 53);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"twenty bytes of data").expect("a valid packet");
    frame
}

pub fn tcp6(from: Host, to: Host) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(from.mac, to.mac).ipv6(from.v6, to.v6, 64).tcp(4000, 80, 1, 1000).syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).expect("a valid packet");
    frame
}

pub fn icmp6(from: Host, to: Host) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(from.mac, to.mac).ipv6(from.v6, to.v6, 64).icmpv6_echo_request(1, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"ping").expect("a valid packet");
    frame
}

/// An ICMPv6 message of any type with the hop limit neighbour discovery asks for.
pub fn icmp6_raw(from: Host, to: Host, kind: u8, body: &[u8]) -> Vec<u8> {
    let (first, rest) = body.split_at(4);
    let builder = PacketBuilder::ethernet2(from.mac, to.mac).ipv6(from.v6, to.v6, 255).icmpv6_raw(
        kind,
        0,
        first.try_into().expect("four bytes"),
    );
    let mut frame = Vec::new();
    builder.write(&mut frame, rest).expect("a valid packet");
    frame
}

/// Neighbour solicitation (135) or advertisement (136) about `target`, with a link-layer address option.
pub fn neighbor(from: Host, to: Host, kind: u8, target: [u8; 16], option: Option<[u8; 6]>) -> Vec<u8> {
    let mut body = vec![if kind == 136 { 0x60 } else { 0 }, 0, 0, 0];
    body.extend(target);
    if let Some(mac) = option {
        body.extend([if kind == 136 { 2 } else { 1 }, 1]);
        body.extend(mac);
    }
    icmp6_raw(from, to, kind, &body)
}

/// IPv6 with extension headers in front of a UDP header, ICMPv6 or nothing.
pub fn extended6(
    from: Host,
    to: Host,
    extensions: Ipv6Extensions,
    last: IpNumber,
    payload: &[u8],
) -> Vec<u8> {
    let mut extensions = extensions;
    let mut header = Ipv6Header {
        hop_limit: if last == IpNumber::IPV6_ICMP { 255 } else { 64 },
        source: from.v6,
        destination: to.v6,
        ..Ipv6Header::default()
    };
    header.next_header = extensions.set_next_headers(last);
    header.set_payload_length(extensions.header_len() + payload.len()).expect("it fits");
    let mut frame = Vec::new();
    etherparse::Ethernet2Header { source: from.mac, destination: to.mac, ether_type: EtherType::IPV6 }
        .write(&mut frame)
        .expect("a vector does not fail");
    IpHeaders::Ipv6(header, extensions).write(&mut frame).expect("a valid chain");
    frame.extend(payload);
    frame
}

/// A hop-by-hop or destination options header of 8 bytes, filled with a PadN option.
pub fn options_header() -> Ipv6RawExtHeader {
    Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0]).expect("six bytes")
}

/// A fragment header.
pub fn fragment_header(offset: u16, more: bool) -> Ipv6FragmentHeader {
    let offset = IpFragOffset::try_new(offset).expect("13 bits");
    Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, 0x1234_5678)
}

/// A multicast listener report as Linux sends it: hop-by-hop router alert in front.
pub fn mld2_report(from: Host) -> Vec<u8> {
    let alert = Ipv6RawExtHeader::new_raw(IpNumber::IPV6_ICMP, &[5, 2, 0, 0, 1, 0]).expect("six bytes");
    let extensions = Ipv6Extensions { hop_by_hop_options: Some(alert), ..Ipv6Extensions::default() };
    let mut routers = [0; 16];
    routers[..2].copy_from_slice(&[0xff, 2]);
    routers[15] = 0x16;
    let to = Host { mac: [0x33, 0x33, 0, 0, 0, 0x16], v4: [0; 4], v6: routers };
    let mut report = vec![143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0];
    report.extend(ALL_NODES);
    extended6(from, to, extensions, IpNumber::IPV6_ICMP, &report)
}

pub fn arp(
    eth_from: [u8; 6],
    to: [u8; 6],
    reply: bool,
    sender: ([u8; 6], [u8; 4]),
    target: [u8; 4],
) -> Vec<u8> {
    let operation = if reply { ArpOperation::REPLY } else { ArpOperation::REQUEST };
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &sender.0,
        &sender.1,
        if reply { &to } else { &[0; 6] },
        &target,
    )
    .expect("lengths agree");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(eth_from, to).arp(packet).write(&mut frame).expect("a valid packet");
    frame
}

/// TCP with these flags (FIN 1, SYN 2, RST 4, ACK 16).
pub fn tcp_flags(frame: Vec<u8>, flags: u8) -> Vec<u8> {
    let transport = if frame[at::ETHERTYPE] == 0x08 { at::IP + 20 } else { at::IP + 40 };
    patched(frame, transport + 13, &[flags])
}

/// The same two hosts and ports, the other way.
pub fn answer(frame: &[u8]) -> Vec<u8> {
    let (address, length) = if frame[at::ETHERTYPE] == 0x08 { (at::IP + 12, 4) } else { (at::IP + 8, 16) };
    let transport = address + 2 * length;
    let mut back = frame.to_vec();
    for (one, other, length) in
        [(0, 6, 6), (address, address + length, length), (transport, transport + 2, 2)]
    {
        back[one..one + length].copy_from_slice(&frame[other..other + length]);
        back[other..other + length].copy_from_slice(&frame[one..one + length]);
    }
    back
}

/// The answer to an echo request.
pub fn echo_reply(request: &[u8]) -> Vec<u8> {
    let (v4, transport) = (request[at::ETHERTYPE] == 0x08, request.len() - 12);
    let mut back = answer(request);
    // `answer` swapped type and code with the checksum: no ports here.
    back[transport..transport + 4].copy_from_slice(&[if v4 { 0 } else { 129 }, 0, 0, 0]);
    back
}

/// Destination unreachable from `router` about a frame of `to`.
pub fn unreachable(router: Host, to: Host, about: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    if about[at::ETHERTYPE] == 0x08 {
        let builder = PacketBuilder::ethernet2(router.mac, to.mac).ipv4(router.v4, to.v4, 64);
        builder
            .icmpv4_raw(3, 3, [0; 4])
            .write(&mut frame, &about[at::IP..at::IP + 28])
            .expect("a valid packet");
    } else {
        let builder = PacketBuilder::ethernet2(router.mac, to.mac).ipv6(router.v6, to.v6, 64);
        builder
            .icmpv6_raw(1, 4, [0; 4])
            .write(&mut frame, &about[at::IP..at::IP + 48])
            .expect("a valid packet");
    }
    frame
}

/// An IPv4 frame as a fragment at `offset` units of 8 bytes.
pub fn fragment4(frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    let field = offset | if more { 0x2000 } else { 0 };
    patched(patched(frame, at::IP + 4, &[0x12, 0x34]), at::IP + 6, &field.to_be_bytes())
}

/// UDP with so many bytes of data, and over IPv4 not to be fragmented.
pub fn large(from: Host, to: Host, v4: bool, data: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..=255).cycle().take(data).collect();
    let builder = PacketBuilder::ethernet2(from.mac, to.mac);
    let mut frame = Vec::new();
    if v4 {
        builder.ipv4(from.v4, to.v4, 64).udp(4000, 53).write(&mut frame, &data).expect("a valid packet");
        assert_eq!(frame[at::IP + 6] & 0x40, 0x40, "not to be fragmented");
    } else {
        builder.ipv6(from.v6, to.v6, 64).udp(4000, 53).write(&mut frame, &data).expect("a valid packet");
    }
    frame
}

/// An IPv4 frame that routers may cut into fragments.
pub fn may_fragment(mut frame: Vec<u8>) -> Vec<u8> {
    frame[at::IP + 6] &= !0x40;
    summed4(frame)
}

/// An IPv4 frame with its header's checksum made anew.
pub fn summed4(mut frame: Vec<u8>) -> Vec<u8> {
    frame[at::IP + 10..at::IP + 12].fill(0);
    let sum = checksum(&frame[at::IP..at::IP + 20], 0);
    frame[at::IP + 10..at::IP + 12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub fn checksum(bytes: &[u8], before: u32) -> u16 {
    let mut sum = before;
    for half in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([half[0], half[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("16 bits")
}
