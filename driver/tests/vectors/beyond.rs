//! A network that goes on beyond the node: bridged, routed, and through tunnels.

use aya::EbpfLoader;
use netferry_common::counters;
use netferry_common::endpoint::READY;
use netferry_common::member::GATEWAY;
use netferry_common::policy::{ALLOW, RULE_BITS_ANY};
use netferry_common::uplink::{BRIDGED, OVERLAY, ROUTED};
use netferry_common::{Addr, Direction, Member, PEER_GLOBAL, Reason, RuleKey, Uplink};

use super::bench::Outcome::{Drop, Pass, Redirect, Refuse};
use super::bench::{Bench, ID};
use super::entry::Entry;
use super::frames::*;
use super::network::{NETWORK, PEER_ID, pair, pair_in, record};
use super::refused::{Error, error};

use Direction::{FromPod, ToPod};

/// Reasons that the tests of this file run into, each under its own name.
pub const SHOWN: [Reason; 4] = [Reason::HopLimit, Reason::WireSource, Reason::UnknownNetwork, Reason::Nobody];

/// Where what was dropped is counted before it is known for whom it was.
const AT_NETWORK: u32 = NETWORK | counters::NETWORK;

const fn v6(network: u8, last: u8) -> [u8; 16] {
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, network, 0, 0, 0, 0, 0, 0, 0, last]
}

/// A host of the subnet that is no member.
const STRANGER: Host = Host { mac: [2, 0, 0, 0, 0, 77], v4: [192, 0, 2, 77], v6: v6(0, 77) };
/// The node as a gateway.
const ROUTER: Host = Host { mac: [2, 0, 0, 0, 0, 1], v4: [192, 0, 2, 1], v6: v6(0, 1) };
/// A host beyond it, seen from the pod.
const FAR: Host = Host { mac: ROUTER.mac, v4: [198, 51, 100, 8], v6: v6(9, 8) };
/// The pod, seen from beyond: the loopback interface has this hardware address.
const POD_BEHIND: Host = Host { mac: [0; 6], ..POD };
/// That host, seen from the uplink.
const FAR_ROUTER: Host = Host { mac: [2, 0, 0, 0, 0, 88], ..FAR };

fn uplink(flags: u32, mtu: u32) -> Uplink {
    let plain = Uplink { flags, ifindex: 1, mtu, ..Uplink::default() };
    match flags {
        ROUTED => Uplink { mac: ROUTER.mac, gateway_v4: ROUTER.v4, gateway_v6: Addr::v6(ROUTER.v6), ..plain },
        _ => Uplink { tag: 100, ..plain },
    }
}

/// Lets the pod talk to anybody, and anybody to the pod.
fn allow_all(bench: &mut Bench) {
    for direction in [FromPod, ToPod] {
        bench.peer(3, direction, Addr::UNSPECIFIED, 0, 1);
        let key = RuleKey {
            policy: 3,
            class: 1,
            direction: u8::try_from(direction.number()).unwrap(),
            protocol: 0,
            port: [0; 2],
        };
        bench.rule(RULE_BITS_ANY, key, ALLOW, 1);
    }
    bench.write(record(POD, READY, 3));
}

fn bridged() -> Bench {
    let mut bench = pair();
    bench.uplink(NETWORK, uplink(BRIDGED, 1500));
    bench
}

fn routed() -> Bench {
    let mut bench = pair();
    bench.uplink(NETWORK, uplink(ROUTED, 1500));
    for addr in [Addr::v4(ROUTER.v4), Addr::v6(ROUTER.v6)] {
        bench.member(NETWORK, addr, Member::new(GATEWAY, ROUTER.mac));
    }
    allow_all(&mut bench);
    bench
}

fn hops(frame: &[u8], hops: u8) -> Vec<u8> {
    if frame[at::ETHERTYPE] == 0x08 {
        summed4(patched(frame.to_vec(), at::IP + 8, &[hops]))
    } else {
        patched(frame.to_vec(), at::IP + 7, &[hops])
    }
}

