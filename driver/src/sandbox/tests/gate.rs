//! Where a pod is held back, and where not.

use std::sync::atomic::Ordering;

use super::world::{World, pod};
use crate::{
    link::Namespace,
    nri::{PodEvents as _, PodSandbox},
};

fn plain(name: &str) -> PodSandbox {
    let mut plain = pod(9);
    plain.name = name.to_owned();
    PodSandbox {
        id: format!("sandbox-{name}"),
        pod: plain,
        netns: Some("/run/netns/plain".into()),
        cgroup_parent: None,
        pid: Some(9),
        is_static: false,
        has_containers: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_claims_is_free_unless_it_might_name_one() {
    let mut world = World::new();
    world.start().await;
    let daemon = world.daemon.clone().unwrap();
    assert!(daemon.is_free(&plain("a")), "no claim is prepared");
    world.run(1).await;
    assert!(daemon.is_free(&plain("a")), "a claim that a template made is its pod's alone");
    world.run(0).await;
    assert!(!daemon.is_free(&plain("a")), "it might name the claim of pod 0");
    assert!(daemon.is_free(&PodSandbox { is_static: true, ..plain("a") }), "it cannot name a claim");
    let mut elsewhere = plain("a");
    elsewhere.pod.namespace = "other".into();
    assert!(daemon.is_free(&elsewhere), "a claim of another namespace");

    // One question for each claim, after which it is free.
    daemon.run_pod_sandbox(plain("a")).await;
    assert!(daemon.is_free(&plain("a")));
    assert_eq!(daemon.create_container(plain("a"), "main").await, Ok(()));
    let asked = world.claims.asked.load(Ordering::Relaxed);
    assert_eq!(daemon.create_container(plain("a"), "main").await, Ok(()));
    assert_eq!(world.claims.asked.load(Ordering::Relaxed), asked, "not asked again");
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_an_api_server_that_is_away() {
    let mut world = World::new();
    world.start().await;
    world.run(0).await;
    world.api_away(true);
    let daemon = world.daemon.clone().unwrap();
    daemon.run_pod_sandbox(plain("a")).await;
    let why = daemon.create_container(plain("a"), "main").await.unwrap_err();
    assert!(why.contains("default/c0") && why.contains("the API server is away"), "{why}");
    assert_eq!(daemon.held_by(&plain("a")), Some(why));
    assert_eq!(daemon.registry.held_count(), 1);
    world.api_away(false);
    assert_eq!(daemon.create_container(plain("a"), "main").await, Ok(()));
    assert_eq!(daemon.registry.held_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_second_pod_of_a_claim_has_it_when_the_first_is_gone() {
    let mut world = World::new();
    world.start().await;
    world.run(0).await;
    assert_eq!(world.create(0).await, Some(Ok(())));
    world.run(3).await;
    for _ in 0..3 {
        let why = world.create(3).await.unwrap().unwrap_err();
        assert!(why.contains("is in pod default/p0") && why.contains("strategy: Recreate"), "{why}");
    }
    assert_eq!(world.create(0).await, Some(Ok(())), "the first keeps it");
    world.stop(0).await;
    assert_eq!(world.create(3).await, Some(Ok(())));
    assert_eq!(world.names_in(world.living(3).unwrap()).len(), 2);
    // The reason is reported once to the claim and once to the pod, however often it was asked for.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let events = world.claims.events.lock().unwrap();
    assert_eq!(events.iter().filter(|event| event.reason == "AttachFailed").count(), 2, "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn the_second_pod_waits_also_when_it_was_started_without_the_daemon() {
    let mut world = World::new();
    world.start().await;
    world.run(0).await;
    world.kill();
    world.run(3).await;
    world.start().await;
    let why = world.create(3).await.unwrap().unwrap_err();
    assert!(why.contains("is in pod default/p0"), "{why}");
    world.end(0).await;
    assert_eq!(world.create(3).await, Some(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_keeps_containers_from_starting_again_where_isolation_is_strict() {
    for (number, strict) in [(2, true), (1, false)] {
        let mut world = World::new();
        world.start().await;
        world.run(number).await;
        assert_eq!(world.create(number).await, Some(Ok(())));
        // The NIC is gone, for good.
        let inside = Namespace::at(world.living(number).unwrap().sandbox.netns.as_ref().unwrap());
        let hardware = if strict { "net1" } else { "net2" };
        world.links.delete(&inside, hardware);
        world.forget_devices();
        let again = world.create(number).await.unwrap();
        assert_eq!(again.is_err(), strict, "{again:?}");
        // Its other link stays with the containers that run.
        assert_eq!(world.names_in(world.living(number).unwrap()).len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_whose_stop_nobody_reports_is_no_pod_that_waits() {
    let mut world = World::new();
    world.start().await;
    world.run(1).await;
    assert_eq!(world.create(1).await, Some(Ok(())));
    world.restart_runtime().await;
    let daemon = world.daemon.clone().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let (_links, inventory) = tokio::sync::watch::channel(std::sync::Arc::default());
    let retries = tokio::spawn(std::sync::Arc::clone(&daemon).retry_until(inventory, stop.clone()));
    world.stop(1).await;
    daemon.attacher.sweep().await;
    world.assert_home(&[]);
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    assert_eq!(daemon.registry.held_count(), 0);
    let events = world.claims.events.lock().unwrap().clone();
    assert!(events.iter().all(|event| event.reason != "AttachFailed"), "{events:?}");
    stop.cancel();
    retries.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_hosts_network_gets_no_container_with_its_claim() {
    let mut world = World::new();
    world.start().await;
    world.run(1).await;
    let daemon = world.daemon.clone().unwrap();
    let sandbox = PodSandbox { id: "h".into(), netns: None, ..world.living(1).unwrap().sandbox.clone() };
    daemon.run_pod_sandbox(sandbox.clone()).await;
    let why = daemon.create_container(sandbox, "main").await.unwrap_err();
    assert!(why.contains("hostNetwork: true"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_was_never_announced_is_attached_at_its_container() {
    let mut world = World::new();
    world.start().await;
    world.claims.reserve("c1", vec![pod(1)]);
    world.prepare(1);
    world.kill();
    world.run(1).await;
    // The runtime's list is lost on the way: the daemon has heard of no sandbox.
    let stored = std::mem::take(&mut world.stored);
    world.start().await;
    world.stored = stored;
    assert_eq!(world.create(1).await, Some(Ok(())));
    assert_eq!(world.names_in(world.living(1).unwrap()).len(), 2);
}
