//! Flows: sequences of frames through an endpoint with policy, or on an isolated network.

use std::time::Duration;

use etherparse::{IpNumber, Ipv6Extensions};
use netferry_common::endpoint::READY;
use netferry_common::event::{CLOSE, DENY, OPEN};
use netferry_common::limit::{FLOWS, Limit};
use netferry_common::policy::{
    ALLOW, DENY as DENY_RULE, DENY_FROM_POD, DENY_TO_POD, RULE_BITS_ANY, RULE_BITS_PROTOCOL,
};
use netferry_common::{Addr, Direction, Endpoint, Member, Reason, RuleKey};

use super::bench::Outcome::{Drop, Pass};
use super::bench::{Bench, uptime};
use super::frames::*;

use Direction::{FromPod, ToPod};

/// Reasons that the tests of this file run into, each under its own name.
pub const SHOWN: [Reason; 7] = [
    Reason::MalformedTransport,
    Reason::NoFlow,
    Reason::PolicyDenied,
    Reason::PolicyDefault,
    Reason::NotMember,
    Reason::FlowLimit,
    Reason::Fragment,
];

const CLOSED: Endpoint = endpoint(READY | DENY_TO_POD, 0, 0);

const fn endpoint(flags: u32, network: u32, policy: u32) -> Endpoint {
    Endpoint { flags, network, mtu: 1500, policy, ifindex: 0, mac: POD.mac, pad: [0; 2] }
}

fn bench(endpoint: Endpoint) -> Bench {
    let mut bench = Bench::ready();
    bench.write(endpoint);
    bench
}

/// A rule key for TCP, a block of ports.
fn tcp(policy: u32, class: u32, direction: Direction, port: u16) -> RuleKey {
    let direction = u8::try_from(direction.number()).unwrap();
    RuleKey { policy, class, direction, protocol: 6, port: port.to_be_bytes() }
}

#[test]
fn answers_come_back_and_nothing_else() {
    let mut bench = bench(CLOSED);
    for (request, reply) in [
        (udp4(POD, PEER), answer(&udp4(POD, PEER))),
        (udp6(POD, PEER), answer(&udp6(POD, PEER))),
        (tcp4(POD, PEER), tcp_flags(answer(&tcp4(POD, PEER)), 18)),
        (tcp6(POD, PEER), tcp_flags(answer(&tcp6(POD, PEER)), 18)),
        (icmp4(POD, PEER), echo_reply(&icmp4(POD, PEER))),
        (icmp6(POD, PEER), echo_reply(&icmp6(POD, PEER))),
    ] {
        let early =
            if request[23] == 17 || request[20] == 17 { Reason::PolicyDefault } else { Reason::NoFlow };
        bench.expect(ToPod, &reply, &Drop(early));
        bench.expect(FromPod, &request, &Pass);
        bench.expect(ToPod, &reply, &Pass);
    }
    for request in [
        udp4(PEER, POD),
        udp6(PEER, POD),
        tcp4(PEER, POD),
        tcp6(PEER, POD),
        icmp4(PEER, POD),
        icmp6(PEER, POD),
    ] {
        bench.expect(ToPod, &request, &Drop(Reason::PolicyDefault));
    }
    // A flow of the pod is no way in for a request of the other side.
    bench.expect(ToPod, &icmp4(PEER, POD), &Drop(Reason::PolicyDefault));
    assert_eq!(bench.flows().len(), 6, "one entry a flow, for both ways");
}

#[test]
fn segments_that_belong_to_nothing_are_dropped() {
    let mut bench = bench(endpoint(READY, 0, 9));
    for (direction, syn) in [(FromPod, tcp4(POD, PEER)), (ToPod, tcp6(PEER, POD))] {
        bench.expect(direction, &tcp_flags(syn.clone(), 18), &Drop(Reason::NoFlow));
        bench.expect(direction, &tcp_flags(syn.clone(), 4), &Drop(Reason::NoFlow));
        bench.expect(direction, &tcp_flags(syn.clone(), 0), &Drop(Reason::NoFlow));
        bench.expect(direction, &syn, &Pass);
        bench.expect(direction, &tcp_flags(syn, 4), &Pass);
    }
    bench.expect(ToPod, &unreachable(OTHER, POD, &udp4(POD, PEER)), &Drop(Reason::NoFlow));
    bench.expect(ToPod, &unreachable(OTHER, POD, &udp6(POD, PEER)), &Drop(Reason::NoFlow));
    bench.expect(FromPod, &udp4(POD, PEER), &Pass);
    bench.expect(FromPod, &udp6(POD, PEER), &Pass);
    bench.expect(ToPod, &unreachable(OTHER, POD, &udp4(POD, PEER)), &Pass);
    bench.expect(ToPod, &unreachable(OTHER, POD, &udp6(POD, PEER)), &Pass);
    // About a frame of somebody else, and so not for this host.
    bench.expect(ToPod, &unreachable(OTHER, POD, &answer(&udp4(POD, PEER))), &Drop(Reason::NoFlow));
}

