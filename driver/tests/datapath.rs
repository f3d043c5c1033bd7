//! The datapath on a real kernel, with real links and namespaces. Needs root; skips without, and says so.
#![allow(missing_docs, reason = "a test binary")]

#[path = "datapath/world.rs"]
mod world;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::programs::tc::{SchedClassifier, TcAttachOptions, TcAttachType};
use netferry::datapath::{AyaDatapath, Datapath, DatapathError, Placement};
use netferry::link::MacAddr;
use world::{
    LINK, LINK_MAC, PEER_V4, PEER_V6, POD_V4, POD_V6, Raw, WIRE, WIRE_MAC, World, able, drain, flood,
    ifindex, run, spec, udp, udp_frame, wait_until,
};

#[test]
fn links_stay_attached_and_pinned_through_a_move_and_a_restart() {
    if !able("links_stay_attached_and_pinned_through_a_move_and_a_restart") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let here = ifindex(LINK);
    let attached = datapath.attach(here, &spec(7)).unwrap();
    let seen: Vec<_> = attached.iter().map(|p| (p.hook.as_str(), p.name.as_str(), p.ifindex)).collect();
    assert_eq!(seen, [("tcx/ingress", "link_ingress", here), ("tcx/egress", "link_egress", here)]);
    assert!(attached.iter().all(|p| p.id > 0 && p.pin.exists()));

    drop(datapath);
    world.move_link(91);
    let datapath = Arc::new(world.open());
    assert_eq!(datapath.endpoints().unwrap(), [7]);
    assert_eq!(datapath.attached_ifindex(7).unwrap(), Some(91));
    let again = datapath.verify(7, 91).unwrap();
    assert_eq!(
        again.iter().map(|p| p.id).collect::<Vec<_>>(),
        attached.iter().map(|p| p.id).collect::<Vec<_>>()
    );
    let wrong = datapath.verify(7, here).unwrap_err().to_string();
    assert!(wrong.contains("interface 91"), "{wrong}");
    let inside = Arc::clone(&datapath);
    world.in_pod(move || inside.verify_inside(7, 91)).unwrap();
    assert!(matches!(datapath.verify_inside(7, 91), Err(DatapathError::NotProtected { .. })));

    run(&format!("ip -n {} link del {LINK}", world.pod));
    assert_eq!(datapath.attached_ifindex(7).unwrap(), None);
    let gone = datapath.verify(7, 91).unwrap_err().to_string();
    assert!(gone.contains("gone"), "{gone}");
    datapath.detach(7).unwrap();
    assert_eq!(datapath.endpoints().unwrap(), [0_u32; 0]);
}

#[test]
fn nothing_passes_either_way_until_ready() {
    if !able("nothing_passes_either_way_until_ready") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let peers = [udp(PEER_V4), udp(PEER_V6)];
    let stop = Arc::new(AtomicBool::new(false));
    // The peer floods before the programs come, while the link moves, and after.
    let raw = Raw::new(WIRE);
    let flooding = Arc::clone(&stop);
    let flooder = std::thread::spawn(move || {
        let frame = udp_frame(WIRE_MAC, LINK_MAC, PEER_V4, POD_V4);
        let mut sent = 0_u64;
        while !flooding.load(Ordering::Relaxed) {
            raw.send(&frame);
            sent += 1;
            std::thread::sleep(Duration::from_micros(50));
        }
        sent
    });
    datapath.attach(ifindex(LINK), &spec(8)).unwrap();
    world.move_link(33);
    let pods = world.in_pod(|| [udp(POD_V4), udp(POD_V6)]);
    for (pod, to) in pods.iter().zip([PEER_V4, PEER_V6]) {
        flood(pod, to, 500);
    }
    for (peer, to) in peers.iter().zip([POD_V4, POD_V6]) {
        flood(peer, to, 500);
    }
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Relaxed);
    assert!(flooder.join().unwrap() > 500);
    let passed: Vec<usize> = pods.iter().chain(&peers).map(drain).collect();
    assert_eq!(passed, [0; 4]);
    let stats = datapath.stats(8).unwrap();
    assert_eq!((stats.from_pod.packets, stats.to_pod.packets), (0, 0));
    assert!(stats.from_pod.dropped >= 1000 && stats.to_pod.dropped >= 1000, "{stats:?}");
    assert_eq!(stats.drops.keys().collect::<Vec<_>>(), ["not_ready"]);
    assert_eq!(stats.drops["not_ready"], stats.from_pod.dropped + stats.to_pod.dropped);

    datapath.set_ready(8, true).unwrap();
    for (pod, to) in pods.iter().zip([PEER_V4, PEER_V6]) {
        flood(pod, to, 100);
    }
    for (peer, to) in peers.iter().zip([POD_V4, POD_V6]) {
        flood(peer, to, 100);
    }
    let passed: Vec<usize> = pods.iter().chain(&peers).map(drain).collect();
    assert_eq!(passed, [100; 4]);
    let stats = datapath.stats(8).unwrap();
    assert!(stats.from_pod.packets >= 200 && stats.to_pod.packets >= 200, "{stats:?}");

    datapath.set_ready(8, false).unwrap();
    flood(&pods[0], PEER_V4, 50);
    flood(&peers[0], POD_V4, 50);
    assert_eq!((drain(&pods[0]), drain(&peers[0])), (0, 0));
}

