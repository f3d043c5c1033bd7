//! The daemon dies at every named point of attach and return, and at every write of a checkpoint; the next one
//! puts everything right.
#![cfg(feature = "failpoints")]

#[path = "port/world.rs"]
mod pods;
#[path = "crash/ports.rs"]
mod ports;
#[path = "crash/sub_interfaces.rs"]
mod sub_interfaces;
mod support;
#[path = "attach/world.rs"]
mod world;

use std::{env, path::PathBuf, process::Command};

use netferry::{
    attach::FAILPOINTS,
    claim::store::{Store, StoreError},
};
use ports::port_sandbox;
use world::{Places, World};

/// Names what the child is to do; it is this binary again, with the failpoint in FAILPOINTS.
const PART: &str = "NETFERRY_TEST_PART";

/// The daemon that dies: what the other tests run as a child, and nothing to do without them.
#[tokio::test]
async fn daemon_that_dies() {
    let Ok(part) = env::var(PART) else { return };
    let place = |name: &str| PathBuf::from(env::var_os(name).expect("place"));
    let places =
        Places { host: place("HOST"), pod: place("POD"), store: place("STORE"), pins: place("PINS") };
    let attacher = places.attacher();
    let _scenario = fail::FailScenario::setup();
    match part.as_str() {
        "attach" => drop(attacher.attach(&places.sandbox()).await),
        "protect" => attacher.protect("c7").await,
        "unprotect" => drop(attacher.give_back_claim("c7").await),
        "return" => drop(attacher.give_back("s1").await),
        "attach port" => drop(attacher.attach(&port_sandbox(&places)).await),
        "return port" => drop(attacher.give_back("s0").await),
        "recover port" => drop(attacher.recover(&[port_sandbox(&places)]).await),
        _ => drop(attacher.recover(&[places.sandbox()]).await),
    }
}

/// Run a part in a process that dies at the point. Whether it died.
fn dies(places: &Places, part: &str, point: &str) -> bool {
    let status = Command::new(env::current_exe().expect("this binary"))
        .args(["--exact", "daemon_that_dies"])
        .env(PART, part)
        .env("FAILPOINTS", point)
        .env("HOST", &places.host)
        .env("POD", &places.pod)
        .env("STORE", &places.store)
        .env("PINS", &places.pins)
        .output()
        .expect("child")
        .status;
    !status.success()
}

/// A point at its first or second passing: the second is of the second interface.
fn points(prefix: &'static str) -> impl Iterator<Item = String> {
    let named = FAILPOINTS.into_iter().filter(move |name| name.starts_with(prefix));
    let stores = ["store-before-write", "store-after-write"];
    named.chain(stores).flat_map(|name| {
        let passings = if name.starts_with("store") { 4 } else { 2 };
        (0..passings).map(move |nth| match nth {
            0 => format!("{name}=return(abort)"),
            nth => format!("{name}={nth}*off->return(abort)"),
        })
    })
}

#[tokio::test]
async fn a_death_on_the_way_in_is_cleared_up_or_finished() {
    let Some(world) = World::new("a_death_on_the_way_in_is_cleared_up_or_finished") else { return };
    world.claim();
    let mut deaths = 0;
    for point in points("attach") {
        deaths += u32::from(dies(&world.places, "attach", &point));
        // The sandbox died with the daemon.
        let outcome = world.places.attacher().recover(&[]).await;
        assert_eq!(outcome.problems, [], "{point}");
        world.assert_home(&point);

        dies(&world.places, "attach", &point);
        // The sandbox lives.
        let outcome = world.places.attacher().recover(&[world.places.sandbox()]).await;
        assert_eq!((outcome.problems, outcome.attached.len()), (vec![], 2), "{point}");
        assert_eq!(world.host.links(), Vec::<String>::new(), "{point}");
        assert_eq!(world.pod.links().len(), 2, "{point}");
        world.pod.exec("ping -c 1 -W 2 198.51.100.1");
        assert_eq!(world.places.attacher().give_back("s1").await.problems, [], "{point}");
        world.assert_home(&point);
    }
    assert!(deaths >= 14, "only {deaths} deaths");
}

