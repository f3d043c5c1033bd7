//! The short way beside the long one.

use netferry_common::counters::path;
use netferry_common::limit::LIMIT_TO_POD;
use netferry_common::policy::DENY_TO_POD;

use super::*;
use crate::deliver::Target;
use crate::established::{Onward, established};

pub(super) const NETWORK: u32 = 3;
pub(super) const OTHER: u32 = 8;
pub(super) const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
pub(super) const OTHER_V4: [u8; 4] = [192, 0, 2, 8];
pub(super) const IFINDEX: u32 = 42;

/// Two endpoints of a network, with slots.
pub(super) fn two() -> Memory {
    let mut memory = Memory::default();
    for (id, mac, v4) in [(ID, MAC, V4), (OTHER, OTHER_MAC, OTHER_V4)] {
        let ifindex = if id == OTHER { IFINDEX } else { IFINDEX + 1 };
        let endpoint =
            Endpoint { flags: READY, network: NETWORK, mac, mtu: 1500, ifindex, ..Default::default() };
        memory.put(id, endpoint);
        for addr in [Addr::v4(v4), Addr::link_local(mac)] {
            memory
                .addresses
                .insert(AddressKey { endpoint: id, addr }, Address { flags: ADDR_OWN, prefix: 24 });
            memory.members.insert(MemberKey { network: NETWORK, addr }, Member::new(id, mac));
        }
    }
    memory
}

impl Memory {
    pub(super) fn put(&mut self, id: u32, endpoint: Endpoint) {
        self.slots.insert(id, Slot::new(id, &endpoint));
        self.endpoints.insert(id, endpoint);
    }

    fn short(&self, frame: &Frame) -> Option<u32> {
        self.counted.borrow_mut().clear();
        match established(frame, self, ID, &mut Scratch::new()) {
            Some(Onward::Peer(ifindex)) => Some(ifindex),
            Some(Onward::Tunnel) => panic!("no flow of this network goes beyond the node"),
            None => None,
        }
    }

