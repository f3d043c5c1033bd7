//! The datapath without tcx: filters of a clsact qdisc. On a kernel that has tcx it is told not to use it; on one
//! that has not (`cargo xtask vm --kernel 6.1`) there is no other way.
#![allow(missing_docs, reason = "a test binary")]

#[path = "datapath/world.rs"]
mod world;

use std::process::Command;
use std::sync::Arc;

use netferry::datapath::{AyaDatapath, Datapath, DatapathError, EndpointSpec, Features, Placement};
use netferry::link::MacAddr;
use world::{
    LINK, LINK_MAC, PEER_V4, PEER_V6, POD_V4, POD_V6, Raw, WIRE, WIRE_MAC, World, able, drain, flood,
    ifindex, run, spec, udp, udp_frame,
};

/// The datapath as on a kernel without tcx.
fn open(world: &World) -> AyaDatapath {
    let features = Features { tcx: false, ..Features::probe() };
    AyaDatapath::open_with(&world.root, features).expect("open the datapath")
}

/// The pod has the end `wire0`, and the host `link0`, where the programs sit.
fn host_end(id: u32) -> EndpointSpec {
    EndpointSpec {
        placement: Placement::HostVeth,
        mac: WIRE_MAC,
        addresses: [format!("{PEER_V4}/24"), format!("{PEER_V6}/64")]
            .map(|text| text.parse().expect("a network"))
            .to_vec(),
        ..spec(id)
    }
}

/// Gives the pod its end and sets both ends up, after the programs are on.
fn connect(world: &World) {
    let World { pod, .. } = world;
    run(&format!("ip link set {WIRE} netns {pod}"));
    for words in [
        format!("-n {pod} addr add {PEER_V4}/24 dev {WIRE}"),
        format!("-n {pod} addr add {PEER_V6}/64 dev {WIRE} nodad"),
        format!("addr add {POD_V4}/24 dev {LINK}"),
        format!("addr add {POD_V6}/64 dev {LINK} nodad"),
        format!("-n {pod} link set {WIRE} up"),
        format!("link set {LINK} up"),
        format!("-n {pod} neigh add {POD_V4} lladdr {LINK_MAC} dev {WIRE} nud permanent"),
        format!("-n {pod} neigh add {POD_V6} lladdr {LINK_MAC} dev {WIRE} nud permanent"),
        format!("neigh add {PEER_V4} lladdr {WIRE_MAC} dev {LINK} nud permanent"),
        format!("neigh add {PEER_V6} lladdr {WIRE_MAC} dev {LINK} nud permanent"),
    ] {
        run(&format!("ip {words}"));
    }
}

/// Datagrams of 50 each way and IP version that arrive.
fn exchange(world: &World) -> [usize; 4] {
    let pods = world.in_pod(|| [udp(PEER_V4), udp(PEER_V6)]);
    let hosts = [udp(POD_V4), udp(POD_V6)];
    for (pod, to) in pods.iter().zip([POD_V4, POD_V6]) {
        flood(pod, to, 50);
    }
    for (host, to) in hosts.iter().zip([PEER_V4, PEER_V6]) {
        flood(host, to, 50);
    }
    let counts: Vec<usize> = pods.iter().chain(&hosts).map(drain).collect();
    counts.try_into().expect("four sockets")
}

fn filters(side: &str) -> String {
    run(&format!("tc filter show dev {LINK} {side}"))
}

