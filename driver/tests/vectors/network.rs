//! An isolated network: answers from membership, delivery between two endpoints of the node, limits.

use aya::EbpfLoader;
use etherparse::{PacketHeaders, TransportHeader};
use netferry_common::endpoint::READY;
use netferry_common::limit::{BYTES, FRAMES, LIMIT_FROM_POD, LIMIT_TO_POD, Limit};
use netferry_common::policy::DENY_TO_POD;
use netferry_common::{Addr, Direction, Endpoint, Member, PEER_GLOBAL, Reason};

use super::bench::Outcome::{Drop, Pass, Redirect};
use super::bench::{Bench, ID};
use super::frames::*;

use Direction::{FromPod, ToPod};

/// Reasons that the tests of this file run into, each under its own name.
pub const SHOWN: [Reason; 4] =
    [Reason::RateLimit, Reason::TargetNotReady, Reason::NoReceiver, Reason::NoRoute];

pub const NETWORK: u32 = 5;
pub const PEER_ID: u32 = 9;

pub fn record(host: Host, flags: u32, policy: u32) -> Endpoint {
    // The loopback interface: the test run looks no interface up, but it must not be 0.
    Endpoint { flags, network: NETWORK, mtu: 1500, policy, ifindex: 1, mac: host.mac, pad: [0; 2] }
}

/// Two endpoints on one network.
pub fn pair() -> Bench {
    pair_in(Bench::ready())
}

pub fn pair_in(mut bench: Bench) -> Bench {
    bench.write(record(POD, READY, 0));
    bench.write_other(PEER_ID, record(PEER, READY, 0));
    for (host, endpoint) in [(POD, ID), (PEER, PEER_ID), (OTHER, 0)] {
        let member = Member::new(endpoint, host.mac);
        bench.member(NETWORK, Addr::v4(host.v4), member);
        bench.member(NETWORK, Addr::v6(host.v6), member);
    }
    bench
}

#[test]
fn arp_is_answered_for_members_alone() {
    let mut bench = pair();
    let ask = |target| arp(POD.mac, BROADCAST, false, (POD.mac, POD.v4), target);
    let answer = arp(PEER.mac, POD.mac, true, (PEER.mac, PEER.v4), POD.v4);
    bench.expect_at_host_end(FromPod, &ask(PEER.v4), &Redirect(answer.clone()));
    bench.expect_at_host_end(ToPod, &answer, &Pass);
    bench.expect_at_host_end(FromPod, &ask([192, 0, 2, 77]), &Drop(Reason::NotMember));
    bench.expect_at_host_end(FromPod, &ask(POD.v4), &Drop(Reason::NoReceiver));
    let forged = arp(PEER.mac, POD.mac, true, (PEER.mac, OTHER.v4), POD.v4);
    bench.expect_at_host_end(ToPod, &forged, &Drop(Reason::NotMember));
}

#[test]
fn neighbours_are_answered_with_a_right_checksum() {
    let mut bench = pair();
    for option in [None, Some(POD.mac)] {
        let Redirect(frame) = bench.run("from_pod", FromPod, &neighbor(POD, PEER, 135, PEER.v6, option))
        else {
            panic!("not answered");
        };
        let expected = neighbor(PEER, POD, 136, PEER.v6, Some(PEER.mac));
        assert_eq!(frame, expected, "as another implementation makes it, checksum included");
        let headers = PacketHeaders::from_ethernet_slice(&frame).expect("it parses");
        assert!(matches!(headers.transport, Some(TransportHeader::Icmpv6(_))));
        bench.expect_at_host_end(ToPod, &frame, &Pass);
    }
    let stranger = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 77];
    bench.expect_at_host_end(FromPod, &neighbor(POD, PEER, 135, stranger, None), &Drop(Reason::NotMember));
    bench.expect_at_host_end(FromPod, &mld2_report(POD), &Drop(Reason::NoReceiver));
    // About an address that is another's, from a member; and about its own with another's hardware address.
    for forged in [
        neighbor(PEER, POD, 136, OTHER.v6, Some(PEER.mac)),
        neighbor(PEER, POD, 136, stranger, Some(PEER.mac)),
        neighbor(PEER, POD, 136, PEER.v6, Some(OTHER.mac)),
        neighbor(PEER, POD, 135, POD.v6, Some(OTHER.mac)),
        neighbor(Host { mac: OTHER.mac, ..PEER }, POD, 135, POD.v6, None),
    ] {
        bench.expect_at_host_end(ToPod, &forged, &Drop(Reason::NotMember));
    }
    bench.expect_at_host_end(ToPod, &neighbor(PEER, POD, 135, POD.v6, Some(PEER.mac)), &Pass);
}

