//! Sub-interfaces: made on a link that stays, gone after their sandbox.

use super::{undone::every_failure_is_undone, *};
use crate::{
    claim::{InterfaceKey, Made, Upper, made},
    link::{Macvlan, SubInterface},
};

fn upper(claim: &str, share: &str, name: &str) -> InterfacePlan {
    let claim = ClaimRef { namespace: "default".into(), name: claim.into(), uid: claim.into() };
    let key = InterfaceKey { request: "nic".into(), device: "ens5".into(), share_id: Some(share.into()) };
    InterfacePlan {
        share_id: key.share_id.clone(),
        hardware_addr: Some(made::hardware_addr(&claim, &key)),
        made: Some(Made::SubInterface(Upper {
            sub_interface: SubInterface::Macvlan(Macvlan::default()),
            host_name: made::host_name(&claim, &key),
        })),
        ..plan("ens5", name)
    }
}

fn claims(world: &World) {
    world.claim("c1", "web", vec![upper("c1", "s1", "net1"), upper("c1", "s2", "net2")]);
    world.claim("c2", "web", vec![upper("c2", "s3", "net3"), plan("ens6", "net4")]);
}

#[tokio::test]
async fn sub_interfaces_are_made_and_deleted_and_their_parent_stays() {
    let mut world = World::new();
    claims(&world);
    let before = world.links.links_in(&Namespace::Host);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    assert_eq!(attached.len(), 4);
    let there = world.links.links_in(&inside("s1"));
    let made: Vec<_> =
        there.iter().filter(|link| link.home.link.kind.as_deref() == Some("macvlan")).collect();
    assert_eq!((made.len(), there.len()), (3, 4));
    assert!(there.iter().all(|link| link.home.link.up));
    assert_eq!(world.links.links_in(&Namespace::Host), [before[0].clone(), before[2].clone()]);
    let calls = world.links.calls();
    let at = |what: &str| calls.iter().position(|call| call.starts_with(what)).unwrap();
    assert!(at("make macvlan private") < at("move to") && at("move to") < at("set up"));

    world.restart();
    let alive = [sandbox("s1", "web")];
    assert_eq!(world.attacher.recover(&alive).await.attached, attached);
    let moved = world.attacher.attach(&sandbox("s2", "web")).await.unwrap().attached;
    assert_eq!((moved.len(), world.links.links_in(&inside("s1")).len()), (4, 0));
    assert_eq!(world.attacher.give_back("s2").await.problems, []);
    world.assert_all_home(&before, "after the return");

    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    world.links.vanish(&inside("s1"));
    for id in world.datapath.endpoints().unwrap() {
        let home = world.store.get("c2").unwrap().interfaces[1].attachment.clone().unwrap().endpoint;
        if home != Some(id) {
            world.datapath.device_is_at(id, None);
        }
    }
    let swept = world.attacher.sweep().await;
    assert_eq!((swept.problems, swept.returned.len()), (vec![], 2));
    world.assert_all_home(&before, "after the sweep");
}

#[tokio::test]
async fn a_failure_of_any_change_leaves_no_sub_interface() {
    every_failure_is_undone(claims).await;
}

#[tokio::test]
async fn a_parent_that_is_down_is_left_so() {
    let world = World::new();
    world.claim("c1", "web", vec![upper("c1", "s1", "net1")]);
    world.links.spoil(&Namespace::Host, "ens5", |link| link.home.link.up = false);
    let before = world.links.links_in(&Namespace::Host);
    let refused = world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err().to_string();
    assert!(refused.contains("link ens5 is down: a sub-interface needs a parent that is up"), "{refused}");
    world.assert_all_home(&before, "after the refusal");
}

#[tokio::test]
async fn a_sub_interface_that_its_pod_pushed_on_is_looked_for_again() {
    let world = World::new();
    let before = world.links.links_in(&Namespace::Host);
    world.claim("c1", "web", vec![upper("c1", "s1", "net1")]);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    world.links.delete(&inside("s1"), "net1");
    // Its programs know a device still, which is nowhere to be seen.
    let outcome = world.attacher.give_back("s1").await;
    assert_eq!(outcome.problems.iter().map(|it| it.reason).collect::<Vec<_>>(), [Reason::NotReturned]);
    assert!(world.datapath.endpoint(attached[0].endpoint.unwrap()).is_some_and(|it| !it.ready), "closed");
    world.datapath.device_is_at(attached[0].endpoint.unwrap(), None);
    assert_eq!(world.attacher.sweep().await.problems, []);
    world.assert_all_home(&before, "once it is gone");
}
