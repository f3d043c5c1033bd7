//! Drift on a real kernel: each part of what an attach makes is broken by hand, and put right.

#[path = "port/world.rs"]
mod pods;
mod support;
#[path = "attach/world.rs"]
mod world;

use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use netferry::{
    attach::{Attacher, Extent, Mended, Problem, Repair},
    datapath::Datapath as _,
    device::watch::{WatchOptions, start},
    repair::{PodEvents, RepairWatch, Told},
};
use netferry_common::{AddressKey, LimitKey, Member, MemberKey, Slot, endpoint::ADDR_OWN, maps, slot};
use pods::{BLUE, Node, port, v4};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use world::World;

fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("hex {}", bytes.join(" "))
}

fn delete(pins: &Path, map: &str, key: &[u8]) {
    run(&format!("bpftool map delete pinned {}/maps/{map} key {}", pins.display(), hex(key)));
}

fn write(pins: &Path, map: &str, key: &[u8], value: &[u8]) {
    let (key, value) = (hex(key), hex(value));
    run(&format!("bpftool map update pinned {}/maps/{map} key {key} value {value}", pins.display()));
}

/// Keys and values of a map.
fn entries(pins: &Path, map: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let dump = run(&format!("bpftool -j map dump pinned {}/maps/{map}", pins.display()));
    let dump: Value = serde_json::from_str(&dump).expect("JSON");
    let bytes = |entry: &Value, name: &str| -> Vec<u8> {
        let bytes = entry[name].as_array().expect("bytes").iter();
        let byte = |it: &Value| u8::from_str_radix(it.as_str().expect("hex").trim_start_matches("0x"), 16);
        bytes.map(|it| byte(it).expect("a byte")).collect()
    };
    let dump = dump.as_array().expect("entries").iter();
    dump.map(|entry| (bytes(entry, "key"), bytes(entry, "value"))).collect()
}

fn items(repairs: &[Repair], mended: &Mended) -> Vec<&'static str> {
    let mut items: Vec<_> =
        repairs.iter().filter(|it| it.mended == *mended).map(|it| it.found.item()).collect();
    items.sort_unstable();
    items.dedup();
    items
}

/// Exactly these are found and put right, and then nothing is found any more.
async fn repaired(attacher: &Attacher, expected: &[&str], when: &str) {
    let repairs = attacher.repair(Extent::Everywhere).await;
    assert_eq!(items(&repairs, &Mended::Repaired), expected, "{when}: {repairs:?}");
    assert!(repairs.iter().all(|it| it.mended == Mended::Repaired), "{when}: {repairs:?}");
    let again = attacher.repair(Extent::Everywhere).await;
    assert_eq!(again, [], "{when}: it is put right for good");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_end_of_a_port_is_kept() {
    let Some(pods) = Node::new("the_hosts_end_of_a_port_is_kept", 2) else { return };
    let plan = port("c0", BLUE, 7, "net1");
    let end = plan.host_link.clone();
    pods.claim("c0", 0, vec![plan]);
    pods.claim("c1", 1, vec![port("c1", BLUE, 8, "net1")]);
    let attacher = pods.places.attacher();
    pods.attach_all(&attacher).await;
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "nothing has drifted");
    for (words, expected) in [
        (format!("link set {end} down"), "host_state"),
        (format!("link set {end} mtu 1300"), "host_mtu"),
        (format!("link set {end} down name nfother"), "host_name"),
    ] {
        pods.host.ip(&words);
        let host = attacher.repair(Extent::Host).await;
        assert!(items(&host, &Mended::Repaired).contains(&expected), "{words}: {host:?}");
        assert_eq!(attacher.repair(Extent::Everywhere).await, [], "{words}");
        assert!(pods.reaches(0, &v4(8)), "{words}");
    }
    pods.host.exec(&format!("sysctl -q -w net.ipv6.conf.{end}.disable_ipv6=0"));
    repaired(&attacher, &["host_ipv6"], "IPv6 on the host's end").await;
    assert!(!pods.host.ip("-6 addr show").contains("fe80"), "the host speaks on the port");
    for nth in 0..2 {
        assert_eq!(attacher.give_back(&format!("s{nth}")).await.problems, []);
    }
    pods.assert_nothing_left("after the return");
}

