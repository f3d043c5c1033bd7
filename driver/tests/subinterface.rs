//! Sub-interfaces on a real kernel: made on a link that stays, protected, in pods.
//!
//! `NETFERRY_SUBINTERFACES` says which kinds the kernel is to have (`macvlan,ipvlan,vlan`); left out, macvlan, which is
//! in every kernel these tests run on.

mod support;
#[path = "attach/world.rs"]
mod world;

use netferry::{
    claim::{Checkpoint, ClaimRef, InterfaceKey, InterfacePlan, InterfaceRecord, Made, PodRef, Upper, made},
    datapath::Datapath as _,
    link::{
        Ipvlan, IpvlanFlag, IpvlanMode, LinkError, Links as _, Macvlan, MacvlanMode, Namespace, SubInterface,
        Vlan,
    },
    nri::PodSandbox,
};
use support::{netns::NetNs, skip};
use world::{World, plan_of_eth7, pod_ref};

const PEER: [&str; 2] = ["198.51.100.1", "2001:db8:7::1"];

/// What is to be tried: what is made, and whether two of them on one parent reach each other.
fn cases() -> Vec<(SubInterface, bool)> {
    let chosen = std::env::var("NETFERRY_SUBINTERFACES").unwrap_or_else(|_| "macvlan".to_owned());
    let macvlan = |mode, reaches| (SubInterface::Macvlan(Macvlan { mode }), reaches);
    let ipvlan = |mode, flag, reaches| (SubInterface::Ipvlan(Ipvlan { mode, flag }), reaches);
    let all = [
        macvlan(MacvlanMode::Bridge, true),
        macvlan(MacvlanMode::Private, false),
        macvlan(MacvlanMode::Vepa, false),
        ipvlan(IpvlanMode::L2, IpvlanFlag::Bridge, true),
        ipvlan(IpvlanMode::L2, IpvlanFlag::Private, false),
        ipvlan(IpvlanMode::L3, IpvlanFlag::Bridge, true),
        (SubInterface::Vlan(Vlan { id: 7 }), false),
    ];
    let chosen: Vec<&str> = chosen.split(',').collect();
    all.into_iter().filter(|(sub_interface, _)| chosen.contains(&sub_interface.kind())).collect()
}

/// One of each kind: what becomes of a link in its pod is the same in every mode.
fn kinds() -> Vec<SubInterface> {
    let mut kinds: Vec<SubInterface> = cases().into_iter().map(|(sub_interface, _)| sub_interface).collect();
    kinds.dedup_by_key(|it| it.kind());
    kinds
}

/// Whether the kernel has the kind; what it lacks is told as skipped.
async fn supported(world: &World, test: &str, sub_interface: SubInterface) -> bool {
    let parent = world.host.ifindex("eth7");
    let upper = netferry::link::Upper { parent, name: "nf-probe".into(), mac: None, sub_interface };
    let links = world.places.links();
    match links.make_upper(&upper).await {
        Ok(ifindex) => {
            links.remove(&Namespace::Host, ifindex).await.expect("delete");
            true
        }
        Err(LinkError::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            skip(test, &format!("this kernel has no {}", sub_interface.kind()));
            false
        }
        Err(error) => panic!("{sub_interface}: {error}"),
    }
}

fn claim_ref(uid: &str) -> ClaimRef {
    ClaimRef { namespace: "default".into(), name: uid.into(), uid: uid.into() }
}

fn second_pod() -> PodRef {
    PodRef { namespace: "default".into(), name: "api".into(), uid: "uid-api".into() }
}

/// What is made on `eth7` for a claim, with the addresses that end in `last`.
fn plan(uid: &str, sub_interface: SubInterface, last: u8) -> InterfacePlan {
    let key =
        InterfaceKey { request: "nic".into(), device: "eth7".into(), share_id: Some(format!("share-{uid}")) };
    let own_mac = matches!(sub_interface, SubInterface::Macvlan(_));
    InterfacePlan {
        share_id: key.share_id.clone(),
        hardware_addr: own_mac.then(|| made::hardware_addr(&claim_ref(uid), &key)),
        addresses: [format!("198.51.100.{last}/24"), format!("2001:db8:7::{last:x}/64")]
            .map(|address| address.parse().expect("an address"))
            .to_vec(),
        routes: Vec::new(),
        made: Some(Made::SubInterface(Upper {
            sub_interface,
            host_name: made::host_name(&claim_ref(uid), &key),
        })),
        ..plan_of_eth7()
    }
}

fn claim(world: &World, uid: &str, pod: PodRef, plan: InterfacePlan) {
    let interfaces = vec![InterfaceRecord::planned(plan)];
    let checkpoint = Checkpoint::new(claim_ref(uid), vec![pod], interfaces);
    world.places.store().put(checkpoint).expect("checkpoint");
}

