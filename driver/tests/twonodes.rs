//! Two nodes, each the real daemon in a network namespace of its own, with a wire between them and one API server.
//! Ports of networks appear and vanish in random order, and a daemon is killed now and then. Whenever all is quiet,
//! who reaches whom is exactly what is declared.
//!
//! `NETFERRY_PORT_COUNT=200` makes 200 ports on 20 networks in place of fewer; `NETFERRY_SEED` chooses the order.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

#[path = "twonodes/cluster.rs"]
mod cluster;
#[path = "twonodes/node.rs"]
mod node;
#[path = "twonodes/probe.rs"]
mod probe;
#[path = "twonodes/random.rs"]
mod random;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use cluster::{Cluster, Kind};
use ipnetwork::IpNetwork;
use netferry::link::MacAddr;
use node::{Node, Pod};
use random::Random;
use support::netns::may_make_namespaces;

const MOMENTS: u32 = 3;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number")))
}

/// Wait until every port is attached and told, and both nodes know exactly the members they have to.
async fn quiet(nodes: &[Node; 2]) {
    let start = Instant::now();
    loop {
        let wrong = nodes[0]
            .cluster_problem(nodes)
            .or_else(|| nodes.iter().find_map(|node| members_problem(node, nodes)));
        let Some(wrong) = wrong else { return };
        assert!(start.elapsed() < Duration::from_mins(3), "it does not become quiet: {wrong}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl Node {
    fn cluster_problem(&self, nodes: &[Self; 2]) -> Option<String> {
        let missing = |pod: &&Pod| !self.cluster.told(&pod.claim).0;
        let pods = nodes.iter().flat_map(|node| &node.pods);
        let missing: Vec<_> = pods.filter(missing).map(|pod| pod.claim.to_string()).collect();
        if !missing.is_empty() {
            return Some(format!("not attached: {missing:?}"));
        }
        let wrong = nodes.iter().find(|node| node.pairs() != node.pods.len())?;
        Some(format!("{} pairs for {} ports", wrong.pairs(), wrong.pods.len()))
    }
}

/// Where a member is, and its hardware address: here, on another node, or on another node behind a tunnel.
type Place = (bool, Option<IpAddr>, String);

/// The address that an interface makes of its hardware address (RFC 4291, appendix A). It is a member's, too.
fn link_local(mac: &str) -> IpAddr {
    let MacAddr([first, vendor @ .., x, y, z]) = mac.parse().unwrap();
    let [second, third] = vendor;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, first ^ 2, second, third, 0xff, 0xfe, x, y, z]).into()
}

/// What of the node's map of members is not as declared.
fn members_problem(node: &Node, nodes: &[Node; 2]) -> Option<String> {
    let shown = node.networks();
    let mut wanted: BTreeMap<(u32, IpAddr), Place> = BTreeMap::new();
    for pod in nodes.iter().flat_map(|node| &node.pods) {
        let number = nodes.iter().position(|other| std::ptr::eq(other, node)).unwrap();
        let here = pod.node == number;
        let known = node.pods.iter().any(|own| own.network == pod.network);
        if here || (known && pod.network.is_wide()) {
            let mac = node.cluster.told(&pod.claim).1?;
            let network = *shown.get(&pod.network.name)?;
            let tunnelled = !here && pod.network.kind == Kind::Overlay;
            let tunnel = tunnelled.then(|| Cluster::end(pod.node));
            for address in pod.addresses.iter().copied().chain([link_local(&mac)]) {
                wanted.insert((network, address), (here, tunnel, mac.clone()));
            }
        }
    }
    let there = node.maps.members().unwrap().into_iter().map(|member| {
        let place = (member.endpoint.is_some(), member.node, member.mac.to_string());
        ((member.network, member.address), place)
    });
    let there: BTreeMap<_, _> = there.collect();
    (there != wanted).then(|| format!("members are {there:#?}, not {wanted:#?}"))
}

