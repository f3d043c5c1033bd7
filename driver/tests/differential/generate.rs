//! Frames: valid ones of every kind, and what becomes of them when bytes are changed.

use etherparse::{IpAuthHeader, IpNumber, Ipv6Extensions, Ipv6RoutingExtensions};
use netferry_common::{Addr, Direction};

use super::frames::*;
use super::table;
use super::world::{STRANGER, UNREADY};

/// SplitMix64: the same sequence on every machine, from any seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// That host three times of four.
    fn usually(&mut self, usual: Host) -> Host {
        if self.chance(4) { host(self) } else { usual }
    }
}

const PROTOCOLS: [u8; 16] = [0, 1, 2, 6, 17, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 139];
const ICMP_TYPES: [u8; 24] =
    [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 127, 128, 129, 130, 132, 133, 134, 135, 136, 137, 143];
const PORTS: [u16; 16] = [0, 1, 52, 53, 54, 80, 442, 443, 450, 451, 999, 1000, 1023, 1024, 4000, 4096];

/// Everything frames are made from.
pub struct Source {
    vectors: Vec<(Direction, Vec<u8>)>,
}

impl Source {
    pub fn new() -> Self {
        Self { vectors: table::ready().into_iter().map(|vector| (vector.direction, vector.frame)).collect() }
    }

    /// A frame, and which way it is sent.
    pub fn frame(&self, random: &mut Random) -> (Direction, Vec<u8>) {
        let (mut direction, mut frame) = if random.chance(4) {
            self.vectors[random.below(self.vectors.len())].clone()
        } else {
            valid(random)
        };
        if random.chance(16) {
            direction = random.pick(&Direction::ALL);
        }
        for _ in 0..random.pick(&[0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 5]) {
            mutate(random, &mut frame);
        }
        (direction, frame)
    }
}

/// A frame that may open a flow, and one that may belong to it.
pub fn pair(random: &mut Random) -> [(Direction, Vec<u8>); 2] {
    let direction = random.pick(&Direction::ALL);
    let peer = random.pick(&[PEER, PEER, PEER, PEER, OTHER, STRANGER]);
    let (from, to) = if direction == Direction::FromPod { (POD, peer) } else { (peer, POD) };
    let back = if direction == Direction::FromPod { Direction::ToPod } else { Direction::FromPod };
    let mut first = transport(random, from, to);
    let v4 = first[at::ETHERTYPE] == 8;
    let start = if v4 { at::IP + 20 } else { at::IP + 40 };
    let (way, mut second) = match random.below(8) {
        0 => (direction, transport(random, from, to)),
        1 => (direction, first.clone()),
        2 | 3 => (back, answer(&first)),
        4 => {
            first = if random.chance(2) { icmp4(from, to) } else { icmp6(from, to) };
            let kind = random.pick(&[0, 0, 14, 129, 129, 8, 10, 128]);
            let reply = echo_reply(&first);
            let reply = patched(reply, first.len() - 12, &[kind]);
            // Identifiers that could be taken for the port of the other side.
            let (at, identifier) = (first.len() - 8, random.pick(&[0, 0, 1, 13]));
            first = patched(first, at, &[0, identifier]);
            (back, patched(reply, at, &[0, identifier]))
        }
        5 => {
            let protocol = first[if v4 { at::IP + 9 } else { at::IP + 6 }];
            let is_extension = matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139);
            let last = if is_extension { IpNumber::UDP } else { IpNumber(protocol) };
            let whole = first.clone();
            let part = |offset, more| {
                if v4 {
                    return fragment4(whole.clone(), offset, more);
                }
                let fragment = Some(fragment_header(offset, more));
                let extensions = Ipv6Extensions { fragment, ..Ipv6Extensions::default() };
                extended6(from, to, extensions, last, &whole[start..])
            };
            first = part(0, true);
            (direction, part(random.pick(&[5, 100, 0x1fff]), random.chance(2)))
        }
        6 => (back, unreachable(random.pick(&[to, to, OTHER]), from, &first)),
        _ => (back, unreachable(to, from, &answer(&first))),
    };
    if second[if v4 { at::IP + 9 } else { at::IP + 6 }] == 6 && random.chance(2) && second.len() > start + 13
    {
        second = patched(second, start + 13, &[random.pick(&[2, 16, 18, 17, 4, 20, 0])]);
    }
    for _ in 0..random.pick(&[0, 0, 0, 1, 2]) {
        mutate(random, &mut second);
    }
    [(direction, first), (way, second)]
}

fn host(random: &mut Random) -> Host {
    let host = random.pick(&[
        PEER,
        PEER,
        PEER,
        PEER,
        PEER,
        PEER,
        OTHER,
        UNREADY,
        STRANGER,
        POD,
        Host { mac: ALL_NODES_MAC, v4: [224, 0, 0, 1], v6: ALL_NODES },
        Host { mac: BROADCAST, v4: [255; 4], v6: ALL_NODES },
        Host { mac: BROADCAST, v4: [192, 0, 2, 255], v6: ALL_NODES },
    ]);
    if random.chance(8) { Host { v6: Addr::link_local(host.mac).bytes, ..host } } else { host }
}

