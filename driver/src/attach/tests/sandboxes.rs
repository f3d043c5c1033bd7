//! Which sandbox has the links, and that no link is lost with a namespace.

use super::*;

#[tokio::test]
async fn links_of_a_lost_checkpoint_are_fetched_from_the_namespace_that_is_held() {
    let mut world = World::new();
    world.claim("c1", "web", vec![plan("made7", "net1")]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    std::fs::remove_file(world.dir.path().join("c1.json")).unwrap();
    world.store = Arc::new(Store::open(world.dir.path()).unwrap().0);
    world.restart();
    // The pod lives: nothing is taken out of it, but nothing is let through either.
    let outcome = world.attacher.recover(&[sandbox("s1", "web")]).await;
    assert_eq!(outcome.problems.iter().map(|it| it.reason).collect::<Vec<_>>(), [Reason::ProgramsLeft]);
    assert_eq!(world.links.links_in(&inside("s1")).len(), 1);
    assert_eq!(world.links.held().await.unwrap().len(), 1, "held still");
    world.links.vanish(&inside("s1"));
    let outcome = world.attacher.recover(&[]).await;
    assert_eq!(outcome.problems.iter().map(|it| it.reason).collect::<Vec<_>>(), [Reason::NamespaceHeld]);
    let home = world.links.links_in(&Namespace::Host).pop().unwrap().home.link;
    assert_eq!((home.name.as_str(), home.up), ("nf-net1", false), "home, down");
    assert_eq!(world.datapath.endpoints().unwrap(), Vec::<u32>::new());
    assert_eq!(world.links.held().await.unwrap(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_dead_sandbox_takes_nothing_from_a_living_one_in_any_order() {
    for dead_first in [true, false] {
        let mut world = World::new();
        two_claims(&world);
        world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
        // The sandbox was made again, and both are listed.
        world.links.vanish(&inside("s1"));
        let attached = world.attacher.attach(&sandbox("s2", "web")).await.unwrap().attached;
        let mut listed = [sandbox("s1", "web"), sandbox("s2", "web")];
        if !dead_first {
            listed.reverse();
        }
        for _ in 0..3 {
            world.restart();
            let changes = world.links.changes();
            let outcome = world.attacher.recover(&listed).await;
            assert_eq!((outcome.attached, outcome.problems), (attached.clone(), vec![]));
            assert_eq!(world.links.changes(), changes, "nothing is touched");
        }
        // The path of the dead one is given to another pod.
        world.links.make(&inside("s1"));
        let outcome = world.attacher.recover(&listed).await;
        assert_eq!(outcome.attached.len(), 3, "{outcome:?}");
        assert_eq!(world.links.links_in(&inside("s2")).len(), 0, "the newer one has it");
        assert_eq!(world.links.links_in(&inside("s1")).len(), 3);
    }
}

#[tokio::test]
async fn a_made_link_is_fetched_from_a_namespace_that_the_runtime_has_removed() {
    let world = World::new();
    two_claims(&world);
    let before = world.links.links_in(&Namespace::Host);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    world.links.vanish(&inside("s1"));
    let outcome = world.attacher.give_back("s1").await;
    assert_eq!(outcome.problems, []);
    world.assert_all_home(&before, "after the stop");
    assert_eq!(world.links.namespaces(), 1, "s2's alone: nothing is held for nothing");
}

#[tokio::test]
async fn after_a_reboot_links_at_home_are_left_as_they_are() {
    let mut world = World::new();
    two_claims(&world);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    world.attacher.protect("c2").await;
    let mut anew = FakeLink::hardware("ens5", 5);
    anew.home.link.mtu = 9000;
    let links = vec![anew, FakeLink::hardware("ens6", 3), FakeLink::hardware("made7", 7).of_kind("veth")];
    world.links.reboot(links);
    let before = world.links.links_in(&Namespace::Host);
    world.datapath = Arc::new(FakeDatapath::new());
    world.store = Arc::new(Store::open_in_boot(world.dir.path(), "another").unwrap().0);
    world.restart();
    assert_eq!(world.attacher.recover(&[sandbox("s1", "web")]).await, Outcome::default());
    assert_eq!(world.attacher.sweep().await, Outcome::default());
    world.assert_all_home(&before, "nothing is touched");
    // The pod is made again.
    world.links.make(&inside("s3"));
    let attached = world.attacher.attach(&sandbox("s3", "web")).await.unwrap().attached;
    assert_eq!(attached.len(), 3);
    assert_eq!(world.attacher.give_back("s3").await.problems, []);
    world.assert_all_home(&before, "as the new boot made it");
}

#[tokio::test]
async fn two_pods_never_share_a_namespace() {
    let world = World::new();
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    world.claim("c2", "other", vec![plan("ens6", "net2")]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let forged = PodSandbox { netns: sandbox("s1", "web").netns, ..sandbox("s9", "other") };
    let refused = world.attacher.attach(&forged).await.unwrap_err().to_string();
    assert!(refused.contains("/run/netns/s1 is the network namespace of pod default/web"), "{refused}");
    assert_eq!(world.links.links_in(&inside("s1")).len(), 1);
    let outcome = world.attacher.recover(&[forged, sandbox("s1", "web")]).await;
    assert_eq!((outcome.attached.len(), outcome.problems), (1, vec![]));
}

#[tokio::test]
async fn the_namespace_is_held_while_what_an_earlier_try_left_is_cleared() {
    let mut world = World::new();
    two_claims(&world);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    for uid in ["c1", "c2"] {
        let half = |it: &mut Checkpoint| {
            for interface in &mut it.interfaces {
                interface.attachment.as_mut().unwrap().step = Step::Attaching;
            }
        };
        world.store.update(uid, half).unwrap();
    }
    world.restart();
    // The runtime has removed the namespace's file, but for the moment of the attach.
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    assert_eq!(attached.len(), 3);
    // A link that was deleted in the pod, the only one in its sandbox.
    world.attacher.give_back("s1").await;
    world.store.remove("c1").unwrap();
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let endpoint =
        world.store.get("c2").unwrap().interfaces[0].attachment.as_ref().unwrap().endpoint.unwrap();
    world.datapath.detach(endpoint).unwrap();
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    assert_eq!(attached.len(), 1, "taken out for want of its programs, and in again");
    assert_eq!(world.links.held().await.unwrap().len(), 1);
}
