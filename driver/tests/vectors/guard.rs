//! `xdp_guard`: what is dropped early, that it is never more than the program behind drops, and frames in several
//! buffers.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use etherparse::{IpNumber, PacketBuilder};
use netferry_common::endpoint::READY;
use netferry_common::{Addr, Block, BlockKey, Direction, Reason, maps};

use super::bench::{Bench, Outcome};
use super::frames::{BROADCAST, Host, OTHER, PEER, POD, arp, at, cut, patched, tagged, udp4, udp6};
use super::table;

/// Reasons that only this file has a frame for.
pub const SHOWN: [Reason; 1] = [Reason::Blocked];

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// Whether the guard lets a frame through, by its answer and the counters, which must agree.
fn guard(bench: &mut Bench, frame: &[u8]) -> Result<(), Reason> {
    let before = bench.drops(Direction::ToPod);
    let passed = bench.traffic(Direction::ToPod).packets;
    let program: &Xdp = bench.loaded("xdp_guard").try_into().unwrap();
    let mut out = vec![0; frame.len() + 256];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = program.test_run(options).unwrap_or_else(|error| panic!("{frame:02x?}: {error:?}"));
    let after = bench.drops(Direction::ToPod);
    let counted: Vec<Reason> =
        Reason::ALL.iter().copied().filter(|it| after[*it as usize] != before[*it as usize]).collect();
    assert_eq!(bench.traffic(Direction::ToPod).packets, passed, "the program behind counts what passes");
    match (result.return_value, &counted[..]) {
        (XDP_PASS, []) => {
            assert_eq!(&out[..result.data_size_out as usize], frame, "a frame that passes is not changed");
            Ok(())
        }
        (XDP_DROP, [reason]) => Err(*reason),
        other => panic!("{other:?}"),
    }
}

fn block(bench: &mut Bench, addr: Addr, bits: u32) {
    let mut map = LpmTrie::<_, BlockKey, Block>::try_from(bench.map(maps::BLOCKED)).expect("a trie");
    map.insert(&Key::new(bits, BlockKey { addr }), Block::default(), 0).expect("room");
}

#[test]
fn each_reason_of_the_guard_has_a_frame() {
    let mut bench = Bench::load();
    assert_eq!(guard(&mut bench, &udp4(PEER, POD)), Err(Reason::NoEndpoint));
    bench.set_endpoint(0);
    assert_eq!(guard(&mut bench, &udp4(PEER, POD)), Err(Reason::NotReady));
    bench.set_ready();
    block(&mut bench, Addr::v4([198, 51, 100, 0]), 96 + 24);
    block(&mut bench, Addr::v6(OTHER.v6), 128);
    let blocked4 = Host { v4: [198, 51, 100, 9], ..PEER };
    let vectors: [(&str, Vec<u8>, Result<(), Reason>); 18] = [
        ("UDP over IPv4", udp4(PEER, POD), Ok(())),
        ("UDP over IPv6", udp6(PEER, POD), Ok(())),
        ("ARP", arp(PEER.mac, BROADCAST, false, (PEER.mac, PEER.v4), POD.v4), Ok(())),
        ("broadcast", udp4(PEER, Host { mac: BROADCAST, v4: [192, 0, 2, 255], ..POD }), Ok(())),
        ("802.1Q", tagged(&udp4(PEER, POD), 0x8100), Err(Reason::VlanTagged)),
        ("802.1ad", tagged(&udp4(PEER, POD), 0x88a8), Err(Reason::VlanTagged)),
        ("from a group", udp4(Host { mac: BROADCAST, ..PEER }, POD), Err(Reason::MalformedEthernet)),
        ("own MAC", udp4(Host { mac: POD.mac, ..PEER }, POD), Err(Reason::OwnMac)),
        ("for another", udp4(PEER, Host { mac: OTHER.mac, ..POD }), Err(Reason::NotForUs)),
        ("LLDP", patched(udp4(PEER, POD), at::ETHERTYPE, &[0x88, 0xcc]), Err(Reason::Ethertype)),
        ("IPv4, cut", cut(udp4(PEER, POD), 33), Err(Reason::MalformedIpv4)),
        ("IPv4, version 5", patched(udp4(PEER, POD), at::IP, &[0x55]), Err(Reason::MalformedIpv4)),
        (
            "IPv4, longer than the frame",
            patched(udp4(PEER, POD), at::IP + 2, &[9, 9]),
            Err(Reason::MalformedIpv4),
        ),
        ("IPv6, cut", cut(udp6(PEER, POD), 53), Err(Reason::MalformedIpv6)),
        ("own IPv4 address", udp4(Host { v4: POD.v4, ..PEER }, POD), Err(Reason::OwnAddress)),
        ("own IPv6 address", udp6(Host { v6: POD.v6, ..PEER }, POD), Err(Reason::OwnAddress)),
        ("blocked, IPv4", udp4(blocked4, POD), Err(Reason::Blocked)),
        ("blocked, IPv6", udp6(OTHER, POD), Err(Reason::Blocked)),
    ];
    for (name, frame, outcome) in vectors {
        assert_eq!(guard(&mut bench, &frame), outcome, "{name}");
    }
}