fn valid(random: &mut Random) -> (Direction, Vec<u8>) {
    let direction = random.pick(&Direction::ALL);
    let pod = if random.chance(8) { Host { v6: Addr::link_local(POD.mac).bytes, ..POD } } else { POD };
    let peer = host(random);
    let (from, to) = match direction {
        Direction::FromPod => (pod, peer),
        // A group sends nothing, but for those who pretend.
        Direction::ToPod if peer.mac[0] & 1 != 0 && !random.chance(8) => (PEER, peer),
        Direction::ToPod => (peer, pod),
    };
    let frame = match random.below(20) {
        0..=9 => transport(random, from, to),
        10 => {
            let frame = transport(random, from, to);
            if frame[at::ETHERTYPE] == 8 { with_options(random, &frame) } else { frame }
        }
        11 => fragment4(udp4(from, to), random.pick(&[0, 0, 1, 100]), !random.chance(3)),
        12..=14 => chain(random, from, to),
        15 => {
            let (sender, target) = (random.usually(from), random.usually(to));
            arp(
                from.mac,
                random.pick(&[to.mac, BROADCAST]),
                random.chance(2),
                (sender.mac, sender.v4),
                target.v4,
            )
        }
        16 | 17 => discovery(random, from, to),
        18 => {
            let quoted = random.usually(to);
            let about = transport(random, quoted, from);
            unreachable(from, to, &about)
        }
        _ => match random.below(3) {
            0 => tagged(&transport(random, from, to), random.pick(&[0x8100, 0x88a8, 0x9100])),
            1 => mld2_report(from),
            _ => patched(
                transport(random, from, to),
                at::ETHERTYPE,
                &random.pick(&[0x88cc_u16, 46, 0x8863]).to_be_bytes(),
            ),
        },
    };
    (direction, frame)
}

/// A datagram of some transport protocol, over IPv4 or IPv6.
fn transport(random: &mut Random, from: Host, to: Host) -> Vec<u8> {
    type Build = fn(Host, Host) -> Vec<u8>;
    let v4 = random.chance(2);
    let pick = |four: Build, six: Build| if v4 { four(from, to) } else { six(from, to) };
    let (protocol, start) = if v4 { (at::IP + 9, at::IP + 20) } else { (at::IP + 6, at::IP + 40) };
    let port = random.pick(&PORTS).to_be_bytes();
    match random.below(5) {
        0 => patched(pick(udp4, udp6), start + 2, &port),
        1 => {
            let frame = patched(pick(tcp4, tcp6), start + 2, &port);
            let flags = random.pick(&[2, 16, 16, 18, 17, 4, 20, 0, 255]);
            if random.chance(2) { frame } else { tcp_flags(frame, flags) }
        }
        2 => {
            let frame = patched(pick(icmp4, icmp6), start, &[random.pick(&ICMP_TYPES)]);
            if random.chance(3) { patched(frame, start + 1, &[random.byte()]) } else { frame }
        }
        3 => {
            let chunk = random.pick(&[0, 1, 1, 2, 3, 6, 7, 8, 10, 11, 14]);
            patched(
                patched(patched(pick(udp4, udp6), protocol, &[132]), start + 12, &[chunk]),
                start + 2,
                &port,
            )
        }
        _ => patched(pick(udp4, udp6), protocol, &[random.pick(&PROTOCOLS)]),
    }
}

/// Four bytes of IPv4 options put in.
fn with_options(random: &mut Random, frame: &[u8]) -> Vec<u8> {
    let at = at::IP + 20;
    let mut longer = [&frame[..at], &random.pick(&[[1, 1, 1, 0], [148, 4, 0, 0]]), &frame[at..]].concat();
    longer[at::IP] = 0x46;
    longer[at::IP + 3] = longer[at::IP + 3].wrapping_add(4);
    longer
}

