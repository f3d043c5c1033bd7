//! Ports: made in the sandbox, gone after it.

use super::{undone::every_failure_is_undone, *};
use crate::{
    claim::{InterfaceKey, Made, Port, made},
    datapath::Placement,
    network::NetworkRef,
};

pub(super) fn claim_ref(uid: &str) -> ClaimRef {
    ClaimRef { namespace: "default".into(), name: uid.into(), uid: uid.into() }
}

/// A share of the device of network `blue`.
pub(super) fn port(claim: &str, share: &str, name: &str) -> InterfacePlan {
    let key =
        InterfaceKey { request: "net".into(), device: "port-blue".into(), share_id: Some(share.into()) };
    InterfacePlan {
        request: key.request.clone(),
        share_id: key.share_id.clone(),
        host_link: made::host_name(&claim_ref(claim), &key),
        hardware_addr: Some(made::hardware_addr(&claim_ref(claim), &key)),
        made: Some(Made::Port(Port::new(NetworkRef { name: "blue".into(), uid: "uid-blue".into() }, 7))),
        ..plan("port-blue", name)
    }
}

/// Two ports of one claim and one of another, of the same device, and a moved link.
fn claims(world: &World) {
    world.claim("c1", "web", vec![port("c1", "s1", "net1"), port("c1", "s2", "net2")]);
    world.claim("c2", "web", vec![port("c2", "s3", "net3"), plan("ens5", "net4")]);
}

#[tokio::test]
async fn ports_are_made_and_deleted() {
    let world = World::new();
    claims(&world);
    let before = world.links.links_in(&Namespace::Host);
    let outcome = world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    assert_eq!((outcome.attached.len(), outcome.problems), (4, vec![]));
    let mut there = world.links.links_in(&inside("s1"));
    there.sort_by(|one, other| one.home.link.name.cmp(&other.home.link.name));
    let names: Vec<_> = there.iter().map(|link| link.home.link.name.as_str()).collect();
    assert_eq!(names, ["net1", "net2", "net3", "net4"]);
    for (link, attached) in there.iter().zip(&outcome.attached) {
        assert!(link.home.link.up);
        assert_eq!((link.home.link.mtu, link.home.addresses.len(), link.home.routes.len()), (1400, 2, 1));
        assert_eq!(link.home.link.mac, attached.mac);
    }
    let hosts: Vec<_> = world.links.links_in(&Namespace::Host);
    let ends: Vec<_> = hosts.iter().filter(|link| link.home.link.name.starts_with("nf")).collect();
    assert_eq!(ends.len(), 3);
    for end in ends {
        assert!(end.home.link.up && end.home.addresses.is_empty());
        assert_eq!(end.home.sysctls["ipv6/disable_ipv6"], "1");
    }
    let endpoint = world.datapath.endpoint(outcome.attached[0].endpoint.unwrap()).unwrap();
    assert_eq!((endpoint.spec.placement, endpoint.spec.network), (Placement::HostVeth, 7));
    assert!(endpoint.ready);
    // Nothing is up before its programs are ready.
    let calls = world.links.calls();
    let at = |what: &str| calls.iter().position(|call| call.starts_with(what)).unwrap();
    assert!(at("make the pair") < at("add the address") && at("add the address") < at("set up"));

    let changes = world.links.changes();
    let again = world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    assert_eq!(again.attached, outcome.attached);
    assert_eq!(world.links.changes(), changes);

    let returned = world.attacher.give_back("s1").await;
    assert_eq!((returned.problems, returned.returned.len()), (vec![], 2));
    world.assert_all_home(&before, "after the return");
}

#[tokio::test]
async fn a_failure_of_any_change_leaves_no_port() {
    every_failure_is_undone(claims).await;
}

#[tokio::test]
async fn a_return_of_ports_that_failed_is_taken_up_again() {
    for nth in 0..4 {
        let world = World::new();
        claims(&world);
        let before = world.links.links_in(&Namespace::Host);
        world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
        world.links.fail_change(world.links.changes() + nth);
        world.attacher.give_back("s1").await;
        let problems = world.attacher.sweep().await.problems;
        assert_eq!(problems, [], "change {nth} failed");
        assert_eq!(world.links.links_in(&Namespace::Host), before, "change {nth} failed");
    }
}

#[tokio::test]
async fn a_port_goes_with_its_sandbox_and_comes_with_the_next() {
    let mut world = World::new();
    claims(&world);
    let before = world.links.links_in(&Namespace::Host);
    let first = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    let second = world.attacher.attach(&sandbox("s2", "web")).await.unwrap().attached;
    assert_eq!(world.links.links_in(&inside("s1")), []);
    let macs = |attached: &[AttachedInterface]| attached.iter().map(|it| it.mac).collect::<Vec<_>>();
    assert_eq!(macs(&first), macs(&second), "the same through every sandbox");

    // The namespace dies; nobody tells. It is no problem that the ports went with it.
    world.links.vanish(&inside("s2"));
    for attached in &second {
        world.datapath.device_is_at(attached.endpoint.unwrap(), None);
    }
    let outcome = world.attacher.sweep().await;
    assert_eq!((outcome.problems, outcome.returned.len()), (vec![], 2));
    world.assert_all_home(&before, "after the sweep");

    // So it is if the daemon was not there.
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    world.restart();
    let alive = [sandbox("s1", "web")];
    let kept = world.attacher.recover(&alive).await;
    assert_eq!((kept.attached.len(), kept.problems), (4, vec![]));
    world.restart();
    let outcome = world.attacher.recover(&[]).await;
    assert_eq!((outcome.problems, outcome.returned.len()), (vec![], 2));
    world.assert_all_home(&before, "after the last restart");
}

