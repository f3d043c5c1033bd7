//! What is particular to ports that are netkit pairs. Not part of a plain `cargo test`; `cargo xtask vm` runs it, and the
//! tests of ports with `NETFERRY_PORTS=netkit`, on kernels that have netkit.
#![allow(missing_docs, reason = "a test binary")]

#[path = "port/world.rs"]
mod pods;
mod support;
#[path = "matrix/tap.rs"]
#[allow(dead_code, reason = "the matrix uses the rest")]
mod tap;
#[path = "attach/world.rs"]
mod world;

use netferry::{
    attach::{Extent, Mended},
    config::Ports,
    datapath::Datapath as _,
    link::{
        LinkError, LinkRef, Links as _, MacAddr, Namespace, Pair, PairKind,
        kernel::{KernelLinks, can_make},
    },
};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoNetkit, LinkAttribute, LinkInfo, LinkMessage, NetkitPolicy},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use pods::{BLUE, Node, RED, port, v4, v6};
use support::netns::NetNs;
use tap::Tap;

/// A pair between two namespaces, with an address at each end.
async fn addressed(host: &NetNs, pod: &NetNs) -> (KernelLinks, u32, u32) {
    let links = KernelLinks::with_host(&host.path);
    let pair = Pair {
        kind: PairKind::Netkit,
        host_name: "port0".into(),
        pod: Namespace::at(&pod.path),
        pod_name: "net1".into(),
        pod_mac: MacAddr([2, 0, 0, 0, 0, 7]),
        mtu: 1400,
    };
    let ends = links.make_pair(&pair).await.expect("a pair");
    host.ip("addr add 192.0.2.1/24 dev port0");
    pod.ip("addr add 192.0.2.2/24 dev net1");
    (links, ends.host, ends.pod)
}

/// What `ip link set NAME type netkit policy blackhole peer policy blackhole` does; iproute2 of Debian 12 does not know
/// netkit.
fn close(ifindex: u32) {
    let data = [InfoNetkit::Policy(NetkitPolicy::Drop), InfoNetkit::PeerPolicy(NetkitPolicy::Drop)];
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    link.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Netkit),
        LinkInfo::Data(InfoData::Netkit(data.into())),
    ])];
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::NewLink(link)));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE).expect("a socket");
    socket.bind_auto().expect("bind");
    socket.connect(&SocketAddr::new(0, 0)).expect("connect");
    socket.send(&bytes, 0).expect("send");
    let (answer, _) = socket.recv_from_full().expect("an answer");
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).expect("an answer");
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => {}
        other => panic!("not closed: {other:?}"),
    }
}

fn passes(from: &NetNs, to: &str) -> bool {
    from.try_exec(&format!("ping -q -n -c 1 -W 1 {to}")).is_ok()
}

