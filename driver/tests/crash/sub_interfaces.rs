//! Sub-interfaces through every death of the daemon.

use netferry::{
    claim::{Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord, Made, Upper, made},
    link::{Macvlan, SubInterface},
};

use crate::{
    dies, points,
    world::{World, plan_of_eth7, pod_ref},
};

/// Two macvlan links on one parent, which has everything a link can have.
fn world(test: &str) -> Option<World> {
    let world = World::new(test)?;
    let claim = ClaimRef { namespace: "default".into(), name: "c7".into(), uid: "c7".into() };
    let interfaces = [("s1", 7, "net1"), ("s2", 8, "net2")].map(|(share, last, name)| {
        let mut plan = plan_of_eth7();
        plan.share_id = Some(share.into());
        plan.made = Some(Made::SubInterface(Upper {
            sub_interface: SubInterface::Macvlan(Macvlan::default()),
            host_name: made::host_name(&claim, &plan.key()),
        }));
        InterfaceRecord::planned(InterfacePlan {
            name: name.into(),
            hardware_addr: Some(made::hardware_addr(&claim, &plan.key())),
            addresses: vec![format!("198.51.100.{last}/24").parse().expect("an address")],
            routes: Vec::new(),
            ..plan
        })
    });
    let checkpoint = Checkpoint::new(claim, vec![pod_ref()], interfaces.into());
    world.places.store().put(checkpoint).expect("checkpoint");
    Some(world)
}

#[tokio::test]
async fn a_death_around_a_sub_interface_ends_in_the_same_place() {
    let Some(world) = world("a_death_around_a_sub_interface_ends_in_the_same_place") else { return };
    let mut deaths = 0;
    for point in points("attach") {
        deaths += u32::from(dies(&world.places, "attach", &point));
        // The sandbox died with the daemon.
        let outcome = world.places.attacher().recover(&[]).await;
        assert_eq!(outcome.problems, [], "{point}");
        assert_eq!(world.pod.links(), Vec::<String>::new(), "{point}");
        world.assert_home(&point);

        dies(&world.places, "attach", &point);
        // The sandbox lives.
        let outcome = world.places.attacher().recover(&[world.places.sandbox()]).await;
        assert_eq!((outcome.problems, outcome.attached.len()), (vec![], 2), "{point}");
        assert_eq!(world.host.links(), ["eth7", "eth8"], "{point}");
        world.pod.exec("ping -q -n -c 1 -W 2 198.51.100.1");
        assert_eq!(world.places.attacher().give_back("s1").await.problems, [], "{point}");
        world.assert_home(&point);
    }
    for point in points("return") {
        world.places.attacher().attach(&world.places.sandbox()).await.expect("attach");
        deaths += u32::from(dies(&world.places, "return", &point));
        let outcome = world.places.attacher().recover(&[]).await;
        assert_eq!(outcome.problems, [], "{point}");
        world.assert_home(&point);
    }
    assert!(deaths >= 24, "only {deaths} deaths");
}