    fn long(&self, frame: &Frame) -> Verdict {
        self.counted.borrow_mut().clear();
        judge(frame, self, &mut Scratch::new(), ID, Direction::FromPod)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Family {
    V4,
    V6,
}

/// From [`ID`] to [`OTHER`], 32 bytes of transport header and data.
pub(super) fn between(family: Family, protocol: u8, flags: u8) -> Frame {
    let mut transport = vec![0x10, 0, 0x20, 0, 0, 32, 0, 0];
    transport.resize(32, 0);
    if protocol == 6 {
        (transport[12], transport[13]) = (0x50, flags);
    }
    let (ethertype, mut ip) = match family {
        Family::V4 => {
            let mut ip = vec![0x45, 0, 0, 52, 0, 0, 0, 0, 64, protocol, 0, 0];
            ip.extend(V4);
            ip.extend(OTHER_V4);
            (0x0800, ip)
        }
        Family::V6 => {
            let mut ip = vec![0x60, 0, 0, 0, 0, 32, protocol, 64];
            ip.extend(Addr::link_local(MAC).bytes);
            ip.extend(Addr::link_local(OTHER_MAC).bytes);
            (0x86dd, ip)
        }
    };
    ip.extend(transport);
    let mut frame = frame(ethertype, &ip);
    frame.bytes[..6].copy_from_slice(&OTHER_MAC);
    frame
}

pub(super) const ACK: u8 = 16;
const FAST: Verdict = Verdict::Redirect(Target { ifindex: IFINDEX, path: path::FAST });

#[test]
fn a_flow_takes_the_long_way_once() {
    for family in [Family::V4, Family::V6] {
        for (protocol, first, next) in [(6, 2, ACK), (17, 0, 0)] {
            let (memory, next) = (two(), between(family, protocol, next));
            assert_eq!(memory.short(&next), None, "no flow yet");
            assert_eq!(memory.long(&between(family, protocol, first)), FAST);
            assert_eq!(memory.short(&next), Some(IFINDEX), "{family:?} {protocol}");
            let bytes = next.bytes.len() as u64;
            assert_eq!(*memory.counted.borrow(), [Ok(bytes), Ok(bytes)]);
        }
    }
}

#[test]
fn what_a_frame_may_change_takes_the_long_way() {
    let memory = two();
    assert_eq!(memory.long(&between(Family::V4, 6, 2)), FAST);
    for flags in [0, 1 | ACK, 2, 2 | ACK, 4, 4 | ACK] {
        assert_eq!(memory.short(&between(Family::V4, 6, flags)), None, "TCP flags {flags:#x}");
    }
    // The time of the last frame is to be written.
    memory.clock.set(1_000_000_001);
    assert_eq!(memory.short(&between(Family::V4, 6, ACK)), None);
    assert_eq!(memory.long(&between(Family::V4, 6, ACK)), FAST);
    assert_eq!(memory.short(&between(Family::V4, 6, ACK)), Some(IFINDEX));
}

#[test]
fn a_closed_slot_sends_no_frame() {
    for closed in [ID, OTHER] {
        let mut memory = two();
        assert_eq!(memory.long(&between(Family::V4, 6, 2)), FAST);
        let slot = memory.slots[&closed].closed();
        memory.slots.insert(closed, slot);
        assert_eq!(memory.short(&between(Family::V4, 6, ACK)), None);
    }
}

/// A change of one of the endpoints.
fn change() -> impl Strategy<Value = (u32, Endpoint)> {
    let which = prop_oneof![Just(ID), Just(OTHER)];
    let flags = prop_oneof![
        4 => Just(READY),
        1 => Just(0),
        1 => Just(READY | LIMIT_TO_POD),
        1 => Just(READY | DENY_TO_POD)
    ];
    let network = prop_oneof![4 => Just(NETWORK), 1 => Just(0), 1 => Just(NETWORK + 1)];
    let (policy, mtu) = (0u32..2, prop_oneof![Just(1500u32), Just(52), Just(51)]);
    let ifindex = prop_oneof![3 => Just(IFINDEX), 1 => Just(0)];
    (which, flags, network, policy, mtu, ifindex).prop_map(|(id, flags, network, policy, mtu, ifindex)| {
        let mac = if id == ID { MAC } else { OTHER_MAC };
        (id, Endpoint { flags, network, policy, mtu, ifindex, mac, pad: [0; 2] })
    })
}

fn some_frame() -> impl Strategy<Value = Frame> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let protocol = prop_oneof![Just((6, ACK)), Just((6, 0x18)), Just((17, 0))];
    let touched = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
    let length = prop_oneof![4 => Just(None), 1 => (0usize..120).prop_map(Some)];
    (family, protocol, touched, length, 0u8..8).prop_map(
        |(family, (protocol, flags), touched, length, rare)| {
            let mut frame = between(family, protocol, flags);
            for (place, value) in touched {
                let place = place.index(frame.bytes.len());
                frame.bytes[place] = value;
            }
            if let Some(length) = length {
                frame.bytes.resize(length.max(14), 0);
            }
            (frame.vlan_tagged, frame.gso) = (rare == 1, rare == 2);
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever the short way lets through, the long way lets through, to the same place and with the same counts.
    #[test]
    fn the_short_way_is_the_long_one(frame in some_frame(), changed in proptest::option::of(change())) {
        let mut memory = two();
        for family in [Family::V4, Family::V6] {
            for (protocol, flags) in [(6, 2), (17, 0)] {
                prop_assert_eq!(memory.long(&between(family, protocol, flags)), FAST);
            }
        }
        if let Some((id, endpoint)) = changed {
            memory.put(id, endpoint);
        }
        if let Some(ifindex) = memory.short(&frame) {
            let counted = memory.counted.take();
            let target = Target { ifindex, path: path::FAST };
            prop_assert_eq!(memory.long(&frame), Verdict::Redirect(target));
            prop_assert_eq!(counted, memory.counted.take());
        }
    }
}
