//! What is found out about a link before its claim is prepared.

use super::*;

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
