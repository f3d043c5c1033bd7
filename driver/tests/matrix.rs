//! Who can reach whom with what, in real namespaces: every destination, address family, kind of frame and lie of the
//! sender is a cell, and each is asserted against a table of its own. Needs root; skips without, and says so.
#![allow(missing_docs, reason = "a test binary")]

#[path = "matrix/canary.rs"]
mod canary;
#[path = "matrix/cells.rs"]
mod cells;
#[path = "matrix/frames.rs"]
mod frames;
#[path = "datapath/world.rs"]
mod host;
#[path = "matrix/oracle.rs"]
mod oracle;
#[path = "matrix/sockets.rs"]
mod sockets;
#[path = "matrix/tap.rs"]
mod tap;
#[path = "matrix/world.rs"]
mod world;

use netferry::datapath::{Datapath as _, Placement};
use netferry::link::MacAddr;

use cells::Matrix;
use host::{able, ifindex, run};
use oracle::{Destination, Kind, Sender, on_a_network, on_a_wire};
use tap::Tap;
use world::{Node, PEER, POD, SENDER, spec, station_at};

/// The pod's packet sockets.
fn senders(node: &Node) -> [Tap; 2] {
    node.within("pod", || [Tap::new("eth0"), Tap::new("eth0").bypass()])
}

#[test]
fn every_cell_of_a_pod_on_an_isolated_network() {
    if !able("every_cell_of_a_pod_on_an_isolated_network") {
        return;
    }
    let mut node = Node::new();
    for (of, to) in [("pod", None), ("peer", Some(Destination::Same)), ("other", Some(Destination::Other))] {
        node.pair(of, &to.map_or(POD, station_at));
    }
    node.uplink();
    node.tap("h-pod");
    let from = senders(&node);
    // Without programs everything gets everywhere, so that what follows is their doing.
    for to in Destination::ALL {
        for v4 in [true, false] {
            cells::reaches_without_programs(&node, &from[0], to, v4);
        }
    }
    let datapath = node.datapath();
    Node::protect(&datapath);
    let mut matrix = Matrix::new(&node, &datapath, SENDER, &from);
    for to in Destination::ALL {
        for v4 in [true, false] {
            for kind in Kind::ALL {
                for sender in Sender::ALL {
                    matrix.check(to, v4, kind, sender, on_a_network(to, v4, kind, sender));
                }
            }
            sockets::check(&node, &datapath, to, v4, to == Destination::Same);
        }
    }
    matrix.finish("a pod on an isolated network", 240);
}

#[test]
fn every_cell_of_a_pod_with_a_link_of_the_host() {
    if !able("every_cell_of_a_pod_with_a_link_of_the_host") {
        return;
    }
    let mut node = Node::new();
    let datapath = node.datapath();
    // The wire's other end is a machine of its own, which would have to route to all other destinations.
    let (pod, peer) = (node.space("pod"), node.space("peer"));
    let (pod_mac, peer_mac) = (MacAddr(POD.mac), MacAddr(PEER.mac));
    run(&format!(
        "ip link add link0 address {pod_mac} type veth peer name eth0 address {peer_mac} netns {peer}"
    ));
    datapath.attach(ifindex("link0"), &spec(SENDER, Placement::MovedLink, 0, &POD)).expect("attach");
    run(&format!("ip link set link0 netns {pod} name eth0"));
    node.inside("peer", &PEER, pod_mac);
    node.inside("pod", &POD, peer_mac);
    datapath.set_ready(SENDER, true).expect("ready");
    let wire = node.within("peer", || Tap::new("eth0"));
    node.taps.extend([(Destination::Same, wire)]);
    let from = senders(&node);
    let mut matrix = Matrix::new(&node, &datapath, SENDER, &from);
    for to in Destination::ALL {
        for v4 in [true, false] {
            for kind in Kind::ALL {
                for sender in Sender::ALL {
                    matrix.check(to, v4, kind, sender, on_a_wire(v4, kind, sender));
                }
            }
        }
    }
    for v4 in [true, false] {
        sockets::check(&node, &datapath, Destination::Same, v4, true);
    }
    matrix.finish("a pod with a link of the host", 240);
}
