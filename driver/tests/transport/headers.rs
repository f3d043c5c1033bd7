//! Who puts the tunnels' headers on and takes them off.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use netferry::datapath::Datapath as _;
use nix::sys::socket::{MsgFlags, send};
use serde_json::Value;

use crate::netns::NetNs;
use crate::packets::able;
use crate::task::{Task, until};
use crate::world::{Node, Pod, UPLINK, answers, stream};
use crate::{ENDS, ENDS_V6, SOME, TUNNEL, overlays, two_nodes};

/// As many as take far longer than frames wait behind one that goes by the device, which a flow has each second.
const EXCHANGES: u64 = 2000;

/// Frames that went into the device of tunnels, and came out.
fn through_device(node: &Node) -> [u64; 2] {
    let shown: Value = serde_json::from_str(&node.host.ip(&format!("-s -j link show {TUNNEL}"))).unwrap();
    ["tx", "rx"].map(|way| shown[0]["stats64"][way]["packets"].as_u64().unwrap())
}

/// Frames of a pod that left for a tunnel, and came out of one, past the host's stack.
fn short_ways(node: &Node, endpoint: u32) -> [u64; 2] {
    let stats = node.datapath.stats(endpoint).unwrap();
    [stats.from_pod.overlay, stats.to_pod.overlay]
}

/// Sends messages of these sizes over one connection, each in segments of its own, and looks at every byte. `turns`: each after the
/// answer to the one before.
fn talk(from: &NetNs, to: &NetNs, address: IpAddr, sizes: Vec<usize>, turns: bool) {
    let listener = to.run(move || TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let (expected, byte) = (sizes.clone(), |nth: usize, at: usize| u8::try_from((nth + at) % 251).unwrap());
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        for (nth, size) in expected.into_iter().enumerate() {
            let mut message = vec![0; size];
            stream.read_exact(&mut message).unwrap();
            assert!(message.iter().enumerate().all(|(at, found)| *found == byte(nth, at)), "message {nth}");
            if turns {
                stream.write_all(&[byte(nth, 1)]).unwrap();
            }
        }
    });
    from.run(move || {
        let mut stream = TcpStream::connect((address, port)).unwrap();
        stream.set_nodelay(true).unwrap();
        for (nth, size) in sizes.into_iter().enumerate() {
            let message: Vec<u8> = (0..size).map(|at| byte(nth, at)).collect();
            let mut rest = &message[..];
            while !rest.is_empty() {
                rest = &rest[send(stream.as_raw_fd(), rest, MsgFlags::MSG_EOR).unwrap()..];
            }
            if turns {
                let mut answer = [0];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [byte(nth, 1)]);
            }
        }
    });
    other.join().unwrap();
}

#[test]
fn programs_put_headers_on_and_take_them_off() {
    if !able("programs_put_headers_on_and_take_them_off") {
        return;
    }
    let ([a, b], [one, two], _) = two_nodes(ENDS);
    let here = Task::start(&a, "n1", ENDS[0], &overlays(0));
    let there = Task::start(&b, "n2", ENDS[1], &overlays(1));
    for (node, end) in [(&a, ENDS[0]), (&b, ENDS[1])] {
        until("programs make headers", || node.datapath.tunnel_ends().unwrap().is_some());
        let ends = node.datapath.tunnel_ends().unwrap().unwrap();
        assert_eq!((ends.address.to_string(), ends.port), (end.to_owned(), 4789));
        assert!(node.datapath.borders().unwrap().underlays.contains(&ends.link));
    }
    // Without anybody who sees to it.
    drop((here.kill(), there.kill()));
    for v4 in [true, false] {
        assert!(answers(&one.netns, "", two.address(v4)) && answers(&two.netns, "", one.address(v4)));
        let nodes = [(&a, 1), (&b, 2)];
        let before = nodes.map(|(node, _)| through_device(node));
        let counted = nodes.map(|(node, endpoint)| short_ways(node, endpoint));
        talk(&one.netns, &two.netns, two.address(v4), vec![1; usize::try_from(EXCHANGES).unwrap()], true);
        for (at, (node, endpoint)) in nodes.into_iter().enumerate() {
            let [sent, received] = through_device(node);
            assert_eq!(sent, before[at][0], "nothing leaves by the device");
            let [left, entered] = short_ways(node, endpoint);
            assert!(left - counted[at][0] > EXCHANGES / 2, "{left} left, {:?} before", counted[at]);
            assert!(entered - counted[at][1] > EXCHANGES / 2, "{entered} came in, {:?} before", counted[at]);
            let others = received - before[at][1];
            assert!(others < EXCHANGES / 2, "{others} frames came in by the device");
        }
        // Large ones come in by the device, and small ones behind them.
        talk(&one.netns, &two.netns, two.address(v4), [40_000, 1, 100, 65_000].repeat(200), false);
        assert_eq!(stream(&two.netns, &one.netns, one.address(v4), 10 * SOME), 10 * SOME);
    }
}

