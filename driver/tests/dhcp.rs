//! Addresses by DHCP: the daemon in whole, in a namespace with an uplink, and dnsmasq beyond it. Needs root; skips
//! without, and says so.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test binary")]

mod support;
#[path = "dhcp/tagged.rs"]
mod tagged;
#[path = "dhcp/world.rs"]
mod world;

use std::time::Duration;

use tokio::time::sleep;
use world::{SERVER, World, able, address, answers, until};

const RANGE: &str = "10.9.0.50,10.9.0.59,255.255.255.0,2m";
const INSIDE: &str = "10.9.0.5";

/// From claim to pod and back, as kubelet and runtime have it done.
async fn a_pod_by_dhcp(vlan: Option<u16>) {
    let world = World::start(vlan).await;
    let _server =
        world.serve(RANGE, &["--dhcp-option=option:router,10.9.0.1", "--dhcp-option=option:mtu,1300"]);
    let fields = ", routes: [{destination: 203.0.113.0/24}]";
    let (claim, pod, sandbox) = world.claim("web", fields);
    world.prepare(&claim).await.expect("prepared");
    let [[_, mac, leased]] = world.leases().try_into().expect("one lease");
    assert!(leased.starts_with(INSIDE), "{leased}");
    world.prepare(&claim).await.expect("prepared again");
    assert_eq!(world.leases().len(), 1);

    world.run(&sandbox).await;
    let shown = pod.ip("address show dev net1");
    for part in [format!("inet {leased}/24"), format!("link/ether {mac}"), "mtu 1300".to_owned()] {
        assert!(shown.contains(&part), "{part}: {shown}");
    }
    let routes = pod.ip("route show");
    assert!(routes.contains("203.0.113.0/24 via 10.9.0.1 dev net1"), "{routes}");
    assert!(answers(&pod, SERVER), "from the pod");
    assert!(answers(&world.outside, &leased), "to the pod");
    until("the status tells the address", || world.status(&claim).contains(&format!("{leased}/24"))).await;

    // Another pod has another address, and both reach each other.
    let (other, second, sandbox2) = world.claim("other", "");
    world.prepare(&other).await.expect("prepared");
    world.run(&sandbox2).await;
    let theirs = address(&second).expect("an address");
    assert_ne!(theirs, leased);
    assert!(answers(&pod, &theirs), "from one to the other");
    assert_eq!((world.leases().len(), world.kept().len()), (2, 2));

    for (claim, sandbox) in [(&claim, &sandbox), (&other, &sandbox2)] {
        world.stop(sandbox).await;
        world.unprepare(claim).await.expect("unprepared");
    }
    until("the server hears of it", || world.leases().is_empty()).await;
    assert_eq!((world.kept().len(), world.checkpoints()), (0, 0));
    assert_eq!((world.counted("leased"), world.counted("released")), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_its_address_from_a_server_on_the_untagged_wire() {
    if able("a_pod_has_its_address_from_a_server_on_the_untagged_wire") {
        a_pod_by_dhcp(None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_its_address_from_a_server_in_a_vlan() {
    if able("a_pod_has_its_address_from_a_server_in_a_vlan") {
        a_pod_by_dhcp(Some(7)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_before_and_after_its_port_is_there() {
    if !able("a_lease_is_renewed_before_and_after_its_port_is_there") {
        return;
    }
    let mut world = World::start(None).await;
    let _server = world.serve(RANGE, &[]);
    let (claim, pod, sandbox) = world.claim("web", "");
    world.prepare(&claim).await.expect("prepared");
    for (attached, over) in [
        (false, &["renew"][..]),
        (false, &["renew", "rebind"]),
        (true, &["renew"]),
        (true, &["renew", "rebind"]),
    ] {
        if attached && address(&pod).is_none() {
            world.run(&sandbox).await;
            assert!(answers(&pod, SERVER), "the uplink is set up");
        }
        // The server counts in seconds.
        sleep(Duration::from_millis(1100)).await;
        let before = world.leases();
        world.late(over).await;
        until("it is renewed", || world.counted("renewed") == 1).await;
        until("by the server", || world.leases() > before).await;
        assert_eq!(world.leases()[0][1..], before[0][1..], "the same one");
        // The server's answer to the port itself is heard.
        assert_eq!((world.counted("failed"), world.counted("lost")), (0, 0), "{attached} {over:?}");
    }
    assert!(answers(&pod, SERVER), "and all is as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_nothing_is_prepared_and_nothing_is_left() {
    if !able("without_a_server_nothing_is_prepared_and_nothing_is_left") {
        return;
    }
    let world = World::start(Some(7)).await;
    let (claim, _pod, _) = world.claim("web", "");
    let links = world.node.links();
    let why = world.prepare(&claim).await.expect_err("nobody is there");
    for part in ["network blue", "no DHCP server answered", &world.wire()] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert_eq!((world.kept().len(), world.checkpoints()), (0, 0));
    assert_eq!(world.node.links(), links);
    until("it is told", || world.status(&claim).contains("no DHCP server answered")).await;
    until("by an Event", || world.events().contains("PrepareFailed")).await;
    world.unprepare(&claim).await.expect("there is nothing to do");

    let (fixed, _, _) = world.claim("fixed", ", addresses: [10.9.0.7/24]");
    let why = world.prepare(&fixed).await.expect_err("an address that nobody asked the server for");
    assert!(why.contains("10.9.0.7/24") && why.contains("have their addresses by DHCP"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outside_of_the_subnet_is_given_back() {
    if !able("a_lease_outside_of_the_subnet_is_given_back") {
        return;
    }
    let world = World::start(None).await;
    world.outside.ip("address add 10.8.0.1/24 dev srv0");
    let _server = world.serve("10.8.0.50,10.8.0.59,255.255.255.0,2m", &[]);
    let (claim, _pod, _) = world.claim("web", "");
    let why = world.prepare(&claim).await.expect_err("not of this network");
    for part in
        ["10.8.0.5", "an address in a subnet of network blue (10.9.0.0/24)", "the DHCP server 10.8.0.1"]
    {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert_eq!((world.counted("leased"), world.counted("released")), (1, 1));
    until("the server has it back", || world.leases().is_empty()).await;
    assert_eq!((world.kept().len(), world.checkpoints()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_the_daemon() {
    if !able("a_lease_outlives_the_daemon") {
        return;
    }
    let mut world = World::start(None).await;
    let _server = world.serve(RANGE, &[]);
    let (claim, pod, sandbox) = world.claim("web", "");
    world.prepare(&claim).await.expect("prepared");
    let [[_, _, leased]] = world.leases().try_into().expect("one lease");
    world.kill();
    world.start_again("").await;
    world.prepare(&claim).await.expect("it is prepared");
    world.run(&sandbox).await;
    assert_eq!(address(&pod).as_ref(), Some(&leased));
    world.kill();
    assert!(answers(&pod, SERVER), "without a daemon");
    world.start_again("").await;
    assert!(answers(&pod, SERVER), "with another");
    assert_eq!(world.counted("leased"), 0, "it was not asked for again");
    world.stop(&sandbox).await;
    world.unprepare(&claim).await.expect("unprepared");
    until("the server hears of it", || world.leases().is_empty()).await;
}

/// What was asked for is known to the next daemon, also if the first had no time to say so.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_that_was_cut_off_has_the_same_address_or_gives_it_back() {
    if !able("a_prepare_that_was_cut_off_has_the_same_address_or_gives_it_back") {
        return;
    }
    let mut world = World::start(None).await;
    let _server = world.serve(RANGE, &[]);
    for again in [true, false] {
        let (claim, pod, sandbox) = world.claim(if again { "again" } else { "never" }, "");
        world.kill();
        world.start_again("store-before-write=return(abort)").await;
        world.prepare(&claim).await.expect_err("the daemon dies");
        world.died().await;
        let [[_, _, leased]] = world.leases().try_into().expect("one lease");
        assert_eq!((world.kept().len(), world.checkpoints()), (1, 0));
        world.start_again("").await;
        if again {
            world.prepare(&claim).await.expect("prepared");
            world.run(&sandbox).await;
            assert_eq!(address(&pod), Some(leased));
            world.stop(&sandbox).await;
        }
        world.unprepare(&claim).await.expect("unprepared");
        until("the server has it back", || world.leases().is_empty()).await;
        assert_eq!((world.kept().len(), world.checkpoints()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_lease_closes_its_port_until_the_address_is_given_again() {
    if !able("a_refused_lease_closes_its_port_until_the_address_is_given_again") {
        return;
    }
    let mut world = World::start(None).await;
    let server = world.serve(RANGE, &[]);
    let (claim, pod, sandbox) = world.claim("web", "");
    let (friend, second, sandbox2) = world.claim("friend", "");
    for (claim, sandbox) in [(&claim, &sandbox), (&friend, &sandbox2)] {
        world.prepare(claim).await.expect("prepared");
        world.run(sandbox).await;
    }
    let leased = address(&pod).expect("an address");
    assert!(answers(&pod, SERVER) && answers(&second, &leased));
    // The server has other addresses now: it refuses what is asked to go on.
    drop(server);
    world.outside.ip("address add 10.8.0.1/24 dev srv0");
    let server = world.serve("10.8.0.50,10.8.0.59,255.255.255.0,2m", &[]);
    world.late(&["renew"]).await;
    until("both are lost", || world.counted("lost") >= 2).await;
    until("the status says so", || world.status(&claim).contains("reason: LeaseLost")).await;
    assert!(!world.status(&claim).contains(&leased), "and nobody learns of the address");
    until("an Event, too", || world.events().contains("LeaseLost")).await;
    let state = || pod.link("net1").is_some_and(|link| link["operstate"] == "UP");
    until("the interface is down", || !state()).await;
    until("it has the address no more", || address(&pod).is_none()).await;
    // A pod that may do so gets nothing by setting it up.
    pod.ip("link set net1 up");
    assert!(pod.try_exec(&format!("ping -n -c 2 -W 1 {SERVER}")).is_err(), "it does not speak");
    assert!(world.outside.try_exec(&format!("ping -n -c 2 -W 1 {leased}")).is_err(), "nor is it reached");

    drop(server);
    let _server = world.serve(RANGE, &[]);
    until("both have them again", || world.counted("regained") >= 2).await;
    until("the status says so", || world.status(&claim).contains(&leased)).await;
    until("the interface has it", || address(&pod).as_ref() == Some(&leased)).await;
    until("the pod speaks", || answers(&pod, SERVER)).await;
    assert!(answers(&second, &leased), "and is a member");
    assert_eq!(address(&pod), Some(leased));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ended_while_nobody_was_there_closes_its_port() {
    if !able("a_lease_that_ended_while_nobody_was_there_closes_its_port") {
        return;
    }
    let mut world = World::start(None).await;
    let server = world.serve(RANGE, &[]);
    let (claim, pod, sandbox) = world.claim("web", "");
    world.prepare(&claim).await.expect("prepared");
    world.run(&sandbox).await;
    assert!(answers(&pod, SERVER));
    let lost = address(&pod).expect("an address");
    drop(server);
    world.late(&["renew", "rebind", "expires"]).await;
    until("it is lost", || world.counted("lost") == 1).await;
    until("the status says so", || world.status(&claim).contains("reason: LeaseLost")).await;
    until("it has the address no more", || address(&pod).is_none()).await;
    pod.ip("link set net1 up");
    assert!(pod.try_exec(&format!("ping -n -c 2 -W 1 {SERVER}")).is_err());
    // Also for a daemon that did not see it end, and whose forerunner was killed before it came to the address.
    world.kill();
    pod.ip(&format!("address add {lost}/24 dev net1"));
    world.start_again("").await;
    until("the address is taken off again", || address(&pod).is_none()).await;
    until("the status says so", || world.status(&claim).contains("reason: LeaseLost")).await;
    pod.ip("link set net1 up");
    assert!(pod.try_exec(&format!("ping -n -c 2 -W 1 {SERVER}")).is_err());
    world.stop(&sandbox).await;
    world.unprepare(&claim).await.expect("unprepared");
    assert_eq!((world.kept().len(), world.checkpoints()), (0, 0));
}
