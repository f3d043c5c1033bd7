//! The decision on the host: what the kernel's test run cannot be fed with, and frames made of anything.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use bytemuck::{AnyBitPattern, Pod};
use netferry_common::endpoint::{ADDR_OWN, READY, SHARED_MAC};
use netferry_common::{
    Addr, Address, AddressKey, CounterKey, Direction, Endpoint, Event, Flow, FlowKey, Fragment, FragmentKey,
    Limit, LimitKey, Member, MemberKey, Peer, PeerKey, Reason, Rule, RuleKey, Slot, Tunnel, Uplink, Way,
};
use proptest::prelude::*;

use crate::flows::SharedFlow;
use crate::judge::{Scratch, Verdict, judge};
use crate::packet::{Ethernet, Packet, hook};
use crate::tables::Tables;
use crate::vxlan::{OUTER, QUEUED};

mod established;
mod vxlan;

const ID: u32 = 7;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const V4: [u8; 4] = [192, 0, 2, 7];

/// Met at the host end of a pair, if nothing else is said.
#[derive(Debug, Default)]
struct Frame<const HOOK: u32 = { hook::PAIR }> {
    bytes: Vec<u8>,
    vlan_tagged: bool,
    gso: bool,
    /// It is in a tunnel, where a frame that is not linear is left to the kernel.
    tunnelled: bool,
}

impl<const HOOK: u32> Packet for Frame<HOOK> {
    const HOOK: u32 = HOOK;
    fn len(&self) -> usize {
        self.bytes.len()
    }
    fn vlan_tagged(&self) -> bool {
        self.vlan_tagged
    }
    fn gso_size(&self) -> u32 {
        u32::from(self.gso)
    }
    fn replace<T: Pod>(&self, _: &T) -> bool {
        true
    }
    fn set_destination(&self, _: [u8; 6]) -> bool {
        true
    }
    fn set_link(&self, _: &Ethernet) -> bool {
        true
    }
    fn store<T: Pod>(&self, _: usize, _: &T) -> bool {
        true
    }
    fn tag(&self, _: u32) -> bool {
        true
    }
    fn is_to_host(&self) -> bool {
        true
    }
    fn head<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        let linear = crate::packet::HEAD_LEN + if self.tunnelled { OUTER } else { 0 };
        assert!(offset + size_of::<T>() <= linear, "not made linear in the kernel");
        self.load(offset)
    }
    fn load<T: AnyBitPattern>(&self, offset: usize) -> Option<T> {
        self.bytes.get(offset..offset + size_of::<T>()).map(bytemuck::pod_read_unaligned)
    }
}

#[derive(Default)]
struct Memory {
    endpoints: HashMap<u32, Endpoint>,
    slots: HashMap<u32, Slot>,
    addresses: HashMap<AddressKey, Address>,
    members: HashMap<MemberKey, Member>,
    peers: Vec<(u32, PeerKey, Peer)>,
    rules: Vec<(u32, RuleKey, Rule)>,
    limits: RefCell<HashMap<LimitKey, Limit>>,
    flows: RefCell<HashMap<FlowKey, &'static SharedFlow>>,
    fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    uplinks: HashMap<u32, Uplink>,
    ways: Vec<Way>,
    queued: RefCell<HashMap<u32, u64>>,
    events: RefCell<Vec<Event>>,
    clock: Cell<u64>,
    counted: RefCell<Vec<Result<u64, Reason>>>,
}

/// Whether the first `bits` bits agree.
fn covers(bits: u32, prefix: &[u8], key: &[u8]) -> bool {
    (0..bits as usize).all(|at| (prefix[at / 8] ^ key[at / 8]) >> (7 - at % 8) & 1 == 0)
}

fn longest<K: Pod, V: Copy>(entries: &[(u32, K, V)], key: &K) -> Option<V> {
    let covering = entries
        .iter()
        .filter(|(bits, prefix, _)| covers(*bits, bytemuck::bytes_of(prefix), bytemuck::bytes_of(key)));
    covering.max_by_key(|(bits, ..)| *bits).map(|entry| entry.2)
}

impl Memory {
    fn ready() -> Self {
        let mut memory = Self::default();
        memory.endpoints.insert(ID, Endpoint { flags: READY, mac: MAC, mtu: 1500, ..Endpoint::default() });
        for addr in [Addr::v4(V4), Addr::link_local(MAC)] {
            memory
                .addresses
                .insert(AddressKey { endpoint: ID, addr }, Address { flags: ADDR_OWN, prefix: 24 });
        }
        memory
    }
}