#[tokio::test]
async fn a_death_on_the_way_home_is_finished() {
    let Some(world) = World::new("a_death_on_the_way_home_is_finished") else { return };
    world.claim();
    let mut deaths = 0;
    for point in points("return").chain(points("removal")) {
        world.places.attacher().attach(&world.places.sandbox()).await.expect("attach");
        deaths += u32::from(dies(&world.places, "return", &point));
        let outcome = world.places.attacher().recover(&[]).await;
        assert_eq!(outcome.problems, [], "{point}");
        world.assert_home(&point);
    }
    assert!(deaths >= 16, "only {deaths} deaths");
}

/// The link is home and its programs are not off yet when the daemon dies: the next one takes them off before the link is
/// attached again, or when the claim is unprepared.
#[tokio::test]
async fn a_death_between_the_return_and_the_end_of_the_programs_holds_up_nothing() {
    let Some(world) = World::new("a_death_between_the_return_and_the_end_of_the_programs_holds_up_nothing")
    else {
        return;
    };
    world.claim();
    for point in ["removal-before-programs", "removal-after-programs"] {
        for is_attached_again in [true, false] {
            world.places.attacher().attach(&world.places.sandbox()).await.expect("attach");
            assert!(dies(&world.places, "return", &format!("{point}=return(abort)")), "{point}");
            let left = |store: &Store| store.get("c7").expect("c7").interfaces[0].removing;
            assert!(left(&world.places.store()).is_some(), "{point}");
            let attacher = world.places.attacher();
            if is_attached_again {
                let outcome = attacher.attach(&world.places.sandbox()).await.expect("attach");
                assert_eq!(outcome.attached.len(), 2, "{point}");
                assert_eq!(left(&world.places.store()), None, "{point}");
                world.pod.exec("ping -c 1 -W 2 198.51.100.1");
                assert_eq!(attacher.give_back("s1").await.problems, [], "{point}");
            } else {
                assert!(matches!(world.places.store().remove("c7"), Err(StoreError::StillProtected { .. })));
                assert_eq!(attacher.give_back_claim("c7").await.problems, [], "{point}");
            }
            world.assert_home(point);
        }
    }
}

#[tokio::test]
async fn a_death_in_the_recovery_is_recovered_from() {
    let Some(world) = World::new("a_death_in_the_recovery_is_recovered_from") else { return };
    world.claim();
    let mut deaths = 0;
    for point in FAILPOINTS.map(|name| format!("{name}=return(abort)")) {
        assert!(dies(&world.places, "attach", "attach-after-ready=return(abort)"));
        deaths += u32::from(dies(&world.places, "recover", &point));
        let outcome = world.places.attacher().recover(&[world.places.sandbox()]).await;
        assert_eq!((outcome.problems, outcome.attached.len()), (vec![], 2), "{point}");
        assert_eq!(world.places.attacher().give_back("s1").await.problems, [], "{point}");
        world.assert_home(&point);
    }
    assert_eq!(deaths, 13);
}

/// Programs that wait on a link at home, between prepare and the sandbox, or until unprepare.
#[tokio::test]
async fn a_death_while_links_wait_at_home_is_cleared_up() {
    let Some(world) = World::new("a_death_while_links_wait_at_home_is_cleared_up") else { return };
    world.claim();
    let mut deaths = 0;
    let points =
        ["store-before-write", "store-after-write", "datapath::attach::written", "datapath::attach::ingress"];
    for point in points.map(|name| format!("{name}=return(abort)")) {
        for part in ["protect", "unprotect"] {
            if part == "unprotect" {
                world.places.attacher().protect("c7").await;
            }
            deaths += u32::from(dies(&world.places, part, &point));
            // The pod comes all the same, and goes.
            let outcome = world.places.attacher().recover(&[world.places.sandbox()]).await;
            assert_eq!((outcome.problems, outcome.attached.len()), (vec![], 2), "{part} {point}");
            world.pod.exec("ping -c 1 -W 2 198.51.100.1");
            assert_eq!(world.places.attacher().give_back("s1").await.problems, [], "{part} {point}");
            world.assert_home(&point);

            // Or it never comes.
            dies(&world.places, "protect", &point);
            assert_eq!(world.places.attacher().recover(&[]).await.problems, [], "{part} {point}");
            assert_eq!(world.places.attacher().give_back_claim("c7").await.problems, [], "{part} {point}");
            world.assert_home(&point);
        }
    }
    assert!(deaths >= 6, "only {deaths} deaths");
}