/// Every frame of the table, and each cut short: what the guard drops, the program behind drops for the same reason.
#[test]
fn the_guard_drops_nothing_that_the_program_behind_lets_through() {
    let mut bench = Bench::ready();
    let mut early = 0;
    for vector in table::ready().into_iter().filter(|vector| vector.direction == Direction::ToPod) {
        // A test run of the program behind takes no frame with less than an IP header.
        let least = if vector.frame[12..14] == [0x08, 0] { 34 } else { 54 };
        let lengths = [vector.frame.len(), 34, 42, 54, 58].map(|length| length.min(vector.frame.len()));
        for length in lengths.into_iter().filter(|length| *length >= least) {
            let frame = cut(vector.frame.clone(), length);
            let Err(reason) = guard(&mut bench, &frame) else { continue };
            early += 1;
            let behind = bench.run("link_ingress", Direction::ToPod, &frame);
            assert_eq!(behind, Outcome::Drop(reason), "{}, {length} bytes", vector.name);
        }
    }
    assert!(early > 50, "only {early} frames were dropped early");
}

fn jumbo4(from: Host) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, POD.mac).ipv4(from.v4, POD.v4, 64).udp(4000, 53);
    let mut frame = Vec::new();
    builder.write(&mut frame, &[7; 8900]).expect("a valid packet");
    frame
}

/// IPv6 with destination options after its header.
fn options6(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(PEER.mac, POD.mac).ipv6(PEER.v6, POD.v6, 64);
    let mut frame = Vec::new();
    builder.write(&mut frame, IpNumber::IPV6_DESTINATION_OPTIONS, payload).expect("a valid packet");
    frame
}

/// A jumbo frame does not fit one buffer of a page: the kernel's test run then makes it of several.
#[test]
fn frames_in_several_buffers_are_looked_at_whole() {
    let mut bench = Bench::ready();
    assert_eq!(guard(&mut bench, &jumbo4(PEER)), Ok(()));
    assert_eq!(guard(&mut bench, &jumbo4(Host { v4: POD.v4, ..PEER })), Err(Reason::OwnAddress));
    // Its length is that of all buffers together.
    let whole = jumbo4(PEER);
    assert_eq!(guard(&mut bench, &cut(whole.clone(), whole.len() - 1)), Err(Reason::MalformedIpv4));
    // Extension headers beyond the first buffer: destination options over 2 KiB each, two of them.
    let mut payload = Vec::new();
    for next in [60, 17] {
        let mut header = vec![0; 2048];
        (header[0], header[1]) = (next, 255);
        payload.extend(header);
    }
    payload.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    let frame = options6(&payload);
    assert_eq!(guard(&mut bench, &frame), Ok(()));
    let short = patched(cut(frame.clone(), frame.len() - 8), at::IP + 4, &4090_u16.to_be_bytes());
    assert_eq!(guard(&mut bench, &short), Err(Reason::MalformedIpv6));
}

#[test]
fn the_guard_drops_until_ready_without_a_frame_passing() {
    let mut bench = Bench::ready();
    assert_eq!(guard(&mut bench, &udp4(PEER, POD)), Ok(()));
    bench.set_endpoint(0);
    assert_eq!(guard(&mut bench, &udp4(PEER, POD)), Err(Reason::NotReady));
    bench.set_endpoint(READY);
    assert_eq!(guard(&mut bench, &udp4(PEER, POD)), Ok(()));
}
