//! More flows than fit.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use netferry::datapath::Datapath as _;
use netferry::datapath::limits::Limits;
use netferry::datapath::policy::Policy;

use crate::oracle::{Destination, Kind};
use crate::tap::Tap;
use crate::world::{MEMBER, PEER, POD, SENDER, station_at};
use crate::{THIRD, able, dropped, flows, network, patched, send_all, waited};

/// Flows that fit the table of these tests.
const ROOM: u16 = 1024;

/// Offset of the ports, and of the flags of TCP.
const PORTS: usize = 34;
const FLAGS: usize = 47;
const ACK: u8 = 16;

/// A SYN of the sender's, or what would follow it, with ports of its own.
fn segment(nth: u16, flags: u8) -> Vec<u8> {
    patched(Kind::Tcp, &POD, &PEER, &[(PORTS, &(2000 + nth).to_be_bytes()), (FLAGS, &[flags])])
}

fn answer(nth: u16, flags: u8) -> Vec<u8> {
    let ports = [80_u16.to_be_bytes(), (2000 + nth).to_be_bytes()].concat();
    patched(Kind::Tcp, &PEER, &POD, &[(PORTS, &ports), (FLAGS, &[flags])])
}

fn is_segment(frame: &[u8], flags: u8) -> bool {
    frame.len() > FLAGS && frame[12..14] == [8, 0] && frame[23] == 6 && frame[FLAGS] == flags
}

/// Twice as many flows as fit are opened and answered by one pod and its accomplice. It gets its share, and a connection of
/// somebody else that sleeps meanwhile lives on.
#[test]
fn one_pod_cannot_push_the_flows_of_others_out() {
    if !able("one_pod_cannot_push_the_flows_of_others_out") {
        return;
    }
    let (node, datapath) = network(Some(ROOM.into()));
    let peer = Ipv4Addr::from(PEER.v4);
    let listener = node.within("peer", move || TcpListener::bind((peer, 0)).expect("listen"));
    let to = listener.local_addr().expect("an address");
    let mut stream = node.within("other", move || TcpStream::connect(to).expect("connect"));
    let (mut accepted, _) = listener.accept().expect("accept");
    let mut talk = |word: &[u8; 4]| {
        let mut data = [0; 4];
        stream.write_all(word).expect("write");
        accepted.read_exact(&mut data).expect("read");
        assert_eq!(&data, word);
    };
    talk(b"ping");

    let pod = node.within("pod", || Tap::new("eth0"));
    let accomplice = node.within("peer", || Tap::new("eth0"));
    let mut opened = 0;
    send_all(&datapath, SENDER, &pod, (0..2 * ROOM).map(|nth| segment(nth, 2)), || {
        accomplice.send(&answer(opened, 2 | ACK));
        opened += 1;
    });
    let refused = u64::from(2 * ROOM - ROOM / 2);
    assert!(
        waited(|| dropped(&datapath, SENDER, "flow_limit") >= refused),
        "{} flows were refused",
        dropped(&datapath, SENDER, "flow_limit")
    );
    let table = flows(&node);
    let of = |station: crate::frames::Station| {
        let own = std::net::IpAddr::from(station.v4);
        table.iter().filter(|flow| flow.opener.0 == own).count()
    };
    assert_eq!(of(POD), usize::from(ROOM / 2), "half of the table is the most one may have");
    assert_eq!(of(station_at(Destination::Other)), 1);
    let drops = (dropped(&datapath, THIRD, "no_flow"), dropped(&datapath, MEMBER, "no_flow"));
    talk(b"pong");
    assert_eq!(drops, (dropped(&datapath, THIRD, "no_flow"), dropped(&datapath, MEMBER, "no_flow")));
    assert_eq!(drops.0, 0);
}

/// Where a pod may open more flows than fit, the kernel evicts. What was evicted is judged anew, and so an answer that was
/// let through for its flow alone is not any more.
#[test]
fn what_is_evicted_is_not_allowed() {
    if !able("what_is_evicted_is_not_allowed") {
        return;
    }
    let (node, datapath) = network(Some(ROOM.into()));
    let limits: Limits = serde_yaml_ng::from_str("openFlows: 1000000").expect("limits");
    datapath.set_limits(SENDER, &limits).expect("set");
    // The member may answer, and open nothing itself.
    let answers: Policy =
        serde_yaml_ng::from_str("egress: {rules: [{action: allow, peers: [{cidr: 192.0.2.0/24}]}]}")
            .expect("a policy");
    datapath.set_policy(MEMBER, &answers).expect("set");
    let pod = node.within("pod", || Tap::new("eth0"));
    let peer = node.within("peer", || Tap::new("eth0"));
    let mut came = 0;
    send_all(&datapath, SENDER, &pod, (0..2 * ROOM).map(|nth| segment(nth, 2)), || {
        came += peer.seen(|frame| is_segment(frame, 2));
    });
    assert!(
        waited(|| {
            came += peer.seen(|frame| is_segment(frame, 2));
            came == usize::from(2 * ROOM)
        }),
        "every flow was let open, not {came}"
    );
    let kept = flows(&node).len();
    assert!(kept <= ROOM.into() && kept > usize::from(ROOM / 2), "{kept}");
    // One kind can open a flow by itself and is judged as if it did, the other belongs to a flow or to nothing.
    for (flags, reason) in [(ACK, "policy_default"), (2 | ACK, "no_flow")] {
        let denied = || dropped(&datapath, MEMBER, reason);
        let (before, mut passed) = (denied(), 0);
        send_all(&datapath, MEMBER, &peer, (0..2 * ROOM).map(|nth| answer(nth, flags)), || {
            passed += pod.seen(|frame| is_segment(frame, flags));
        });
        assert!(
            waited(|| {
                passed += pod.seen(|frame| is_segment(frame, flags));
                passed as u64 + denied() - before == u64::from(2 * ROOM)
            }),
            "{passed} passed, {} were dropped as {reason}",
            denied() - before
        );
        assert!(passed <= kept, "{passed} answers passed, and there were {kept} flows");
        assert!(passed > 0 && denied() - before >= u64::from(ROOM));
    }
}
