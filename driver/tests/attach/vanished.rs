//! Links that vanish while their pods have them: the pod stops and its claim is unprepared all the same.

use netferry::attach::{Attacher, Reason};

use crate::world::World;

/// Stops the pod, and unprepares its claims.
async fn stop_and_unprepare(world: &World, attacher: &Attacher) -> Vec<Reason> {
    let returned = attacher.give_back("s1").await;
    for uid in ["c7", "c8"] {
        assert_eq!(attacher.give_back_claim(uid).await.problems, [], "{uid}");
        world.places.store().remove(uid).expect("unprepared");
    }
    world.assert_nothing_left("after the unprepare");
    returned.problems.iter().map(|problem| problem.reason).collect()
}

#[tokio::test]
async fn moved_links_that_vanish_in_a_pod_keep_it_from_nothing() {
    for (far, home) in [("far7", "eth8"), ("far8", "eth7")] {
        let Some(world) = World::new("moved_links_that_vanish_in_a_pod_keep_it_from_nothing") else { return };
        world.claim();
        let attacher = world.places.attacher();
        attacher.attach(&world.places.sandbox()).await.expect("attach");
        // eth7 is strict, eth8 has no isolation. Its end in the pod goes with the other one.
        world.peer.ip(&format!("link del {far}"));
        assert_eq!(stop_and_unprepare(&world, &attacher).await, [Reason::LinkGone], "{far}");
        assert_eq!(world.host.links(), [home]);
        assert_eq!(world.pod.links(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn moved_links_that_vanish_with_the_pods_namespace_keep_it_from_nothing() {
    let Some(world) = World::new("moved_links_that_vanish_with_the_pods_namespace_keep_it_from_nothing")
    else {
        return;
    };
    world.claim();
    world.places.attacher().attach(&world.places.sandbox()).await.expect("attach");
    for far in ["far7", "far8"] {
        world.peer.ip(&format!("link del {far}"));
    }
    world.pod.vanish();
    // The daemon has been started again.
    let reasons = stop_and_unprepare(&world, &world.places.attacher()).await;
    assert_eq!(reasons, [Reason::LinkGone, Reason::LinkGone]);
    assert_eq!(world.host.links(), Vec::<String>::new());
}
