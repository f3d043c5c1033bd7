//! Overlay networks whose nodes speak IPv6 with each other, as `--overlay-address` has them do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use netferry::network::transport::TUNNEL;

use crate::netns::{NetNs, Veth};
use crate::packets::{Raw, able, udp_frame};
use crate::task::{Task, until};
use crate::world::{Node, UPLINK, answers, ping, silent, stream};
use crate::{BLUE, ENDS_V6, SOME, VNI, mac, overlays, two_nodes};

/// Ethernet and IPv6: where UDP begins.
const UDP: usize = 14 + 40;

/// Frames on a wire since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
struct OnTheWire {
    /// Of tunnels over IPv6, by VNI.
    tunnelled: BTreeMap<u32, usize>,
    /// Of those, the ones with no UDP checksum, which IPv6 needs (RFC 8200, section 8.1), or not between the two nodes.
    wrong: usize,
    /// IPv4 on the wire, and what is of a network outside of a tunnel.
    others: usize,
}

fn look(raw: &Raw) -> OnTheWire {
    let ends = ENDS_V6.map(|end| end.parse::<Ipv6Addr>().unwrap().octets());
    let seen = RefCell::new(OnTheWire::default());
    raw.received(|frame| {
        let seen = &mut *seen.borrow_mut();
        let is_udp = frame[12..14] == [0x86, 0xdd] && frame[20] == 17;
        if is_udp && frame[UDP + 2..UDP + 4] == 4789_u16.to_be_bytes() {
            let vni = u32::from_be_bytes([0, frame[UDP + 12], frame[UDP + 13], frame[UDP + 14]]);
            *seen.tunnelled.entry(vni).or_default() += 1;
            let between = ends.iter().all(|end| frame[22..54].chunks(16).any(|address| address == end));
            seen.wrong += usize::from(!between || frame[UDP + 6..UDP + 8] == [0, 0]);
            return true;
        }
        seen.others += usize::from(match frame[12..14] {
            [0x08, 0] => true,
            [0x86, 0xdd] => [22, 38].iter().any(|at| frame[*at..at + 2] == [0xfd, 0x09]),
            _ => false,
        });
        true
    });
    seen.into_inner()
}

/// All that was seen is of this network's tunnels, and that is no less than `least` frames.
#[track_caller]
fn assert_only(raw: &Raw, vni: u32, least: usize) {
    let seen = look(raw);
    let count = seen.tunnelled.get(&vni).copied().unwrap_or(0);
    assert!(count >= least, "{seen:?}");
    let only = OnTheWire { tunnelled: BTreeMap::from([(vni, count)]), ..OnTheWire::default() };
    assert_eq!(seen, only);
}