#[tokio::test(flavor = "multi_thread")]
async fn map_entries_of_a_port_are_kept() {
    let Some(pods) = Node::new("map_entries_of_a_port_are_kept", 2) else { return };
    let mut plan = port("c0", BLUE, 7, "net1");
    let policy =
        "egress: {rules: [{action: deny, peers: [{cidr: 10.78.0.9/32}], ports: [{protocol: UDP, port: 5}]}]}";
    plan.policy = Some(serde_yaml_ng::from_str(policy).expect("a policy"));
    plan.limits = Some(serde_yaml_ng::from_str("egress: {packetsPerSecond: 100000}").expect("limits"));
    pods.claim("c0", 0, vec![plan]);
    pods.claim("c1", 1, vec![port("c1", BLUE, 8, "net1")]);
    let attacher = pods.places.attacher();
    let outcome = attacher.attach(&pods.sandbox(0)).await.expect("attach");
    let id = outcome.attached[0].endpoint.expect("an endpoint");
    attacher.attach(&pods.sandbox(1)).await.expect("attach");
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "nothing has drifted");
    assert!(pods.reaches(0, &v4(8)));
    let counted = pods.places.datapath().stats(id).expect("stats").from_pod.packets;
    let pins = &pods.places.pins;
    let own = v4(7).parse::<std::net::IpAddr>().expect("an address").into();
    let member = MemberKey { network: BLUE.1, addr: own };
    let member = bytemuck::bytes_of(&member);
    let limit = LimitKey { endpoint: id, direction: 0, kind: netferry_common::limit::FLOWS };

    delete(pins, maps::ENDPOINTS, &id.to_ne_bytes());
    repaired(&attacher, &["endpoint"], "the record was deleted").await;
    assert!(pods.reaches(0, &v4(8)), "after the record");
    delete(pins, maps::MEMBERS, member);
    repaired(&attacher, &["membership"], "the member was deleted").await;
    write(pins, maps::MEMBERS, member, bytemuck::bytes_of(&Member::new(id, [2, 0, 0, 0, 0, 0x66])));
    repaired(&attacher, &["membership"], "the member has another MAC").await;
    assert!(pods.reaches(1, &v4(7)), "after the member");
    delete(pins, maps::ADDRESSES, bytemuck::bytes_of(&AddressKey { endpoint: id, addr: own }));
    repaired(&attacher, &["own_addresses"], "an own address was deleted").await;
    let forged = "10.78.0.66".parse::<std::net::IpAddr>().expect("an address").into();
    let address = netferry_common::Address { flags: ADDR_OWN, prefix: 24 };
    let key = AddressKey { endpoint: id, addr: forged };
    write(pins, maps::ADDRESSES, bytemuck::bytes_of(&key), bytemuck::bytes_of(&address));
    repaired(&attacher, &["own_addresses"], "an address was added that it may not send from").await;
    delete(pins, maps::LIMITS, bytemuck::bytes_of(&limit));
    repaired(&attacher, &["limits"], "a limit was deleted").await;
    delete(pins, maps::BUDGETS, &id.to_ne_bytes());
    repaired(&attacher, &["limits"], "the budget was deleted").await;
    let rules = entries(pins, maps::RULES);
    assert!(!rules.is_empty());
    for (key, _) in &rules {
        delete(pins, maps::RULES, key);
    }
    repaired(&attacher, &["policy"], "the rules were deleted").await;
    assert_eq!(entries(pins, maps::RULES).len(), rules.len());
    // A daemon that was started since knows the policy by the plan.
    let attacher = pods.places.attacher();
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "after a restart");
    for (key, _) in entries(pins, maps::PEERS) {
        delete(pins, maps::PEERS, &key);
    }
    repaired(&attacher, &["policy"], "the peers were deleted, after a restart").await;
    let mut record = entries(pins, maps::ENDPOINTS).into_iter().find(|(key, _)| *key == id.to_ne_bytes());
    let (key, record) = record.as_mut().expect("a record");
    record[0] &= !1;
    write(pins, maps::ENDPOINTS, key, record);
    repaired(&attacher, &["gate"], "the gate was closed").await;
    record[0] |= 1;
    record[20] ^= 4;
    write(pins, maps::ENDPOINTS, key, record);
    repaired(&attacher, &["endpoint"], "another MAC was written").await;
    let place = slot::of(id).to_ne_bytes();
    let emptied = bytemuck::bytes_of(&Slot::default()).to_owned();
    write(pins, maps::SLOTS, &place, &emptied);
    assert!(pods.reaches(0, &v4(8)), "without a slot, by the record");
    repaired(&attacher, &["endpoint"], "the slot was emptied").await;
    let slots: Vec<Slot> =
        entries(pins, maps::SLOTS).iter().map(|(_, it)| bytemuck::pod_read_unaligned(it)).collect();
    assert_eq!(slots.iter().filter(|slot| slot.flags & 1 != 0).count(), 2, "one open for each pod");
    assert!(pods.reaches(0, &v4(8)) && pods.reaches(1, &v4(7)), "in the end");
    let stats = pods.places.datapath().stats(id).expect("stats");
    assert!(stats.from_pod.packets > counted, "the counters go on: {stats:?}");
    for nth in 0..2 {
        assert_eq!(attacher.give_back(&format!("s{nth}")).await.problems, []);
    }
    pods.assert_nothing_left("after the return");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_routes_and_the_guard_of_a_moved_link_are_put_back() {
    let Some(world) = World::new("addresses_routes_and_the_guard_of_a_moved_link_are_put_back") else {
        return;
    };
    world.claim();
    let attacher = world.places.attacher();
    let outcome = attacher.attach(&world.places.sandbox()).await.expect("attach");
    let id = outcome.attached.iter().find_map(|it| it.endpoint).expect("an endpoint");
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "nothing has drifted");
    world.pod.ip("addr add 198.51.100.99/24 dev net1");
    world.pod.ip("route add 10.99.0.0/16 dev net1");
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "what the pod adds is its own");
    world.pod.ip("route del 10.7.0.0/16");
    repaired(&attacher, &["route"], "a route was deleted").await;
    world.pod.ip("addr del 2001:db8:7::7/64 dev net1");
    let repairs = attacher.repair(Extent::Everywhere).await;
    assert!(items(&repairs, &Mended::Repaired).contains(&"address"), "{repairs:?}");
    world.pod.ip("addr flush dev net1");
    let repairs = attacher.repair(Extent::Everywhere).await;
    assert_eq!(items(&repairs, &Mended::Repaired), ["address", "route"], "{repairs:?}");
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "after the flush");
    let shown = world.pod.ip("addr show dev net1");
    assert!(shown.contains("198.51.100.7/24") && shown.contains("2001:db8:7::7/64"), "{shown}");
    assert!(!shown.contains("198.51.100.99"), "{shown}");
    world.pod.exec("sysctl -q -w net.ipv6.conf.net1.disable_ipv6=1");
    let repairs = attacher.repair(Extent::Everywhere).await;
    assert!(items(&repairs, &Mended::Repaired).contains(&"address"), "{repairs:?}");
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "with IPv6 on again");

    // What is the pod's own affair.
    world.pod.ip("link set net1 down");
    for words in ["name own0", "mtu 1300", "address 02:00:00:00:00:66"] {
        world.pod.ip(&format!("link set {} {words}", world.pod.links()[0]));
    }
    let repairs = attacher.repair(Extent::Everywhere).await;
    assert_eq!(items(&repairs, &Mended::Left), ["mac", "mtu", "name", "state"], "{repairs:?}");
    assert_eq!(items(&repairs, &Mended::Repaired), Vec::<&str>::new(), "{repairs:?}");
    let mac = world::MAC;
    world.pod.ip(&format!("link set own0 name net1 mtu 1400 address {mac} up"));
    let repairs = attacher.repair(Extent::Everywhere).await;
    assert_eq!(items(&repairs, &Mended::Left), Vec::<&str>::new(), "{repairs:?}");
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "up again");

    // The guard of the pod, detached and unpinned.
    if world.places.cgroup_folder().is_some() {
        let guard = || {
            let guards = world.places.datapath().guards(id).expect("guards");
            guards.into_iter().find(|guard| guard.hook == "cgroup/setsockopt")
        };
        run(&format!("bpftool link detach pinned {}", guard().expect("a guard").pin.display()));
        assert!(guard().is_none());
        repaired(&attacher, &["cgroup_guard"], "the guard was detached").await;
        std::fs::remove_file(guard().expect("a guard").pin).expect("unpin");
        repaired(&attacher, &["cgroup_guard"], "the guard was unpinned").await;
        assert!(guard().is_some());
    }
    assert_eq!(attacher.give_back("s1").await.problems, []);
    world.assert_home("after the return");
    assert_eq!(attacher.repair(Extent::Everywhere).await, [], "of nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_is_left_to_the_sweep() {
    let Some(pods) = Node::new("a_pod_that_is_gone_is_left_to_the_sweep", 1) else { return };
    pods.claim("c0", 0, vec![port("c0", BLUE, 7, "net1")]);
    let attacher = pods.places.attacher();
    pods.attach_all(&attacher).await;
    pods.pods[0].ip("link del net1");
    let repairs = attacher.repair(Extent::Everywhere).await;
    assert_eq!(items(&repairs, &Mended::Left), ["interface"], "{repairs:?}");
    pods.pods[0].vanish();
    assert_eq!(attacher.repair(Extent::Everywhere).await, []);
    assert_eq!(attacher.sweep().await.problems, []);
    pods.assert_nothing_left("after the sweep");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_checkpoint_knows_is_cleared_up() {
    let Some(pods) = Node::new("what_no_checkpoint_knows_is_cleared_up", 2) else { return };
    pods.claim("c0", 0, vec![port("c0", BLUE, 7, "net1")]);
    pods.claim("c1", 1, vec![port("c1", BLUE, 8, "net1")]);
    let attacher = pods.places.attacher();
    pods.attach_all(&attacher).await;
    assert_eq!(attacher.clear_orphans().await, []);
    assert_eq!(pods.host.links().len(), 2, "what is known stays");
    // The checkpoint of one is lost.
    let files = std::fs::read_dir(&pods.places.store).expect("checkpoints").flatten();
    let lost: Vec<_> = files.filter(|it| it.file_name().to_string_lossy().starts_with("c0")).collect();
    assert_eq!(lost.len(), 2, "its plan and its step");
    for file in lost {
        std::fs::remove_file(file.path()).expect("remove");
    }
    let attacher = pods.places.attacher();
    assert_eq!(attacher.clear_orphans().await, []);
    assert_eq!((pods.host.links().len(), pods.pods[0].links().len()), (1, 0));
    // Entries of an endpoint that never was.
    let stray = MemberKey { network: BLUE.1, addr: netferry_common::Addr { bytes: [9; 16] } };
    let pins = &pods.places.pins;
    write(pins, maps::MEMBERS, bytemuck::bytes_of(&stray), bytemuck::bytes_of(&Member::new(4000, [2; 6])));
    let remote = MemberKey { addr: netferry_common::Addr { bytes: [8; 16] }, ..stray };
    write(pins, maps::MEMBERS, bytemuck::bytes_of(&remote), bytemuck::bytes_of(&Member::new(0, [2; 6])));
    assert_eq!(attacher.clear_orphans().await, []);
    let left: Vec<_> = entries(pins, maps::MEMBERS).into_iter().map(|(key, _)| key).collect();
    assert!(!left.contains(&bytemuck::bytes_of(&stray).to_vec()), "a member of no endpoint");
    assert!(left.contains(&bytemuck::bytes_of(&remote).to_vec()), "a member elsewhere stays");
    assert_eq!(attacher.repair(Extent::Everywhere).await, []);
    assert_eq!(attacher.give_back("s1").await.problems, []);
    pods.assert_nothing_left("after the return");
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Extent, Repair)>>>);

