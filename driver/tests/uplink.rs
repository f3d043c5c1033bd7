//! Networks that go on beyond the node, on a real kernel with real links and namespaces. Needs root; skips without, and
//! says so.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test binary")]

#[path = "support/netns.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod netns;
#[path = "datapath/world.rs"]
mod packets;
#[path = "uplink/world.rs"]
mod world;

use netferry::datapath::networks::overlay_mtu;
use netferry::datapath::{NetworkUplink, Transport};
use netferry::link::MacAddr;
use netns::NetNs;
use packets::{Raw, able};
use world::{Node, UPLINK, answers, ping, silent, stream, wire};

/// Ids of networks; another node may have others for the same.
const HERE: u32 = 7;
const THERE: u32 = 8;
const SOME: usize = 20_000_000;

fn uplink(mtu: u32, transport: Transport) -> NetworkUplink {
    NetworkUplink { ifindex: 0, mtu, transport }
}

#[test]
fn a_bridged_network_goes_on_over_a_vlan() {
    if !able("a_bridged_network_goes_on_over_a_vlan") {
        return;
    }
    let (a, b) = (Node::new(), Node::new());
    wire(&a.host, &b.host);
    let (one, two) = (a.pod(1, HERE, 1, 1500), b.pod(2, THERE, 2, 1500));
    // The same subnet on another network: another VLAN.
    let other = a.pod(3, HERE + 2, 3, 1500);
    for (node, network, vlan) in
        [(&a, HERE, 100), (&b, THERE, 100), (&a, HERE + 2, 200), (&b, THERE + 2, 200)]
    {
        node.uplink(network, UPLINK, uplink(1500, Transport::Bridged { vlan }));
    }
    assert!(silent(&one.netns, "", two.address(true)), "nobody told the nodes of each other's members");
    a.knows(HERE, &two, None);
    b.knows(THERE, &one, None);
    for v4 in [true, false] {
        assert!(answers(&one.netns, "", two.address(v4)), "there");
        assert!(answers(&two.netns, "", one.address(v4)), "and back");
        assert!(answers(&one.netns, "-s 4000", two.address(v4)), "in fragments");
        assert_eq!(stream(&one.netns, &two.netns, two.address(v4), SOME), SOME);
        assert_eq!(stream(&two.netns, &one.netns, one.address(v4), SOME), SOME);
        assert!(silent(&other.netns, "", two.address(v4)), "another network");
    }
    let ([out, _], [inn, _]) = (a.beyond(&one), b.beyond(&two));
    let frames = 2 * u64::try_from(4 * SOME / 1500).unwrap();
    assert!(out > frames / 2 && inn > frames / 2, "all of it took the programs' way: {out}, {inn}");
    // Frames without a tag are the hosts', as before.
    assert!(answers(&a.host, "", "10.77.0.2") && answers(&b.host, "", "fd77::1"));
    // What comes with a tag and is for nobody is counted, and gets no further.
    let ifindex = b.host.ifindex(UPLINK);
    b.with(move |datapath| datapath.detach_uplink(ifindex).unwrap());
    assert!(silent(&one.netns, "", two.address(true)), "nothing takes the frames in");
}

#[test]
fn a_host_of_the_subnet_is_a_neighbour_where_policy_allows() {
    if !able("a_host_of_the_subnet_is_a_neighbour_where_policy_allows") {
        return;
    }
    let (node, host) = (Node::new(), NetNs::new());
    wire(&node.host, &host);
    host.ip(&format!("addr add 10.9.0.50/24 dev {UPLINK}"));
    host.ip(&format!("addr add fd09::50/64 dev {UPLINK} nodad"));
    let pod = node.pod(1, HERE, 1, 1500);
    node.uplink(HERE, UPLINK, uplink(1500, Transport::Bridged { vlan: 0 }));
    for to in ["10.9.0.50", "fd09::50"] {
        assert!(silent(&pod.netns, "", to), "no member, and no rule");
    }
    let peers = "[{action: allow, peers: [{cidr: 10.9.0.50/32}, {cidr: 'fd09::50/128'}]}]";
    node.policy(&pod, &format!("{{egress: {{rules: {peers}}}, ingress: {{rules: {peers}}}}}"));
    for (to, v4) in [("10.9.0.50", true), ("fd09::50", false)] {
        assert!(answers(&pod.netns, "", to), "{to}");
        host.ip("neigh flush all");
        assert!(answers(&host, "", pod.address(v4)), "asked by the host's own ARP and neighbour discovery");
        assert_eq!(stream(&host, &pod.netns, pod.address(v4), SOME), SOME);
    }
    // The untagged wire is the host's, too.
    assert!(answers(&host, "", "10.77.0.1") && answers(&node.host, "", "fd77::2"));
}

