//! The short way through tunnels beside the long one.

use netferry_common::counters::path;
use netferry_common::limit::LIMIT_TO_POD;
use netferry_common::uplink::{BRIDGED, OVERLAY};

use super::established::{ACK, Family, IFINDEX, NETWORK, OTHER, OTHER_MAC, OTHER_V4, between, two};
use super::*;
use crate::arrive::{Arrival, Entrance};
use crate::datagram::Datagram;
use crate::deliver::Target;
use crate::established::{Onward, established};
use crate::vxlan::{Entering, HEADERS, Leaving, OUTER, entering};

const VNI: u32 = 0x0012_3456;
const DEVICE: u32 = 5;
const NODE: [u8; 4] = [198, 51, 100, 8];
const ENDS: Tunnel =
    Tunnel { device: DEVICE, link: 2, address: [198, 51, 100, 7], port: 4789_u16.to_be_bytes(), pad: [0; 2] };

/// [`ID`] on this node, and [`OTHER`] on another.
fn apart() -> Memory {
    let mut memory = two();
    memory.endpoints.remove(&OTHER);
    memory.slots.remove(&OTHER);
    for addr in [Addr::v4(OTHER_V4), Addr::link_local(OTHER_MAC)] {
        memory.addresses.remove(&AddressKey { endpoint: OTHER, addr });
        let member = Member { node: Addr::v4(NODE), ..Member::new(0, OTHER_MAC) };
        memory.members.insert(MemberKey { network: NETWORK, addr }, member);
    }
    let uplink = Uplink { flags: OVERLAY, ifindex: DEVICE, tag: VNI, mtu: 1450, ..Uplink::default() };
    memory.set_uplink(uplink);
    memory
}

/// The other way round: from [`OTHER`] to [`ID`].
fn back(family: Family, protocol: u8, flags: u8) -> Frame {
    let mut frame = between(family, protocol, flags);
    let (addresses, length) = match family {
        Family::V4 => (26, 4),
        Family::V6 => (22, 16),
    };
    let transport = addresses + 2 * length;
    for (at, length) in [(0, 6), (addresses, length), (transport, 2)] {
        let (first, second) = frame.bytes[at..at + 2 * length].split_at_mut(length);
        first.swap_with_slice(second);
    }
    frame
}

/// In a tunnel, as the other node sends it.
fn tunnelled(frame: &Frame) -> Frame {
    let bytes = &frame.bytes;
    let head = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let leaving = Leaving {
        link: [0, 2, 4, 6, 8, 10, 12].map(head),
        class: [bytes[14], bytes[15]],
        length: u32::try_from(bytes.len()).expect("short"),
        vni: VNI,
        source: u32::from_ne_bytes(NODE),
        destination: u32::from_ne_bytes(ENDS.address),
        port: ENDS.port,
        hash: 0x1234_5678,
        number: 77,
    };
    let mut words = [0; 16];
    leaving.write(&mut words);
    let mut outer = vec![2, 0, 0, 0, 1, 7, 2, 0, 0, 0, 1, 8];
    outer.extend(&bytemuck::bytes_of(&words)[2..2 + HEADERS]);
    outer.extend(&bytes[14..]);
    Frame { bytes: outer, tunnelled: true, gso: frame.gso, vlan_tagged: frame.vlan_tagged }
}

impl Memory {
    /// As user space does.
    fn set_uplink(&mut self, uplink: Uplink) {
        let Uplink { flags, ifindex, tag, mtu, .. } = uplink;
        self.uplinks.insert(NETWORK, uplink);
        self.ways.clear();
        if flags == OVERLAY {
            self.ways.push(Way { network: NETWORK, vni: tag, device: ifindex, mtu });
        }
    }

    fn leaves(&self, frame: &Frame, scratch: &mut Scratch) -> Option<Onward> {
        self.counted.borrow_mut().clear();
        established(frame, self, ID, scratch)
    }

