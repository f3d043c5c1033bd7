//! Every vector: a frame, which way it goes, and what must become of it.
//!
//! The kernel refuses to run frames with less than a whole IP header, and frames with a tag beside them: those
//! are in the unit tests of `driver-ebpf`.

use etherparse::{IpNumber, Ipv6Extensions, Ipv6RoutingExtensions};
use netferry_common::{Addr, Direction, Reason};

use super::bench::Outcome::{self, Drop, Pass};
use super::frames::*;

/// One case.
pub struct Vector {
    pub name: &'static str,
    pub direction: Direction,
    pub frame: Vec<u8>,
    pub outcome: Outcome,
}

type Build = fn(&'static str, Outcome, Vec<u8>) -> Vector;

fn out(name: &'static str, outcome: Outcome, frame: Vec<u8>) -> Vector {
    Vector { name, direction: Direction::FromPod, frame, outcome }
}

fn to(name: &'static str, outcome: Outcome, frame: Vec<u8>) -> Vector {
    Vector { name, direction: Direction::ToPod, frame, outcome }
}

/// Frames for an endpoint that is ready.
pub fn ready() -> Vec<Vector> {
    [ethernet(), ipv4(), ipv6(), extensions(), arps(), discovery_from_pod(), discovery_to_pod()]
        .into_iter()
        .flatten()
        .collect()
}

fn group(v6: [u8; 16]) -> Host {
    Host { mac: ALL_NODES_MAC, v4: [224, 0, 0, 1], v6 }
}

fn link_local(host: Host) -> Host {
    Host { v6: Addr::link_local(host.mac).bytes, ..host }
}

fn no_address(host: Host) -> Host {
    Host { v4: [0; 4], v6: UNSPECIFIED, ..host }
}

fn ethernet() -> Vec<Vector> {
    let multicast_source = Host { mac: [3, 0, 0, 0, 0, 7], ..POD };
    let stranger = Host { mac: OTHER.mac, ..POD };
    vec![
        out("multicast source MAC", Drop(Reason::MalformedEthernet), udp4(multicast_source, PEER)),
        to("multicast source MAC", Drop(Reason::MalformedEthernet), udp6(Host { mac: [3; 6], ..PEER }, POD)),
        out("802.1Q tag", Drop(Reason::VlanTagged), tagged(&udp4(POD, PEER), 0x8100)),
        out("802.1ad tag", Drop(Reason::VlanTagged), tagged(&udp6(POD, PEER), 0x88a8)),
        to("802.1Q tag", Drop(Reason::VlanTagged), tagged(&udp6(PEER, POD), 0x8100)),
        to("802.1ad tag", Drop(Reason::VlanTagged), tagged(&udp4(PEER, POD), 0x88a8)),
        out("EAPOL", Drop(Reason::Ethertype), patched(udp4(POD, PEER), at::ETHERTYPE, &[0x88, 0x8e])),
        to("LLDP", Drop(Reason::Ethertype), patched(udp4(PEER, POD), at::ETHERTYPE, &[0x88, 0xcc])),
        to("802.3 length", Drop(Reason::Ethertype), patched(udp4(PEER, POD), at::ETHERTYPE, &[0, 46])),
        out("MAC of another, v4", Drop(Reason::SourceMac), udp4(stranger, PEER)),
        out("MAC of another, v6", Drop(Reason::SourceMac), udp6(stranger, PEER)),
        to("unicast MAC of another, v4", Drop(Reason::NotForUs), udp4(PEER, Host { mac: OTHER.mac, ..POD })),
        to("unicast MAC of another, v6", Drop(Reason::NotForUs), udp6(PEER, Host { mac: OTHER.mac, ..POD })),
        to("own MAC as source, v4", Drop(Reason::OwnMac), udp4(Host { mac: POD.mac, ..PEER }, POD)),
        to("own MAC as source, v6", Drop(Reason::OwnMac), udp6(Host { mac: POD.mac, ..PEER }, POD)),
    ]
}

fn ipv4() -> Vec<Vector> {
    let broadcast = |v4| Host { mac: BROADCAST, v4, v6: ALL_NODES };
    let malformed = Drop(Reason::MalformedIpv4);
    let mut list = vec![
        out("UDP", Pass, udp4(POD, PEER)),
        out("TCP", Pass, tcp4(POD, PEER)),
        out("ICMP", Pass, icmp4(POD, PEER)),
        out("multicast", Pass, udp4(POD, group(ALL_NODES))),
        out("broadcast", Pass, udp4(POD, broadcast([255; 4]))),
        to("UDP", Pass, udp4(PEER, POD)),
        to("TCP", Pass, tcp4(PEER, POD)),
        to("ICMP", Pass, icmp4(PEER, POD)),
        to("multicast", Pass, udp4(PEER, group(ALL_NODES))),
        to("limited broadcast", Pass, udp4(PEER, broadcast([255; 4]))),
        to("subnet broadcast", Pass, udp4(PEER, broadcast([192, 0, 2, 255]))),
        to("padded to 60 bytes", Pass, [tcp4(PEER, POD), vec![0; 6]].concat()),
        out("source of another", Drop(Reason::SourceIpv4), udp4(Host { v4: OTHER.v4, ..POD }, PEER)),
        out("source 0.0.0.0", Drop(Reason::SourceIpv4), udp4(no_address(POD), broadcast([255; 4]))),
        out("source broadcast", Drop(Reason::SourceIpv4), udp4(Host { v4: [192, 0, 2, 255], ..POD }, PEER)),
        to("own source", Drop(Reason::OwnAddress), udp4(Host { v4: POD.v4, ..PEER }, POD)),
        to("for another", Drop(Reason::DestinationAddress), udp4(PEER, Host { v4: OTHER.v4, ..POD })),
        to("foreign broadcast", Drop(Reason::DestinationAddress), udp4(PEER, broadcast([198, 51, 100, 255]))),
        to("source multicast", malformed.clone(), udp4(Host { v4: [224, 0, 0, 1], ..PEER }, POD)),
        to("source 255.255.255.255", malformed.clone(), udp4(Host { v4: [255; 4], ..PEER }, POD)),
    ];
    for (build, frame) in [(out as Build, udp4(POD, PEER)), (to as Build, udp4(PEER, POD))] {
        let patch = |offset, bytes: &[u8]| patched(frame.clone(), at::IP + offset, bytes);
        list.extend([
            build("version 6", malformed.clone(), patch(0, &[0x65])),
            build("header of 16 bytes", malformed.clone(), patch(0, &[0x44])),
            build("header longer than the datagram", malformed.clone(), patch(0, &[0x4f])),
            build("length shorter than the header", malformed.clone(), patch(2, &[0, 19])),
            build("length 0", malformed.clone(), patch(2, &[0, 0])),
            build("length beyond the frame", malformed.clone(), patch(2, &[0, 49])),
        ]);
    }
    list
}

fn ipv6() -> Vec<Vector> {
    let malformed = Drop(Reason::MalformedIpv6);
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7];
    let mut list = vec![
        out("UDP", Pass, udp6(POD, PEER)),
        out("TCP", Pass, tcp6(POD, PEER)),
        out("ICMPv6", Pass, icmp6(POD, PEER)),
        out("from the link-local address", Pass, udp6(link_local(POD), PEER)),
        out("multicast", Pass, udp6(POD, group(ALL_NODES))),
        to("UDP", Pass, udp6(PEER, POD)),
        to("TCP", Pass, tcp6(PEER, POD)),
        to("ICMPv6", Pass, icmp6(PEER, POD)),
        to("to the link-local address", Pass, udp6(PEER, link_local(POD))),
        to("multicast", Pass, udp6(PEER, group(ALL_NODES))),
        out("source of another", Drop(Reason::SourceIpv6), udp6(Host { v6: OTHER.v6, ..POD }, PEER)),
        out(
            "link-local of another",
            Drop(Reason::SourceIpv6),
            udp6(Host { mac: POD.mac, ..link_local(OTHER) }, PEER),
        ),
        out("UDP from ::", Drop(Reason::SourceIpv6), udp6(no_address(POD), PEER)),
        out("echo from ::", Drop(Reason::SourceIpv6), icmp6(no_address(POD), PEER)),
        to("own source", Drop(Reason::OwnAddress), udp6(Host { v6: POD.v6, ..PEER }, POD)),
        to(
            "own link-local source",
            Drop(Reason::OwnAddress),
            udp6(Host { mac: PEER.mac, ..link_local(POD) }, POD),
        ),
        to("for another", Drop(Reason::DestinationAddress), udp6(PEER, Host { v6: OTHER.v6, ..POD })),
        to("source multicast", malformed.clone(), udp6(Host { v6: ALL_NODES, ..PEER }, POD)),
        out("mapped own IPv4 source", malformed.clone(), udp6(Host { v6: mapped, ..POD }, PEER)),
        to("mapped own IPv4 destination", malformed.clone(), udp6(PEER, Host { v6: mapped, ..POD })),
    ];
    for (build, frame) in [(out as Build, udp6(POD, PEER)), (to as Build, udp6(PEER, POD))] {
        let patch = |offset, bytes: &[u8]| patched(frame.clone(), at::IP + offset, bytes);
        list.extend([
            build("version 4", malformed.clone(), patch(0, &[0x45])),
            build("payload beyond the frame", malformed.clone(), patch(4, &[0, 29])),
            build("extension header cut short", malformed.clone(), cut(patch(4, &[0, 4, 60]), at::IP + 44)),
            build("ICMPv6 without a header", malformed.clone(), cut(patch(4, &[0, 3, 58]), at::IP + 43)),
        ]);
    }
    list
}

