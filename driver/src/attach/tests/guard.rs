//! Pods are guarded, or their strict links are refused.

use super::*;

fn guarding(world: &World, unguarded: Unguarded) -> Attacher {
    let attacher =
        Attacher::new(world.links.clone(), world.links.clone(), world.datapath.clone(), world.store.clone());
    attacher.guarding(PodGuard { cgroups: world.dir.path().to_owned(), unguarded })
}

#[tokio::test]
async fn a_pod_that_cannot_be_guarded_gets_no_strict_link() {
    let world = World::new();
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    let before = world.links.links_in(&Namespace::Host);
    let failed = guarding(&world, Unguarded::Refuse).attach(&sandbox("s1", "web")).await.unwrap_err();
    let text = failed.to_string();
    assert!(text.contains("guards the pod's sockets") && text.contains("--cgroup-root"), "{text}");
    world.assert_all_home(&before, "after the refusal");
}

#[tokio::test]
async fn a_link_without_isolation_needs_no_guard() {
    let world = World::new();
    let off = InterfacePlan { isolation: Isolation::Off, ..plan("ens5", "net1") };
    world.claim("c1", "web", vec![off]);
    guarding(&world, Unguarded::Refuse).attach(&sandbox("s1", "web")).await.unwrap();
    assert!(!world.datapath.calls().iter().any(|(verb, _)| matches!(verb, Verb::GuardLink | Verb::GuardPod)));
}

#[tokio::test]
async fn an_unguarded_pod_gets_its_link_where_that_is_allowed() {
    let world = World::new();
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    let attacher = guarding(&world, Unguarded::Allow);
    let outcome = attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let endpoint = outcome.attached[0].endpoint.unwrap();
    let held = world.datapath.endpoint(endpoint).unwrap();
    assert!(held.ready && held.guarded.is_none());

    // A pod that has its link keeps it, under a daemon that would not have given it.
    let attacher = guarding(&world, Unguarded::Refuse);
    let outcome = attacher.recover(&[sandbox("s1", "web")]).await;
    assert_eq!((outcome.attached.len(), outcome.problems), (1, vec![]));
    assert_eq!(world.links.links_in(&inside("s1")).len(), 1);
}

/// Whether protecting, then attaching, the claimed link put the early drop on it: after the first, and after both.
async fn drops_early(world: &World, attacher: &Attacher) -> [bool; 2] {
    let guarded = || world.datapath.calls().iter().any(|(verb, _)| *verb == Verb::GuardLink);
    attacher.protect("c1").await;
    let ahead = guarded();
    attacher.attach(&sandbox("s1", "web")).await.unwrap();
    [ahead, guarded()]
}

#[tokio::test]
async fn the_early_drop_goes_on_a_link_that_is_down_before_its_sandbox_and_never_else() {
    let world = World::new();
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    assert_eq!(drops_early(&world, &world.attacher).await, [false, false], "the link is up at home");

    let down = |world: &World| {
        world.links.spoil(&Namespace::Host, "ens5", |link| link.home.link.up = false);
    };
    let world = World::new();
    down(&world);
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    assert_eq!(drops_early(&world, &world.attacher).await, [true, true], "the link is down at home");

    let world = World::new();
    down(&world);
    let off = InterfacePlan { early_drop: false, ..plan("ens5", "net1") };
    world.claim("c1", "web", vec![off]);
    assert_eq!(drops_early(&world, &world.attacher).await, [false, false], "the configuration says off");

    let world = World::new();
    down(&world);
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    let attacher =
        Attacher::new(world.links.clone(), world.links.clone(), world.datapath.clone(), world.store.clone());
    let attacher = attacher.dropping_early(false);
    assert_eq!(drops_early(&world, &attacher).await, [false, false], "the daemon says off");

    // Not protected ahead: the sandbox does not wait for it.
    let world = World::new();
    down(&world);
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    assert!(!world.datapath.calls().iter().any(|(verb, _)| *verb == Verb::GuardLink));
}