impl Tables for Memory {
    fn endpoint(&self, id: u32) -> Option<&Endpoint> {
        self.endpoints.get(&id)
    }
    fn slot(&self, id: u32) -> Option<&Slot> {
        self.slots.get(&id)
    }
    fn address(&self, key: &AddressKey) -> Option<Address> {
        self.addresses.get(key).copied()
    }
    fn now(&self) -> u64 {
        self.clock.get()
    }
    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.members.get(key).copied()
    }
    fn uplink(&self, network: u32) -> Option<&Uplink> {
        self.uplinks.get(&network)
    }
    fn way(&self, network: u32) -> Option<&Way> {
        self.ways.iter().find(|way| way.network == network)
    }
    fn way_of_vni(&self, vni: u32) -> Option<&Way> {
        self.ways.iter().find(|way| way.vni == vni)
    }
    fn tunnel(&self) -> Option<&Tunnel> {
        None
    }
    fn peer(&self, key: PeerKey) -> Option<Peer> {
        longest(&self.peers, &key)
    }
    fn rule(&self, key: RuleKey) -> Option<Rule> {
        longest(&self.rules, &key)
    }
    fn flow(&self, key: &FlowKey) -> Option<&SharedFlow> {
        self.flows.borrow().get(key).copied()
    }
    fn open_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        // Leaked, as a map's element may be read after it was removed.
        self.flows.borrow_mut().entry(*key).or_insert_with(|| Box::leak(Box::new(SharedFlow::new(flow))));
        true
    }
    fn forget_flow(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }
    fn add_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }
    fn redirects_to_peer(&self) -> bool {
        true
    }
    fn may_refuse(&self, _: CounterKey, _: u64) -> bool {
        true
    }
    fn take(&self, key: &LimitKey, now: u64, units: u64) -> Option<bool> {
        let mut limits = self.limits.borrow_mut();
        let limit = limits.get_mut(key)?;
        let next = limit.take(limit.paid_at, now, units);
        limit.paid_at = next.unwrap_or(limit.paid_at);
        Some(next.is_some())
    }
    fn report(&self, event: &Event) {
        self.events.borrow_mut().push(*event);
    }
    fn passed(&self, _: u32, _: Direction, _: u64, bytes: u64, _: u32) {
        self.counted.borrow_mut().push(Ok(bytes));
    }
    fn went_fast(&self, _: u32, _: u32, bytes: u64) {
        self.counted.borrow_mut().extend([Ok(bytes), Ok(bytes)]);
    }
    fn left(&self, _: u32, bytes: u64) {
        self.counted.borrow_mut().push(Ok(bytes));
    }
    fn entered(&self, _: u32, bytes: u64) {
        self.counted.borrow_mut().push(Ok(bytes));
    }
    fn queued(&self, receiver: u32, now: u64) {
        self.queued.borrow_mut().insert(receiver, now);
    }
    fn waits(&self, receiver: u32, now: u64) -> bool {
        self.queued.borrow().get(&receiver).is_some_and(|at| now - at < QUEUED)
    }
    fn dropped(&self, _: u32, _: Direction, reason: Reason) {
        self.counted.borrow_mut().push(Err(reason));
    }
}

impl crate::guard::BlockList for Memory {
    fn blocked(&self, _: Addr) -> bool {
        false
    }
}

fn frame(ethertype: u16, payload: &[u8]) -> Frame {
    let mut bytes = vec![2, 0, 0, 0, 0, 9];
    bytes.extend(MAC);
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    Frame { bytes, ..Frame::default() }
}

fn udp4() -> Frame {
    let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(V4);
    ip.extend([192, 0, 2, 9]);
    ip.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    frame(0x0800, &ip)
}

/// A datagram and an ARP request to the pod, under its own hardware address.
fn from_namesake(sender: [u8; 4]) -> [Frame; 2] {
    let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(sender);
    ip.extend(V4);
    ip.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(MAC);
    arp.extend(sender);
    arp.extend([0; 6]);
    arp.extend(V4);
    let mut frames = [frame(0x0800, &ip), frame(0x0806, &arp)];
    frames[0].bytes[..6].copy_from_slice(&MAC);
    frames[1].bytes[..6].fill(0xff);
    frames
}

#[test]
fn what_comes_under_a_shared_address_is_no_forgery() {
    let to_pod =
        |memory: &Memory, frame: &Frame| judge(frame, memory, &mut Scratch::new(), ID, Direction::ToPod);
    let alone = Memory::ready();
    let mut shared = Memory::ready();
    shared.endpoints.get_mut(&ID).expect("the endpoint").flags |= SHARED_MAC;
    for frame in from_namesake([192, 0, 2, 9]) {
        assert_eq!(to_pod(&alone, &frame), Verdict::Drop(Reason::OwnMac));
        assert_eq!(to_pod(&shared, &frame), Verdict::Pass);
    }
    for frame in from_namesake(V4) {
        assert_eq!(to_pod(&shared, &frame), Verdict::Drop(Reason::OwnAddress));
    }
}

#[track_caller]
fn from_pod(frame: &Frame) -> Verdict {
    judge(frame, &Memory::ready(), &mut Scratch::new(), ID, Direction::FromPod)
}

#[test]
fn a_tag_beside_the_frame_is_a_tag() {
    assert_eq!(from_pod(&udp4()), Verdict::Pass);
    assert_eq!(from_pod(&Frame { vlan_tagged: true, ..udp4() }), Verdict::Drop(Reason::VlanTagged));
}

