//! What comes through tunnels over the link between nodes, past the device that tunnels end at.

use aya::maps::Array;
use etherparse::PacketBuilder;
use netferry::datapath::Features;
use netferry_common::flow::{HIGH_SENT, LOW_SENT};
use netferry_common::tunnel::{way_of_network, way_of_vni};
use netferry_common::uplink::OVERLAY;
use netferry_common::{Addr, Direction, Member, Tunnel, Uplink, Way, maps};

use super::bench::Bench;
use super::entry::Entry;
use super::frames::*;
use super::network::{NETWORK, pair};

const VNI: u32 = 77;
/// A device that is not there, so that no program looks for routes in its name.
const DEVICE: u32 = 0x7fff_fff0;
const HERE: [u8; 4] = [203, 0, 113, 7];
const THERE: [u8; 4] = [203, 0, 113, 11];
const PORT: u16 = 4789;

/// `inner` in a tunnel from the other node. The loopback interface, which takes it, has no hardware address.
fn tunnelled(inner: &[u8]) -> Vec<u8> {
    let vxlan = [&[8, 0, 0, 0], &(VNI << 8).to_be_bytes()[..], inner].concat();
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 1, 11], [0; 6]).ipv4(THERE, HERE, 64).udp(50_000, PORT);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vxlan).expect("a valid packet");
    // No UDP checksum.
    patched(frame, 40, &[0, 0])
}

/// The pod's network goes on through tunnels, and the pod has sent a datagram of each family to a member on the other node, who has
/// answered.
fn talking() -> (Bench, [Vec<u8>; 2]) {
    let mut bench = pair();
    bench.uplink(
        NETWORK,
        Uplink { flags: OVERLAY, ifindex: DEVICE, tag: VNI, mtu: 1450, ..Uplink::default() },
    );
    for addr in [Addr::v4(OTHER.v4), Addr::v6(OTHER.v6)] {
        bench.member(NETWORK, addr, Member { node: Addr::v4(THERE), ..Member::new(0, OTHER.mac) });
    }
    let way = Way { network: NETWORK, vni: VNI, device: DEVICE, mtu: 1450 };
    let mut ways = Array::<_, Way>::try_from(bench.map(maps::WAYS)).expect("an array");
    for place in [way_of_network(NETWORK), way_of_vni(VNI)] {
        ways.set(place, way, 0).expect("a place");
    }
    let ends = Tunnel { device: DEVICE, link: 1, address: HERE, port: PORT.to_be_bytes(), pad: [0; 2] };
    let mut tunnel = Array::<_, Tunnel>::try_from(bench.map(maps::TUNNEL)).expect("an array");
    tunnel.set(0, ends, 0).expect("the tunnel");
    for frame in [udp4(POD, OTHER), udp6(POD, OTHER)] {
        bench.run("from_pod", Direction::FromPod, &frame);
    }
    let flows = bench.flows();
    assert_eq!(flows.len(), 2);
    for (key, mut flow) in flows {
        flow.state |= LOW_SENT | HIGH_SENT;
        bench.set_flow(key, flow);
    }
    let ports = [53_u16.to_be_bytes(), 4000_u16.to_be_bytes()].concat();
    (bench, [patched(udp4(OTHER, POD), 34, &ports), patched(udp6(OTHER, POD), 54, &ports)])
}

#[test]
fn an_open_flow_goes_on_straight_to_the_pod() {
    let (mut bench, answers) = talking();
    if !Features::probe().tcx {
        // Networks end at the node there, and before Linux 6.3 no program can say which IP a frame has without its headers.
        for frame in answers.map(|inner| tunnelled(&inner)) {
            assert_eq!(bench.enter("underlay_ingress", &frame), Entry::Host);
        }
        return;
    }
    for inner in answers {
        assert_eq!(bench.enter("underlay_ingress", &tunnelled(&inner)), Entry::In(inner.clone()));
        let short = bench.fast(super::bench::ID);
        assert_eq!((short.entered, short.received), (1, 0));
        assert_eq!(bench.traffic(Direction::ToPod).overlay, 1);
        (bench, _) = talking();
    }
}

#[test]
fn everything_else_is_the_hosts_unchanged_and_uncounted() {
    let (mut bench, [v4, v6]) = talking();
    let good = tunnelled(&v4);
    let others = [
        ("not of a tunnel", v4.clone()),
        ("of nobody's network", patched(good.clone(), 46, &[1, 2, 3])),
        ("of another port", patched(good.clone(), 36, &[0, 53])),
        ("for another host", patched(good.clone(), 30, &[203, 0, 113, 8])),
        ("of another host than the node of its sender", patched(good.clone(), 26, &[203, 0, 113, 12])),
        ("in fragments", patched(good.clone(), 20, &[0x20, 0])),
        ("with a checksum", patched(good.clone(), 40, &[1, 2])),
        ("under another hardware address", patched(good.clone(), 56, &PEER.mac)),
        ("of no flow", tunnelled(&udp4(OTHER, POD))),
        ("for a member that is not here", tunnelled(&udp4(OTHER, PEER))),
        ("that opens a connection", tunnelled(&tcp6(OTHER, POD))),
        ("no datagram", tunnelled(&arp(OTHER.mac, POD.mac, true, (OTHER.mac, OTHER.v4), POD.v4))),
        ("for another hardware address", tunnelled(&patched(v6, 0, &PEER.mac))),
    ];
    for (what, frame) in others {
        assert_eq!(bench.enter("underlay_ingress", &frame), Entry::Host, "{what}");
    }
    let mut random = 7_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).expect("31 bits") % below
    };
    for _ in 0..2000 {
        // The kernel runs none without an IP header.
        let length = 34 + next(good.len() - 34);
        let frame = cut(good.clone(), length);
        assert_eq!(bench.enter("underlay_ingress", &frame), Entry::Host, "{length} bytes");
        let mut frame = good.clone();
        let at = next(98);
        frame[at] ^= 1 << next(8);
        // What is entered is for the pod, and from the member, whatever was changed.
        if let Entry::In(inside) = bench.enter("underlay_ingress", &frame) {
            assert_eq!((&inside[..12], &inside[26..34]), (&v4[..12], &v4[26..34]));
        }
    }
}