const ALLOW_OUT: &str = "egress: {rules: [{action: allow, peers: [{cidr: 0.0.0.0/0}, {cidr: '::/0'}]}]}";
const ALLOW_BOTH: &str = "
egress: {rules: [{action: allow, peers: [{cidr: 0.0.0.0/0}, {cidr: '::/0'}]}]}
ingress: {rules: [{action: allow, peers: [{cidr: 198.51.100.0/24}, {cidr: 'fd99::/64'}]}]}
";
const FAR: [&str; 2] = ["198.51.100.1", "fd99::1"];
const GATEWAY: [&str; 2] = ["10.9.0.254", "fd09::fe"];

/// A node whose network is routed, a pod on it, and a host beyond.
fn routed(mtu: u32) -> (Node, world::Pod, NetNs) {
    let (node, far) = (Node::new(), NetNs::new());
    wire(&node.host, &far);
    far.ip("addr add 198.51.100.1/32 dev lo");
    far.ip("addr add fd99::1/128 dev lo nodad");
    far.ip("route add 10.9.0.0/24 via 10.77.0.1");
    far.ip("route add fd09::/64 via fd77::1");
    node.host.ip("route add default via 10.77.0.2");
    node.host.ip("route add default via fd77::2");
    let gateway = Transport::Routed {
        mac: MacAddr([2, 0x4e, 0x46, 0, 0, 0xfe]),
        v4: GATEWAY[0].parse().ok(),
        v6: GATEWAY[1].parse().ok(),
    };
    let pod = node.pod(1, HERE, 1, 1500);
    node.uplink(HERE, UPLINK, uplink(mtu, gateway));
    pod.netns.ip(&format!("route add default via {}", GATEWAY[0]));
    pod.netns.ip(&format!("route add default via {}", GATEWAY[1]));
    (node, pod, far)
}

#[test]
fn a_routed_network_reaches_the_world_by_the_nodes_routes() {
    if !able("a_routed_network_reaches_the_world_by_the_nodes_routes") {
        return;
    }
    let (node, pod, far) = routed(1500);
    assert!(answers(&pod.netns, "", GATEWAY[0]) && answers(&pod.netns, "", GATEWAY[1]), "the gateway");
    for to in FAR {
        assert!(silent(&pod.netns, "", to), "policy allows nobody who is no member");
    }
    node.policy(&pod, ALLOW_OUT);
    for (to, v4) in FAR.into_iter().zip([true, false]) {
        assert!(answers(&pod.netns, "", to), "{to}");
        let said = ping(&pod.netns, "", to).unwrap();
        assert!(said.contains("ttl=63"), "one hop on the way back: {said}");
        // One hop more, and the far host would have been the second.
        let said = ping(&pod.netns, "-t 1", to).unwrap_err();
        let gateway = GATEWAY[usize::from(!v4)];
        assert!(
            said.contains(&format!("From {gateway}")) && said.contains("ime to live exceeded")
                || said.contains(&format!("From {gateway}")) && said.contains("Hop limit"),
            "{said}"
        );
        assert!(ping(&pod.netns, "-t 2", to).is_ok(), "two hops are enough");
        assert_eq!(stream(&pod.netns, &far, to.parse().unwrap(), SOME), SOME);
        assert!(silent(&far, "", pod.address(v4)), "nobody may open a flow from there");
    }
    let raw = far.run(|| Raw::new(UPLINK));
    assert!(answers(&pod.netns, "", FAR[0]) && answers(&pod.netns, "", FAR[1]));
    let echo = |frame: &[u8]| match frame[12..14] {
        [0x08, 0] => frame[23] == 1 && frame[34] == 8 && frame[22] == 63,
        _ => frame[20] == 58 && frame[54] == 128 && frame[21] == 63,
    };
    assert!(raw.received(echo) >= 2, "the hop was taken");
    let [out, _] = node.beyond(&pod);
    assert!(out > u64::try_from(2 * SOME / 1500).unwrap(), "{out}");
}

