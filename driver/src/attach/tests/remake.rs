//! Made links that died with their pod's namespace.

use super::*;
use crate::link::{Address, KindData, Parent, Recipe, VethData, VlanData};

/// A VLAN of ens5 with some of everything.
fn vlan(world: &World) -> FakeLink {
    let data = VlanData { id: 5, protocol: 0x8100, flags: 1, egress_qos: vec![], ingress_qos: vec![] };
    let parent = world.links.links_in(&Namespace::Host)[0].home.link.clone();
    let recipe = Recipe { data: KindData::Vlan(data), parent: Parent::of(&parent) };
    let mut link = FakeLink::hardware("vlan5", 8).of_kind("vlan").made_by(recipe);
    link.home.addresses = vec![Address::plain("10.0.5.1/24".parse().unwrap())];
    link.home.sysctls = [("ipv4/arp_ignore".to_owned(), "1".to_owned())].into();
    link.home.link.alt_names = ["vlan5-other".to_owned()].into();
    link
}

/// Attaches `vlan5`, and lets it die with the pod's namespace.
async fn attach_and_vanish(world: &World) {
    world.links.put(&Namespace::Host, vlan(world));
    world.claim("c1", "web", vec![plan("vlan5", "net1")]);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    world.links.destroy(&inside("s1"));
    world.datapath.device_is_at(attached[0].endpoint.unwrap(), None);
}

fn only_problem(outcome: &Outcome) -> (Reason, &str) {
    let [problem] = &outcome.problems[..] else { panic!("{:?}", outcome.problems) };
    (problem.reason, &problem.note)
}

#[tokio::test]
async fn a_link_that_died_is_home_again_with_all_it_had() {
    let world = World::new();
    let before: Vec<_> = world.links.links_in(&Namespace::Host).into_iter().chain([vlan(&world)]).collect();
    attach_and_vanish(&world).await;
    let outcome = world.attacher.give_back("s1").await;
    let (reason, note) = only_problem(&outcome);
    let said = "link vlan5 was deleted with the pod's network namespace; it has been made anew";
    assert_eq!((reason, note), (Reason::Remade, said));
    assert_eq!(outcome.returned.len(), 1);
    world.assert_all_home(&before, "after it was made anew");
    // Nothing is left to do, and the pod's next sandbox gets it.
    assert_eq!(world.attacher.give_back("s1").await, Outcome::default());
    let again = world.attacher.attach(&sandbox("s2", "web")).await.unwrap();
    assert_eq!(again.attached.len(), 1, "{:?}", again.problems);
}

#[tokio::test]
async fn a_return_that_is_cut_off_makes_it_once() {
    for cut in 0..4 {
        let mut world = World::new();
        let before: Vec<_> =
            world.links.links_in(&Namespace::Host).into_iter().chain([vlan(&world)]).collect();
        attach_and_vanish(&world).await;
        world.links.fail_change(world.links.changes() + cut);
        let first = world.attacher.give_back("s1").await;
        let gone = first.problems.iter().any(|problem| problem.reason == Reason::LinkGone);
        world.restart();
        world.attacher.give_back("s1").await;
        // A kernel that refuses once is asked again.
        assert!(!gone, "{:?}", first.problems);
        let links = world.links.links_in(&Namespace::Host);
        assert_eq!(links.iter().filter(|link| link.home.link.name == "vlan5").count(), usize::from(!gone));
        if cut > 1 {
            world.assert_all_home(&before, "after two tries");
        }
    }
}

#[tokio::test]
async fn what_stands_in_the_way_is_told() {
    let world = World::new();
    attach_and_vanish(&world).await;
    let mut ens5 = FakeLink::hardware("ens5", 55);
    world.links.delete(&Namespace::Host, "ens5");
    world.links.put(&Namespace::Host, ens5.clone());
    let outcome = world.attacher.give_back("s1").await;
    let (reason, note) = only_problem(&outcome);
    assert_eq!(reason, Reason::LinkGone);
    let said = "cannot be made anew: link vlan5 was made on ens5 (02:00:00:00:00:05), whose name is that of \
                another link now: ens5 (02:00:00:00:00:37)";
    assert!(note.contains(said), "{note}");

    let world = World::new();
    attach_and_vanish(&world).await;
    ens5.home.link.name = "vlan5".into();
    world.links.put(&Namespace::Host, ens5);
    let (before, outcome) = (world.links.links_in(&Namespace::Host), world.attacher.give_back("s1").await);
    let (reason, note) = only_problem(&outcome);
    assert_eq!(reason, Reason::LinkGone);
    assert!(note.contains(r#"a link named "vlan5" already exists"#), "{note}");
    world.assert_all_home(&before, "with another link of that name");
}

#[tokio::test]
async fn a_pair_comes_back_with_its_other_end() {
    let world = World::new();
    let peer = FakeLink::hardware("left-peer", 9).of_kind("veth");
    let data = KindData::Veth(VethData { peer: Box::new(peer.home.clone()), peer_controller: None });
    let left = FakeLink::hardware("left", 8).of_kind("veth").made_by(Recipe { data, parent: None });
    let before: Vec<_> =
        world.links.links_in(&Namespace::Host).into_iter().chain([left.clone(), peer]).collect();
    world.links.put(&Namespace::Host, left);
    world.claim("c1", "web", vec![plan("left", "net1")]);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    world.links.destroy(&inside("s1"));
    world.datapath.device_is_at(attached[0].endpoint.unwrap(), None);
    assert_eq!(only_problem(&world.attacher.give_back("s1").await).0, Reason::Remade);
    world.assert_all_home(&before, "after the pair was made anew");
    world.links.delete(&Namespace::Host, "left");
    assert_eq!(world.links.links_in(&Namespace::Host).len(), 3, "they are one pair");
}