#[tokio::test]
async fn a_port_that_its_pod_deleted_is_made_again_by_the_next_start() {
    let mut world = World::new();
    world.claim("c1", "web", vec![port("c1", "s1", "net1")]);
    let alive = [sandbox("s1", "web")];
    let attached = world.attacher.attach(&alive[0]).await.unwrap().attached;
    world.links.delete(&inside("s1"), "net1");
    assert_eq!(world.links.links_in(&Namespace::Host).len(), 3, "the other end went too");
    world.datapath.device_is_at(attached[0].endpoint.unwrap(), None);
    world.restart();
    let outcome = world.attacher.recover(&alive).await;
    assert_eq!(outcome.attached.len(), 1);
    assert_eq!(outcome.problems.iter().map(|it| it.reason).collect::<Vec<_>>(), [Reason::Unprotected]);
}

#[tokio::test]
async fn a_pair_left_by_a_lost_checkpoint_is_replaced() {
    let world = World::new();
    world.claim("c1", "web", vec![port("c1", "s1", "net1")]);
    let name = port("c1", "s1", "net1").host_link;
    world.links.put(&Namespace::Host, FakeLink::hardware(&name, 90).of_kind("veth"));
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    world.attacher.give_back("s1").await;
    assert_eq!(world.links.links_in(&Namespace::Host).len(), 3);
    // But only if it is one of a pair.
    world.links.put(&Namespace::Host, FakeLink::hardware(&name, 90));
    let refused = world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err().to_string();
    assert!(refused.contains("already exists in network namespace host"), "{refused}");
}

#[tokio::test]
async fn an_endpoint_is_reserved_ahead() {
    let world = World::new();
    let before = world.links.links_in(&Namespace::Host);
    world.claim("c1", "web", vec![port("c1", "s1", "net1"), port("c1", "s2", "net2")]);
    world.attacher.protect("c1").await;
    let reserved: Vec<_> =
        world.store.get("c1").unwrap().interfaces.iter().map(|it| it.reserved.unwrap()).collect();
    assert_ne!(reserved[0], reserved[1]);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    let used: Vec<_> = attached.iter().map(|it| it.endpoint.unwrap()).collect();
    assert_eq!(used, reserved);
    world.attacher.give_back("s1").await;
    world.attacher.protect("c1").await;
    assert_eq!(world.attacher.give_back_claim("c1").await, Outcome::default());
    world.store.remove("c1").unwrap();
    world.assert_all_home(&before, "after unprepare");
}

/// What is left of an endpoint's flows would be the new one's: also after a restart, when no checkpoint has the id.
#[tokio::test]
async fn an_id_is_not_given_to_another_endpoint() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for round in 0..3 {
        world.claim("c1", "web", vec![port("c1", "s1", "net1")]);
        let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
        ids.push(attached[0].endpoint.unwrap());
        world.attacher.give_back("s1").await;
        assert_eq!(world.attacher.give_back_claim("c1").await, Outcome::default());
        world.store.remove("c1").unwrap();
        assert!(world.datapath.endpoints().unwrap().is_empty(), "round {round}");
        world.restart();
    }
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
}

#[tokio::test]
async fn a_netkit_port_is_closed_until_it_is_protected_and_outlives_the_setting() {
    let mut world = World::new();
    world.attacher =
        Attacher::new(world.links.clone(), world.links.clone(), world.datapath.clone(), world.store.clone())
            .making(PairKind::Netkit);
    world.claim("c1", "web", vec![port("c1", "s1", "net1")]);
    let before = world.links.links_in(&Namespace::Host);
    let name = port("c1", "s1", "net1").host_link;
    let end = |world: &World| {
        let links = world.links.links_in(&Namespace::Host);
        links.into_iter().map(|it| it.home.link).find(|it| it.name == name).unwrap()
    };
    world.links.fail_change(0);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err();
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    assert_eq!((end(&world).kind.as_deref(), end(&world).blackhole), (Some("netkit"), false));
    assert!(!world.links.links_in(&inside("s1"))[0].home.link.blackhole);
    assert!(world.datapath.endpoint(attached[0].endpoint.unwrap()).unwrap().ready);

    // A daemon that makes veth pairs finds it, keeps it and repairs it.
    world.restart();
    let alive = [sandbox("s1", "web")];
    let kept = world.attacher.recover(&alive).await;
    assert_eq!((&kept.attached, kept.problems), (&attached, vec![]));
    world.links.spoil(&Namespace::Host, &name, |link| link.home.link.blackhole = true);
    let repairs = world.attacher.repair(Extent::Host).await;
    let found: Vec<_> = repairs.iter().map(|it| (it.found.item(), it.mended.clone())).collect();
    assert_eq!(found, [("host_policy", Mended::Repaired)]);
    assert!(!end(&world).blackhole);
    assert_eq!(world.attacher.give_back("s1").await.problems, []);
    world.assert_all_home(&before, "after the return");
}
