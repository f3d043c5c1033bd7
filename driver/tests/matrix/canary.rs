//! The fast path is taken: whatever would drop frames on their way through the host is not met.

use std::net::UdpSocket;

use aya::programs::LinkOrder;
use aya::programs::tc::{SchedClassifier, TcAttachOptions, TcAttachType};
use netferry::datapath::Datapath as _;

use crate::able;
use crate::cells::waited;
use crate::frames::{frames, is_of};
use crate::host::{ifindex, object_with, run};
use crate::oracle::{Destination, Kind};
use crate::tap::Tap;
use crate::world::{MEMBER, Node, PEER, POD, SENDER, station_at};

/// Frames of each family.
const FRAMES: u32 = 500;

/// Packets that a counter of nftables has counted.
fn counted(table: &str) -> u64 {
    let listed = run(&format!("nft list table {table}"));
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no counter in {listed}"))
}

#[test]
fn the_fast_path_meets_no_canary() {
    if !able("the_fast_path_meets_no_canary") {
        return;
    }
    let node = Node::new();
    node.pair("pod", &POD);
    node.pair("peer", &PEER);
    node.pair("other", &station_at(Destination::Other));
    let datapath = node.datapath();
    Node::protect(&datapath);
    // Each drops all it sees: a program after ours on the way out of the receiver's host end, as another driver would add
    // one, nftables there, and nftables before anything is routed.
    run("nft add table netdev egress");
    run("nft add chain netdev egress canary { type filter hook egress device h-peer priority 0 ; }");
    run("nft add rule netdev egress canary counter drop");
    run("nft add table inet stack");
    run("nft add chain inet stack canary { type filter hook prerouting priority -300 ; }");
    run("nft add rule inet stack canary counter drop");
    // TC_ACT_SHOT
    let object = object_with("classifier", 2);
    let mut object = aya::Ebpf::load_file(object.path()).expect("an object");
    let canary: &mut SchedClassifier =
        object.program_mut("passes").expect("it").try_into().expect("a classifier");
    canary.load().expect("load");
    let last = TcAttachOptions::TcxOrder(LinkOrder::last());
    canary.attach_with_options("h-peer", TcAttachType::Egress, last).expect("attach");
    datapath.verify_inside(MEMBER, ifindex("h-peer")).expect("our programs come first");

    let pod = node.within("pod", || Tap::new("eth0"));
    let peer = node.within("peer", || Tap::new("eth0"));
    let before = datapath.paths(SENDER).expect("counters");
    let mut arrived = 0;
    for v4 in [true, false] {
        for nth in 0..FRAMES {
            let (frame, so_far) = (&frames(Kind::Udp, v4, nth, &POD, &PEER)[0], arrived);
            // On a busy machine one may be lost before any program; it is in no counter then.
            let came = (0..3).any(|_| {
                pod.send(frame);
                waited(|| {
                    arrived += peer.seen(|frame| is_of(Kind::Udp, nth, &POD, &PEER, frame)) as u64;
                    arrived > so_far
                })
            });
            assert!(came, "frame {nth} did not arrive");
        }
    }
    assert_eq!(arrived, u64::from(2 * FRAMES));
    let after = datapath.paths(SENDER).expect("counters");
    assert_eq!(after.fast - before.fast, arrived, "{after:?}");
    assert_eq!(after.packets - before.packets, arrived, "{after:?}");
    assert_eq!((counted("netdev egress"), counted("inet stack")), (0, 0), "a canary was met");

    // The canaries are alive. What the host itself sends meets those of its stack,
    let host = UdpSocket::bind("0.0.0.0:0").expect("bind");
    for to in [PEER, station_at(Destination::Host)] {
        host.send_to(b"x", (std::net::Ipv4Addr::from(to.v4), 7)).map(drop).unwrap_or_default();
    }
    assert!(waited(|| counted("netdev egress") == 1 && counted("inet stack") == 1));
    // and fragments, which must take the receiver's own program, die behind it. The last frame comes after them.
    let to_peer = || datapath.stats(MEMBER).expect("stats").to_pod.packets;
    let passed = to_peer();
    for fragment in frames(Kind::Fragments, true, FRAMES, &POD, &PEER) {
        pod.send(&fragment);
    }
    assert!(waited(|| to_peer() == passed + 2));
    pod.send(&frames(Kind::Udp, true, FRAMES + 1, &POD, &PEER)[0]);
    let (mut last, mut fragments) = (0, 0);
    assert!(waited(|| {
        peer.seen(|frame| {
            last += u32::from(is_of(Kind::Udp, FRAMES + 1, &POD, &PEER, frame));
            fragments += u32::from(is_of(Kind::Fragments, FRAMES, &POD, &PEER, frame));
            false
        });
        last == 1
    }));
    assert_eq!(fragments, 0);
    let slow = datapath.paths(SENDER).expect("counters");
    assert_eq!((slow.fast - after.fast, slow.slow_fragment - after.slow_fragment), (1, 2));
}
