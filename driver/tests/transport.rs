//! What sees to it that networks go on beyond their nodes, on a real kernel: two nodes, each with links, pins and pods of
//! its own, and the wire between them. Needs root; skips without, and says so.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test binary")]

#[path = "transport/headers.rs"]
mod headers;
#[path = "support/netns.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod netns;
#[path = "transport/over_ipv6.rs"]
mod over_ipv6;
#[path = "datapath/world.rs"]
mod packets;
#[path = "transport/routed.rs"]
mod routed;
#[path = "transport/task.rs"]
mod task;
#[path = "uplink/world.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod world;

use std::cell::Cell;
use std::net::UdpSocket;

use netferry::link::MacAddr;
use netferry::network::transport::TUNNEL;
use netns::{NetNs, Veth};
use packets::{Raw, able, udp_frame};
use serde_json::json;
use task::{Net, Task, until};
use world::{Node, Pod, UPLINK, answers, silent, stream, wire};

/// Numbers of networks; another node may have others for the same.
const BLUE: [u32; 2] = [7, 8];
const RED: [u32; 2] = [9, 10];
const VNI: u32 = 0x00ab_cdef;
const ENDS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const ENDS_V6: [&str; 2] = ["fd77::1", "fd77::2"];
const SOME: usize = 2_000_000;

fn overlays(node: usize) -> [Net; 2] {
    [
        Net { id: BLUE[node], name: "blue", transport: json!({"overlay": {"vni": VNI}}) },
        Net { id: RED[node], name: "red", transport: json!({"overlay": {"vni": VNI + 1}}) },
    ]
}

/// Frames on a wire since the last look: those of a network's tunnels, and others that are IPv4 or of a network.
fn on_the_wire(raw: &Raw, vni: u32) -> (usize, usize) {
    let ours = Cell::new(0);
    let others = raw.received(|frame| {
        let udp = frame[12..14] == [0x08, 0] && frame[23] == 17;
        let tunnelled = udp && frame[36..38] == 4789_u16.to_be_bytes();
        if tunnelled && frame[46..49] == vni.to_be_bytes()[1..] {
            ours.set(ours.get() + 1);
            return false;
        }
        match frame[12..14] {
            [0x08, 0] => true,
            // The hosts speak IPv6 of their own.
            [0x86, 0xdd] => [22, 38].iter().any(|at| frame[*at..at + 2] == [0xfd, 0x09]),
            _ => false,
        }
    });
    (ours.get(), others)
}

/// The hardware address of a pod.
fn mac(network: u32, last: u8) -> MacAddr {
    MacAddr([2, 0x4e, 0x46, 0, u8::try_from(network).unwrap(), last])
}

/// What a third host sends into a tunnel in the name of a member.
fn spoof(third: &NetNs, inner: Vec<u8>) {
    third.run(move || {
        let mut data = vec![0x08, 0, 0, 0];
        data.extend((VNI << 8).to_be_bytes());
        data.extend(inner);
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&data, (ENDS[1], 4789)).unwrap();
    });
}