#[test]
fn spoofed_frames_are_dropped_and_counted_with_their_reason() {
    if !able("spoofed_frames_are_dropped_and_counted_with_their_reason") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &spec(9)).unwrap();
    world.move_link(12);
    datapath.set_ready(9, true).unwrap();
    let wire = Raw::new(WIRE);
    let other = MacAddr([2, 0, 0, 0, 0, 0x66]);
    world.in_pod(move || {
        let raw = Raw::new(LINK);
        for _ in 0..10 {
            raw.send(&udp_frame(LINK_MAC, WIRE_MAC, POD_V4, PEER_V4));
        }
        for _ in 0..7 {
            raw.send(&udp_frame(other, WIRE_MAC, POD_V4, PEER_V4));
        }
        for _ in 0..5 {
            raw.send(&udp_frame(LINK_MAC, WIRE_MAC, "192.0.2.66", PEER_V4));
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    let ours = |frame: &[u8]| frame[6..12] == LINK_MAC.0 && frame.ends_with(b"nfry");
    assert_eq!(wire.received(ours), 10);
    for _ in 0..3 {
        wire.send(&udp_frame(WIRE_MAC, LINK_MAC, PEER_V4, "192.0.2.77"));
    }
    std::thread::sleep(Duration::from_millis(20));
    let stats = datapath.stats(9).unwrap();
    assert_eq!(stats.drops.get("source_mac"), Some(&7), "{stats:?}");
    assert_eq!(stats.drops.get("source_ipv4"), Some(&5), "{stats:?}");
    assert_eq!(stats.drops.get("destination_address"), Some(&3), "{stats:?}");
    assert!(stats.from_pod.packets >= 10);

    let dump = run(&format!("bpftool map dump pinned {}/maps/nf_drops", world.root.display()));
    assert!(dump.contains("source_mac") && dump.contains("\"endpoint\": 9"), "{dump}");
    let dump = run(&format!("bpftool map dump pinned {}/maps/nf_traffic", world.root.display()));
    assert!(dump.contains("packets") && dump.contains("dropped"), "{dump}");
    let dump = run(&format!("bpftool map dump pinned {}/maps/nf_endpoints", world.root.display()));
    assert!(
        dump.contains("\"flags\": 1") && dump.contains("mac") && dump.contains("\"mtu\": 1500"),
        "{dump}"
    );
}

#[test]
fn programs_of_others_are_named_and_refused() {
    if !able("programs_of_others_are_named_and_refused") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let here = ifindex(LINK);
    assert_eq!(datapath.foreign_programs(here).unwrap(), []);

    // Programs of another root are not ours, whatever they are called.
    let stranger = world.another_root();
    let theirs = AyaDatapath::open(&stranger.0).unwrap();
    theirs.attach(here, &spec(1)).unwrap();
    let refused = datapath.attach(here, &spec(2)).unwrap_err();
    assert!(matches!(refused, DatapathError::Foreign { .. }));
    let refused = refused.to_string();
    assert!(refused.contains("tcx/ingress link_ingress") && refused.contains("tcx/egress"), "{refused}");
    assert!(theirs.foreign_programs(here).unwrap().is_empty());
    theirs.detach(1).unwrap();

    run(&format!("tc qdisc add dev {LINK} clsact"));
    assert_eq!(datapath.foreign_programs(here).unwrap(), [], "a clsact without filters does nothing");
    let filter = ["filter", "add", "dev", LINK, "egress", "bpf", "bytecode", "1,6 0 0 0"];
    assert!(Command::new("tc").args(filter).status().unwrap().success());
    let found = datapath.foreign_programs(here).unwrap();
    assert_eq!(found.iter().map(|p| p.hook.as_str()).collect::<Vec<_>>(), ["clsact"]);
    datapath.attach(here, &spec(2)).unwrap_err();
    run(&format!("tc qdisc del dev {LINK} clsact"));

    let xdp = world::xdp_object();
    run(&format!("ip link set dev {LINK} xdp obj {} sec xdp", xdp.path().display()));
    let found = datapath.foreign_programs(here).unwrap();
    let seen: Vec<_> = found.iter().map(|p| (p.hook.as_str(), p.name.as_str(), p.id > 0)).collect();
    assert_eq!(seen, [("xdp", "passes", true)]);
    let refused = datapath.attach(here, &spec(2)).unwrap_err().to_string();
    assert!(refused.contains("xdp passes"), "{refused}");
    run(&format!("ip link set dev {LINK} xdp off"));

    datapath.attach(here, &spec(2)).unwrap();
    let taken = datapath.attach(here, &spec(3)).unwrap_err().to_string();
    assert!(taken.contains("endpoint 2"), "{taken}");
    assert_eq!(datapath.endpoints().unwrap(), [2], "the refused attach left nothing");
    datapath.attach(here, &spec(2)).unwrap();
    datapath.verify_inside(2, here).unwrap();
}

#[test]
fn a_failed_attach_leaves_nothing() {
    if !able("a_failed_attach_leaves_nothing") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(987_654, &spec(4)).unwrap_err();
    assert_eq!(datapath.endpoints().unwrap(), [0_u32; 0]);
}

/// An attach after a kill between the two hooks: the half that is there is kept, the other is added.
#[test]
fn a_half_attached_endpoint_is_completed() {
    if !able("a_half_attached_endpoint_is_completed") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let here = ifindex(LINK);
    datapath.attach(here, &spec(5)).unwrap();
    datapath.set_ready(5, true).unwrap();
    std::fs::remove_file(world.root.join("links/5/egress")).unwrap();
    let half = datapath.verify(5, here).unwrap_err().to_string();
    assert!(half.contains("tcx/egress link is not pinned"), "{half}");
    // The kernel detaches a link that nothing holds a moment later.
    wait_until("the unpinned link stays", || datapath.foreign_programs(here).unwrap().is_empty());
    datapath.attach(here, &spec(5)).unwrap();
    datapath.verify_inside(5, here).unwrap();
    run(&format!("ip link set {LINK} up"));
    Raw::new(WIRE).send(&udp_frame(WIRE_MAC, LINK_MAC, PEER_V4, POD_V4));
    std::thread::sleep(Duration::from_millis(20));
    assert!(datapath.stats(5).unwrap().drops.contains_key("not_ready"), "an attach closes the gate");
    world.move_link(44);
    let elsewhere = datapath.attach(ifindex(WIRE), &spec(5)).unwrap_err().to_string();
    assert!(elsewhere.contains("another device"), "{elsewhere}");
    datapath.verify(5, 44).unwrap();
}

#[test]
fn detach_leaves_nothing() {
    if !able("detach_leaves_nothing") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let here = ifindex(LINK);
    for placement in [Placement::MovedLink, Placement::HostVeth] {
        let attached =
            datapath.attach(here, &netferry::datapath::EndpointSpec { placement, ..spec(6) }).unwrap();
        let wire = Raw::new(WIRE);
        run(&format!("ip link set {LINK} up"));
        wire.send(&udp_frame(WIRE_MAC, LINK_MAC, PEER_V4, POD_V4));
        datapath.detach(6).unwrap();
        datapath.detach(6).unwrap();
        assert_eq!(datapath.endpoints().unwrap(), [0_u32; 0]);
        assert!(!world.root.join("links/6").exists());
        assert_eq!(datapath.foreign_programs(here).unwrap(), []);
        for map in ["nf_endpoints", "nf_addresses", "nf_traffic", "nf_drops"] {
            let dump = run(&format!("bpftool -j map dump pinned {}/maps/{map}", world.root.display()));
            assert_eq!(dump.trim(), "[]", "{map}");
        }
        for program in attached {
            let id = program.id.to_string();
            wait_until(&format!("program {id} is still loaded"), || {
                !Command::new("bpftool").args(["prog", "show", "id", &id]).output().unwrap().status.success()
            });
        }
    }
}

#[test]
fn a_pinned_map_of_another_layout_is_refused() {
    if !able("a_pinned_map_of_another_layout_is_refused") {
        return;
    }
    let world = World::new();
    drop(world.open());
    let pin = world.root.join("maps/nf_traffic");
    std::fs::remove_file(&pin).unwrap();
    run(&format!("bpftool map create {} type hash key 4 value 8 entries 16 name nf_traffic", pin.display()));
    let Err(refused) = AyaDatapath::open(&world.root) else { panic!("it was taken over") };
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(refused.to_string().contains("nf_traffic") && why.contains("another layout"), "{refused}: {why}");
}

#[test]
fn a_root_that_is_no_bpffs_is_refused_with_the_command() {
    let Err(refused) = AyaDatapath::open(std::path::Path::new("/proc/netferry/v1")) else { panic!("opened") };
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("mount -t bpf bpf /sys/fs/bpf"), "{why}");
}

#[test]
fn programs_put_before_ours_are_seen_and_ours_put_first_again() {
    if !able("programs_put_before_ours_are_seen_and_ours_put_first_again") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let here = ifindex(LINK);
    let attached = datapath.attach(here, &spec(2)).unwrap();
    assert!(datapath.drifted().unwrap().is_empty());
    // Any program will do for somebody else's: another copy of ours, under no pin of ours.
    let pin = world.root.join("maps/theirs");
    run(&format!("bpftool prog pin id {} {}", attached[0].id, pin.display()));
    let other = world.another_root();
    run(&format!("ip link add {LINK}b type veth peer name {WIRE}b"));
    let theirs = AyaDatapath::open(&other.0).unwrap();
    let copy = theirs.attach(ifindex("link0b"), &spec(1)).unwrap();
    std::fs::remove_file(&pin).unwrap();
    run(&format!("bpftool prog pin id {} {}", copy[0].id, pin.display()));
    let mut program = SchedClassifier::from_pin(&pin).unwrap();
    let first = TcAttachOptions::TcxOrder(aya::programs::LinkOrder::first());
    let link = program.attach_with_options(LINK, TcAttachType::Ingress, first).unwrap();

    let drifted = datapath.drifted().unwrap();
    assert_eq!(drifted.len(), 1);
    assert!(drifted[0].1.to_string().contains("before its tcx/ingress"), "{}", drifted[0].1);
    datapath.verify_inside(2, here).unwrap_err();
    let repaired = datapath.repair_inside(2, here).unwrap();
    assert_ne!(repaired[0].id, attached[0].id);
    assert_eq!(repaired[1].id, attached[1].id, "egress was first all along");
    assert!(datapath.drifted().unwrap().is_empty());
    assert_eq!(datapath.foreign_programs(here).unwrap().len(), 1);
    program.detach(link).unwrap();
}

#[test]
fn an_upgrade_replaces_programs_in_place() {
    if !able("an_upgrade_replaces_programs_in_place") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let old = datapath.attach(ifindex(LINK), &spec(3)).unwrap();
    world.move_link(21);
    datapath.set_ready(3, true).unwrap();
    let before = datapath.stats(3).unwrap();
    let peer = udp(PEER_V4);
    let pod = world.in_pod(|| udp(POD_V4));
    let datapath = world.open();
    let sender = std::thread::spawn(move || {
        flood(&pod, PEER_V4, 20_000);
        pod
    });
    let mut upgrades = 0;
    while upgrades == 0 || !sender.is_finished() {
        let upgrade = datapath.upgrade().unwrap();
        assert!(upgrade.updated == [3] && upgrade.failed.is_empty(), "{upgrade:?}");
        upgrades += 1;
    }
    sender.join().unwrap();
    let new = datapath.verify(3, 21).unwrap();
    assert_eq!((new.len(), old.len()), (2, 2));
    assert!(new.iter().zip(&old).all(|(new, old)| new.id != old.id && new.name == old.name));
    let stats = datapath.stats(3).unwrap();
    assert!(stats.from_pod.packets >= 20_000, "{stats:?}");
    assert_eq!(stats.drops, before.drops, "{upgrades} upgrades");
    drop(peer);
    run(&format!("ip -n {} link del {LINK}", world.pod));
    assert_eq!(datapath.upgrade().unwrap().gone, [3]);
}