fn forget(world: &World, uids: &[&str]) {
    for uid in uids {
        world.places.store().remove(uid).expect("forget");
    }
}

fn ping(pod: &NetNs, address: &str) -> bool {
    pod.try_exec(&format!("ping -q -n -c 1 -W 2 {address}")).is_ok()
}

/// What the wire's other side needs for a kind: its own VLAN, or to know addresses that nobody answers ARP for.
fn prepare_peer(world: &World, sub_interface: SubInterface) -> Vec<String> {
    let mac = world.host.link("eth7").expect("eth7")["address"].as_str().expect("a MAC").to_owned();
    let words = match sub_interface {
        SubInterface::Vlan(Vlan { id }) => vec![
            ("addr del 198.51.100.1/24 dev far7".to_owned(), "addr add 198.51.100.1/24 dev far7".to_owned()),
            (
                "addr del 2001:db8:7::1/64 dev far7".to_owned(),
                "addr add 2001:db8:7::1/64 dev far7 nodad".to_owned(),
            ),
            (format!("link add link far7 name far7.{id} type vlan id {id}"), format!("link del far7.{id}")),
            (format!("link set far7.{id} up"), String::new()),
            (format!("addr add 198.51.100.1/24 dev far7.{id}"), String::new()),
            (format!("addr add 2001:db8:7::1/64 dev far7.{id} nodad"), String::new()),
        ],
        SubInterface::Ipvlan(Ipvlan { mode: IpvlanMode::L3, .. }) => ["198.51.100", "2001:db8:7:"]
            .into_iter()
            .zip([".", ":"])
            .flat_map(|(net, dot)| {
                [7, 8].map(|last| {
                    let entry = format!("{net}{dot}{last}");
                    (
                        format!("neigh replace {entry} lladdr {mac} dev far7 nud permanent"),
                        format!("neigh del {entry} dev far7"),
                    )
                })
            })
            .collect(),
        _ => Vec::new(),
    };
    for (make, _) in &words {
        world.peer.ip(make);
    }
    words.into_iter().rev().map(|(_, undo)| undo).filter(|undo| !undo.is_empty()).collect()
}

#[tokio::test]
async fn pods_share_a_link_that_stays() {
    let test = "pods_share_a_link_that_stays";
    let Some(world) = World::new(test) else { return };
    for (sub_interface, reach_each_other) in cases() {
        if !supported(&world, test, sub_interface).await {
            continue;
        }
        let other = NetNs::new();
        let undo = prepare_peer(&world, sub_interface);
        claim(&world, "c7", pod_ref(), plan("c7", sub_interface, 7));
        let sandboxes = [
            world.places.sandbox(),
            PodSandbox {
                id: "s2".into(),
                pod: second_pod(),
                netns: Some(other.path.clone()),
                ..world.places.sandbox()
            },
        ];
        // A VLAN is there once.
        let several = !matches!(sub_interface, SubInterface::Vlan(_));
        if several {
            claim(&world, "c8", second_pod(), plan("c8", sub_interface, 8));
        }
        let attacher = world.places.attacher();
        for sandbox in &sandboxes {
            let outcome =
                attacher.attach(sandbox).await.unwrap_or_else(|error| panic!("{sub_interface}: {error}"));
            assert_eq!(outcome.problems, [], "{sub_interface}");
            for interface in &outcome.attached {
                assert_eq!(interface.programs.len(), 2, "{sub_interface}");
            }
        }
        assert_eq!(world.host.links(), ["eth7", "eth8"], "{sub_interface}: the parent stays");
        assert_eq!(world.pod.links(), ["net1"], "{sub_interface}");
        for address in PEER {
            assert!(ping(&world.pod, address), "{sub_interface}: {address}");
        }
        if several {
            for address in ["198.51.100.8", "2001:db8:7::8"] {
                assert_eq!(ping(&world.pod, address), reach_each_other, "{sub_interface}: {address}");
            }
        }
        assert_no_spoofing(&world, sub_interface);

        for sandbox in &sandboxes {
            assert_eq!(attacher.give_back(&sandbox.id).await.problems, [], "{sub_interface}");
        }
        assert_eq!((world.pod.links().len(), other.links().len()), (0, 0), "{sub_interface}");
        world.assert_home(&sub_interface.to_string());
        forget(&world, if several { &["c7", "c8"] } else { &["c7"] });
        for words in undo {
            world.peer.ip(&words);
        }
    }
}