#[test]
fn the_host_end_of_a_pair_is_guarded_by_filters() {
    if !able("the_host_end_of_a_pair_is_guarded_by_filters") {
        return;
    }
    let world = World::new();
    let datapath = open(&world);
    let here = ifindex(LINK);
    datapath.preload(&host_end(7)).unwrap();
    let attached = datapath.attach(here, &host_end(7)).unwrap();
    let seen: Vec<_> = attached.iter().map(|p| (p.hook.as_str(), p.name.as_str(), p.ifindex)).collect();
    assert_eq!(seen, [("clsact/ingress", "from_pod", here), ("clsact/egress", "to_pod", here)]);
    assert!(attached.iter().all(|p| p.id > 0 && p.pin.exists()));
    assert!(filters("ingress").contains("pref 1 bpf") && filters("ingress").contains("direct-action"));
    connect(&world);
    assert_eq!(exchange(&world), [0; 4], "the gate is closed");
    let stats = datapath.stats(7).unwrap();
    assert_eq!(stats.drops.keys().collect::<Vec<_>>(), ["not_ready"]);
    assert!(stats.from_pod.dropped >= 100 && stats.to_pod.dropped >= 100, "{stats:?}");
    datapath.set_ready(7, true).unwrap();
    assert_eq!(exchange(&world), [50; 4]);
    world.in_pod(|| {
        let raw = Raw::new(WIRE);
        for _ in 0..7 {
            raw.send(&udp_frame(MacAddr([2, 0, 0, 0, 0, 0x66]), LINK_MAC, PEER_V4, POD_V4));
        }
    });
    assert_eq!(datapath.stats(7).unwrap().drops.get("source_mac"), Some(&7));

    // Another daemon finds all of it, and what was attached twice is there once.
    drop(datapath);
    let datapath = open(&world);
    assert_eq!(datapath.endpoints().unwrap(), [7]);
    assert_eq!(datapath.attached_ifindex(7).unwrap(), Some(here));
    assert_eq!(datapath.foreign_programs(here).unwrap(), []);
    assert_eq!(datapath.verify(7, here).unwrap(), attached);
    let other = datapath.attach(here, &host_end(8)).unwrap_err().to_string();
    assert!(other.contains("endpoint 7"), "{other}");
    datapath.attach(here, &host_end(7)).unwrap();
    assert_eq!(filters("ingress").matches("handle").count(), 1, "{}", filters("ingress"));

    datapath.detach(7).unwrap();
    datapath.detach(7).unwrap();
    assert_eq!(datapath.endpoints().unwrap(), [0_u32; 0]);
    assert!(!world.root.join("links/7").exists());
    assert!(!run(&format!("tc qdisc show dev {LINK}")).contains("clsact"));
}

#[test]
fn filters_that_were_taken_off_or_overtaken_are_put_first_again() {
    if !able("filters_that_were_taken_off_or_overtaken_are_put_first_again") {
        return;
    }
    let world = World::new();
    let datapath = open(&world);
    let here = ifindex(LINK);
    let before = datapath.attach(here, &host_end(3)).unwrap();
    connect(&world);
    assert!(datapath.drifted().unwrap().is_empty());

    run(&format!("tc qdisc del dev {LINK} clsact"));
    let drifted = datapath.drifted().unwrap();
    assert_eq!(drifted.len(), 1);
    assert!(drifted[0].1.to_string().contains("does not run its clsact/ingress"), "{}", drifted[0].1);
    assert_eq!(exchange(&world), [50; 4], "nothing guards it");
    let repaired = datapath.repair_inside(3, here).unwrap();
    assert_eq!((repaired.len(), before.len()), (2, 2));
    assert!(repaired.iter().zip(&before).all(|(new, old)| new.id != old.id && new.name == old.name));
    assert!(datapath.drifted().unwrap().is_empty());
    assert_eq!(exchange(&world), [0; 4]);

    // A filter that lets everything pass, before ours.
    datapath.set_ready(3, false).unwrap();
    let theirs = ["filter", "add", "dev", LINK, "ingress", "prio", "1", "protocol", "all", "handle", "9"];
    let passes = ["bpf", "da", "bytecode", "1,6 0 0 0"];
    assert!(Command::new("tc").args(theirs).args(passes).status().unwrap().success());
    let overtaken = datapath.verify_inside(3, here).unwrap_err().to_string();
    assert!(overtaken.contains("1 filters of others run before its clsact/ingress"), "{overtaken}");
    let again = datapath.repair_inside(3, here).unwrap();
    assert_ne!(again[0].id, repaired[0].id);
    assert_eq!(again[1].id, repaired[1].id, "egress was first all along");
    assert_eq!(exchange(&world), [0; 4]);
    assert_eq!(datapath.foreign_programs(here).unwrap().len(), 1);
    assert_eq!(filters("ingress").matches("name from_pod").count(), 1, "{}", filters("ingress"));
}