#[test]
fn a_small_mtu_beyond_a_routed_network_is_told() {
    if !able("a_small_mtu_beyond_a_routed_network_is_told") {
        return;
    }
    let (node, pod, far) = routed(1300);
    node.policy(&pod, ALLOW_BOTH);
    for (to, said_so) in FAR.into_iter().zip(["(mtu = 1300)", "mtu=1300"]) {
        let said = ping(&pod.netns, "-M do -s 1400", to).unwrap_err();
        assert!(said.contains(said_so), "{said}");
        // The pod's kernel has learnt it: connections do, too.
        assert_eq!(stream(&pod.netns, &far, to.parse().unwrap(), SOME), SOME);
    }
    // In by a pod's smaller MTU, told to the far host.
    pod.netns.ip("link set eth0 mtu 1300");
    let small = node.pod(2, HERE, 2, 1300);
    node.policy(&small, ALLOW_BOTH);
    small.netns.ip(&format!("route add default via {}", GATEWAY[0]));
    small.netns.ip(&format!("route add default via {}", GATEWAY[1]));
    for (source, v4, said_so) in [(FAR[0], true, "(mtu = 1300)"), (FAR[1], false, "mtu=1300")] {
        assert!(answers(&far, &format!("-I {source}"), small.address(v4)));
        let said = ping(&far, &format!("-I {source} -M do -s 1400"), small.address(v4)).unwrap_err();
        assert!(said.contains(said_so), "{said}");
    }
}

const VNI: u32 = 0x00ab_cdef;

#[test]
fn an_overlay_carries_a_network_between_nodes() {
    if !able("an_overlay_carries_a_network_between_nodes") {
        return;
    }
    for (ends, over_ipv6) in [(["10.77.0.1", "10.77.0.2"], false), (["fd77::1", "fd77::2"], true)] {
        let (a, b) = (Node::new(), Node::new());
        wire(&a.host, &b.host);
        let (one, two) = (a.pod(1, HERE, 1, 1500), b.pod(2, THERE, 2, 1500));
        let mtu = overlay_mtu(1500, over_ipv6);
        for (node, network) in [(&a, HERE), (&b, THERE)] {
            node.host.ip("link add x0 type vxlan external dstport 4789");
            node.host.ip("link set x0 up");
            node.uplink(network, "x0", uplink(mtu, Transport::Overlay { vni: VNI }));
        }
        a.knows(HERE, &two, Some(ends[1]));
        b.knows(THERE, &one, Some(ends[0]));
        let raw = b.host.run(|| Raw::new(UPLINK));
        for v4 in [true, false] {
            assert!(answers(&one.netns, "", two.address(v4)), "there");
            let said = ping(&two.netns, "-M do -s 1440", one.address(v4)).unwrap_err();
            assert!(said.contains(&format!("{mtu}")), "{said}");
        }
        let outer = 14 + if over_ipv6 { 40 } else { 20 };
        let tunnelled =
            |frame: &[u8]| frame.len() > outer + 16 && frame[outer + 2..outer + 4] == 4789_u16.to_be_bytes();
        let ours = std::cell::Cell::new(0);
        let frames = raw.received(|frame| {
            let tunnelled = tunnelled(frame);
            if tunnelled && frame[outer + 12..outer + 15] == VNI.to_be_bytes()[1..] {
                ours.set(ours.get() + 1);
            }
            tunnelled
        });
        assert!(frames >= 4 && frames == ours.get(), "{} of {frames} with the VNI", ours.get());
        for v4 in [true, false] {
            assert_eq!(stream(&one.netns, &two.netns, two.address(v4), SOME), SOME);
            assert_eq!(stream(&two.netns, &one.netns, one.address(v4), SOME), SOME);
        }
        // Too big for the receiver alone: told through the tunnel.
        let small = b.pod(3, THERE, 3, 1300);
        a.knows(HERE, &small, Some(ends[1]));
        for v4 in [true, false] {
            assert!(answers(&one.netns, "", small.address(v4)));
            let said = ping(&one.netns, "-M do -s 1340", small.address(v4)).unwrap_err();
            assert!(said.contains("1300"), "{said}");
        }
        assert!(a.beyond(&one)[1] > 1000 && b.beyond(&two)[1] > 1000);
        refused(&b, &two, &one, ends);
    }
}