#[test]
fn headers_cut_anywhere_are_malformed() {
    let whole = udp4();
    for length in 0..whole.bytes.len() {
        let cut = Frame { bytes: whole.bytes[..length].to_vec(), ..Frame::default() };
        let expected = if length < 14 { Reason::MalformedEthernet } else { Reason::MalformedIpv4 };
        assert_eq!(from_pod(&cut), Verdict::Drop(expected), "{length} bytes");
    }
    for length in 0..39 {
        let mut ip = vec![0x60; length];
        ip.truncate(length);
        assert_eq!(from_pod(&frame(0x86dd, &ip)), Verdict::Drop(Reason::MalformedIpv6));
    }
}

#[test]
fn length_zero_is_for_gso_frames_alone() {
    let mut zero = udp4();
    zero.bytes[16..18].fill(0);
    assert_eq!(from_pod(&zero), Verdict::Drop(Reason::MalformedIpv4));
    assert_eq!(from_pod(&Frame { gso: true, ..zero }), Verdict::Pass);
}

#[test]
fn an_endpoint_that_is_gone_drops_and_counts() {
    let memory = Memory::default();
    assert_eq!(
        judge(&udp4(), &memory, &mut Scratch::new(), ID, Direction::FromPod),
        Verdict::Drop(Reason::NoEndpoint)
    );
    assert_eq!(*memory.counted.borrow(), [Err(Reason::NoEndpoint)]);
}

fn mostly_sensible() -> impl Strategy<Value = Frame> {
    let ethertype = prop_oneof![Just(0x0800u16), Just(0x86dd), Just(0x0806), any::<u16>()];
    let first = prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()];
    (ethertype, first, proptest::collection::vec(any::<u8>(), 0..200), any::<bool>()).prop_map(
        |(ethertype, first, mut payload, own)| {
            if let Some(byte) = payload.first_mut() {
                *byte = first;
            }
            if own && ethertype == 0x0800 && payload.len() >= 20 {
                payload[12..16].copy_from_slice(&V4);
            } else if own && ethertype == 0x86dd && payload.len() >= 40 {
                payload[8..24].copy_from_slice(&Addr::link_local(MAC).bytes);
                let length = u16::try_from(payload.len() - 40).expect("short");
                payload[4..6].copy_from_slice(&length.to_be_bytes());
            }
            frame(ethertype, &payload)
        },
    )
}

/// Frames to the pod, with one of its addresses, or a made one, at either end.
fn mostly_for_the_pod() -> impl Strategy<Value = Frame> {
    (mostly_sensible(), any::<[u8; 2]>(), any::<bool>()).prop_map(|(mut frame, [to, from], fits)| {
        let macs = [MAC, [0xff; 6], [2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8]];
        frame.bytes[..6].copy_from_slice(&macs[usize::from(to % 4)]);
        frame.bytes[6..12].copy_from_slice(&macs[usize::from(from % 4)]);
        let room = frame.bytes.len() - 14;
        if fits && frame.bytes[12..14] == [8, 0] && room >= 20 {
            let length = u16::try_from(room).expect("short");
            frame.bytes[16..18].copy_from_slice(&length.to_be_bytes());
        }
        frame
    })
}

proptest! {
    /// For the same reason, or the counters would tell another story where there is no guard.
    #[test]
    fn the_guard_drops_only_what_is_dropped_behind_it(frame in mostly_for_the_pod(), tracked in any::<bool>()) {
        let mut memory = Memory::ready();
        if tracked {
            let flags = READY | netferry_common::flow::TRACK;
            memory.endpoints.insert(ID, Endpoint { flags, mac: MAC, mtu: 1500, ..Endpoint::default() });
        }
        if let Err(reason) = crate::guard::guard(&frame, &memory, ID) {
            prop_assert_eq!(memory.counted.borrow_mut().pop(), Some(Err(reason)));
            prop_assert_eq!(memory.events.borrow().len(), 1);
            let behind = judge(&frame, &memory, &mut Scratch::new(), ID, Direction::ToPod);
            // With flows to follow, some are found without a flow before their addresses are looked at.
            prop_assert!(matches!(behind, Verdict::Drop(found) if tracked || found == reason), "{:?}", behind);
        } else {
            prop_assert!(memory.counted.borrow().is_empty() && memory.events.borrow().is_empty());
        }
    }

    #[test]
    fn what_passes_from_the_pod_has_its_source(frame in mostly_sensible()) {
        let memory = Memory::ready();
        let verdict = judge(&frame, &memory, &mut Scratch::new(), ID, Direction::FromPod);
        let counted = memory.counted.borrow();
        prop_assert_eq!(counted.len(), 1);
        let bytes = &frame.bytes;
        if let Verdict::Drop(reason) = verdict {
            prop_assert_eq!(counted[0], Err(reason));
        } else {
            prop_assert_eq!(counted[0], Ok(bytes.len() as u64));
            match bytes[12..14] {
                [8, 0] => prop_assert_eq!(&bytes[26..30], &V4),
                [8, 6] => prop_assert_eq!(&bytes[22..28], &MAC),
                [0x86, 0xdd] => {
                    let source = &bytes[22..38];
                    prop_assert!(source == Addr::link_local(MAC).bytes || source == [0; 16]);
                }
                _ => prop_assert!(false, "an ethertype that must not pass"),
            }
        }
    }
}