fn datagrams(from: Host, to: Host) -> [Vec<u8>; 2] {
    [udp4(from, to), udp6(from, to)]
}

#[test]
fn a_bridged_network_asks_on_the_wire_whom_it_does_not_know() {
    let mut bench = bridged();
    let ask = |target| arp(POD.mac, BROADCAST, false, (POD.mac, POD.v4), target);
    let answer = arp(PEER.mac, POD.mac, true, (PEER.mac, PEER.v4), POD.v4);
    bench.expect_at_host_end(FromPod, &ask(PEER.v4), &Redirect(answer));
    let solicit = |target| neighbor(POD, PEER, 135, target, Some(POD.mac));
    let answer = neighbor(PEER, POD, 136, PEER.v6, Some(PEER.mac));
    bench.expect_at_host_end(FromPod, &solicit(PEER.v6), &Redirect(answer));
    let before = bench.traffic(FromPod).uplink;
    for asked in [
        ask(OTHER.v4),
        ask(STRANGER.v4),
        ask(POD.v4),
        solicit(OTHER.v6),
        solicit(STRANGER.v6),
        neighbor(POD, PEER, 136, POD.v6, Some(POD.mac)),
    ] {
        bench.expect_at_host_end(FromPod, &asked, &Redirect(asked.clone()));
    }
    assert_eq!(bench.traffic(FromPod).uplink, before + 6);
    bench.expect_at_host_end(FromPod, &icmp6_raw(POD, PEER, 133, &[0; 4]), &Drop(Reason::NoReceiver));
    // The pod may hear of hosts that are no members, but not of members from others.
    let stranger = (STRANGER.mac, STRANGER.v4);
    bench.expect_at_host_end(ToPod, &arp(STRANGER.mac, POD.mac, true, stranger, POD.v4), &Pass);
    bench.expect_at_host_end(ToPod, &neighbor(STRANGER, POD, 136, STRANGER.v6, Some(STRANGER.mac)), &Pass);
    let forged = neighbor(STRANGER, POD, 136, OTHER.v6, Some(STRANGER.mac));
    bench.expect_at_host_end(ToPod, &forged, &Drop(Reason::NotMember));
}

#[test]
fn a_bridged_network_sends_to_members_and_whom_policy_allows() {
    let mut bench = bridged();
    for frame in datagrams(POD, OTHER) {
        let stale = patched(frame.clone(), 0, &STRANGER.mac);
        bench.expect_at_host_end(FromPod, &stale, &Redirect(frame));
    }
    assert_eq!(bench.traffic(FromPod).uplink, 2);
    for frame in datagrams(POD, STRANGER) {
        bench.expect_at_host_end(FromPod, &frame, &Drop(Reason::NotMember));
    }
    allow_all(&mut bench);
    for frame in datagrams(POD, STRANGER) {
        bench.expect_at_host_end(FromPod, &frame, &Redirect(frame.clone()));
    }
    bench.uplink(NETWORK, uplink(BRIDGED, 1300));
    for v4 in [true, false] {
        let Refuse(Reason::MtuExceeded, answer) =
            bench.run("from_pod", FromPod, &large(POD, OTHER, v4, 1300))
        else {
            panic!("not refused");
        };
        assert_eq!(error(&answer, OTHER.mac, POD).mtu, 1300);
        bench.expect_at_host_end(ToPod, &answer, &Pass);
    }
}