/// No program is on it.
#[tokio::test]
async fn a_pair_is_closed_by_itself_until_the_host_opens_it() {
    can_make(PairKind::Netkit).expect("a kernel with netkit");
    for ports in [Ports::Netkit, Ports::Auto] {
        assert_eq!(ports.choose().expect("a choice"), PairKind::Netkit);
    }
    let (host, pod) = (NetNs::new(), NetNs::new());
    let (links, host_end, pod_end) = addressed(&host, &pod).await;
    let facts = |namespace, end| {
        let links = links.clone();
        async move { links.get(&namespace, &LinkRef::Index(end)).await.expect("the link") }
    };
    let made = facts(Namespace::Host, host_end).await;
    assert_eq!(
        (made.kind.as_deref(), made.mtu, made.up, made.blackhole),
        (Some("netkit"), 1400, false, true)
    );
    let made = facts(Namespace::at(&pod.path), pod_end).await;
    assert_eq!((made.mac, made.mtu, made.up), (Some(MacAddr([2, 0, 0, 0, 0, 7])), 1400, false));
    host.ip("link set port0 up");
    pod.ip("link set net1 up");
    assert!(!passes(&pod, "192.0.2.1") && !passes(&host, "192.0.2.2"), "both ends are up, and closed");

    // From the pod it cannot be opened, by whomever: an end of the pair may be changed by the host's only.
    let inside = KernelLinks::with_host(&pod.path);
    match inside.open_pair(pod_end, PairKind::Netkit).await {
        Err(LinkError::Kernel { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied, "{source}");
        }
        other => panic!("{other:?}"),
    }
    assert!(facts(Namespace::Host, host_end).await.blackhole);
    assert!(!passes(&pod, "192.0.2.1"));

    host.ip("link set port0 down");
    links.open_pair(host_end, PairKind::Netkit).await.expect("open");
    let open = facts(Namespace::Host, host_end).await;
    assert_eq!((open.up, open.blackhole), (true, false), "open and up, in one step");
    assert!(passes(&pod, "192.0.2.1") && passes(&host, "192.0.2.2"));
    links.remove(&Namespace::Host, host_end).await.expect("delete");
    assert_eq!(pod.links(), Vec::<String>::new(), "the other end went with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_take_the_fast_path_and_nobody_else_is_reached() {
    let Some(pods) = Node::new("members_take_the_fast_path_and_nobody_else_is_reached", 3) else { return };
    for (nth, (net, last)) in [(BLUE, 7), (BLUE, 8), (RED, 9)].into_iter().enumerate() {
        let uid = format!("c{nth}");
        pods.claim(&uid, nth, vec![port(&uid, net, last, "net1")]);
    }
    let attacher = pods.places.attacher().making(PairKind::Netkit);
    let mut ids = Vec::new();
    for sandbox in pods.sandboxes() {
        let outcome = attacher.attach(&sandbox).await.expect("attach");
        let hooks: Vec<_> = outcome.attached[0].programs.iter().map(|it| it.hook.clone()).collect();
        assert_eq!(hooks, ["tcx/ingress", "tcx/egress"]);
        ids.push(outcome.attached[0].endpoint.expect("an endpoint"));
    }
    for link in pods.links().list(&Namespace::Host).await.expect("links") {
        assert!(link.name == "lo" || link.kind.as_deref() == Some("netkit"), "{link:?}");
    }
    for address in [v4(8), v6(8)] {
        assert!(pods.reaches(0, &address), "{address}");
    }
    for address in [v4(9), v6(9)] {
        assert!(!pods.reaches(0, &address), "{address} is red");
    }
    let stats = |nth: usize| pods.places.datapath().stats(ids[nth]).expect("counters");
    let before = (stats(0).from_pod, stats(1));
    pods.pods[0].exec(&format!("ping -q -n -c 20 -i 0.01 -W 5 {}", v4(8)));
    let (sent, answered) = (stats(0).from_pod, stats(1));
    assert!(sent.fast - before.0.fast >= 20, "the echo requests: {sent:?}");
    assert!(answered.from_pod.fast - before.1.from_pod.fast >= 20, "the answers: {answered:?}");
    assert_eq!(sent.slow, before.0.slow, "by no other way: {sent:?}");

    // A forged sender is stopped at the host's end.
    pods.pods[0].ip("addr add 10.78.0.66/24 dev net1");
    assert!(pods.pods[0].try_exec(&format!("ping -q -n -c 1 -W 1 -I 10.78.0.66 {}", v4(8))).is_err());
    assert!(stats(0).drops.contains_key("source_ipv4"), "{:?}", stats(0));

    // And what goes around the queue of the pod's end.
    let tap = pods.pods[0].run(|| Tap::new("net1").bypass());
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
    frame[12] = 8;
    let forged = || stats(0).drops.get("source_mac").copied().unwrap_or(0);
    let before = forged();
    for _ in 0..3 {
        tap.send(&frame);
    }
    assert_eq!(forged() - before, 3);

    // Closed by an administrator, it is opened again.
    let end = port("c0", BLUE, 7, "net1").host_link;
    let ifindex = pods.host.ifindex(&end);
    pods.host.run(move || close(ifindex));
    assert!(!pods.reaches(0, &v4(8)), "it is closed");
    let repairs = attacher.repair(Extent::Host).await;
    let found: Vec<_> = repairs.iter().map(|it| (it.found.item(), it.mended.clone())).collect();
    assert_eq!(found, [("host_policy", Mended::Repaired)]);
    assert_eq!(attacher.repair(Extent::Everywhere).await, []);
    assert!(pods.reaches(0, &v4(8)), "it is open");

    // A daemon that makes veth pairs keeps it.
    let later = pods.places.attacher().making(PairKind::Veth);
    let kept = later.recover(&pods.sandboxes()).await;
    assert_eq!((kept.attached.len(), kept.problems), (3, vec![]));
    assert!(pods.reaches(0, &v4(8)), "after the restart");
    for nth in 0..3 {
        assert_eq!(later.give_back(&format!("s{nth}")).await.problems, []);
    }
    pods.assert_nothing_left("after the return");
}