/// Two nodes that know of each other's pods, those of `blue` and then those of `red`: the same subnet, and one address twice.
fn two_nodes(ends: [&str; 2]) -> ([Node; 2], [Pod; 2], [Pod; 2]) {
    let (a, b) = (Node::new(), Node::new());
    wire(&a.host, &b.host);
    let (one, two) = (a.pod(1, BLUE[0], 1, 1450), b.pod(2, BLUE[1], 2, 1450));
    let (red, rouge) = (a.pod(3, RED[0], 3, 1450), b.pod(4, RED[1], 1, 1450));
    for (node, id, pod, end) in [
        (&a, BLUE[0], &two, ends[1]),
        (&b, BLUE[1], &one, ends[0]),
        (&a, RED[0], &rouge, ends[1]),
        (&b, RED[1], &red, ends[0]),
    ] {
        node.knows(id, pod, Some(end));
    }
    ([a, b], [one, two], [red, rouge])
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
fn overlay_networks_are_set_up_and_taken_down() {
    if !able("overlay_networks_are_set_up_and_taken_down") {
        return;
    }
    let ([a, b], [one, two], [red, rouge]) = two_nodes(ENDS);
    // Somebody's own device of that name is left alone, and said.
    a.host.ip(&format!("link add {TUNNEL} type veth peer name other"));
    let here = Task::start(&a, "n1", ENDS[0], &overlays(0));
    let there = Task::start(&b, "n2", ENDS[1], &overlays(1));
    until("the trouble is told", || here.trouble("blue").is_some_and(|said| said.contains("left alone")));
    assert!(here.events().contains("TransportFailed"), "{}", here.events());
    assert!(a.host.ip(&format!("-d link show {TUNNEL}")).contains("veth"));
    assert!(silent(&one.netns, "", two.address(true)));
    a.host.ip(&format!("link delete {TUNNEL}"));
    for (node, task) in [(&a, &here), (&b, &there)] {
        until("both networks go on", || node.datapath.uplinks().unwrap().len() == 2);
        until("nothing is wrong", || task.trouble("blue").is_none() && task.trouble("red").is_none());
        let shown = node.host.ip(&format!("-d link show {TUNNEL}"));
        for part in ["external", "dstport 4789", "nolearning", "mtu 1450", ",UP"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!node.host.ip(&format!("addr show {TUNNEL}")).contains("inet"));
    }

    let raw = b.host.run(|| Raw::new(UPLINK));
    for v4 in [true, false] {
        assert!(answers(&one.netns, "", two.address(v4)), "there");
        assert!(answers(&two.netns, "", one.address(v4)), "and back");
    }
    let (blue, others) = on_the_wire(&raw, VNI);
    assert!(blue >= 8 && others == 0, "{blue} of the network, {others} others");
    for v4 in [true, false] {
        assert_eq!(stream(&one.netns, &two.netns, two.address(v4), SOME), SOME);
        assert_eq!(stream(&two.netns, &one.netns, one.address(v4), SOME), SOME);
    }
    on_the_wire(&raw, VNI);
    for v4 in [true, false] {
        assert!(answers(&red.netns, "", rouge.address(v4)), "the other network");
        assert!(silent(&red.netns, "", two.address(v4)), "which has no such member");
    }
    let (red_ones, others) = on_the_wire(&raw, VNI + 1);
    assert!(red_ones >= 4 && others == 0, "{red_ones} of the network, {others} others");

    // A host that is no node, in the name of a member.
    let third = NetNs::new();
    Veth::pair(&b.host, "u1", &third, "u1");
    for (host, last) in [(&b.host, 2), (&third, 3)] {
        host.ip(&format!("addr add 10.78.0.{last}/24 dev u1"));
        host.ip("link set u1 up");
    }
    third.ip("route add 10.77.0.0/24 via 10.78.0.2");
    let dropped = || b.datapath.network_drops(BLUE[1]).unwrap().get("outer_source").copied().unwrap_or(0);
    let before = dropped();
    let inside = two.netns.run(|| Raw::new("eth0"));
    until("what a third host sends is dropped and counted", || {
        spoof(&third, udp_frame(mac(BLUE[0], 1), mac(BLUE[1], 2), "10.9.0.1", "10.9.0.2"));
        dropped() > before
    });
    assert_eq!(inside.received(|frame| frame[12..14] == [0x08, 0] && frame[23] == 17), 0);

    // Nobody sees to it: all goes on. Somebody does again: it is as it was.
    let (ways, index) = (b.datapath.uplinks().unwrap(), b.host.ifindex(TUNNEL));
    there.kill();
    assert!(answers(&one.netns, "", two.address(true)) && answers(&red.netns, "", rouge.address(false)));
    let there = Task::start(&b, "n2", ENDS[1], &overlays(1));
    until("a run is over", || there.runs() > 0);
    assert_eq!((b.datapath.uplinks().unwrap(), b.host.ifindex(TUNNEL)), (ways, index));
    assert!(answers(&one.netns, "", two.address(false)));
    // What somebody changes is repaired.
    b.host.ip(&format!("link delete {TUNNEL}"));
    until("the device is made again", || answers(&one.netns, "", two.address(true)));
    assert_ne!(b.host.ifindex(TUNNEL), index);

    // While nobody looks, red loses its ports: what is left of it goes with the next start.
    there.kill();
    let there = Task::start(&b, "n2", ENDS[1], &overlays(1)[..1]);
    until("red is gone", || !b.datapath.uplinks().unwrap().contains_key(&RED[1]));
    assert!(silent(&red.netns, "", rouge.address(true)) && answers(&one.netns, "", two.address(true)));
    there.set_ports(&[]);
    until("the device goes with the last network", || b.host.link(TUNNEL).is_none());
    until("nothing is left", || b.datapath.borders().unwrap().tunnels.is_empty());
    assert!(b.datapath.uplinks().unwrap().is_empty());
    assert!(silent(&one.netns, "", two.address(true)));
}

#[test]
fn the_first_port_is_told_and_not_looked_for() {
    if !able("the_first_port_is_told_and_not_looked_for") {
        return;
    }
    let (a, b) = (Node::new(), Node::new());
    wire(&a.host, &b.host);
    let here = Task::start_idle(&a, "n1", ENDS[0], &overlays(0));
    for names in [["blue"], ["red"]] {
        until("nothing is there", || {
            a.host.link(TUNNEL).is_none() && a.datapath.uplinks().unwrap().is_empty()
        });
        here.set_ports(&names);
        until("it has its way", || a.datapath.uplinks().unwrap().len() == 1);
        here.set_ports(&[]);
    }
    until("the device goes with the last port", || a.host.link(TUNNEL).is_none());
}

fn over_a_vlan(id: u32, name: &'static str, vlan: u16) -> Net {
    let selector = format!(r#"device.attributes["netferry.dev"].ifName == "{UPLINK}""#);
    let uplink = json!({"selector": selector, "vlan": vlan});
    Net { id, name, transport: json!({"uplink": uplink}) }
}

/// Frames that a member of the node has sent since the last look: with this VLAN's tag, and without.
fn sent_with_tag(raw: &Raw, source: MacAddr, vlan: u8) -> (usize, usize) {
    let tagged = Cell::new(0);
    let others = raw.received(|frame| {
        let ours = frame[6..12] == source.0;
        let is_tagged = frame[12..16] == [0x81, 0, 0, vlan];
        tagged.set(tagged.get() + usize::from(ours && is_tagged));
        ours && !is_tagged
    });
    (tagged.get(), others)
}

fn is_promiscuous(host: &NetNs) -> bool {
    host.ip(&format!("link show {UPLINK}")).contains("PROMISC")
}

#[test]
fn networks_over_an_uplink_are_set_up_and_taken_down() {
    if !able("networks_over_an_uplink_are_set_up_and_taken_down") {
        return;
    }
    let (a, b) = (Node::new(), Node::new());
    wire(&a.host, &b.host);
    let (one, two) = (a.pod(1, BLUE[0], 1, 1500), b.pod(2, BLUE[1], 2, 1500));
    let red = a.pod(3, RED[0], 3, 1500);
    a.knows(BLUE[0], &two, None);
    b.knows(BLUE[1], &one, None);
    let nets = |node: usize| [over_a_vlan(BLUE[node], "blue", 100), over_a_vlan(RED[node], "red", 200)];
    // So that tags are in the frames that a packet socket sees going out.
    a.host.exec(&format!("ethtool -K {UPLINK} txvlan off"));
    // An administrator wants it promiscuous on one node.
    b.host.ip(&format!("link set {UPLINK} promisc on"));
    let here = Task::start(&a, "n1", ENDS[0], &nets(0));
    let there = Task::start(&b, "n2", ENDS[1], &nets(1));
    for node in [&a, &b] {
        until("both networks go on", || node.datapath.uplinks().unwrap().len() == 2);
    }
    assert!(is_promiscuous(&a.host) && is_promiscuous(&b.host));
    let raw = a.host.run(|| Raw::new(UPLINK));
    for v4 in [true, false] {
        assert!(answers(&one.netns, "", two.address(v4)), "there");
        assert!(answers(&two.netns, "", one.address(v4)), "and back");
        let tagged = sent_with_tag(&raw, mac(BLUE[0], 1), 100);
        assert!(tagged.0 >= 2 && tagged.1 == 0, "{tagged:?}");
        assert_eq!(stream(&one.netns, &two.netns, two.address(v4), SOME), SOME);
        assert_eq!(stream(&two.netns, &one.netns, one.address(v4), SOME), SOME);
        assert!(silent(&red.netns, "", two.address(v4)), "another VLAN");
    }
    assert!(answers(&a.host, "", ENDS[1]), "the untagged wire is the hosts'");

    here.kill();
    assert!(answers(&one.netns, "", two.address(true)));
    let here = Task::start(&a, "n1", ENDS[0], &nets(0));
    until("a run is over", || here.runs() > 0);
    assert!(answers(&one.netns, "", two.address(false)) && is_promiscuous(&a.host));
    a.host.ip(&format!("link set {UPLINK} down"));
    until("it is told", || here.trouble("blue").is_some_and(|said| said.contains("is down")));
    a.host.ip(&format!("link set {UPLINK} up"));
    until("and well again", || here.trouble("blue").is_none());

    there.set_ports(&[]);
    until("nothing is left", || b.datapath.borders().unwrap().uplinks.is_empty());
    assert!(b.datapath.uplinks().unwrap().is_empty() && silent(&one.netns, "", two.address(true)));
    assert!(is_promiscuous(&b.host), "as the administrator wants it");

    // The link goes, and with it the way.
    a.host.ip(&format!("link delete {UPLINK}"));
    until("it is told", || here.trouble("blue").is_some_and(|said| said.contains("no link")));
    until("nothing is left", || a.datapath.uplinks().unwrap().is_empty());
    until("nor a pin", || a.datapath.borders().unwrap().uplinks.is_empty());
}

#[test]
fn promiscuous_mode_is_taken_back_by_a_later_daemon() {
    if !able("promiscuous_mode_is_taken_back_by_a_later_daemon") {
        return;
    }
    let (a, far) = (Node::new(), NetNs::new());
    wire(&a.host, &far);
    let task = Task::start(&a, "n1", ENDS[0], &[over_a_vlan(BLUE[0], "blue", 100)]);
    until("it goes on", || a.datapath.uplinks().unwrap().len() == 1 && is_promiscuous(&a.host));
    let state = task.kill();
    let _task = Task::start_on(&a, "n1", ENDS[0], &[], state);
    until("it is taken back", || !is_promiscuous(&a.host));
    assert!(a.datapath.uplinks().unwrap().is_empty() && a.datapath.borders().unwrap().uplinks.is_empty());
}