fn matrix(nodes: &[Node; 2], moment: u32, random: &mut Random) -> probe::Measured {
    let mut pods: Vec<_> = nodes.iter().flat_map(|node| &node.pods).collect();
    pods.sort_by_key(|pod| pod.id);
    for pod in pods.iter().filter(|pod| pod.network.kind == Kind::Routed) {
        pod.addresses.iter().for_each(|address| nodes[0].cluster.route(*address, pod.node));
    }
    let mac = |pod: &Pod| nodes[0].cluster.told(&pod.claim).1.expect("a hardware address");
    let pods: Vec<_> = pods.into_iter().map(|pod| (pod, mac(pod))).collect();
    probe::check(&pods, moment, random)
}

/// Of a network whose nodes have blocks, no block has addresses of pods of both. Returns how many there are.
fn blocks_in_use(nodes: &[Node; 2]) -> usize {
    let mut blocks: BTreeMap<(&str, IpAddr), usize> = BTreeMap::new();
    for pod in nodes.iter().flat_map(|node| &node.pods).filter(|pod| pod.network.blocks) {
        for address in &pod.addresses {
            let block = IpNetwork::new(*address, if address.is_ipv4() { 26 } else { 122 }).unwrap().network();
            let owner = *blocks.entry((&pod.network.name, block)).or_insert(pod.node);
            assert_eq!(owner, pod.node, "{block} of {} is on two nodes", pod.network.name);
        }
    }
    let owners: BTreeSet<_> = blocks.iter().map(|((network, _), node)| (network, node)).collect();
    owners.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn who_reaches_whom_is_what_is_declared() {
    if !may_make_namespaces() {
        return support::skip("two nodes", "needs root");
    }
    let ports = usize::try_from(number("NETFERRY_PORT_COUNT").unwrap_or(40)).unwrap();
    let networks = u32::try_from((ports / 10).clamp(8, 20)).unwrap();
    let seed = number("NETFERRY_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{ports} ports on {networks} networks; NETFERRY_SEED={seed}");
    let mut random = Random::new(seed);
    let cluster = Cluster::start(networks, random.next());
    let (first, second) = (random.next(), random.next());
    let (first, second) = tokio::join!(Node::start(&cluster, 0, first), Node::start(&cluster, 1, second));
    let mut nodes = [first, second];
    let mut across = [0, 0];
    for moment in 0..MOMENTS {
        let began = Instant::now();
        let most = ports / 2;
        let wanted = [0, 1].map(|_| if moment == 0 { most } else { most - random.below(most / 4 + 1) });
        let changes = if moment == 0 { most } else { ports / 4 };
        let kills = 1 + ports / 100;
        let [first, second] = &mut nodes;
        tokio::join!(first.live(changes, wanted[0], kills), second.live(changes, wanted[1], kills));
        let lived = began.elapsed();
        quiet(&nodes).await;
        let settled = began.elapsed();
        let measured = tokio::task::block_in_place(|| matrix(&nodes, moment, &mut random));
        assert!(moment > 0 || blocks_in_use(&nodes) > 1, "both nodes have blocks of a network");
        blocks_in_use(&nodes);
        across = [0, 1].map(|family: usize| across[family] + measured.across[family]);
        let alive: Vec<_> = nodes.iter().map(|node| node.pods.len()).collect();
        println!(
            "moment {moment}: {alive:?} ports, {measured:?}; {lived:.1?}, quiet at {settled:.1?}, {:.1?} in all",
            began.elapsed()
        );
    }
    for node in &mut nodes {
        println!("{:?}", node.counts.lock().unwrap());
        node.live_none().await;
    }
    quiet(&nodes).await;
    assert!(across.iter().all(|pairs| *pairs > 0), "IPv4 and IPv6 between the nodes: {across:?}");
    assert!(nodes.iter().all(|node| node.counts.lock().unwrap().kills > 0), "no daemon was killed");
    for node in &nodes {
        assert_eq!(node.pairs(), 0);
        node.end();
    }
}
