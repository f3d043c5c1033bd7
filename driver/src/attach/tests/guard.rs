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