/// IPv6 extension headers in front of something.
fn chain(random: &mut Random, from: Host, to: Host) -> Vec<u8> {
    let inner = transport(random, from, to);
    let inner = if inner[at::ETHERTYPE] == 8 { udp6(from, to) } else { inner };
    let (last, payload) = (IpNumber(inner[at::IP + 6]), &inner[at::IP + 40..]);
    if random.chance(4) {
        // Destination options, one after another.
        let count = random.pick(&[1, 2, 5, 6, 7, 8]);
        let mut chained = Vec::new();
        for seen in 1..=count {
            let next = if seen == count { last.0 } else { random.pick(&[60, 60, 60, 60, 44, 0]) };
            chained.extend([next, 0, 0, 0, 0, 0, 0, 0]);
        }
        chained.extend(payload);
        return extended6(from, to, Ipv6Extensions::default(), IpNumber::IPV6_DESTINATION_OPTIONS, &chained);
    }
    let mut extensions = Ipv6Extensions::default();
    if random.chance(3) {
        extensions.hop_by_hop_options = Some(options_header());
    }
    if random.chance(4) {
        let mut routing = options_header();
        let left = random.pick(&[0, 0, 1]);
        routing.set_payload(&[random.byte() % 5, left, 0, 0, 0, 0]).unwrap();
        extensions.routing = Some(Ipv6RoutingExtensions { routing, final_destination_options: None });
    }
    if random.chance(2) {
        extensions.fragment = Some(fragment_header(random.pick(&[0, 0, 1, 100]), random.chance(2)));
    }
    if random.chance(4) {
        extensions.auth = Some(IpAuthHeader::new(last, 1, 1, &[0; 12]).unwrap());
    }
    // Extension headers are the builder's own to name.
    let last = if matches!(last.0, 0 | 43 | 44 | 51 | 60 | 135 | 139) { IpNumber::UDP } else { last };
    extended6(from, to, extensions, last, payload)
}

fn discovery(random: &mut Random, from: Host, to: Host) -> Vec<u8> {
    let from = if random.chance(6) { Host { v6: UNSPECIFIED, ..from } } else { from };
    let likely = random.pick(&[from, to, to]);
    let target = random.usually(likely).v6;
    let option = random.pick(&[None, Some(from.mac), Some(from.mac), Some(OTHER.mac)]);
    match random.below(8) {
        0 => {
            let mut body = vec![0; 4];
            if let Some(mac) = option {
                body.extend([1, 1]);
                body.extend(mac);
            }
            icmp6_raw(from, to, 133, &body)
        }
        1 => {
            let kind = random.pick(&ICMP_TYPES);
            let length = 4 + random.below(48);
            let body = random.bytes(length);
            icmp6_raw(from, to, kind, &body)
        }
        _ => neighbor(from, to, random.pick(&[135, 135, 136]), target, option),
    }
}

/// Changes a frame in one way.
fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    let v4 = frame.get(at::ETHERTYPE) == Some(&8);
    let other = host(random);
    let mut put = |offset: usize, bytes: &[u8]| {
        for (place, byte) in frame.iter_mut().skip(offset).zip(bytes) {
            *place = *byte;
        }
    };
    match random.below(16) {
        0 => put(6, &other.mac),
        1 => put(0, &other.mac),
        2 if v4 => put(at::IP + 12, &other.v4),
        2 => put(at::IP + 8, &other.v6),
        3 if v4 => put(at::IP + 16, &other.v4),
        3 => put(at::IP + 24, &other.v6),
        4 => {
            let kind = random.pick(&[0x0800_u16, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x9100, 0x0600, 46]);
            put(at::ETHERTYPE, &kind.to_be_bytes());
        }
        5 => put(at::IP, &[random.pick(&[0x45, 0x46, 0x44, 0x4f, 0x40, 0x60, 0x65, 0x6f, 0])]),
        6 => {
            let length =
                random.pick(&[0_u16, 1, 4, 7, 8, 19, 20, 24, 27, 28, 40, 41, 47, 48, 49, 64, 0xffff]);
            put(at::IP + if v4 { 2 } else { 4 }, &length.to_be_bytes());
        }
        7 => put(at::IP + if v4 { 9 } else { 6 }, &[random.pick(&PROTOCOLS)]),
        8 if v4 => {
            let field = random.pick(&[0_u16, 0x4000, 0x2000, 0x8000, 1, 0x1fff, 0x2001, 0x6000]);
            put(at::IP + 6, &field.to_be_bytes());
        }
        8 => put(at::IP + 7, &[random.pick(&[0, 1, 64, 255])]),
        9 => {
            let (offset, byte) = (random.below(110), random.pick(&[0, 1, 2, 0x44, 60, 58, 135, 255]));
            put(offset, &[byte]);
        }
        10 => {
            let (offset, byte) = (at::IP + 20 + random.below(40), random.byte());
            put(offset, &[byte]);
        }
        11 => {
            let length = 14 + random.below(frame.len().saturating_sub(14));
            frame.truncate(length);
        }
        12 => {
            let count = random.below(64);
            frame.extend(random.bytes(count));
        }
        13 => {
            // Shorter than its frame: what follows only pads it.
            let offset = at::IP + if v4 { 3 } else { 5 };
            if let Some(length) = frame.get_mut(offset) {
                *length = length.saturating_sub(random.byte() % 24);
            }
        }
        _ => {
            let offset = random.below(frame.len().min(110));
            if let Some(byte) = frame.get_mut(offset) {
                *byte ^= 1 << (random.byte() & 7);
            }
        }
    }
}
