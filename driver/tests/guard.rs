//! The early drop on real links, under traffic, and the block list.
#![allow(missing_docs, reason = "a test binary")]

#[path = "datapath/world.rs"]
mod world;

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netferry::datapath::{AyaDatapath, Datapath as _, EndpointSpec, Placement};
use netferry::link::MacAddr;
use world::{
    LINK, LINK_MAC, PEER_V4, POD_V4, POD_V6, Raw, WIRE, WIRE_MAC, World, able, drain, flood, ifindex, run,
    spec, udp, udp_frame, wait_until,
};

const OTHER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x66]);

/// A protected link with the early drop, moved and ready; its index in the pod is 40.
fn guarded(world: &World, id: u32) -> AyaDatapath {
    let datapath = world.open();
    let here = ifindex(LINK);
    datapath.attach(here, &spec(id)).expect("attach");
    assert_eq!(datapath.guard_link(id, here).expect("guard"), None, "veth has native XDP");
    world.move_link(40);
    datapath.set_ready(id, true).expect("ready");
    datapath
}

fn hooks(datapath: &AyaDatapath, id: u32) -> Vec<(String, String, u32)> {
    let guards = datapath.guards(id).expect("guards").into_iter();
    guards.map(|guard| (guard.hook, guard.name, guard.ifindex)).collect()
}

fn xdp_of(world: &World) -> String {
    run(&format!("ip -n {} -d link show {LINK}", world.pod))
}

#[test]
fn the_guard_is_native_moves_with_its_link_and_goes_with_it() {
    if !able("the_guard_is_native_moves_with_its_link_and_goes_with_it") {
        return;
    }
    let world = World::new();
    let features = || run(&format!("ethtool -k {WIRE}"));
    let before = features();
    let datapath = guarded(&world, 21);
    let guard = ("xdp".to_owned(), "xdp_guard".to_owned(), 40);
    assert_eq!(hooks(&datapath, 21), std::slice::from_ref(&guard));
    let shown = xdp_of(&world);
    assert!(shown.contains("prog/xdp id") && !shown.contains("xdpgeneric"), "{shown}");

    // A daemon that comes after finds it, and exchanges its program in place.
    drop(datapath);
    let datapath = world.open();
    let old = datapath.guards(21).unwrap()[0].id;
    let upgrade = datapath.upgrade().unwrap();
    assert_eq!(upgrade.updated, [21], "{upgrade:?}");
    assert_eq!(hooks(&datapath, 21), [guard]);
    assert_ne!(datapath.guards(21).unwrap()[0].id, old);

    // Somebody on the host detaches it, and the watch puts it on again.
    let pin = datapath.guards(21).unwrap()[0].pin.clone();
    run(&format!("bpftool link detach pinned {}", pin.display()));
    assert_eq!(hooks(&datapath, 21), []);
    let inside = Arc::new(datapath);
    let datapath = Arc::clone(&inside);
    let repair = Arc::clone(&inside);
    run(&format!("ip -n {} link set {LINK} up", world.pod));
    let found = world.in_pod(move || repair.repair_guard(21, 40));
    assert!(found.unwrap().is_none(), "never on a link that is up");
    assert_eq!(hooks(&datapath, 21), []);
    run(&format!("ip -n {} link set {LINK} down", world.pod));
    let found = world.in_pod(move || (inside.repair_guard(21, 40), inside.repair_guard(21, 40)));
    assert!(found.0.unwrap().unwrap().to_string().contains("was not attached"));
    assert!(found.1.unwrap().is_none());
    assert_eq!(hooks(&datapath, 21).len(), 1);

    datapath.detach(21).unwrap();
    assert_eq!(hooks(&datapath, 21), []);
    let shown = xdp_of(&world);
    assert!(!shown.contains("xdp"), "{shown}");
    assert_eq!(features(), before, "the wire's other end is as it was");
}

#[test]
fn the_host_end_of_a_pair_gets_no_guard() {
    if !able("the_host_end_of_a_pair_gets_no_guard") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let here = ifindex(LINK);
    assert!(datapath.guard_link(27, here).is_err(), "an endpoint that is not there");
    datapath.attach(here, &EndpointSpec { placement: Placement::HostVeth, ..spec(27) }).unwrap();
    assert!(datapath.guard_link(27, here).unwrap().is_some());
    assert_eq!(hooks(&datapath, 27), []);
}

