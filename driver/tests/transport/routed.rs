//! Networks whose node routes: set up and taken down as their object asks, and what they let out and in.

use std::net::Ipv6Addr;

use netferry::link::MacAddr;
use netferry::network::transport::GATEWAY_MAC;
use serde_json::json;

use crate::netns::{NetNs, Veth};
use crate::packets::{Raw, able, udp_frame};
use crate::task::{GATEWAYS, Net, Task, until};
use crate::world::{Node, Pod, UPLINK, answers, ping, silent, stream, wire};
use crate::{BLUE, ENDS, RED, SOME, is_promiscuous, mac, over_a_vlan};

/// A host behind the next router.
const FAR: [&str; 2] = ["198.51.100.1", "fd99::1"];
const ALLOW_OUT: &str = "egress: {rules: [{action: allow, peers: [{cidr: 0.0.0.0/0}, {cidr: '::/0'}]}]}";
const ALLOW_BOTH: &str = "
egress: {rules: [{action: allow, peers: [{cidr: 0.0.0.0/0}, {cidr: '::/0'}]}]}
ingress: {rules: [{action: allow, peers: [{cidr: 198.51.100.0/24}, {cidr: 'fd99::/64'}]}]}
";

fn over_routes(id: u32, name: &'static str) -> Net {
    let selector = format!(r#"device.attributes["netferry.dev"].ifName == "{UPLINK}""#);
    Net { id, name, transport: json!({"uplink": {"selector": selector, "mode": "routed"}}) }
}

fn local(id: u32, name: &'static str) -> Net {
    Net { id, name, transport: json!({"local": {}}) }
}

/// A router beyond the node, which knows that the network's subnets are there, and a host behind it. The node's own host
/// forwards nothing.
fn beyond(node: &Node) -> NetNs {
    let far = NetNs::new();
    wire(&node.host, &far);
    far.ip("addr add 198.51.100.1/32 dev lo");
    far.ip("addr add fd99::1/128 dev lo nodad");
    far.ip("link set lo up");
    far.ip("route add 10.9.0.0/24 via 10.77.0.1");
    far.ip("route add fd09::/64 via fd77::1");
    node.host.exec("sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    node.host.ip("route add default via 10.77.0.2");
    node.host.ip("route add default via fd77::2");
    far
}

/// As the plan of a port has it.
fn default_routes(pod: &Pod) {
    for gateway in GATEWAYS {
        pod.netns.ip(&format!("route add default via {gateway}"));
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
fn a_routed_network_is_set_up_and_taken_down() {
    if !able("a_routed_network_is_set_up_and_taken_down") {
        return;
    }
    let node = Node::new();
    let far = beyond(&node);
    let (one, two) = (node.pod(1, BLUE[0], 1, 1500), node.pod(2, BLUE[0], 2, 1500));
    // The same subnet on another network, whose policy lets it out, too.
    let red = node.pod(3, RED[0], 3, 1500);
    for pod in [&one, &two, &red] {
        default_routes(pod);
    }
    let nets = [over_routes(BLUE[0], "blue"), local(RED[0], "red")];
    let task = Task::start(&node, "n1", ENDS[0], &nets);
    until("it goes on", || node.datapath.uplinks().unwrap().len() == 1);
    until("nothing is wrong", || task.runs() > 0 && task.trouble("blue").is_none());
    assert!(!is_promiscuous(&node.host), "what is routed comes to the node's own address");
    for (to, gateway) in FAR.into_iter().zip(GATEWAYS) {
        assert!(answers(&one.netns, "", gateway), "the gateway is the node");
        assert!(silent(&one.netns, "", to), "no member, and no rule");
    }
    let neighbour = one.netns.ip(&format!("neigh show {}", GATEWAYS[0]));
    assert!(neighbour.contains(&GATEWAY_MAC.to_string()), "{neighbour}");

    for pod in [&one, &two, &red] {
        node.policy(pod, ALLOW_OUT);
    }
    for (v4, (to, gateway)) in [true, false].into_iter().zip(FAR.into_iter().zip(GATEWAYS)) {
        assert!(answers(&one.netns, "", to), "{to}");
        assert!(answers(&one.netns, "", two.address(v4)), "members of the node, as before");
        assert!(silent(&far, "", one.address(v4)), "nobody may open a flow from there");
        assert!(silent(&red.netns, "", to) && silent(&red.netns, "", one.address(v4)), "another network");
        let said = ping(&one.netns, "-t 1", to).unwrap_err();
        let told = said.contains("ime to live exceeded") || said.contains("Hop limit");
        assert!(told && said.contains(&format!("From {gateway}")), "{said}");
        let said = ping(&one.netns, "-t 2", to).unwrap();
        assert!(said.contains("ttl=63"), "one hop on the way back: {said}");
        assert_eq!(stream(&one.netns, &far, to.parse().unwrap(), SOME), SOME);
    }
    let rules = [ALLOW_BOTH, ALLOW_OUT, ALLOW_BOTH];
    for (pod, rules) in [&one, &two, &red].into_iter().zip(rules) {
        node.policy(pod, rules);
    }
    for (from, v4) in FAR.into_iter().zip([true, false]) {
        let options = format!("-I {from}");
        assert!(answers(&far, &options, one.address(v4)), "a rule lets it in");
        assert!(silent(&far, &options, two.address(v4)), "for one of two");
        assert!(silent(&far, &options, red.address(v4)), "it is no wire of the other network");
        assert!(silent(&far, "", one.address(v4)), "and only from where the rule says");
    }
    spoofed(&node, &far, &two);

    // Somebody wants it bridged beside, and does not any more.
    drop(task.kill());
    let both = [nets[0].clone(), over_a_vlan(RED[0], "red", 100)];
    let task = Task::start(&node, "n1", ENDS[0], &both);
    until("both go on", || node.datapath.uplinks().unwrap().len() == 2 && is_promiscuous(&node.host));
    assert!(answers(&one.netns, "", FAR[0]) && answers(&one.netns, "", FAR[1]));
    task.set_ports(&["blue"]);
    until("it is not promiscuous any more", || !is_promiscuous(&node.host));
    assert_eq!(node.datapath.uplinks().unwrap().keys().collect::<Vec<_>>(), [&BLUE[0]]);
    assert!(answers(&one.netns, "", FAR[0]) && answers(&one.netns, "", FAR[1]));

    task.set_ports(&[]);
    until("nothing is left", || node.datapath.borders().unwrap().uplinks.is_empty());
    assert!(node.datapath.uplinks().unwrap().is_empty());
    assert!(silent(&one.netns, "", FAR[0]) && silent(&one.netns, "", FAR[1]));
    assert!(silent(&one.netns, "", GATEWAYS[0]), "nor does anybody answer for the gateway");
}

/// What comes from outside in the name of a member of the node, or of the gateway.
fn spoofed(node: &Node, far: &NetNs, to: &Pod) {
    let hardware = |netns: &NetNs| -> MacAddr {
        let link = netns.link(UPLINK).expect("the uplink");
        link["address"].as_str().expect("an address").parse().expect("an address")
    };
    let (from, node_mac) = (hardware(far), hardware(&node.host));
    let dropped = || node.datapath.network_drops(BLUE[0]).unwrap().get("wire_source").copied().unwrap_or(0);
    node.policy(to, "ingress: {rules: [{action: allow}]}");
    let (inside, raw) = (to.netns.run(|| Raw::new("eth0")), far.run(|| Raw::new(UPLINK)));
    let came = || {
        inside.received(|frame| match frame[12..14] {
            [0x08, 0] => frame[23] == 17,
            [0x86, 0xdd] => frame[20] == 17,
            _ => false,
        })
    };
    for (honest, liars) in FAR.into_iter().zip([["10.9.0.1", GATEWAYS[0]], ["fd09::1", GATEWAYS[1]]]) {
        until("an honest one comes", || {
            raw.send(&datagram(from, node_mac, honest));
            came() > 0
        });
        for name in liars {
            let before = dropped();
            until("it is dropped and counted", || {
                raw.send(&datagram(from, node_mac, name));
                dropped() > before
            });
        }
    }
    // What a switch sent here by mistake is not the router's to take.
    for honest in FAR {
        raw.send(&datagram(from, mac(BLUE[0], 2), honest));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(came(), 0);
}

/// To the second pod, in the name of an address of either family.
fn datagram(from: MacAddr, to: MacAddr, source: &str) -> Vec<u8> {
    let Ok(source) = source.parse::<Ipv6Addr>() else { return udp_frame(from, to, source, "10.9.0.2") };
    let destination: Ipv6Addr = "fd09::2".parse().unwrap();
    let builder = etherparse::PacketBuilder::ethernet2(from.0, to.0);
    let builder = builder.ipv6(source.octets(), destination.octets(), 64).udp(4000, 4000);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"nfry").unwrap();
    frame
}

#[test]
fn routes_of_the_host_over_the_uplink_decide() {
    if !able("routes_of_the_host_over_the_uplink_decide") {
        return;
    }
    let node = Node::new();
    let _far = beyond(&node);
    let pod = node.pod(1, BLUE[0], 1, 1500);
    default_routes(&pod);
    node.policy(&pod, ALLOW_OUT);
    let _task = Task::start(&node, "n1", ENDS[0], &[over_routes(BLUE[0], "blue")]);
    until("it goes on", || node.datapath.uplinks().unwrap().len() == 1);
    let elsewhere = NetNs::new();
    Veth::pair(&node.host, "v0", &elsewhere, "v0");
    node.host.ip("link set v0 up");
    for to in FAR {
        assert!(answers(&pod.netns, "", to), "{to}");
        node.host.ip(&format!("route add {to} dev v0"));
        assert!(
            node.host.ip(&format!("route get {to}")).contains("dev v0"),
            "the host itself would go there"
        );
    }
    assert!(answers(&pod.netns, "", FAR[0]), "IPv4 goes by the routes over the uplink");
    // For IPv6 the kernel takes the best route, and looks for its next hop on the uplink. Rules decide which it is.
    assert!(silent(&pod.netns, "", FAR[1]));
    node.host.ip("-6 route add default via fd77::2 table 100");
    node.host.ip("-6 rule add from fd09::/64 lookup 100");
    assert!(answers(&pod.netns, "", FAR[1]), "by a table of the network's own");
    node.host.ip("-6 rule del from fd09::/64 lookup 100");
    for to in FAR {
        node.host.ip(&format!("route del {to} dev v0"));
    }
    node.host.ip("route del default");
    node.host.ip("-6 route del default");
    assert!(answers(&pod.netns, "", FAR[0]), "IPv4 without a route over the uplink is on its wire");
    assert!(silent(&pod.netns, "", FAR[1]), "and IPv6 goes nowhere");
}

#[test]
fn a_small_mtu_of_the_uplink_is_told_by_the_gateway() {
    if !able("a_small_mtu_of_the_uplink_is_told_by_the_gateway") {
        return;
    }
    let node = Node::new();
    let far = beyond(&node);
    let pod = node.pod(1, BLUE[0], 1, 1500);
    default_routes(&pod);
    node.policy(&pod, ALLOW_BOTH);
    let _task = Task::start(&node, "n1", ENDS[0], &[over_routes(BLUE[0], "blue")]);
    until("it goes on", || node.datapath.uplinks().unwrap().len() == 1);
    for to in FAR {
        assert!(answers(&pod.netns, "-M do -s 1400", to), "it fits");
    }
    node.host.ip(&format!("link set {UPLINK} mtu 1300"));
    until("the way has the link's MTU", || node.datapath.uplinks().unwrap()[&BLUE[0]].mtu == 1300);
    for ((to, gateway), said_so) in FAR.into_iter().zip(GATEWAYS).zip(["(mtu = 1300)", "mtu=1300"]) {
        let said = ping(&pod.netns, "-M do -s 1400", to).unwrap_err();
        assert!(said.contains(said_so) && said.contains(&format!("From {gateway}")), "{said}");
        assert_eq!(stream(&pod.netns, &far, to.parse().unwrap(), SOME), SOME, "and learnt");
    }
}

#[test]
fn members_on_other_nodes_are_reached_by_routes() {
    if !able("members_on_other_nodes_are_reached_by_routes") {
        return;
    }
    let (a, b) = (Node::new(), Node::new());
    wire(&a.host, &b.host);
    let (one, two) = (a.pod(1, BLUE[0], 1, 1500), b.pod(2, BLUE[1], 2, 1500));
    let red = b.pod(3, RED[1], 3, 1500);
    a.knows(BLUE[0], &two, None);
    b.knows(BLUE[1], &one, None);
    let _here = Task::start(&a, "n1", ENDS[0], &[over_routes(BLUE[0], "blue")]);
    let _there = Task::start(&b, "n2", ENDS[1], &[over_routes(BLUE[1], "blue"), local(RED[1], "red")]);
    for node in [&a, &b] {
        until("it goes on", || node.datapath.uplinks().unwrap().len() == 1);
    }
    // Whoever runs the network between the nodes routes the addresses of ports to their nodes.
    for (host, last, via) in [(&a.host, 2, 2), (&b.host, 1, 1), (&a.host, 3, 2)] {
        host.ip(&format!("route add 10.9.0.{last}/32 via 10.77.0.{via}"));
        host.ip(&format!("route add fd09::{last}/128 via fd77::{via}"));
    }
    for v4 in [true, false] {
        assert!(answers(&one.netns, "", two.address(v4)), "there");
        assert!(answers(&two.netns, "", one.address(v4)), "and back");
        assert!(ping(&one.netns, "", two.address(v4)).unwrap().contains("ttl=62"), "a router on each node");
        assert_eq!(stream(&one.netns, &two.netns, two.address(v4), SOME), SOME);
        assert!(silent(&one.netns, "", red.address(v4)), "another network, whose routes lead there, too");
    }
}