    fn enters(&self, frame: &Frame) -> Option<Entering> {
        entering(frame, self, &ENDS)
    }

    fn long_out(&self, frame: &Frame, scratch: &mut Scratch) -> Verdict {
        self.counted.borrow_mut().clear();
        judge(frame, self, scratch, ID, Direction::FromPod)
    }

    fn long_in(&self, inner: &Frame, node: [u8; 4]) -> Result<(u32, Verdict), Reason> {
        self.counted.borrow_mut().clear();
        let Frame { vlan_tagged, gso, .. } = *inner;
        let packet =
            Frame::<{ hook::TUNNEL }> { bytes: inner.bytes.clone(), vlan_tagged, gso, tunnelled: false };
        let eth = packet.head(0).ok_or(Reason::MalformedEthernet)?;
        let arrival = Arrival { packet: &packet, tables: self, network: NETWORK, eth };
        match arrival.from_tunnel(&Addr::v4(node), &mut Datagram::UNREAD.clone())? {
            Entrance::Endpoint(id) => {
                Ok((id, judge(&packet, self, &mut Scratch::new(), id, Direction::ToPod)))
            }
            other => panic!("{other:?} from a tunnel"),
        }
    }
}

const OUT: Verdict = Verdict::Redirect(Target { ifindex: DEVICE, path: path::OVERLAY });
const IN: Verdict = Verdict::Redirect(Target { ifindex: IFINDEX + 1, path: path::OVERLAY });

