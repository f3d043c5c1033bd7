//! Attach and return on a real kernel: namespaces, links and programs.

#[path = "attach/interrupted.rs"]
mod interrupted;
mod support;
#[path = "attach/vanished.rs"]
mod vanished;
#[path = "attach/without_tcx.rs"]
mod without_tcx;
#[path = "attach/world.rs"]
mod world;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use interrupted::Interrupted;
use netferry::{
    attach::{Attacher, Outcome, Reason},
    claim::{Checkpoint, ClaimRef, InterfaceRecord},
    datapath::Datapath as _,
    link::MacAddr,
    netns::Namespaces as _,
    nri::PodSandbox,
};
use support::netns::NetNs;
use world::{MAC, World, plan_of_eth7, plan_of_eth8, pod_ref};

#[tokio::test]
async fn a_pod_gets_its_links_and_they_come_home_as_before() {
    let Some(world) = World::patient("a_pod_gets_its_links_and_they_come_home_as_before") else { return };
    world.claim();
    let attacher = world.places.attacher();
    let start = Instant::now();
    let outcome = attacher.attach(&world.places.sandbox()).await.expect("attach");
    println!("attached two links in {:?}", start.elapsed());
    assert_eq!(outcome.problems, []);
    assert_eq!(outcome.attached.len(), 2);
    assert_eq!(world.host.links(), Vec::<String>::new());
    let net1 = world.pod.link("net1").expect("net1");
    assert_eq!(net1["address"], MAC.to_string());
    assert_eq!(net1["mtu"], 1400);
    assert!(net1["flags"].as_array().expect("flags").iter().any(|flag| flag == "UP"));
    let addresses = world.pod.ip("addr show dev net1");
    assert!(addresses.contains("inet 198.51.100.7/24") && addresses.contains("inet6 2001:db8:7::7/64"));
    let claimed = |line: &&str| line.contains("2001:db8:7::7/64");
    let claimed = addresses.lines().find(claimed).expect("the claimed address");
    assert!(!claimed.contains("tentative"), "usable at once: {claimed}");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let addresses = world.pod.ip("addr show dev net1");
    assert!(
        addresses.contains("inet6 fe80::aa:ff:fe00:7/64") && !addresses.contains("tentative"),
        "{addresses}"
    );
    assert!(world.pod.ip("route show default").contains("via 198.51.100.1 dev net1"));
    assert!(world.pod.ip("-6 route show default").contains("via 2001:db8:7::1 dev net1"));
    let programs = &outcome.attached[0].programs;
    assert_eq!(programs.iter().map(|it| it.hook.as_str()).collect::<Vec<_>>(), ["tcx/ingress", "tcx/egress"]);
    assert!(outcome.attached[1].programs.is_empty(), "isolation off");
    let endpoint = outcome.attached[0].endpoint.expect("an endpoint");
    let guards = world.places.datapath().guards(endpoint).expect("guards");
    let guards: Vec<_> = guards.iter().map(|it| (it.hook.as_str(), it.name.as_str())).collect();
    assert!(!guards.iter().any(|(hook, _)| *hook == "xdp"), "the link was up: {guards:?}");
    let guarded = world.places.cgroup_folder().is_some();
    assert_eq!(guards.contains(&("cgroup/setsockopt", "sockopt_guard")), guarded, "{guards:?}");
    world.pod.exec("ping -c 1 -W 2 198.51.100.1");
    world.pod.exec("ping -c 1 -W 2 2001:db8:7::1");

    let again = attacher.attach(&world.places.sandbox()).await.expect("attach again");
    assert_eq!(again.attached, outcome.attached);

    let start = Instant::now();
    let returned = attacher.give_back("s1").await;
    println!("returned two links in {:?}", start.elapsed());
    assert_eq!(returned.problems, []);
    world.assert_home("after the return");
    assert_eq!(attacher.give_back("s1").await, Outcome::default());
}

#[tokio::test]
async fn a_failure_of_any_link_step_leaves_the_host_as_before() {
    let Some(world) = World::new("a_failure_of_any_link_step_leaves_the_host_as_before") else { return };
    world.claim();
    let mut nth = 0;
    loop {
        let links = Arc::new(Interrupted::new(world.places.links(), nth));
        let attacher = Attacher::new(
            links,
            Arc::new(world.places.namespaces()),
            Arc::new(world.places.datapath()),
            world.places.store(),
        );
        let Err(failed) = attacher.attach(&world.places.sandbox()).await else { break };
        assert!(failed.to_string().contains("asked for by the test"), "{failed}");
        assert_eq!(failed.problems, [], "step {nth}");
        world.assert_home(&format!("link step {nth} failed: {failed}"));
        nth += 1;
    }
    println!("{nth} steps");
    assert!(nth >= 16, "only {nth} steps were tried");
}