#[test]
fn our_guard_is_not_foreign_and_that_of_another_driver_is() {
    if !able("our_guard_is_not_foreign_and_that_of_another_driver_is") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    let here = ifindex(LINK);
    datapath.attach(here, &spec(22)).unwrap();
    let start = Instant::now();
    datapath.guard_link(22, here).unwrap();
    println!("guarded the link in {:?}", start.elapsed());
    assert_eq!(datapath.foreign_programs(here).unwrap(), []);
    datapath.attach(here, &spec(22)).unwrap();
    let first = datapath.guards(22).unwrap();
    assert_eq!(datapath.guard_link(22, here).unwrap(), None);
    assert_eq!(datapath.guards(22).unwrap(), first, "what is there is not put on again");

    let root = world.another_root();
    let other = AyaDatapath::open(&root.0).unwrap();
    let foreign = other.foreign_programs(here).unwrap();
    assert!(foreign.iter().any(|it| it.hook == "xdp" && it.name == "xdp_guard"), "{foreign:?}");
}

#[test]
fn what_is_dropped_early_no_sniffer_in_the_pod_sees() {
    if !able("what_is_dropped_early_no_sniffer_in_the_pod_sees") {
        return;
    }
    let world = World::new();
    let datapath = guarded(&world, 23);
    run(&format!("ip -n {} link set {LINK} promisc on", world.pod));
    let sniffer = world.in_pod(|| Raw::new(LINK));
    let wire = Raw::new(WIRE);
    let frames = [
        (udp_frame(WIRE_MAC, OTHER_MAC, PEER_V4, POD_V4), "not_for_us"),
        (udp_frame(LINK_MAC, LINK_MAC, PEER_V4, POD_V4), "own_mac"),
        (udp_frame(WIRE_MAC, LINK_MAC, POD_V4, POD_V4), "own_address"),
        (udp_frame(WIRE_MAC, LINK_MAC, PEER_V4, POD_V4)[..30].to_vec(), "malformed_ipv4"),
    ];
    for (frame, reason) in &frames {
        for _ in 0..5 {
            wire.send(frame);
        }
        wait_until(reason, || datapath.stats(23).unwrap().drops.get(*reason) == Some(&5));
    }
    let early = |frame: &[u8]| frames.iter().any(|(sent, _)| frame == &sent[..]);
    assert_eq!(sniffer.received(early), 0);

    // What only the program behind drops a sniffer sees before it: README says so.
    let late = udp_frame(WIRE_MAC, LINK_MAC, PEER_V4, "192.0.2.77");
    wire.send(&late);
    wait_until("late", || datapath.stats(23).unwrap().drops.get("destination_address") == Some(&1));
    assert_eq!(sniffer.received(|frame| frame == &late[..]), 1);
    let stats = datapath.stats(23).unwrap();
    let counted = stats.to_pod.dropped + stats.from_pod.dropped;
    assert_eq!(counted, stats.drops.values().sum::<u64>(), "{stats:?}");
}

#[test]
fn the_block_list_cuts_a_peer_off_and_lets_it_in_again() {
    if !able("the_block_list_cuts_a_peer_off_and_lets_it_in_again") {
        return;
    }
    let world = World::new();
    let datapath = guarded(&world, 24);
    let pod = world.in_pod(|| udp(POD_V4));
    let peer = udp(PEER_V4);
    let arrive = |count: usize| {
        flood(&peer, POD_V4, 20);
        let mut seen = 0;
        let end = Instant::now() + Duration::from_secs(5);
        while seen < count && Instant::now() < end {
            seen += drain(&pod);
        }
        assert_eq!(seen + drain(&pod), count);
    };
    arrive(20);
    for prefix in ["192.0.2.20/32", "192.0.2.0/24", "192.0.0.0/8"] {
        let prefix = prefix.parse().unwrap();
        datapath.block(prefix).unwrap();
        arrive(0);
        // The list is the node's: it is found again.
        assert_eq!(world.open().blocked().unwrap().len(), 1);
        assert!(datapath.unblock(prefix).unwrap());
        assert!(!datapath.unblock(prefix).unwrap(), "it was taken off already");
        arrive(20);
    }
    datapath.block("198.51.100.0/24".parse().unwrap()).unwrap();
    datapath.block("::/0".parse().unwrap()).unwrap();
    let text: Vec<String> = datapath.blocked().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(text, ["198.51.100.0/24", "::/0"]);
    assert_eq!(datapath.stats(24).unwrap().drops["blocked"], 60);
}