#[test]
fn transport_headers_are_whole() {
    let mut bench = bench(endpoint(READY, 0, 9));
    let malformed = Drop(Reason::MalformedTransport);
    for (frame, transport) in [(tcp4(POD, PEER), 34), (tcp6(POD, PEER), 54)] {
        bench.expect(FromPod, &patched(frame.clone(), transport + 12, &[0x40]), &malformed);
        bench.expect(FromPod, &patched(frame, transport + 12, &[0x60]), &malformed);
    }
    bench.expect(FromPod, &patched(cut(udp4(POD, PEER), 41), 16, &[0, 27]), &malformed);
    bench.expect(ToPod, &patched(cut(udp6(PEER, POD), 61), 18, &[0, 7]), &malformed);
}

#[test]
fn the_longest_prefix_and_the_narrowest_block_decide() {
    let mut bench = bench(endpoint(READY | DENY_FROM_POD, 0, 7));
    let everybody = Addr::UNSPECIFIED;
    bench.peer(7, FromPod, everybody, 0, 1);
    bench.peer(7, FromPod, Addr::v4(PEER.v4), 96 + 24, 2);
    bench.rule(RULE_BITS_PROTOCOL, tcp(7, 1, FromPod, 0), ALLOW, 10);
    bench.rule(RULE_BITS_PROTOCOL, tcp(7, 2, FromPod, 0), ALLOW, 11);
    bench.rule(RULE_BITS_PROTOCOL + 16, tcp(7, 2, FromPod, 80), DENY_RULE, 12);
    bench.rule(RULE_BITS_ANY, RuleKey { protocol: 0, ..tcp(7, 2, FromPod, 0) }, ALLOW, 13);
    bench.events();
    bench.expect(FromPod, &tcp4(POD, PEER), &Drop(Reason::PolicyDenied));
    let denied = bench.events();
    assert_eq!((denied[0].kind, denied[0].rule, denied[0].reason), (DENY, 12, Reason::PolicyDenied.number()));
    assert_eq!((denied[0].source, denied[0].destination), (Addr::v4(POD.v4), Addr::v4(PEER.v4)));
    assert_eq!((denied[0].destination_port, denied[0].protocol), (80u16.to_be_bytes(), 6));
    bench.expect(FromPod, &patched(tcp4(POD, PEER), 36, &[0, 81]), &Pass);
    bench.expect(FromPod, &tcp6(POD, PEER), &Pass);
    bench.expect(FromPod, &udp4(POD, PEER), &Pass);
    bench.expect(FromPod, &udp6(POD, PEER), &Drop(Reason::PolicyDefault));
    let rules: Vec<_> =
        bench.events().iter().filter(|event| event.kind == OPEN).map(|event| event.rule).collect();
    assert_eq!(rules, [11, 10, 13]);
}

#[test]
fn a_new_policy_cuts_live_flows_at_the_next_frame() {
    let mut bench = bench(endpoint(READY | DENY_FROM_POD | DENY_TO_POD, 0, 1));
    for (policy, action) in [(1, ALLOW), (2, DENY_RULE), (3, ALLOW)] {
        bench.peer(policy, FromPod, Addr::UNSPECIFIED, 0, 1);
        bench.rule(RULE_BITS_ANY, RuleKey { protocol: 0, ..tcp(policy, 1, FromPod, 0) }, action, policy);
    }
    for request in [tcp4(POD, PEER), tcp6(POD, PEER)] {
        let reply = tcp_flags(answer(&request), 18);
        let data = tcp_flags(request.clone(), 16);
        bench.write(endpoint(READY | DENY_FROM_POD | DENY_TO_POD, 0, 1));
        bench.expect(FromPod, &request, &Pass);
        bench.expect(ToPod, &reply, &Pass);
        // Another version that allows it: the answer is judged by who opened the flow.
        bench.write(endpoint(READY | DENY_FROM_POD | DENY_TO_POD, 0, 3));
        bench.expect(ToPod, &reply, &Pass);
        bench.expect(FromPod, &data, &Pass);
        bench.write(endpoint(READY | DENY_FROM_POD | DENY_TO_POD, 0, 2));
        bench.expect(FromPod, &data, &Drop(Reason::PolicyDenied));
        bench.expect(ToPod, &reply, &Drop(Reason::NoFlow));
    }
    assert_eq!(bench.flows(), []);
}