#[test]
fn overlay_networks_go_on_over_ipv6() {
    if !able("overlay_networks_go_on_over_ipv6") {
        return;
    }
    let ([a, b], [one, two], [red, rouge]) = two_nodes(ENDS_V6);
    let here = Task::start(&a, "n1", ENDS_V6[0], &overlays(0));
    let there = Task::start(&b, "n2", ENDS_V6[1], &overlays(1));
    for (node, task) in [(&a, &here), (&b, &there)] {
        until("both networks go on", || node.datapath.uplinks().unwrap().len() == 2);
        until("nothing is wrong", || task.trouble("blue").is_none() && task.trouble("red").is_none());
        let shown = node.host.ip(&format!("-d link show {TUNNEL}"));
        assert!(shown.contains("external") && shown.contains("mtu 1430"), "{shown}");
    }

    let raw = b.host.run(|| Raw::new(UPLINK));
    for v4 in [true, false] {
        assert!(answers(&one.netns, "", two.address(v4)), "there");
        assert!(answers(&two.netns, "", one.address(v4)), "and back");
        assert_only(&raw, VNI, 4);
        assert!(answers(&red.netns, "", rouge.address(v4)), "the other network");
        assert!(silent(&red.netns, "", two.address(v4)), "which has no such member");
        assert_only(&raw, VNI + 1, 2);
        // 1438 bytes: they fit the port, and not the tunnel.
        let size = if v4 { 1410 } else { 1390 };
        let said = ping(&one.netns, &format!("-M do -s {size}"), two.address(v4)).unwrap_err();
        assert!(said.contains("1430"), "{said}");
        assert_eq!(look(&raw), OnTheWire::default(), "what does not fit does not leave");
        assert_eq!(stream(&one.netns, &two.netns, two.address(v4), SOME), SOME);
        assert_eq!(stream(&two.netns, &one.netns, one.address(v4), SOME), SOME);
        look(&raw);
    }
    spoofed(&b, &two.netns);

    // Nobody sees to it: all goes on. Somebody does again: it is as it was.
    let (ways, index) = (b.datapath.uplinks().unwrap(), b.host.ifindex(TUNNEL));
    drop(there.kill());
    assert!(answers(&one.netns, "", two.address(true)) && answers(&red.netns, "", rouge.address(false)));
    let there = Task::start(&b, "n2", ENDS_V6[1], &overlays(1));
    until("a run is over", || there.runs() > 0);
    assert_eq!((b.datapath.uplinks().unwrap(), b.host.ifindex(TUNNEL)), (ways, index));
    // Another source for tunnels to the other node, which drops what comes from there.
    b.host.ip(&format!("addr add fd77::3/64 dev {UPLINK} nodad"));
    b.host.ip(&format!("route add {}/128 dev {UPLINK} src fd77::3", ENDS_V6[0]));
    until("it is told", || there.trouble("blue").is_some_and(|said| said.contains("leave from fd77::3")));
    b.host.ip(&format!("route del {}/128", ENDS_V6[0]));
    b.host.ip(&format!("addr del fd77::3/64 dev {UPLINK}"));
    until("and well again", || there.trouble("blue").is_none());
    there.set_ports(&[]);
    until("the device goes with the last network", || b.host.link(TUNNEL).is_none());
    assert!(b.datapath.uplinks().unwrap().is_empty());
    assert!(silent(&one.netns, "", two.address(true)) && silent(&one.netns, "", two.address(false)));
}

/// A host that is no node sends in the name of a member, over IPv6, and over IPv4 in that of its node.
fn spoofed(b: &Node, to: &NetNs) {
    let third = NetNs::new();
    Veth::pair(&b.host, "u1", &third, "u1");
    for (host, last) in [(&b.host, 2), (&third, 3)] {
        host.ip(&format!("addr add fd78::{last}/64 dev u1 nodad"));
        host.ip(&format!("addr add 10.78.0.{last}/24 dev u1"));
        host.ip("link set u1 up");
    }
    third.ip("route add fd77::/64 via fd78::2");
    third.ip("route add 10.77.0.0/24 via 10.78.0.2");
    let mut data = vec![0x08, 0, 0, 0];
    data.extend((VNI << 8).to_be_bytes());
    data.extend(udp_frame(mac(BLUE[0], 1), mac(BLUE[1], 2), "10.9.0.1", "10.9.0.2"));
    let inside = to.run(|| Raw::new("eth0"));
    let dropped = || b.datapath.network_drops(BLUE[1]).unwrap().get("outer_source").copied().unwrap_or(0);
    for end in [ENDS_V6[1], "10.77.0.2"] {
        let end: IpAddr = end.parse().unwrap();
        let before = dropped();
        until("what a third host sends is dropped and counted", || {
            let data = data.clone();
            third.run(move || {
                let any: IpAddr = if end.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
                // Until its own addresses are settled, it cannot.
                let _ = UdpSocket::bind((any, 0)).unwrap().send_to(&data, (end, 4789));
            });
            dropped() > before
        });
    }
    assert_eq!(inside.received(|frame| frame[12..14] == [0x08, 0] && frame[23] == 17), 0);
}