fn extensions() -> Vec<Vector> {
    let udp = [0x0f, 0xa0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
    let one = Ipv6Extensions { hop_by_hop_options: Some(options_header()), ..Ipv6Extensions::default() };
    let fragment = |offset, more| Ipv6Extensions {
        fragment: Some(fragment_header(offset, more)),
        ..Ipv6Extensions::default()
    };
    let mut routing = options_header();
    routing.set_payload(&[0, 1, 0, 0, 0, 0]).expect("six bytes");
    let rerouted = Ipv6Extensions {
        routing: Some(Ipv6RoutingExtensions { routing, final_destination_options: None }),
        ..Ipv6Extensions::default()
    };
    let chain = |length: usize| {
        let mut payload = Vec::new();
        for at in 1..=length {
            payload.extend([if at == length { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend(udp);
        payload
    };
    let destination = IpNumber::IPV6_DESTINATION_OPTIONS;
    let plain = Ipv6Extensions::default;
    vec![
        out("hop-by-hop options", Pass, extended6(POD, PEER, one.clone(), IpNumber::UDP, &udp)),
        to("hop-by-hop options", Pass, extended6(PEER, POD, one, IpNumber::UDP, &udp)),
        out("first fragment", Pass, extended6(POD, PEER, fragment(0, true), IpNumber::UDP, &udp)),
        to("later fragment", Pass, extended6(PEER, POD, fragment(20, false), IpNumber::UDP, &udp)),
        out(
            "routing with segments left",
            Drop(Reason::ExtensionHeader),
            extended6(POD, PEER, rerouted.clone(), IpNumber::UDP, &udp),
        ),
        to(
            "routing with segments left",
            Drop(Reason::ExtensionHeader),
            extended6(PEER, POD, rerouted, IpNumber::UDP, &udp),
        ),
        out("six extension headers", Pass, extended6(POD, PEER, plain(), destination, &chain(6))),
        out(
            "seven extension headers",
            Drop(Reason::ExtensionHeader),
            extended6(POD, PEER, plain(), destination, &chain(7)),
        ),
        to(
            "seven extension headers",
            Drop(Reason::ExtensionHeader),
            extended6(PEER, POD, plain(), destination, &chain(7)),
        ),
    ]
}

fn arps() -> Vec<Vector> {
    let (mine, peer) = ((POD.mac, POD.v4), (PEER.mac, PEER.v4));
    let good = arp(POD.mac, BROADCAST, false, mine, PEER.v4);
    let incoming = arp(PEER.mac, BROADCAST, false, peer, POD.v4);
    let malformed = Drop(Reason::MalformedArp);
    vec![
        out("ARP request", Pass, good.clone()),
        out("ARP reply", Pass, arp(POD.mac, PEER.mac, true, mine, PEER.v4)),
        out("gratuitous ARP", Pass, arp(POD.mac, BROADCAST, false, mine, POD.v4)),
        out("ARP probe", Pass, arp(POD.mac, BROADCAST, false, (POD.mac, [0; 4]), POD.v4)),
        to("ARP request", Pass, incoming.clone()),
        to("ARP reply", Pass, arp(PEER.mac, POD.mac, true, peer, POD.v4)),
        to("ARP probe of another", Pass, arp(PEER.mac, BROADCAST, false, (PEER.mac, [0; 4]), PEER.v4)),
        out(
            "ARP, MAC of another",
            Drop(Reason::ArpSender),
            arp(POD.mac, BROADCAST, false, (OTHER.mac, POD.v4), PEER.v4),
        ),
        out(
            "ARP, address of another",
            Drop(Reason::ArpSender),
            arp(POD.mac, PEER.mac, true, (POD.mac, OTHER.v4), PEER.v4),
        ),
        out(
            "ARP probe for another",
            Drop(Reason::ArpSender),
            arp(POD.mac, BROADCAST, false, (POD.mac, [0; 4]), OTHER.v4),
        ),
        out(
            "ARP reply from 0.0.0.0",
            Drop(Reason::ArpSender),
            arp(POD.mac, PEER.mac, true, (POD.mac, [0; 4]), POD.v4),
        ),
        to(
            "ARP claiming our address",
            Drop(Reason::OwnAddress),
            arp(PEER.mac, BROADCAST, false, (PEER.mac, POD.v4), POD.v4),
        ),
        to(
            "ARP claiming our MAC",
            Drop(Reason::OwnMac),
            arp(PEER.mac, POD.mac, true, (POD.mac, PEER.v4), POD.v4),
        ),
        out("ARP cut short", malformed.clone(), cut(good.clone(), at::IP + 27)),
        to("ARP cut short", malformed.clone(), cut(incoming.clone(), at::IP + 27)),
        out("reverse ARP operation", malformed.clone(), patched(good.clone(), at::ARP_OPERATION, &[0, 3])),
        out("ARP of another hardware", malformed.clone(), patched(good.clone(), at::IP, &[0, 6])),
        out("ARP of another protocol", malformed.clone(), patched(good.clone(), at::IP + 2, &[0x86, 0xdd])),
        to("ARP of other lengths", malformed, patched(incoming, at::IP + 4, &[8, 4])),
    ]
}

fn discovery_from_pod() -> Vec<Vector> {
    let all = group(ALL_NODES);
    let mac = Some(POD.mac);
    let sender = Drop(Reason::NdSender);
    let malformed = Drop(Reason::MalformedNd);
    let good = neighbor(POD, PEER, 135, PEER.v6, mac);
    let fragmented =
        Ipv6Extensions { fragment: Some(fragment_header(0, false)), ..Ipv6Extensions::default() };
    let solicitation = good[at::IP + 40..].to_vec();
    vec![
        out("neighbour solicitation", Pass, good.clone()),
        out("neighbour advertisement", Pass, neighbor(POD, PEER, 136, POD.v6, mac)),
        out(
            "advertisement of the link-local",
            Pass,
            neighbor(link_local(POD), PEER, 136, link_local(POD).v6, mac),
        ),
        out("duplicate address detection", Pass, neighbor(no_address(POD), all, 135, POD.v6, None)),
        out(
            "router solicitation",
            Pass,
            icmp6_raw(link_local(POD), all, 133, &[&[0; 4][..], &[1, 1], &POD.mac].concat()),
        ),
        out("listener report", Pass, mld2_report(link_local(POD))),
        out("listener report from ::", Pass, mld2_report(no_address(POD))),
        out(
            "solicitation, option of another",
            sender.clone(),
            neighbor(POD, PEER, 135, PEER.v6, Some(OTHER.mac)),
        ),
        out(
            "advertisement, option of another",
            sender.clone(),
            neighbor(POD, PEER, 136, POD.v6, Some(OTHER.mac)),
        ),
        out("advertisement for another", sender.clone(), neighbor(POD, PEER, 136, OTHER.v6, mac)),
        out(
            "detection of another's address",
            sender.clone(),
            neighbor(no_address(POD), all, 135, OTHER.v6, None),
        ),
        out(
            "router solicitation, option of another",
            sender,
            icmp6_raw(link_local(POD), all, 133, &[&[0; 4][..], &[1, 1], &OTHER.mac].concat()),
        ),
        out(
            "router solicitation from ::",
            Drop(Reason::SourceIpv6),
            icmp6_raw(no_address(POD), all, 133, &[0; 4]),
        ),
        out("router advertisement", Drop(Reason::NdRouter), icmp6_raw(link_local(POD), all, 134, &[0; 12])),
        out("redirect", Drop(Reason::NdRouter), icmp6_raw(link_local(POD), PEER, 137, &[0; 36])),
        out("forwarded solicitation", malformed.clone(), patched(good.clone(), at::IP + 7, &[64])),
        out("solicitation with a code", malformed.clone(), patched(good.clone(), at::IP + 41, &[1])),
        out("solicitation cut short", malformed.clone(), icmp6_raw(POD, PEER, 135, &[0; 16])),
        out("detection with an option", malformed.clone(), neighbor(no_address(POD), all, 135, POD.v6, mac)),
        out("option of length 0", malformed.clone(), patched(good.clone(), at::IP + 65, &[0])),
        out("option beyond the message", malformed.clone(), patched(good, at::IP + 64, &[14, 2])),
        out(
            "fragmented solicitation",
            malformed,
            extended6(POD, PEER, fragmented, IpNumber::IPV6_ICMP, &solicitation),
        ),
    ]
}

fn discovery_to_pod() -> Vec<Vector> {
    let all = group(ALL_NODES);
    let mac = Some(PEER.mac);
    let router = link_local(PEER);
    vec![
        to("neighbour solicitation", Pass, neighbor(PEER, POD, 135, POD.v6, mac)),
        to("neighbour advertisement", Pass, neighbor(PEER, POD, 136, PEER.v6, mac)),
        to("detection of our address", Pass, neighbor(no_address(PEER), all, 135, POD.v6, None)),
        to("router advertisement", Pass, icmp6_raw(router, all, 134, &[0; 12])),
        to("listener query", Pass, icmp6_raw(router, all, 130, &[0; 20])),
        to("advertisement of our address", Drop(Reason::OwnAddress), neighbor(PEER, POD, 136, POD.v6, mac)),
        to(
            "forwarded router advertisement",
            Drop(Reason::MalformedNd),
            patched(icmp6_raw(router, all, 134, &[0; 12]), at::IP + 7, &[64]),
        ),
        to(
            "forwarded advertisement",
            Drop(Reason::MalformedNd),
            patched(neighbor(PEER, POD, 136, PEER.v6, mac), at::IP + 7, &[1]),
        ),
    ]
}