/// Two endpoints with a TCP and a UDP flow of each family between them.
fn flowing() -> Memory {
    let memory = apart();
    for family in [Family::V4, Family::V6] {
        for (protocol, there, here) in [(6, 2, 2 | ACK), (17, 0, 0)] {
            assert_eq!(memory.long_out(&between(family, protocol, there), &mut Scratch::new()), OUT);
            assert_eq!(memory.long_in(&back(family, protocol, here), NODE), Ok((ID, IN)));
        }
    }
    memory
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 =
        header.chunks(2).map(|two| u32::from(u16::from_be_bytes(two.try_into().expect("even")))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded")
}

#[test]
fn headers_are_those_of_vxlan() {
    for (class, outer) in [(0, 0), (1, 1), (2, 2), (3, 2), (0xfc, 0)] {
        let mut inner = between(Family::V4, 6, ACK);
        inner.bytes[15] = class;
        let frame = tunnelled(&inner).bytes;
        assert_eq!(frame.len(), inner.bytes.len() + OUTER);
        assert_eq!(frame[12..14], [8, 0]);
        assert_eq!(frame[14..16], [0x45, outer]);
        assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
        assert_eq!(frame[20..24], [0, 0, 64, 17], "may be cut, 64 hops, UDP");
        assert_eq!(checksum(&frame[14..34]), 0xffff);
        assert_eq!((&frame[26..30], &frame[30..34]), (&NODE[..], &ENDS.address[..]));
        assert!(frame[34] >= 0xc0, "a port of nobody's");
        assert_eq!(frame[36..38], ENDS.port);
        assert_eq!(usize::from(u16::from_be_bytes([frame[38], frame[39]])), frame.len() - 34);
        assert_eq!(frame[40..50], [0, 0, 8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(frame[50..], inner.bytes);
    }
    let mut inner = between(Family::V6, 6, ACK);
    inner.bytes[15] = 0x31;
    assert_eq!(tunnelled(&inner).bytes[15], 2, "congestion of IPv6, in an outer header that can tell of it");
}

#[test]
fn a_flow_goes_the_short_way_out_and_in() {
    for family in [Family::V4, Family::V6] {
        for protocol in [6, 17] {
            let memory = flowing();
            let mut scratch = Scratch::new();
            let out = between(family, protocol, ACK);
            assert_eq!(memory.leaves(&out, &mut scratch), Some(Onward::Tunnel), "{family:?} {protocol}");
            assert_eq!((scratch.outer.vni, scratch.outer.node), (VNI, Addr::v4(NODE)));
            assert_eq!(scratch.target.ifindex, DEVICE);
            assert_eq!(scratch.note.size as usize, out.bytes.len() - 14);
            assert_eq!(*memory.counted.borrow(), [], "counted when it is sent");

            let inner = back(family, protocol, ACK);
            let found = memory.enters(&tunnelled(&inner)).expect("the short way in");
            assert_eq!((found.endpoint, found.ifindex), (ID, IFINDEX + 1));
            assert_eq!(bytemuck::bytes_of(&found.eth), &inner.bytes[..14]);
        }
    }
}

#[test]
fn what_is_no_tunnel_to_this_node_is_left_alone() {
    let good = tunnelled(&back(Family::V4, 6, ACK));
    let memory = flowing();
    assert!(memory.enters(&good).is_some());
    for (at, value, what) in [
        (12, 0x86, "IPv6"),
        (14, 0x46, "options"),
        (15, 3, "congestion that the receiver is to hear of"),
        (20, 0x20, "a fragment"),
        (21, 1, "a later one"),
        (23, 6, "TCP"),
        (26, 199, "another node than the sender's"),
        (33, 9, "for another host"),
        (36, 0, "another port"),
        (40, 1, "with a checksum"),
        (42, 0, "no VNI"),
        (43, 1, "more flags"),
        (46, 0x11, "the VNI of nobody"),
        (50, 9, "for another port of the network"),
        (57, 9, "under another's hardware address"),
    ] {
        let mut frame = tunnelled(&back(Family::V4, 6, ACK));
        frame.bytes[at] = value;
        assert!(memory.enters(&frame).is_none(), "{what}");
    }
    assert!(memory.queued.borrow().is_empty(), "none of these is known to wait");
    for length in 0..good.bytes.len() {
        let cut = Frame { bytes: good.bytes[..length].to_vec(), tunnelled: true, ..Frame::default() };
        assert!(memory.enters(&cut).is_none(), "{length} bytes");
    }
}

#[test]
fn no_frame_overtakes_one_that_waits_for_the_device() {
    let memory = flowing();
    let small = tunnelled(&back(Family::V4, 6, ACK));
    let large = Frame { gso: true, ..tunnelled(&back(Family::V4, 6, ACK)) };
    memory.clock.set(100_000_000);
    assert!(memory.enters(&small).is_some());
    assert!(memory.enters(&large).is_none());
    assert!(memory.enters(&small).is_none());
    memory.clock.set(100_000_000 + QUEUED - 1);
    assert!(memory.enters(&small).is_none());
    memory.clock.set(100_000_000 + QUEUED);
    assert!(memory.enters(&small).is_some());
    // The time of the last frame is to be written, by the program at the device.
    memory.clock.set(2_000_000_000);
    assert!(memory.enters(&small).is_none());
    assert_eq!(memory.queued.borrow()[&ID], 2_000_000_000);
}

/// Something that is not as it was when the flows were opened.
#[derive(Clone, Debug)]
enum Change {
    Endpoint(Endpoint),
    Member(Option<Member>),
    Uplink(Uplink),
}

fn change() -> impl Strategy<Value = Change> {
    let flags = prop_oneof![3 => Just(READY), 1 => Just(0), 1 => Just(READY | LIMIT_TO_POD)];
    let network = prop_oneof![4 => Just(NETWORK), 1 => Just(0), 1 => Just(NETWORK + 1)];
    let mtu = prop_oneof![Just(1500u32), Just(52), Just(51)];
    let endpoint = (flags, network, 0u32..2, mtu.clone()).prop_map(|(flags, network, policy, mtu)| {
        Change::Endpoint(Endpoint {
            flags,
            network,
            policy,
            mtu,
            ifindex: IFINDEX + 1,
            mac: MAC,
            pad: [0; 2],
        })
    });
    let node = prop_oneof![2 => Just(Addr::v4(NODE)), 1 => Just(Addr::v4([198, 51, 100, 9])), 1 => Just(Addr::UNSPECIFIED)];
    let member = (prop_oneof![3 => Just(0u32), 1 => Just(ID), 1 => Just(u32::MAX)], node, any::<bool>())
        .prop_map(|(endpoint, node, same)| {
            Change::Member(Some(Member { node, ..Member::new(endpoint, if same { OTHER_MAC } else { MAC }) }))
        });
    let uplink = (prop_oneof![3 => Just(OVERLAY), 1 => Just(BRIDGED)], mtu).prop_map(|(flags, mtu)| {
        Change::Uplink(Uplink { flags, ifindex: DEVICE, tag: VNI, mtu, ..Uplink::default() })
    });
    prop_oneof![3 => endpoint, 3 => member, 1 => Just(Change::Member(None)), 1 => uplink]
}

impl Memory {
    fn change(&mut self, change: Option<&Change>) {
        match change {
            None => {}
            Some(Change::Endpoint(endpoint)) => self.put(ID, *endpoint),
            Some(Change::Uplink(uplink)) => self.set_uplink(*uplink),
            Some(Change::Member(member)) => {
                for addr in [Addr::v4(OTHER_V4), Addr::link_local(OTHER_MAC)] {
                    let key = MemberKey { network: NETWORK, addr };
                    match member {
                        Some(member) => drop(self.members.insert(key, *member)),
                        None => drop(self.members.remove(&key)),
                    }
                }
            }
        }
    }
}

/// A frame of one of the flows, with a few bytes that may be others.
fn some(make: fn(Family, u8, u8) -> Frame) -> impl Strategy<Value = Frame> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let protocol = prop_oneof![Just((6, ACK)), Just((6, 0x18)), Just((17, 0))];
    let touched = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..2);
    (family, protocol, touched, 0u8..12).prop_map(move |(family, (protocol, flags), touched, rare)| {
        let mut frame = make(family, protocol, flags);
        for (place, value) in touched {
            let place = place.index(frame.bytes.len());
            frame.bytes[place] = value;
        }
        (frame.vlan_tagged, frame.gso) = (rare == 1, rare == 2);
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever leaves the short way leaves the long way, into the same tunnel.
    #[test]
    fn out_the_short_way_is_the_long_one(frame in some(between), changed in proptest::option::of(change())) {
        let mut memory = flowing();
        memory.change(changed.as_ref());
        let mut scratch = Scratch::new();
        if let Some(onward) = memory.leaves(&frame, &mut scratch) {
            prop_assert_eq!(onward, Onward::Tunnel);
            let mut long = Scratch::new();
            prop_assert_eq!(memory.long_out(&frame, &mut long), OUT);
            prop_assert_eq!((scratch.outer.vni, scratch.outer.node), (long.outer.vni, long.outer.node));
            prop_assert_eq!(scratch.note.size, long.note.size);
            prop_assert_eq!(memory.counted.take(), [Ok(frame.bytes.len() as u64)]);
        }
    }

    /// Whatever comes in the short way comes in the long way, for the same endpoint.
    #[test]
    fn in_the_short_way_is_the_long_one(
        inner in some(back),
        touched in proptest::option::of((0usize..50, any::<u8>())),
        changed in proptest::option::of(change()),
    ) {
        let mut memory = flowing();
        memory.change(changed.as_ref());
        let mut frame = tunnelled(&inner);
        if let Some((at, value)) = touched {
            frame.bytes[at] = value;
        }
        if let Some(found) = memory.enters(&frame) {
            let node = frame.bytes[26..30].try_into().expect("four bytes");
            prop_assert_eq!(memory.long_in(&inner, node), Ok((found.endpoint, IN)));
            prop_assert_eq!(found.ifindex, IFINDEX + 1);
        }
    }
}