/// What an overlay does not let in.
fn refused(b: &Node, two: &world::Pod, one: &world::Pod, ends: [&str; 2]) {
    // A member whose node is another: this one's frames are in its name.
    b.knows(THERE, one, Some(ends[1]));
    assert!(silent(&one.netns, "", two.address(true)));
    assert!(b.datapath.network_drops(THERE).unwrap().contains_key("outer_source"));
    b.knows(THERE, one, Some(ends[0]));
    assert!(answers(&one.netns, "", two.address(true)));
    b.datapath.remove_member(THERE, one.address(true)).unwrap();
    assert!(silent(&one.netns, "", two.address(true)), "no member");
    assert!(b.datapath.network_drops(THERE).unwrap().contains_key("not_member"));
    b.knows(THERE, one, Some(ends[0]));
    b.datapath.remove_uplink(THERE).unwrap();
    assert!(silent(&one.netns, "", two.address(true)));
    assert!(b.datapath.network_drops(0).unwrap().contains_key("unknown_network"));
}

#[test]
fn uplinks_stay_through_a_restart_and_are_set_anew() {
    if !able("uplinks_stay_through_a_restart_and_are_set_anew") {
        return;
    }
    let (a, b) = (Node::new(), Node::new());
    wire(&a.host, &b.host);
    let (one, two) = (a.pod(1, HERE, 1, 1500), b.pod(2, THERE, 2, 1500));
    for (node, network) in [(&a, HERE), (&b, THERE)] {
        node.uplink(network, UPLINK, uplink(1500, Transport::Bridged { vlan: 0 }));
        node.uplink(network, UPLINK, uplink(1500, Transport::Bridged { vlan: 9 }));
    }
    a.knows(HERE, &two, None);
    b.knows(THERE, &one, None);
    assert!(answers(&one.netns, "", two.address(true)));

    let again = std::sync::Arc::new(b.open_again());
    let ifindex = b.host.ifindex(UPLINK);
    let found = again.uplinks().unwrap();
    let expected = NetworkUplink { ifindex, mtu: 1500, transport: Transport::Bridged { vlan: 9 } };
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [(THERE, expected)]);
    let upgrade = again.upgrade().unwrap();
    assert!(upgrade.failed.is_empty(), "{:?}", upgrade.failed);
    let inside = std::sync::Arc::clone(&again);
    b.host.run(move || {
        for _ in 0..2 {
            inside.attach_uplink(ifindex).unwrap();
        }
        let programs =
            std::process::Command::new("ip").args(["-d", "link", "show", UPLINK]).output().unwrap();
        assert!(programs.status.success());
    });
    assert!(answers(&one.netns, "", two.address(false)));

    let gateway = Transport::Routed { mac: MacAddr([2; 6]), v4: "10.9.0.2".parse().ok(), v6: None };
    let taken = again.set_uplink(THERE, &NetworkUplink { transport: gateway, ..expected }).unwrap_err();
    assert!(format!("{taken:?}").contains("10.9.0.2 is a member's"), "{taken:?}");
    let taken = again.set_uplink(THERE + 1, &expected).unwrap_err();
    assert!(format!("{taken:?}").contains("network 8"), "{taken:?}");
    again.remove_uplink(THERE).unwrap();
    again.remove_uplink(THERE).unwrap();
    assert!(again.uplinks().unwrap().is_empty());
    assert!(silent(&one.netns, "", two.address(true)));
    let inside = std::sync::Arc::clone(&again);
    b.host.run(move || {
        inside.detach_uplink(ifindex).unwrap();
        inside.detach_uplink(ifindex).unwrap();
    });
}