#[test]
fn the_wire_of_a_bridged_network_is_answered_for_local_members() {
    let mut bench = bridged();
    let ask = |from: Host, target| arp(from.mac, BROADCAST, false, (from.mac, from.v4), target);
    let solicit = |from, target| neighbor(from, POD, 135, target, None);
    for from in [OTHER, STRANGER] {
        let answer = arp(POD.mac, from.mac, true, (POD.mac, POD.v4), from.v4);
        assert_eq!(bench.enter("uplink_ingress", &ask(from, POD.v4)), Entry::Back(answer));
        let answer = neighbor(POD, from, 136, POD.v6, Some(POD.mac));
        assert_eq!(bench.enter("uplink_ingress", &solicit(from, POD.v6)), Entry::Back(answer));
        for answer in [
            arp(from.mac, POD.mac, true, (from.mac, from.v4), POD.v4),
            neighbor(from, POD, 136, from.v6, Some(from.mac)),
        ] {
            assert_eq!(bench.enter("uplink_ingress", &answer), Entry::In(answer));
        }
    }
    for nobodys in [ask(OTHER, STRANGER.v4), solicit(OTHER, STRANGER.v6), ask(OTHER, OTHER.v4)] {
        assert_eq!(bench.enter("uplink_ingress", &nobodys), Entry::Host);
    }
    // In the name of a member: of this node, and of another under a MAC that is not its own.
    for liar in [PEER, Host { mac: STRANGER.mac, ..OTHER }, Host { mac: STRANGER.mac, ..POD }] {
        for forged in [
            ask(liar, POD.v4),
            arp(liar.mac, POD.mac, true, (liar.mac, liar.v4), POD.v4),
            solicit(liar, POD.v6),
            neighbor(Host { v6: STRANGER.v6, ..liar }, POD, 136, liar.v6, Some(liar.mac)),
        ] {
            let dropped = Entry::Drop(Reason::WireSource, AT_NETWORK);
            assert_eq!(bench.enter("uplink_ingress", &forged), dropped);
        }
    }
    bench.write(record(POD, 0, 0));
    let closed = Entry::Drop(Reason::TargetNotReady, AT_NETWORK);
    assert_eq!(bench.enter("uplink_ingress", &ask(OTHER, POD.v4)), closed);
}

#[test]
fn what_the_wire_brings_is_judged_by_the_endpoint_it_is_for() {
    let mut bench = bridged();
    for frame in datagrams(OTHER, POD) {
        assert_eq!(bench.enter("uplink_ingress", &frame), Entry::In(frame));
    }
    assert_eq!(bench.traffic(ToPod).uplink, 2);
    for frame in datagrams(STRANGER, POD) {
        assert_eq!(bench.enter("uplink_ingress", &frame), Entry::Drop(Reason::NotMember, ID));
    }
    for frame in datagrams(PEER, POD).into_iter().chain(datagrams(Host { mac: STRANGER.mac, ..OTHER }, POD)) {
        let dropped = Entry::Drop(Reason::WireSource, AT_NETWORK);
        assert_eq!(bench.enter("uplink_ingress", &frame), dropped);
    }
    for frame in datagrams(OTHER, Host { mac: STRANGER.mac, ..POD }) {
        let dropped = Entry::Drop(Reason::NotForUs, AT_NETWORK);
        assert_eq!(bench.enter("uplink_ingress", &frame), dropped);
    }
    let everybody = Host { mac: BROADCAST, v4: [255; 4], v6: ALL_NODES };
    for frame in datagrams(OTHER, STRANGER).into_iter().chain(datagrams(OTHER, everybody)) {
        assert_eq!(bench.enter("uplink_ingress", &frame), Entry::Host);
    }
    for v4 in [true, false] {
        let big = large(OTHER, POD, v4, 1500);
        let Entry::Refused(Reason::MtuExceeded, answer) = bench.enter("uplink_ingress", &big) else {
            panic!("not refused");
        };
        let Error { mtu, source, .. } = error(&answer, POD.mac, OTHER);
        assert_eq!((mtu, source), (1500, if v4 { POD.v4.to_vec() } else { POD.v6.to_vec() }));
    }
    allow_all(&mut bench);
    for frame in datagrams(STRANGER, POD) {
        assert_eq!(bench.enter("uplink_ingress", &frame), Entry::In(frame));
    }
    bench.write(record(POD, 0, 3));
    for frame in datagrams(OTHER, POD) {
        let dropped = Entry::Drop(Reason::TargetNotReady, AT_NETWORK);
        assert_eq!(bench.enter("uplink_ingress", &frame), dropped);
    }
}