#[test]
fn jumbo_frames_and_streams_pass_the_guard() {
    if !able("jumbo_frames_and_streams_pass_the_guard") {
        return;
    }
    let world = World::new();
    for link in [LINK, WIRE] {
        run(&format!("ip link set {link} mtu 9000"));
    }
    let datapath = guarded(&world, 25);
    let pod = world.in_pod(|| {
        let socket = UdpSocket::bind((POD_V4, 4000)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    });
    let peer = udp(PEER_V4);
    // Longer than a page: in several buffers, where the driver has them.
    let sent: Vec<u8> = (0..8900_usize).map(|at| at.to_le_bytes()[0]).collect();
    let mut received = vec![0; 9000];
    for _ in 0..20 {
        peer.send_to(&sent, (POD_V4, 4000)).unwrap();
        let length = pod.recv(&mut received).unwrap();
        assert!(received[..length] == sent, "{length} bytes");
    }

    // A stream in both directions, over IPv6, whose segments the host would merge.
    let listener = world.in_pod(|| std::net::TcpListener::bind((POD_V6, 5000)).unwrap());
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap()
    });
    let stream = std::net::TcpStream::connect((POD_V6, 5000)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        use std::io::Write as _;
        let chunk = vec![9; 1 << 16];
        for _ in 0..160 {
            writer.write_all(&chunk).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    std::io::Read::read_to_end(&mut &stream, &mut back).unwrap();
    writing.join().unwrap();
    assert_eq!((echo.join().unwrap(), back.len()), (160 << 16, 160 << 16));
    let stats = datapath.stats(25).unwrap();
    let wrong = stats.drops.iter().find(|(reason, _)| reason.starts_with("malformed"));
    assert_eq!(wrong, None, "{stats:?}");
}

#[test]
fn a_driver_without_native_xdp_is_told_and_gets_no_generic_one() {
    if !able("a_driver_without_native_xdp_is_told_and_gets_no_generic_one") {
        return;
    }
    let world = World::new();
    run(&format!("ip link add plain0 link {WIRE} address {LINK_MAC} type macvlan mode bridge"));
    let datapath = world.open();
    let here = ifindex("plain0");
    datapath.attach(here, &spec(26)).unwrap();
    let why = datapath.guard_link(26, here).unwrap().expect("macvlan has no native XDP");
    assert!(why.contains("driver"), "{why}");
    assert_eq!(hooks(&datapath, 26), []);
    assert!(!run("ip -d link show plain0").contains("xdp"));
    datapath.verify(26, here).unwrap();
    datapath.detach(26).unwrap();
}

#[test]
fn the_command_line_keeps_the_block_list() {
    if !able("the_command_line_keeps_the_block_list") {
        return;
    }
    let world = World::new();
    let bpffs = world.root.to_str().unwrap().to_owned();
    std::fs::create_dir(&world.root).unwrap();
    let netferry = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netferry"));
        command.arg("block").args(words.split_whitespace()).args(["--bpffs", &bpffs]);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    };
    let error = netferry("add 192.0.2.7").unwrap_err();
    assert!(error.contains("Netferry does not run on this node"), "{error}");
    let _daemon = AyaDatapath::open(&world.root.join("v1")).unwrap();
    netferry("add 192.0.2.7 2001:db8::/32").unwrap();
    let listed = netferry("list").unwrap();
    let lines: Vec<_> = listed.lines().map(str::trim).collect();
    assert_eq!(lines, ["PREFIX", "192.0.2.7/32", "2001:db8::/32"]);
    netferry("remove 192.0.2.7/32").unwrap();
    assert_eq!(netferry("list -o json").unwrap().replace(char::is_whitespace, ""), r#"["2001:db8::/32"]"#);
    let error = netferry("remove 192.0.2.7").unwrap_err();
    assert!(error.contains("192.0.2.7/32 is not on the list"), "{error}");
    assert!(netferry("add 192.0.2.300").is_err());
}
