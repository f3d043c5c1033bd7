//! What is found out about a link before its claim is prepared.

use super::*;
use crate::{
    claim::{Made, Upper},
    link::{SubInterface, Vlan},
};

#[tokio::test]
async fn a_link_is_looked_at_as_it_is_now() {
    let world = World::new();
    let plan = plan("ens5", "net1");
    assert_eq!(world.attacher.not_movable_now(&plan).await, None);

    let program = ForeignProgram { hook: "tcx/ingress".into(), id: 9, name: "cil_from_netdev".into() };
    world.datapath.set_foreign(5, vec![program]);
    let why = world.attacher.not_movable_now(&plan).await.expect("refused");
    assert!(why.contains("tcx/ingress 9 \"cil_from_netdev\""), "{why}");
    world.datapath.set_foreign(5, vec![]);

    let gone = InterfacePlan { host_link: "ens9".into(), ..plan.clone() };
    let why = world.attacher.not_movable_now(&gone).await.expect("refused");
    assert_eq!(why, "link ens9 is not on the host now");

    assert_eq!(
        world.attacher.not_movable_now(&port::port("c1", "s1", "net1")).await,
        None,
        "there is no link yet"
    );
}

#[tokio::test]
async fn a_parent_that_is_gone_or_down_is_named() {
    let world = World::new();
    let on = |parent: &str| InterfacePlan {
        host_link: parent.into(),
        made: Some(Made::SubInterface(Upper {
            host_name: "nf0123456789abc".into(),
            sub_interface: SubInterface::Vlan(Vlan { id: 7 }),
        })),
        ..plan("ens5", "net1")
    };
    // Programs of others on a parent are not in the way.
    let program = ForeignProgram { hook: "tcx/ingress".into(), id: 9, name: "cil_from_netdev".into() };
    world.datapath.set_foreign(5, vec![program]);
    world.links.spoil(&Namespace::Host, "ens5", |link| link.home.link.up = true);
    assert_eq!(world.attacher.not_movable_now(&on("ens5")).await, None);
    world.links.spoil(&Namespace::Host, "ens5", |link| link.home.link.up = false);
    let why = world.attacher.not_movable_now(&on("ens5")).await.expect("refused");
    assert!(why.starts_with("link ens5 is down"), "{why}");
    let why = world.attacher.not_movable_now(&on("ens9")).await.expect("refused");
    assert_eq!(why, "link ens9 is not on the host now");
}

#[tokio::test]
async fn hardware_that_vanishes_in_a_pod_keeps_no_pod_from_ending() {
    for isolation in [Isolation::Strict, Isolation::Off] {
        let world = World::new();
        world.claim("c1", "web", vec![InterfacePlan { isolation, ..plan("ens5", "net1") }]);
        let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
        world.links.delete(&inside("s1"), "net1");
        if let Some(endpoint) = attached[0].endpoint {
            world.datapath.device_is_at(endpoint, None);
        }
        let outcome = world.attacher.give_back("s1").await;
        let reasons: Vec<_> = outcome.problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, [Reason::LinkGone], "{isolation}");
        assert_eq!(world.store.all()[0].interfaces[0].attachment, None, "{isolation}");
    }
}

/// The reasons of the problems of a return.
async fn reasons_of(world: &World) -> Vec<Reason> {
    world.attacher.give_back("s1").await.problems.iter().map(|problem| problem.reason).collect()
}

#[tokio::test(start_paused = true)]
async fn hardware_that_vanishes_with_its_namespace_keeps_no_pod_from_ending() {
    let mut world = World::new();
    let file = world.dir.path().join("strays.json");
    let remembering = |world: &mut World| {
        world.restart();
        let attacher = Attacher::new(
            world.links.clone(),
            world.links.clone(),
            world.datapath.clone(),
            world.store.clone(),
        );
        world.attacher = attacher.remembering(&file);
    };
    let before = world.links.links_in(&Namespace::Host);
    world.claim("c1", "web", vec![InterfacePlan { isolation: Isolation::Off, ..plan("ens5", "net1") }]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let inside_it = world.links.links_in(&inside("s1")).remove(0);
    world.links.delete(&inside("s1"), "net1");
    world.links.destroy(&inside("s1"));
    // The daemon was down meanwhile.
    remembering(&mut world);
    assert_eq!(reasons_of(&world).await, [Reason::NotReturned], "the kernel may still be at it");
    tokio::time::advance(stray::LONGEST_WAY_HOME).await;
    assert_eq!(reasons_of(&world).await, [Reason::LinkGone]);
    assert_eq!(world.store.all()[0].interfaces[0].attachment, None);
    world.store.remove("c1").expect("unprepared");

    // It was only slow: what the pod left of it comes home, after a restart of the daemon.
    remembering(&mut world);
    assert_eq!(world.attacher.sweep().await, Outcome::default(), "it is not there yet");
    world.links.put(&Namespace::Host, inside_it);
    assert_eq!(world.attacher.sweep().await.problems, []);
    let mut home = world.links.links_in(&Namespace::Host);
    home.sort_by_key(|link| link.home.link.name.clone());
    let as_before = |links: &[FakeLink]| -> Vec<_> {
        let facts =
            |link: &FakeLink| (link.home.link.name.clone(), link.home.link.mac, link.home.addresses.clone());
        links.iter().map(facts).collect()
    };
    assert_eq!(as_before(&home), as_before(&before));
    // It is struck out.
    remembering(&mut world);
    assert_eq!(world.attacher.strays(), []);
}

#[test]
fn a_damaged_list_of_given_up_links_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("strays.json");
    for damaged in ["", "{", r#"{"version":9,"strays":{}}"#] {
        std::fs::write(&file, damaged).unwrap();
        let _ = Strays::open(&file);
        assert_eq!(std::fs::read_to_string(dir.path().join("strays.json.bad")).unwrap(), damaged);
        assert!(!file.exists());
    }
}
