//! Ports of networks on a real kernel: pods in namespaces, pairs between them and the host, programs on the host's
//! ends. `NETFERRY_PORTS=netkit` has the pairs made as netkit, on a kernel that can.

#[path = "attach/interrupted.rs"]
mod interrupted;
#[path = "port/world.rs"]
mod pods;
mod support;
#[path = "attach/world.rs"]
mod world;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use interrupted::Interrupted;
use netferry::{
    attach::{Attacher, Outcome},
    datapath::AyaDatapath,
    drift::{Drift, DriftWatch, Told},
    link::{LinkError, Links as _, Namespace, Pair},
};
use pods::{BLUE, Node, RED, port, v4, v6};
use support::netns::NetNs;
use world::ports;

const SERVICE: u16 = 7878;

/// Says a word to everybody who connects, for as long as the namespace lives.
fn serve(pod: &NetNs, word: &'static str) {
    let listener = pod.run(|| TcpListener::bind(("::", SERVICE)).expect("listen"));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(word.as_bytes());
        }
    });
}

/// The word of who answers at an address, if anybody does.
fn word_from(pod: &NetNs, address: &str) -> Option<String> {
    let to = SocketAddr::new(address.parse::<IpAddr>().expect("an address"), SERVICE);
    pod.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut word = String::new();
        stream.read_to_string(&mut word).ok()?;
        Some(word)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn members_reach_each_other_and_networks_with_the_same_subnets_keep_apart() {
    let Some(pods) = Node::new("members_reach_each_other_and_networks_with_the_same_subnets_keep_apart", 5)
    else {
        return;
    };
    // Blue has .7 and .8; red has .7, .8 and .9.
    let members = [(BLUE, 7), (BLUE, 8), (RED, 7), (RED, 8), (RED, 9)];
    for (nth, (net, last)) in members.into_iter().enumerate() {
        let uid = format!("c{nth}");
        pods.claim(&uid, nth, vec![port(&uid, net, last, "net1")]);
    }
    let attacher = pods.places.attacher();
    pods.attach_all(&attacher).await;
    serve(&pods.pods[1], "blue");
    for red in [3, 4] {
        serve(&pods.pods[red], "red");
    }
    for address in [v4(8), v6(8)] {
        assert!(pods.reaches(0, &address) && pods.reaches(2, &address), "{address}");
        assert_eq!(word_from(&pods.pods[0], &address).as_deref(), Some("blue"), "{address}");
        assert_eq!(word_from(&pods.pods[2], &address).as_deref(), Some("red"), "{address}");
    }
    for address in [v4(9), v6(9)] {
        assert!(!pods.reaches(0, &address), "blue has no {address}");
        assert_eq!(word_from(&pods.pods[0], &address), None, "blue has no {address}");
        assert_eq!(word_from(&pods.pods[2], &address).as_deref(), Some("red"), "{address}");
    }
    // Nor does a pod reach the host, which has no address on any port.
    let (ends, addresses) = (pods.host.links(), pods.host.ip("-j addr show scope global"));
    assert!(ends.len() == 5 && ends.iter().all(|name| name.starts_with("nf")), "{ends:?}");
    assert!(!addresses.contains("local\""), "{addresses}");
    assert!(!pods.host.ip("-6 addr show").contains("fe80"), "no link-local address either");

    let net1 = pods.pods[0].link("net1").expect("net1");
    let plan = port("c0", BLUE, 7, "net1");
    assert_eq!(net1["address"], plan.hardware_addr.expect("a MAC").to_string());
    assert_eq!(net1["mtu"], 1400);
    let shown = pods.pods[0].ip("addr show dev net1");
    assert!(shown.contains("inet 10.78.0.7/24") && shown.contains("inet6 fd78::7/64"), "{shown}");

    for nth in 0..5 {
        assert_eq!(attacher.give_back(&format!("s{nth}")).await.problems, []);
        assert_eq!(pods.pods[nth].links(), Vec::<String>::new());
    }
    pods.assert_nothing_left("after the return");
    assert_eq!(attacher.give_back("s0").await, Outcome::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_several_ports_of_one_device() {
    let Some(pods) = Node::new("a_pod_has_several_ports_of_one_device", 2) else { return };
    pods.claim("c0", 0, vec![port("c0", BLUE, 7, "net1"), port("c0", BLUE, 8, "net2")]);
    pods.claim("c1", 0, vec![port("c1", RED, 7, "red0")]);
    pods.claim("c2", 1, vec![port("c2", BLUE, 9, "net1")]);
    let attacher = pods.places.attacher();
    pods.attach_all(&attacher).await;
    assert_eq!(pods.pods[0].links(), ["net1", "net2", "red0"]);
    // Over IPv4 Linux answers from one interface of a subnet only, the first.
    for address in [v4(7), v6(7), v6(8)] {
        assert!(pods.reaches(1, &address), "{address}");
    }
    // One claim goes; the other keeps its share of the device.
    assert_eq!(attacher.give_back_claim("c0").await.problems, []);
    assert_eq!(pods.pods[0].links(), ["red0"]);
    assert!(!pods.reaches(1, &v4(7)), "it is no member any more");
    for nth in 0..2 {
        assert_eq!(attacher.give_back(&format!("s{nth}")).await.problems, []);
    }
    pods.assert_nothing_left("after the return");
}

#[tokio::test]
async fn a_failure_of_any_step_leaves_no_port() {
    let Some(pods) = Node::new("a_failure_of_any_step_leaves_no_port", 1) else { return };
    pods.claim("c0", 0, vec![port("c0", BLUE, 7, "net1")]);
    pods.claim("c1", 0, vec![port("c1", RED, 8, "net2")]);
    for (what, least) in [("link", 14), ("program", 7)] {
        let mut nth = 0;
        loop {
            let (links, datapath) = (pods.links(), pods.places.datapath());
            let attacher = if what == "link" {
                Attacher::new(
                    Arc::new(Interrupted::new(links, nth)),
                    Arc::new(pods.places.namespaces()),
                    Arc::new(datapath),
                    pods.places.store(),
                )
            } else {
                Attacher::new(
                    Arc::new(links),
                    Arc::new(pods.places.namespaces()),
                    Arc::new(Interrupted::new(datapath, nth)),
                    pods.places.store(),
                )
            };
            let attacher = attacher.making(ports());
            let Err(failed) = attacher.attach(&pods.sandbox(0)).await else { break };
            assert!(failed.to_string().contains("asked for by the test"), "{failed}");
            assert_eq!(failed.problems, [], "{what} step {nth}");
            assert_eq!(pods.pods[0].links(), Vec::<String>::new(), "{what} step {nth}");
            pods.assert_nothing_left(&format!("{what} step {nth} failed: {failed}"));
            nth += 1;
        }
        println!("{nth} {what} steps");
        assert!(nth >= least, "only {nth} {what} steps were tried");
        assert_eq!(pods.places.attacher().give_back("s0").await.problems, []);
    }
}

#[tokio::test]
async fn what_a_pod_did_to_its_port_does_not_matter() {
    let Some(pods) = Node::new("what_a_pod_did_to_its_port_does_not_matter", 2) else { return };
    pods.claim("c0", 0, vec![port("c0", BLUE, 7, "net1"), port("c0", BLUE, 8, "net2")]);
    let attacher = pods.places.attacher();
    attacher.attach(&pods.sandbox(0)).await.expect("attach");
    pods.pods[0].ip("link set net1 down");
    pods.pods[0].ip("link set net1 name mine address 02:00:00:00:00:99");
    pods.pods[0].ip(&format!("link set mine netns {}", pods.pods[1].name));
    pods.pods[0].ip("link del net2");
    assert_eq!(attacher.give_back("s0").await.problems, []);
    assert_eq!(pods.pods[1].links(), Vec::<String>::new());
    pods.assert_nothing_left("after the return");

    // The namespace dies, and nobody tells.
    attacher.attach(&pods.sandbox(0)).await.expect("attach again");
    pods.pods[0].vanish();
    let outcome = attacher.sweep().await;
    assert_eq!((outcome.problems, outcome.returned.len()), (vec![], 1));
    pods.assert_nothing_left("after the sweep");
}

#[tokio::test]
async fn a_name_that_is_taken_is_told_and_nothing_is_made() {
    let Some(pods) = Node::new("a_name_that_is_taken_is_told_and_nothing_is_made", 1) else { return };
    let plan = port("c0", BLUE, 7, "net1");
    let pair = Pair {
        kind: ports(),
        host_name: plan.host_link.clone(),
        pod: pods.inside(0),
        pod_name: "net1".into(),
        pod_mac: plan.hardware_addr.expect("a MAC"),
        mtu: 1400,
    };
    let links = pods.links();
    let ends = links.make_pair(&pair).await.expect("a pair");
    assert_eq!((ends.host, ends.pod), (pods.host.ifindex(&plan.host_link), pods.pods[0].ifindex("net1")));
    let taken = |result: Result<_, LinkError>| match result {
        Err(LinkError::NameTaken { name, namespace }) => (name, namespace),
        other => panic!("{other:?}"),
    };
    let other = Pair { pod_name: "net2".into(), ..pair.clone() };
    assert_eq!(taken(links.make_pair(&other).await), (plan.host_link.clone(), Namespace::Host));
    let other = Pair { host_name: "nfother".into(), ..pair.clone() };
    assert_eq!(taken(links.make_pair(&other).await), ("net1".into(), pods.inside(0)));
    assert_eq!((pods.host.links().len(), pods.pods[0].links().len()), (1, 1));
    links.remove(&Namespace::Host, ends.host).await.expect("delete");
    links.remove(&Namespace::Host, ends.host).await.expect("it is gone already");
    let vanished = Pair { pod: Namespace::at("/run/netns/nf-no-such"), ..pair };
    assert!(matches!(links.make_pair(&vanished).await, Err(LinkError::NamespaceGone { .. })));
    pods.assert_nothing_left("at the end");
}

struct Nobody;

#[async_trait::async_trait]
impl Told for Nobody {
    fn drifted(&self, _: &Drift) {}
    fn looked(&self, _: &[Drift]) {}

    async fn take_out(&self, _: &Drift) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_over_programs_looks_at_the_hosts_end() {
    let Some(pods) = Node::new("the_watch_over_programs_looks_at_the_hosts_end", 1) else { return };
    pods.claim("c0", 0, vec![port("c0", BLUE, 7, "net1")]);
    let attacher = pods.places.attacher();
    let mut outcome = attacher.attach(&pods.sandbox(0)).await.expect("attach");
    let programs = outcome.attached.remove(0).programs;
    let watch = DriftWatch {
        links: pods.links(),
        datapath: Arc::new(AyaDatapath::open(&pods.places.pins).expect("datapath")),
        store: pods.places.store(),
        told: Nobody,
    };
    assert!(watch.look_at_all().await.is_empty());
    std::fs::remove_file(&programs[0].pin).expect("unpin");
    let drifts = watch.look_at_all().await;
    assert_eq!(drifts.len(), 1);
    assert!(drifts[0].repaired.is_err(), "{drifts:?}");
    assert_eq!(attacher.give_back("s0").await.problems, []);
    pods.assert_nothing_left("after the return");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_whose_host_end_is_deleted_keeps_no_pod_from_ending() {
    let Some(pods) = Node::new("a_port_whose_host_end_is_deleted_keeps_no_pod_from_ending", 1) else {
        return;
    };
    let plan = port("c0", BLUE, 7, "net1");
    pods.claim("c0", 0, vec![plan.clone()]);
    let attacher = pods.places.attacher();
    pods.attach_all(&attacher).await;
    pods.host.ip(&format!("link del {}", plan.host_link));
    assert_eq!(pods.pods[0].links(), Vec::<String>::new());
    assert_eq!(attacher.give_back("s0").await.problems, []);
    assert_eq!(attacher.give_back_claim("c0").await.problems, []);
    pods.places.store().remove("c0").expect("unprepared");
    pods.assert_nothing_left("after the unprepare");
}