#[test]
fn frames_go_straight_to_a_member_judged_for_both() {
    let mut bench = pair();
    for frame in [udp4(POD, PEER), udp6(POD, PEER)] {
        let before = bench.traffic_of(PEER_ID, ToPod);
        bench.expect_at_host_end(FromPod, &frame, &Redirect(frame.clone()));
        let after = bench.traffic_of(PEER_ID, ToPod);
        assert_eq!(after.packets, before.packets + 1, "counted for the receiver, as its program is not run");
        let stale = patched(frame.clone(), 0, &OTHER.mac);
        bench.expect_at_host_end(FromPod, &stale, &Redirect(frame));
    }
    // A revocation at the receiver cuts what is open.
    bench.write_other(PEER_ID, record(PEER, READY | DENY_TO_POD, 3));
    bench.expect_at_host_end(FromPod, &udp4(POD, PEER), &Drop(Reason::PolicyDefault));
    bench.write_other(PEER_ID, record(PEER, 0, 3));
    bench.expect_at_host_end(FromPod, &udp4(POD, PEER), &Drop(Reason::TargetNotReady));
    bench.expect_at_host_end(FromPod, &udp6(POD, OTHER), &Drop(Reason::NoRoute));
    let everybody = Host { mac: BROADCAST, v4: [255; 4], v6: ALL_NODES };
    bench.expect_at_host_end(FromPod, &udp4(POD, everybody), &Drop(Reason::NoReceiver));
    bench.expect_at_host_end(ToPod, &udp6(PEER, everybody), &Drop(Reason::NoReceiver));
}

#[test]
fn an_open_flow_takes_the_short_way() {
    let mut bench = pair();
    for (open, next) in [
        (udp4(POD, PEER), udp4(POD, PEER)),
        (udp6(POD, PEER), udp6(POD, PEER)),
        (tcp_flags(tcp4(POD, PEER), 2), tcp_flags(tcp4(POD, PEER), 16)),
        (tcp_flags(tcp6(POD, PEER), 2), tcp_flags(tcp6(POD, PEER), 16)),
    ] {
        let before = (bench.fast(ID).sent, bench.fast(PEER_ID).received);
        bench.expect_at_host_end(FromPod, &open, &Redirect(open.clone()));
        assert_eq!((bench.fast(ID).sent, bench.fast(PEER_ID).received), before, "the first frame is judged");
        bench.expect_at_host_end(FromPod, &next, &Redirect(next.clone()));
        let stale = patched(next.clone(), 0, &OTHER.mac);
        bench.expect_at_host_end(FromPod, &stale, &Redirect(next.clone()));
        assert_eq!((bench.fast(ID).sent, bench.fast(PEER_ID).received), (before.0 + 2, before.1 + 2));
        bench.expect_at_host_end(FromPod, &patched(next.clone(), 6, &OTHER.mac), &Drop(Reason::SourceMac));
    }
    let fast = bench.fast(ID).sent;
    for taken_away in [record(PEER, READY | DENY_TO_POD, 3), record(PEER, 0, 0)] {
        bench.write_other(PEER_ID, taken_away);
        let outcome = bench.run("from_pod", FromPod, &udp4(POD, PEER));
        assert!(matches!(outcome, Drop(_)), "{taken_away:?}: {outcome:?}");
    }
    assert_eq!(bench.fast(ID).sent, fast);
}

#[test]
fn fragments_take_the_slow_path() {
    let mut bench = pair();
    let first = fragment4(udp4(POD, PEER), 0, true);
    let later = fragment4(udp4(POD, PEER), 100, false);
    bench.expect_at_host_end(FromPod, &later, &Drop(Reason::Fragment));
    bench.expect_at_host_end(FromPod, &first, &Redirect(first.clone()));
    bench.expect_at_host_end(FromPod, &later, &Redirect(later.clone()));
    assert_eq!(bench.traffic_of(PEER_ID, ToPod).packets, 0, "left to the receiver's own program");
    let traffic = bench.traffic(FromPod);
    assert_eq!((traffic.packets, traffic.fast, traffic.slow_fragment), (2, 0, 2));
    bench.expect_at_host_end(FromPod, &udp4(POD, PEER), &Redirect(udp4(POD, PEER)));
    assert_eq!(bench.traffic(FromPod).fast, 1);
}

#[test]
fn a_kernel_without_redirect_peer_lets_the_receiver_judge() {
    let mut bench = Bench::load_with(EbpfLoader::new().override_global(PEER_GLOBAL, &0_u32, true));
    bench.set_ready();
    let mut bench = pair_in(bench);
    bench.write_other(PEER_ID, record(PEER, READY | DENY_TO_POD, 0));
    for frame in [udp4(POD, PEER), udp6(POD, PEER)] {
        bench.expect_at_host_end(FromPod, &frame, &Redirect(frame.clone()));
    }
    assert_eq!(bench.traffic_of(PEER_ID, ToPod).packets, 0, "left to the receiver's own program");
    let traffic = bench.traffic(FromPod);
    assert_eq!((traffic.packets, traffic.fast, traffic.slow_no_peer), (2, 0, 2));
}

#[test]
fn limits_hold_both_ways() {
    let mut bench = pair();
    bench.write(record(POD, READY | LIMIT_FROM_POD | LIMIT_TO_POD, 0));
    bench.limit(FromPod, BYTES, Limit::new(1000, 1));
    bench.limit(ToPod, FRAMES, Limit::new(10, 1));
    let outgoing: Vec<_> = (0..9).map(|_| bench.run("from_pod", FromPod, &udp4(POD, PEER))).collect();
    assert_eq!(outgoing[0], Redirect(udp4(POD, PEER)));
    assert_eq!(outgoing[8], Drop(Reason::RateLimit));
    let incoming: Vec<_> = (0..9).map(|_| bench.run("to_pod", ToPod, &udp6(PEER, POD))).collect();
    assert_eq!(incoming[0], Pass);
    assert_eq!(incoming[8], Drop(Reason::RateLimit));
}