/// A pod may not take another address, nor, where it has a hardware address of its own, another one of those.
fn assert_no_spoofing(world: &World, sub_interface: SubInterface) {
    let datapath = world.places.datapath();
    let id = datapath.endpoints().expect("endpoints")[0];
    let drops = || datapath.stats(id).expect("stats").from_pod.dropped;
    world.pod.ip("addr add 198.51.100.99/24 dev net1");
    let before = drops();
    assert!(
        world.pod.try_exec("ping -q -n -c 1 -W 1 -I 198.51.100.99 198.51.100.1").is_err(),
        "{sub_interface}"
    );
    assert!(drops() > before, "{sub_interface}: dropped by the programs");
    world.pod.ip("addr del 198.51.100.99/24 dev net1");
    if matches!(sub_interface, SubInterface::Macvlan(_)) {
        let before = drops();
        world.pod.ip("link set net1 address 02:00:00:00:00:99");
        assert!(!ping(&world.pod, PEER[0]), "{sub_interface}");
        assert!(drops() > before, "{sub_interface}: dropped by the programs");
    }
}

#[tokio::test]
async fn what_a_pod_did_to_its_sub_interface_does_not_matter() {
    let test = "what_a_pod_did_to_its_sub_interface_does_not_matter";
    let Some(world) = World::new(test) else { return };
    for sub_interface in kinds() {
        if !supported(&world, test, sub_interface).await {
            continue;
        }
        claim(&world, "c7", pod_ref(), plan("c7", sub_interface, 7));
        let attacher = world.places.attacher();
        for words in ["link set net1 down", "link set net1 name mine", "link del net1"] {
            attacher.attach(&world.places.sandbox()).await.expect("attach");
            world.pod.ip(words);
            assert_eq!(attacher.give_back("s1").await.problems, [], "{sub_interface}: {words}");
            assert_eq!(world.pod.links(), Vec::<String>::new(), "{sub_interface}: {words}");
            world.assert_home(&format!("{sub_interface}: {words}"));
        }
        // Pushed on, it is not forgotten, and not let off its programs either.
        attacher.attach(&world.places.sandbox()).await.expect("attach");
        world.pod.ip(&format!("link set net1 netns {}", world.peer.name));
        assert_eq!(attacher.give_back("s1").await.problems.len(), 1, "{sub_interface}");
        world.peer.ip("link del net1");
        assert_eq!(attacher.sweep().await.problems, [], "{sub_interface}");
        world.assert_home(&format!("{sub_interface}: pushed on"));
        forget(&world, &["c7"]);
    }
}

#[tokio::test]
async fn sub_interfaces_go_with_their_namespace() {
    let test = "sub_interfaces_go_with_their_namespace";
    let Some(world) = World::new(test) else { return };
    for sub_interface in kinds() {
        if !supported(&world, test, sub_interface).await {
            continue;
        }
        let pod = NetNs::new();
        claim(&world, "c7", pod_ref(), plan("c7", sub_interface, 7));
        let sandbox = PodSandbox { netns: Some(pod.path.clone()), ..world.places.sandbox() };
        let attacher = world.places.attacher();
        attacher.attach(&sandbox).await.expect("attach");
        pod.vanish();
        // The kernel may still be clearing up; the next sweep sees the end of it.
        let mut left = attacher.sweep().await.problems;
        for _ in 0..50 {
            if left.is_empty() {
                break;
            }
            left = attacher.sweep().await.problems;
        }
        assert_eq!(left, [], "{sub_interface}");
        world.assert_home(&sub_interface.to_string());
        forget(&world, &["c7"]);
    }
}

#[tokio::test]
async fn a_parent_that_is_down_is_told() {
    let Some(world) = World::new("a_parent_that_is_down_is_told") else { return };
    let (sub_interface, _) = cases().remove(0);
    let parent =
        InterfacePlan { device: "eth8".into(), host_link: "eth8".into(), ..plan("c7", sub_interface, 7) };
    claim(&world, "c7", pod_ref(), parent);
    let failed = world.places.attacher().attach(&world.places.sandbox()).await.expect_err("down");
    assert!(failed.to_string().contains("link eth8 is down"), "{failed}");
    world.assert_home("after the refusal");
}

#[tokio::test]
async fn a_parent_that_vanishes_keeps_no_pod_from_ending() {
    let Some(world) = World::new("a_parent_that_vanishes_keeps_no_pod_from_ending") else { return };
    let (sub_interface, _) = cases().remove(0);
    if !supported(&world, "a_parent_that_vanishes_keeps_no_pod_from_ending", sub_interface).await {
        return;
    }
    claim(&world, "c7", pod_ref(), plan("c7", sub_interface, 7));
    let attacher = world.places.attacher();
    attacher.attach(&world.places.sandbox()).await.expect("attach");
    world.peer.ip("link del far7");
    assert_eq!(world.pod.links(), Vec::<String>::new(), "the kernel deletes what is on a link with it");
    assert_eq!(attacher.give_back("s1").await.problems, []);
    assert_eq!(attacher.give_back_claim("c7").await.problems, []);
    forget(&world, &["c7"]);
    assert_eq!(world.host.links(), ["eth8"]);
    world.assert_nothing_left("after the unprepare");
}