#[test]
fn a_routed_network_takes_a_hop_and_owes_errors() {
    let mut bench = routed();
    let ask = arp(POD.mac, BROADCAST, false, (POD.mac, POD.v4), ROUTER.v4);
    let answer = arp(ROUTER.mac, POD.mac, true, (ROUTER.mac, ROUTER.v4), POD.v4);
    bench.expect_at_host_end(FromPod, &ask, &Redirect(answer.clone()));
    bench.expect_at_host_end(ToPod, &answer, &Pass);
    for (frame, router) in datagrams(POD, FAR).into_iter().zip([&ROUTER.v4[..], &ROUTER.v6[..]]) {
        bench.expect_at_host_end(FromPod, &frame, &Redirect(hops(&frame, 63)));
        // Around the carry of the checksum.
        for id in 0..=255 {
            if frame[at::ETHERTYPE] == 0x08 {
                let frame = summed4(patched(frame.clone(), at::IP + 4, &[id, id]));
                bench.expect_at_host_end(FromPod, &frame, &Redirect(hops(&frame, 63)));
            }
        }
        for last in [0, 1] {
            let Refuse(Reason::HopLimit, answer) = bench.run("from_pod", FromPod, &hops(&frame, last)) else {
                panic!("not refused");
            };
            let Error { kind, code, source, quote, .. } = error(&answer, ROUTER.mac, POD);
            assert_eq!((kind, code), (if router.len() == 4 { 11 } else { 3 }, 0));
            assert_eq!((&source[..], &quote[..]), (router, &hops(&frame, last)[at::IP..]));
            bench.expect_at_host_end(ToPod, &answer, &Pass);
        }
    }
    assert_eq!(bench.traffic(FromPod).uplink, 2 + 256);
    bench.uplink(NETWORK, uplink(ROUTED, 1300));
    for v4 in [true, false] {
        let frame = large(POD, FAR, v4, 1300);
        let Refuse(Reason::MtuExceeded, answer) = bench.run("from_pod", FromPod, &frame) else {
            panic!("not refused");
        };
        let Error { mtu, source, .. } = error(&answer, ROUTER.mac, POD);
        assert_eq!((mtu, source), (1300, if v4 { ROUTER.v4.to_vec() } else { ROUTER.v6.to_vec() }));
    }
    let mut link_local = FAR;
    link_local.v6[..2].copy_from_slice(&[0xfe, 0x80]);
    bench.expect_at_host_end(FromPod, &udp6(POD, link_local), &Drop(Reason::NoRoute));
    bench.write(record(POD, READY, 0));
    for frame in datagrams(POD, FAR) {
        bench.expect_at_host_end(FromPod, &frame, &Drop(Reason::NotMember));
    }
}

#[test]
fn the_gateway_answers_an_echo_request_and_nothing_else() {
    let mut bench = routed();
    for request in [icmp4(POD, ROUTER), icmp6(POD, ROUTER)] {
        let Redirect(answer) = bench.run("from_pod", FromPod, &request) else { panic!("not answered") };
        let v4 = request[at::ETHERTYPE] == 0x08;
        let mut expected = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2(ROUTER.mac, POD.mac);
        if v4 {
            let builder = builder.ipv4(ROUTER.v4, POD.v4, 64).icmpv4_echo_reply(1, 1);
            builder.write(&mut expected, b"ping").unwrap();
        } else {
            let builder = builder.ipv6(ROUTER.v6, POD.v6, 64).icmpv6_echo_reply(1, 1);
            builder.write(&mut expected, b"ping").unwrap();
        }
        assert_eq!(answer, expected, "as another implementation makes it, checksum included");
        bench.expect_at_host_end(ToPod, &answer, &Pass);
    }
    for frame in datagrams(POD, ROUTER) {
        bench.expect_at_host_end(FromPod, &frame, &Drop(Reason::NoRoute));
    }
}