impl Told for Seen {
    fn found(&self, extent: &Extent, repairs: &[Repair]) {
        self.0.lock().expect("lock").extend(repairs.iter().map(|repair| (extent.clone(), repair.clone())));
    }
    fn orphans(&self, problems: &[Problem]) {
        assert_eq!(problems, []);
    }
}

/// The timer of this test never comes: it is the kernel's event that has the link looked at.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_the_host_is_enough() {
    let Some(pods) = Node::new("an_event_of_the_host_is_enough", 1) else { return };
    let plan = port("c0", BLUE, 7, "net1");
    let end = plan.host_link.clone();
    pods.claim("c0", 0, vec![plan]);
    let attacher = Arc::new(pods.places.attacher());
    pods.attach_all(&attacher).await;
    let (seen, stop) = (Seen::default(), CancellationToken::new());
    let (told, token, worker) = (seen.clone(), stop.clone(), Arc::clone(&attacher));
    let host = pods.host.path.clone();
    let watching = std::thread::spawn(move || {
        let host = std::fs::File::open(host).expect("host");
        nix::sched::setns(host, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let held = std::collections::BTreeSet::<String>::new;
            let links = start(WatchOptions::default(), Arc::new(held), token.clone()).await.expect("watch");
            // Nobody tells of pods.
            let watch =
                RepairWatch { attacher: worker, events: links.settled(), pods: mpsc::channel(1).1, told };
            watch.watch(Duration::from_hours(1), token).await;
        });
    });
    let mut tries = 0;
    while seen.0.lock().expect("lock").is_empty() {
        // Again and again: the first may have been before the watch listened.
        pods.host.ip(&format!("link set {end} down"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        tries += 1;
        assert!(tries < 60, "nobody noticed");
    }
    let first = seen.0.lock().expect("lock")[0].clone();
    assert_eq!(
        (first.0, first.1.found.item(), first.1.mended),
        (Extent::Host, "host_state", Mended::Repaired)
    );
    stop.cancel();
    watching.join().expect("the watch");
    assert_eq!(attacher.give_back("s0").await.problems, []);
    pods.assert_nothing_left("after the return");
}

/// Waits until a look at a pod has told of something, and takes it.
async fn told_of_a_pod(seen: &Seen, what: &str) -> Vec<&'static str> {
    for _ in 0..600 {
        let told = std::mem::take(&mut *seen.0.lock().expect("lock"));
        let repaired: Vec<Repair> = told.into_iter().map(|(_, repair)| repair).collect();
        let items = items(&repaired, &Mended::Repaired);
        if !items.is_empty() {
            return items;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: nobody noticed")
}

/// The timer of this test never comes, and nobody tells of the host: it is the event in the pod.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_inside_of_a_pod_is_enough() {
    let Some(world) = World::new("an_event_inside_of_a_pod_is_enough") else { return };
    world.claim();
    let store = world.places.store();
    let attacher = Arc::new(Attacher::new(
        Arc::new(world.places.links()),
        Arc::new(world.places.namespaces()),
        Arc::new(world.places.datapath()),
        Arc::clone(&store),
    ));
    let (seen, stop) = (Seen::default(), CancellationToken::new());
    let (changed, pods) = mpsc::channel(1);
    let listening = PodEvents { links: world.places.links(), store: Arc::clone(&store) };
    let listening = tokio::spawn(listening.watch(changed, stop.clone()));
    let events = Arc::default();
    let watch = RepairWatch { attacher: Arc::clone(&attacher), events, pods, told: seen.clone() };
    let watching = tokio::spawn(watch.watch(Duration::from_hours(1), stop.clone()));
    attacher.attach(&world.places.sandbox()).await.expect("attach");
    // The listener begins a moment after the attach.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.pod.ip("route del 10.7.0.0/16");
    assert_eq!(told_of_a_pod(&seen, "a route").await, ["route"]);
    world.pod.ip("addr flush dev net1");
    assert!(told_of_a_pod(&seen, "addresses").await.contains(&"address"));
    assert!(world.pod.ip("addr show dev net1").contains("198.51.100.7/24"));
    // The socket of a listener is of the namespace that it keeps alive.
    assert!(listened_to(&world.pod.path), "the test sees the listener");
    assert_eq!(attacher.give_back_links("s1").await.problems, []);
    let mut left = 50;
    while listened_to(&world.pod.path) {
        assert!(left > 0, "the listener outlives the interfaces");
        left -= 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.cancel();
    listening.await.expect("the listener");
    watching.await.expect("the watch");
    attacher.finish_removals().await;
    world.assert_home("after the return");
}

/// Whether this process has a netlink socket with memberships in a namespace.
fn listened_to(netns: &Path) -> bool {
    let mut table = Command::new("nsenter");
    table.arg(format!("--net={}", netns.display())).args(["cat", "/proc/net/netlink"]);
    let table = table.output().expect("nsenter");
    let table = String::from_utf8(table.stdout).expect("text");
    // Protocol 0 is NETLINK_ROUTE, the fourth column its groups.
    table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|columns| {
        columns.get(1) == Some(&"0") && columns.get(3).is_some_and(|groups| *groups != "00000000")
    })
}