#[test]
fn headers_are_left_to_the_device_where_they_must_be() {
    if !able("headers_are_left_to_the_device_where_they_must_be") {
        return;
    }
    let ([a, b], [one, two], _) = two_nodes(ENDS);
    let here = Task::start(&a, "n1", ENDS[0], &overlays(0));
    let there = Task::start_with_device(&b, "n2", ENDS[1], &overlays(1));
    let programs = |node: &Node| node.datapath.tunnel_ends().unwrap().is_some();
    until("programs make headers where they may", || programs(&a));
    until("the other node is ready", || answers(&one.netns, "", two.address(true)));
    assert!(!programs(&b) && b.datapath.borders().unwrap().underlays.is_empty());
    let leaves_by_device = |node: &Node, from: &Pod, to: &Pod| {
        let [before, _] = through_device(node);
        for v4 in [true, false] {
            assert!(answers(&from.netns, "", to.address(v4)));
            assert_eq!(stream(&from.netns, &to.netns, to.address(v4), SOME), SOME);
        }
        through_device(node)[0] - before
    };
    assert_eq!(leaves_by_device(&a, &one, &two), 0);
    assert!(leaves_by_device(&b, &two, &one) > 10);

    // What a policy wants encrypted must not leave beside it. This one is about other addresses.
    let policy = "src 192.0.2.0/24 dst 192.0.2.0/24 dir out";
    a.host.ip(&format!("xfrm policy add {policy} tmpl proto esp mode transport"));
    let bare = || a.datapath.borders().unwrap().underlays.is_empty();
    until("the device makes headers", || !programs(&a) && bare());
    assert!(leaves_by_device(&a, &one, &two) > 10);
    a.host.ip(&format!("xfrm policy delete {policy}"));
    until("programs make headers again", || programs(&a));
    assert_eq!(leaves_by_device(&a, &one, &two), 0);

    // The next hop is an IPv6 address.
    a.host.ip(&format!("route add {}/32 via inet6 {} dev {UPLINK} src {}", ENDS[1], ENDS_V6[1], ENDS[0]));
    assert!(leaves_by_device(&a, &one, &two) > 10);
    a.host.ip(&format!("route delete {}/32", ENDS[1]));
    assert_eq!(leaves_by_device(&a, &one, &two), 0);

    // The host's routes lead over another link than that between the nodes.
    a.host.ip(&format!("link add u9 type veth peer name u9 netns {}", b.host.name));
    for (node, last) in [(&a, 1), (&b, 2)] {
        node.host.ip(&format!("addr add 10.79.0.{last}/24 dev u9"));
        node.host.ip("link set u9 up");
    }
    a.host.ip(&format!("route add {}/32 via 10.79.0.2 src {}", ENDS[1], ENDS[0]));
    assert!(leaves_by_device(&a, &one, &two) > 10);

    here.set_ports(&[]);
    until("nothing is left", || !programs(&a) && bare());
    drop((here.kill(), there.kill()));
}