#[test]
fn what_is_routed_in_is_for_members_and_the_rest_is_the_hosts() {
    let mut bench = routed();
    for frame in datagrams(FAR_ROUTER, POD_BEHIND) {
        let mut inside = hops(&frame, 63);
        inside[..6].copy_from_slice(&POD.mac);
        inside[6..12].copy_from_slice(&ROUTER.mac);
        assert_eq!(bench.enter("uplink_ingress", &frame), Entry::In(inside));
        let last = hops(&frame, 1);
        let Entry::Refused(Reason::HopLimit, answer) = bench.enter("uplink_ingress", &last) else {
            panic!("not refused");
        };
        let Error { source, quote, .. } = error(&answer, POD_BEHIND.mac, FAR_ROUTER);
        assert_eq!(source, if source.len() == 4 { ROUTER.v4.to_vec() } else { ROUTER.v6.to_vec() });
        assert_eq!(quote, last[at::IP..]);
    }
    assert_eq!(bench.traffic(ToPod).uplink, 2);
    let hosts = [
        udp4(FAR_ROUTER, Host { mac: [0; 6], ..STRANGER }),
        udp6(FAR_ROUTER, Host { mac: [0; 6], ..STRANGER }),
        // Not sent to the host as a router.
        udp4(FAR_ROUTER, POD),
        udp6(FAR_ROUTER, POD),
        arp(FAR_ROUTER.mac, BROADCAST, false, (FAR_ROUTER.mac, FAR.v4), POD.v4),
        neighbor(FAR_ROUTER, POD_BEHIND, 135, STRANGER.v6, None),
        patched(udp4(FAR_ROUTER, POD_BEHIND), at::IP, &[0x65]),
    ];
    for frame in hosts {
        assert_eq!(bench.enter("uplink_ingress", &frame), Entry::Host);
    }
    for liar in [PEER, ROUTER, POD] {
        for frame in datagrams(Host { mac: FAR_ROUTER.mac, ..liar }, POD_BEHIND) {
            let dropped = Entry::Drop(Reason::WireSource, AT_NETWORK);
            assert_eq!(bench.enter("uplink_ingress", &frame), dropped);
        }
    }
    bench.write(record(POD, READY, 0));
    for frame in datagrams(FAR_ROUTER, POD_BEHIND) {
        // By other ports: flows from before are no way in.
        let ports = if frame[at::ETHERTYPE] == 0x08 { 34 } else { 54 };
        let frame = patched(frame, ports, &[9, 9]);
        assert_eq!(bench.enter("uplink_ingress", &frame), Entry::Drop(Reason::NotMember, ID));
    }
}

#[test]
fn a_tunnel_leads_to_members_with_a_node_alone() {
    let mut bench = pair();
    bench.uplink(NETWORK, uplink(OVERLAY, 1300));
    for frame in datagrams(POD, OTHER) {
        bench.expect_at_host_end(FromPod, &frame, &Drop(Reason::NoRoute));
    }
    for node in [Addr::v4([203, 0, 113, 9]), Addr::v6(v6(8, 9))] {
        for addr in [Addr::v4(OTHER.v4), Addr::v6(OTHER.v6)] {
            bench.member(NETWORK, addr, Member { node, ..Member::new(0, OTHER.mac) });
        }
        for frame in datagrams(POD, OTHER) {
            let stale = patched(frame.clone(), 0, &STRANGER.mac);
            bench.expect_at_host_end(FromPod, &stale, &Redirect(frame));
        }
    }
    assert_eq!(bench.traffic(FromPod).overlay, 4);
    // Answered from membership, as the wire is not asked.
    let ask = arp(POD.mac, BROADCAST, false, (POD.mac, POD.v4), OTHER.v4);
    let answer = arp(OTHER.mac, POD.mac, true, (OTHER.mac, OTHER.v4), POD.v4);
    bench.expect_at_host_end(FromPod, &ask, &Redirect(answer));
    for v4 in [true, false] {
        let Refuse(Reason::MtuExceeded, answer) =
            bench.run("from_pod", FromPod, &large(POD, OTHER, v4, 1300))
        else {
            panic!("not refused");
        };
        assert_eq!(error(&answer, OTHER.mac, POD).mtu, 1300);
    }
    for frame in datagrams(OTHER, POD) {
        let dropped = Entry::Drop(Reason::UnknownNetwork, counters::NETWORK);
        assert_eq!(bench.enter("overlay_ingress", &frame), dropped, "no tunnel at all");
    }
}