#[tokio::test]
async fn a_failure_of_any_program_step_leaves_the_host_as_before() {
    let Some(world) = World::new("a_failure_of_any_program_step_leaves_the_host_as_before") else { return };
    world.claim();
    let mut nth = 0;
    loop {
        let datapath = Arc::new(Interrupted::new(world.places.datapath(), nth));
        let attacher = Attacher::new(
            Arc::new(world.places.links()),
            Arc::new(world.places.namespaces()),
            datapath,
            world.places.store(),
        );
        let attacher = world.places.guarded(attacher);
        let Err(failed) = attacher.attach(&world.places.sandbox()).await else { break };
        assert!(failed.to_string().contains("asked for by the test"), "{failed}");
        world.assert_home(&format!("program step {nth} failed: {failed}"));
        nth += 1;
    }
    // Without cgroups of version 2 pods are not guarded.
    let steps = if world.places.cgroup_folder().is_some() { 7 } else { 6 };
    // The early drop is put on at prepare, so an attach cannot fail there.
    assert_eq!(
        nth, steps,
        "foreign programs, endpoints, last endpoint, attach, guard the pod, verify, ready"
    );
}

#[tokio::test]
async fn an_error_names_what_the_kernel_allows() {
    let Some(world) = World::new("an_error_names_what_the_kernel_allows") else { return };
    world.claim();
    let store = world.places.store();
    store.update("c7", |checkpoint| checkpoint.interfaces[0].plan.mtu = Some(70_000)).expect("checkpoint");
    let failed = world.places.attacher().attach(&world.places.sandbox()).await.expect_err("too big");
    let text = failed.to_string();
    assert!(
        text.starts_with("claim default/c7, device eth7: set the MTU to 70000 (the link takes 68 to"),
        "{text}"
    );
    world.assert_home("after the MTU was refused");
}

#[tokio::test]
async fn what_a_pod_did_to_its_link_is_undone() {
    let Some(world) = World::patient("what_a_pod_did_to_its_link_is_undone") else { return };
    world.claim();
    let attacher = world.places.attacher();
    attacher.attach(&world.places.sandbox()).await.expect("attach");
    for words in [
        "link set net1 down",
        "link set net1 name mine address 02:00:00:00:00:99 mtu 1300 txqueuelen 3 alias spoilt",
        "link set mine up promisc on",
        "addr add 9.9.9.9/8 dev mine",
        "link property del dev mine altname enp9s0",
        "link set net2 name eth7",
    ] {
        world.pod.ip(words);
    }
    let returned = attacher.give_back("s1").await;
    assert_eq!(returned.problems, []);
    world.assert_home("after the return");
}

#[tokio::test]
async fn a_link_deleted_in_the_pod_is_told() {
    let Some(world) = World::new("a_link_deleted_in_the_pod_is_told") else { return };
    world.claim();
    let attacher = world.places.attacher();
    attacher.attach(&world.places.sandbox()).await.expect("attach");
    world.pod.ip("link del net1");
    let returned = attacher.give_back("s1").await;
    assert_eq!(reasons(&returned), [Reason::LinkGone], "{returned:?}");
    assert_eq!(world.host.links(), ["eth8"]);
    world.assert_nothing_left("after the return");
}