#[test]
fn a_flow_ends_by_age_by_fin_and_by_rst() {
    let mut bench = bench(CLOSED);
    let request = udp4(POD, PEER);
    bench.expect(FromPod, &request, &Pass);
    let (key, flow) = bench.flows()[0];
    // Last seen when the machine was booted, which may have been just now.
    while uptime() <= Duration::from_nanos(netferry_common::flow::lifetime(17, flow.state)) {
        std::thread::sleep(Duration::from_millis(500));
    }
    bench.set_flow(key, netferry_common::Flow { seen: 0, ..flow });
    bench.expect(ToPod, &answer(&request), &Drop(Reason::PolicyDefault));

    let syn = tcp6(POD, PEER);
    bench.expect(FromPod, &syn, &Pass);
    bench.expect(ToPod, &tcp_flags(answer(&syn), 18), &Pass);
    bench.events();
    bench.expect(FromPod, &tcp_flags(syn.clone(), 17), &Pass);
    assert!(bench.events().is_empty(), "half closed");
    bench.expect(ToPod, &tcp_flags(answer(&syn), 17), &Pass);
    let kinds: Vec<_> = bench.events().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [CLOSE], "reported once");
    // The same ports again are a new connection.
    bench.expect(FromPod, &syn, &Pass);
    assert!(bench.events().iter().any(|event| event.kind == OPEN));
}

#[test]
fn later_fragments_follow_the_first() {
    let mut bench = bench(endpoint(READY, 0, 9));
    let six = |direction, offset, more| {
        let (from, to) = if direction == FromPod { (POD, PEER) } else { (PEER, POD) };
        let extensions =
            Ipv6Extensions { fragment: Some(fragment_header(offset, more)), ..Ipv6Extensions::default() };
        extended6(
            from,
            to,
            extensions,
            IpNumber::UDP,
            &[0x0f, 0xa0, 0, 53, 0, 100, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        )
    };
    for (direction, frame) in [(FromPod, udp4(POD, PEER)), (ToPod, udp4(PEER, POD))] {
        let later = fragment4(frame.clone(), 100, false);
        bench.expect(direction, &later, &Drop(Reason::Fragment));
        bench.expect(direction, &fragment4(frame, 0, true), &Pass);
        bench.expect(direction, &later, &Pass);
        bench.expect(direction, &six(direction, 100, false), &Drop(Reason::Fragment));
        bench.expect(direction, &six(direction, 0, true), &Pass);
        bench.expect(direction, &six(direction, 100, false), &Pass);
    }
    // Another policy: the first fragment was judged by the old one.
    bench.write(endpoint(READY, 0, 10));
    bench.expect(FromPod, &six(FromPod, 100, false), &Drop(Reason::Fragment));
}

#[test]
fn an_isolated_network_is_its_members() {
    let mut bench = bench(endpoint(READY, 5, 0));
    bench.expect(FromPod, &udp4(POD, PEER), &Drop(Reason::NotMember));
    bench.expect(ToPod, &udp6(PEER, POD), &Drop(Reason::NotMember));
    bench.member(6, Addr::v4(PEER.v4), Member::default());
    bench.expect(FromPod, &udp4(POD, PEER), &Drop(Reason::NotMember));
    bench.member(5, Addr::v4(PEER.v4), Member::default());
    bench.member(5, Addr::v6(PEER.v6), Member::default());
    bench.expect(FromPod, &udp4(POD, PEER), &Pass);
    bench.expect(ToPod, &udp6(PEER, POD), &Pass);
    bench.expect(ToPod, &udp6(OTHER, POD), &Drop(Reason::NotMember));
}

#[test]
fn flows_open_no_faster_than_allowed() {
    let mut bench = bench(CLOSED);
    bench.limit(FromPod, FLOWS, Limit::new(100, 1));
    let mut outcomes = Vec::new();
    for port in 1000..1100u16 {
        outcomes.push(bench.run("from_pod", FromPod, &patched(udp4(POD, PEER), 34, &port.to_be_bytes())));
    }
    assert_eq!(outcomes[0], Pass);
    assert!(outcomes.contains(&Drop(Reason::FlowLimit)), "100 at once are too many");
    assert_eq!(bench.run("from_pod", FromPod, &patched(udp4(POD, PEER), 34, &1000u16.to_be_bytes())), Pass);
}