#[test]
fn an_upgrade_replaces_filters_in_place() {
    if !able("an_upgrade_replaces_filters_in_place") {
        return;
    }
    let world = World::new();
    let datapath = open(&world);
    let here = ifindex(LINK);
    let old = datapath.attach(here, &host_end(5)).unwrap();
    connect(&world);
    datapath.set_ready(5, true).unwrap();
    assert_eq!(exchange(&world), [50; 4]);
    let drops = datapath.stats(5).unwrap().drops;
    let handles = |side: &str| filters(side).split_whitespace().filter(|word| word.starts_with("0x")).count();
    let host = udp(POD_V4);
    let pod = world.in_pod(|| udp(PEER_V4));
    let datapath = open(&world);
    let sender = std::thread::spawn(move || {
        flood(&pod, POD_V4, 5_000);
        pod
    });
    let mut upgrades = 0;
    while upgrades == 0 || !sender.is_finished() {
        let upgrade = datapath.upgrade().unwrap();
        assert!(upgrade.updated == [5] && upgrade.failed.is_empty(), "{upgrade:?}");
        assert_eq!((handles("ingress"), handles("egress")), (1, 1));
        upgrades += 1;
    }
    sender.join().unwrap();
    let new = datapath.verify(5, here).unwrap();
    assert_eq!((new.len(), old.len()), (2, 2));
    assert!(new.iter().zip(&old).all(|(new, old)| new.id != old.id && new.name == old.name));
    let stats = datapath.stats(5).unwrap();
    assert_eq!(stats.drops, drops, "{upgrades} upgrades");
    assert!(stats.from_pod.packets >= 5_000, "{stats:?}");
    drop(host);
}

/// What `isolation: best-effort` does: the pod can take the programs off, and they come back.
#[test]
fn filters_inside_a_pod_go_on_before_up_and_come_back() {
    if !able("filters_inside_a_pod_go_on_before_up_and_come_back") {
        return;
    }
    let world = World::new();
    let datapath = Arc::new(open(&world));
    let netns = std::path::PathBuf::from(format!("/run/netns/{}", world.pod));
    run(&format!("ip link set {LINK} netns {} index 77", world.pod));
    let attached = datapath.attach_inside(&netns, 77, &spec(6)).unwrap();
    let seen: Vec<_> = attached.iter().map(|p| (p.hook.as_str(), p.name.as_str(), p.ifindex)).collect();
    assert_eq!(seen, [("clsact/ingress", "link_ingress", 77), ("clsact/egress", "link_egress", 77)]);
    let state = run(&format!("ip -n {} link show {LINK}", world.pod));
    assert!(state.contains("state DOWN"), "{state}");
    datapath.verify(6, 77).unwrap();
    datapath.attached_ifindex(6).unwrap_err();
    let inside = |datapath: &Arc<AyaDatapath>, work: fn(&AyaDatapath) -> Result<(), DatapathError>| {
        let datapath = Arc::clone(datapath);
        world.in_pod(move || work(&datapath))
    };
    inside(&datapath, |datapath| datapath.verify_inside(6, 77).map(drop)).unwrap();

    run(&format!("tc -n {} qdisc del dev {LINK} clsact", world.pod));
    let gone = inside(&datapath, |datapath| datapath.verify_inside(6, 77).map(drop)).unwrap_err().to_string();
    assert!(gone.contains("does not run its clsact/ingress program"), "{gone}");
    inside(&datapath, |datapath| datapath.repair_inside(6, 77).map(drop)).unwrap();
    inside(&datapath, |datapath| datapath.verify_inside(6, 77).map(drop)).unwrap();

    // A new daemon's programs get there from inside only.
    let before = datapath.verify(6, 77).unwrap();
    let datapath = Arc::new(open(&world));
    assert_eq!(datapath.upgrade().unwrap().later, [6]);
    inside(&datapath, |datapath| datapath.upgrade_inside(6)).unwrap();
    inside(&datapath, |datapath| datapath.upgrade_inside(6)).unwrap();
    let after = datapath.verify(6, 77).unwrap();
    assert_eq!((after.len(), before.len()), (2, 2));
    assert!(after.iter().zip(&before).all(|(new, old)| new.id != old.id));
    inside(&datapath, |datapath| datapath.verify_inside(6, 77).map(drop)).unwrap();

    // The qdisc does not travel: at home there is nothing of ours, and a detach finds only pins.
    run(&format!("ip -n {} link set {LINK} netns {}", world.pod, std::process::id()));
    datapath.detach(6).unwrap();
    assert_eq!(datapath.endpoints().unwrap(), [0_u32; 0]);
}

#[test]
fn a_moved_link_is_refused_by_name_of_the_feature() {
    if !able("a_moved_link_is_refused_by_name_of_the_feature") {
        return;
    }
    let world = World::new();
    let datapath = open(&world);
    assert!(!datapath.travels());
    let refused = datapath.attach(ifindex(LINK), &spec(4)).unwrap_err();
    assert!(matches!(refused, DatapathError::Unsupported { .. }), "{refused}");
    assert!(refused.to_string().contains("lacks tcx (upstream since Linux 6.6)"), "{refused}");
    assert_eq!(datapath.endpoints().unwrap(), [0_u32; 0]);
    assert_eq!(filters("ingress"), "");
}