#[test]
fn nothing_from_the_wire_comes_in_a_local_name() {
    let (mut bridged, mut routed) = (bridged(), routed());
    allow_all(&mut bridged);
    let bases: Vec<Vec<u8>> = [OTHER, STRANGER, PEER]
        .into_iter()
        .flat_map(|from| {
            let [v4, v6] = datagrams(from, POD);
            let asked = arp(from.mac, BROADCAST, false, (from.mac, from.v4), POD.v4);
            let told = arp(from.mac, POD.mac, true, (from.mac, from.v4), POD.v4);
            let solicited = neighbor(from, POD, 135, POD.v6, Some(from.mac));
            [v4, v6, asked, told, solicited, neighbor(from, POD, 136, from.v6, Some(from.mac))]
        })
        .chain(datagrams(FAR_ROUTER, POD_BEHIND))
        .collect();
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    let mut came_in = 0;
    for turn in 0..4000 {
        let mut frame = bases[turn % bases.len()].clone();
        for _ in 0..next(3) {
            let at = next(frame.len());
            frame[at] ^= 1 << next(8);
        }
        for bench in [&mut bridged, &mut routed] {
            // An entry that is neither, or more than one, fails there.
            let Entry::In(inside) = bench.enter("uplink_ingress", &frame) else { continue };
            came_in += 1;
            let (place, length) = match inside[at::ETHERTYPE..at::IP] {
                [0x08, 0x00] => (at::IP + 12, 4),
                [0x08, 0x06] => (at::IP + 14, 4),
                _ if inside[at::IP + 40] == 136 && inside[at::IP + 6] == 58 => (at::IP + 48, 16),
                _ => (at::IP + 8, 16),
            };
            let named = &inside[place..place + length];
            for host in [PEER, POD] {
                assert!(named != host.v4 && named != host.v6, "{frame:02x?}");
            }
            assert_eq!(inside[..6], POD.mac);
        }
    }
    assert!(came_in > 500, "only {came_in} of the frames came in");
}

#[test]
fn a_kernel_without_redirect_peer_hands_over_unjudged() {
    let mut bench = Bench::load_with(EbpfLoader::new().override_global(PEER_GLOBAL, &0_u32, true));
    bench.set_ready();
    let mut bench = pair_in(bench);
    bench.uplink(NETWORK, uplink(BRIDGED, 1500));
    for frame in datagrams(STRANGER, POD) {
        // To the host end, where the endpoint's program drops it.
        assert_eq!(bench.enter("uplink_ingress", &frame), Entry::Back(frame.clone()));
        bench.expect_at_host_end(ToPod, &frame, &Drop(Reason::NotMember));
    }
    let Entry::Refused(Reason::MtuExceeded, answer) =
        bench.enter("uplink_ingress", &large(OTHER, POD, true, 1500))
    else {
        panic!("not refused");
    };
    assert_eq!(error(&answer, POD.mac, OTHER).mtu, 1500);
    let answer = arp(OTHER.mac, POD.mac, true, (OTHER.mac, OTHER.v4), POD.v4);
    assert_eq!(bench.enter("uplink_ingress", &answer), Entry::Back(answer));
    assert_eq!(bench.traffic_of(PEER_ID, ToPod).packets, 0);
}