#[tokio::test]
async fn made_links_are_fetched_from_a_namespace_that_the_runtime_has_removed() {
    let test = "made_links_are_fetched_from_a_namespace_that_the_runtime_has_removed";
    let Some(world) = World::new(test) else { return };
    world.claim();
    let attacher = world.places.attacher();
    attacher.attach(&world.places.sandbox()).await.expect("attach");
    world.pod.vanish();
    let returned = attacher.give_back("s1").await;
    assert_eq!(returned.problems, []);
    world.assert_home("after the return");
    assert_eq!(world.places.namespaces().held().await.expect("holds"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_link_that_its_pod_pushed_on_is_waited_for() {
    let Some(world) = World::new("a_link_that_its_pod_pushed_on_is_waited_for") else { return };
    world.claim();
    let attacher = world.places.attacher();
    attacher.attach(&world.places.sandbox()).await.expect("attach");
    world.pod.ip(&format!("link set net1 netns {}", world.peer.name));
    let returned = attacher.give_back("s1").await;
    assert_eq!(reasons(&returned), [Reason::NotReturned], "{returned:?}");
    assert_eq!(world.host.links(), ["eth8"]);
    // It is put back, and the next try finds it by what it is, not by where it was.
    world.peer.ip(&format!("link set net1 netns {}", world.host.name));
    let returned = attacher.give_back("s1").await;
    assert_eq!(returned.problems, []);
    // Its index may be another now: the rest is as before.
    let index = world.host.ifindex("eth7");
    assert_eq!(index, world.host.ifindex("enp9s0"));
    world.assert_nothing_left("after the return");
}

#[tokio::test]
async fn a_name_taken_at_home_is_worked_around() {
    let Some(world) = World::new("a_name_taken_at_home_is_worked_around") else { return };
    world.claim();
    let attacher = world.places.attacher();
    attacher.attach(&world.places.sandbox()).await.expect("attach");
    let mac = MacAddr([2, 0, 0, 0, 0, 0x77]);
    world.host.ip(&format!("link add eth7 address {mac} type veth peer name other"));
    world.host.ip("link property add dev other altname enp9s0");
    let returned = attacher.give_back("s1").await;
    assert_eq!(reasons(&returned), [Reason::NameTaken], "{returned:?}");
    let home = world.host.link("nf-eth7").expect("home under a free name");
    assert_eq!(home["mtu"], 1480);
    assert!(world.host.ip("addr show dev nf-eth7").contains("198.51.100.70/24"));
    assert_eq!(world.host.link("eth7").expect("the other link")["address"], mac.to_string());
    world.assert_nothing_left("after the return");
}

fn reasons(outcome: &Outcome) -> Vec<Reason> {
    outcome.problems.iter().map(|problem| problem.reason).collect()
}

#[tokio::test]
async fn a_link_that_dies_with_its_pod_is_made_anew() {
    let Some(world) = World::new("a_link_that_dies_with_its_pod_is_made_anew") else { return };
    world.host.ip("link add link eth7 name macvlan7 type macvlan mode bridge");
    world.host.ip("link property add dev macvlan7 altname macvlan7-other");
    world.host.ip("addr add 192.0.2.200/25 dev macvlan7");
    world.host.ip("link set macvlan7 up");
    world.host.ip("route add 10.20.0.0/16 via 192.0.2.201");
    world.dies_and_is_made_anew("macvlan7", plan_of_eth7()).await;
}

/// Mounts of namespaces, as this process sees them.
fn namespace_mounts(below: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let below = below.to_str().expect("UTF-8");
    mounts.lines().filter(|line| line.contains(" - nsfs ") && line.contains(below)).count()
}

/// The runtime removes a pod's namespace before it reports the stop, or after it, or reports none. `NETFERRY_PODS=1000`
/// makes it a thousand.
#[tokio::test]
async fn pods_that_come_and_go_leave_no_namespace() {
    let Some(world) = World::new("pods_that_come_and_go_leave_no_namespace") else { return };
    let count = std::env::var("NETFERRY_PODS").map_or(100, |text| text.parse().expect("a number"));
    let store = world.places.store();
    let attacher = Attacher::new(
        Arc::new(world.places.links()),
        Arc::new(world.places.namespaces()),
        Arc::new(world.places.datapath()),
        Arc::clone(&store),
    );
    for number in 0..count {
        let pod = NetNs::new();
        let uid = format!("c{number}");
        let claim = ClaimRef { namespace: "default".into(), name: uid.clone(), uid: uid.clone() };
        let interfaces = vec![InterfaceRecord::planned(plan_of_eth8())];
        store.put(Checkpoint::new(claim, vec![pod_ref()], interfaces)).expect("checkpoint");
        let id = format!("s{number}");
        let sandbox = PodSandbox { id: id.clone(), netns: Some(pod.path.clone()), ..world.places.sandbox() };
        assert_eq!(attacher.attach(&sandbox).await.expect("attach").attached.len(), 1);
        assert_eq!(namespace_mounts(&world.places.store), 1);
        let outcome = match number % 3 {
            0 => {
                pod.vanish();
                attacher.give_back(&id).await
            }
            1 => attacher.give_back(&id).await,
            _ => {
                pod.vanish();
                attacher.sweep().await
            }
        };
        assert_eq!(outcome.problems, [], "pod {number}");
        assert_eq!(outcome.returned.len(), 1, "pod {number}");
        store.remove(&uid).expect("forgotten");
        // The next pod's address is that of this one: nothing of it may be left.
        assert_eq!(namespace_mounts(&world.places.store), 0, "pod {number}");
    }
    world.assert_home("after the last pod");
}
