//! Programs that come off after the hook: who waits for that, and what becomes of it when it fails.

use super::*;
use crate::claim::store::StoreError;

/// A world whose link is home again, with its programs still on.
async fn home_with_programs() -> (World, Vec<FakeLink>, EndpointId) {
    let world = World::new();
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    let before = world.links.links_in(&Namespace::Host);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    let id = attached[0].endpoint.unwrap();
    let outcome = world.attacher.give_back_links("s1").await;
    assert_eq!((outcome.problems, outcome.returned.len()), (vec![], 1));
    assert_eq!(world.links.links_in(&Namespace::Host), before);
    assert_eq!(left(&world), Some(id));
    assert!(!world.datapath.endpoint(id).unwrap().ready, "closed until they are off");
    (world, before, id)
}

fn left(world: &World) -> Option<EndpointId> {
    world.store.get("c1").unwrap().interfaces[0].removing
}

#[tokio::test]
async fn programs_come_off_after_the_hook() {
    let (world, before, _) = home_with_programs().await;
    assert_eq!(world.attacher.finish_removals().await, []);
    assert_eq!(left(&world), None);
    world.assert_all_home(&before, "after the removal");
    world.store.remove("c1").unwrap();
}

#[tokio::test]
async fn the_next_attach_takes_them_off_first() {
    let (world, before, id) = home_with_programs().await;
    let attached = world.attacher.attach(&sandbox("s2", "web")).await.unwrap().attached;
    assert_ne!(attached[0].endpoint, Some(id), "flows of the last one may be left");
    assert_eq!((left(&world), world.datapath.endpoint(id)), (None, None));
    assert_eq!(world.datapath.endpoints().unwrap(), [attached[0].endpoint.unwrap()]);
    // What was to be removed in the background has nothing left to do.
    assert_eq!(world.attacher.finish_removals().await, []);
    assert_eq!(world.links.links_in(&inside("s2")).len(), 1);
    assert_eq!(world.attacher.give_back("s2").await.problems, []);
    world.assert_all_home(&before, "after the second return");
}

#[tokio::test]
async fn an_attach_waits_for_a_removal_that_runs() {
    let (world, _, id) = home_with_programs().await;
    // As the removal has it while it waits for the kernel.
    let turn = world.attacher.turns.of(|| [Part::Claim("c1".to_owned())].into()).await;
    let target = sandbox("s2", "web");
    let attach = world.attacher.attach(&target);
    tokio::pin!(attach);
    for _ in 0..20 {
        assert!(futures::poll!(&mut attach).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(world.links.links_in(&inside("s2")), [], "the link has not been touched");
    assert_eq!(world.attacher.finish_removals_of("c1").await, []);
    drop(turn);
    assert_ne!(attach.await.unwrap().attached[0].endpoint, Some(id));
}

#[tokio::test]
async fn while_they_cannot_be_taken_off_the_link_is_not_attached_and_the_claim_not_forgotten() {
    let (mut world, before, id) = home_with_programs().await;
    world.datapath.fail(Verb::Detach, 4);
    let problems = world.attacher.finish_removals().await;
    assert_eq!(problems.iter().map(|it| it.reason).collect::<Vec<_>>(), [Reason::ProgramsLeft]);
    world.attacher.attach(&sandbox("s2", "web")).await.unwrap_err();
    assert_eq!(world.links.links_in(&inside("s2")), [], "never with programs of another endpoint");
    let outcome = world.attacher.give_back_claim("c1").await;
    assert_eq!(outcome.problems[0].reason, Reason::ProgramsLeft);
    assert!(matches!(world.store.remove("c1"), Err(StoreError::StillProtected { .. })));
    assert_eq!(left(&world), Some(id));

    // A new process goes on with it.
    world.datapath.fail(Verb::Detach, 0);
    world.restart();
    assert_eq!(world.attacher.recover(&[]).await.problems, []);
    assert_eq!(left(&world), None);
    world.assert_all_home(&before, "after the restart");
}

#[tokio::test]
async fn a_claim_that_is_unprepared_while_they_come_off_leaves_nothing() {
    let (world, before, _) = home_with_programs().await;
    let (problems, outcome) =
        tokio::join!(world.attacher.finish_removals(), world.attacher.give_back_claim("c1"));
    assert_eq!((problems, outcome.problems), (vec![], vec![]));
    world.store.remove("c1").unwrap();
    world.assert_all_home(&before, "after unprepare");
    assert_eq!(world.attacher.finish_removals().await, [], "of a claim that is gone");
}
