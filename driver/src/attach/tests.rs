//! The flow on modelled links and programs: every order of events, without root.

use std::sync::Arc;

use super::*;
use crate::{
    claim::{InterfacePlan, InterfaceRecord, PodRef, Step},
    datapath::{
        ForeignProgram, Isolation,
        fake::{FakeDatapath, Verb},
    },
    link::{
        MacAddr, PairKind, Route, Scope,
        fake::{FakeLink, FakeLinks},
    },
    netns::Namespaces as _,
    nri::PodSandbox,
};

mod follow;
mod guard;
mod lease;
mod movable;
mod port;
mod remake;
mod removal;
mod restrict;
mod sandboxes;
mod sub_interface;
mod undone;

struct World {
    links: Arc<FakeLinks>,
    datapath: Arc<FakeDatapath>,
    store: Arc<Store>,
    attacher: Attacher,
    dir: tempfile::TempDir,
}

fn pod(name: &str) -> PodRef {
    PodRef { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}") }
}

fn sandbox(id: &str, pod_name: &str) -> PodSandbox {
    PodSandbox {
        id: id.into(),
        pod: pod(pod_name),
        netns: Some(format!("/run/netns/{id}").into()),
        cgroup_parent: None,
        pid: Some(1),
        is_static: false,
        has_containers: false,
    }
}

fn inside(id: &str) -> Namespace {
    Namespace::at(format!("/run/netns/{id}"))
}

fn plan(device: &str, name: &str) -> InterfacePlan {
    InterfacePlan {
        request: "nic".into(),
        pool: "node".into(),
        device: device.into(),
        share_id: None,
        host_link: device.into(),
        name: name.into(),
        hardware_addr: Some(MacAddr([2, 0xaa, 0, 0, 0, 1])),
        mtu: Some(1400),
        addresses: vec!["192.0.2.7/24".parse().unwrap(), "2001:db8::7/64".parse().unwrap()],
        routes: vec![Route {
            destination: "0.0.0.0/0".parse().unwrap(),
            gateway: Some("192.0.2.1".parse().unwrap()),
            source: None,
            scope: Scope::Universe,
            table: 254,
            protocol: 4,
            metric: 0,
            onlink: false,
        }],
        isolation: Isolation::Strict,
        early_drop: true,
        policy: None,
        limits: None,
        made: None,
    }
}

impl World {
    /// Two hardware links and a made one at home, two sandboxes, no claim.
    fn new() -> Self {
        let (links, datapath) = (Arc::new(FakeLinks::new()), Arc::new(FakeDatapath::new()));
        links.put(&Namespace::Host, FakeLink::hardware("ens5", 5));
        links.put(&Namespace::Host, FakeLink::hardware("ens6", 6));
        links.put(&Namespace::Host, FakeLink::hardware("made7", 7).of_kind("veth"));
        links.make(&inside("s1"));
        links.make(&inside("s2"));
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap().0);
        let mut world = Self {
            attacher: Attacher::new(links.clone(), links.clone(), datapath.clone(), store.clone()),
            links,
            datapath,
            store,
            dir,
        };
        world.restart();
        world
    }

    /// A new process over what the old one left.
    fn restart(&mut self) {
        self.attacher =
            Attacher::new(self.links.clone(), self.links.clone(), self.datapath.clone(), self.store.clone());
    }

    fn claim(&self, uid: &str, pod_name: &str, plans: Vec<InterfacePlan>) {
        let interfaces = plans.into_iter().map(InterfaceRecord::planned).collect();
        let claim = ClaimRef { namespace: "default".into(), name: uid.into(), uid: uid.into() };
        self.store.put(Checkpoint::new(claim, vec![pod(pod_name)], interfaces)).unwrap();
    }

    fn assert_all_home(&self, before: &[FakeLink], when: &str) {
        assert_eq!(self.links.links_in(&Namespace::Host), before, "{when}");
        assert_eq!(self.links.links_in(&inside("s1")), [], "{when}");
        assert_eq!(self.datapath.endpoints().unwrap(), Vec::<u32>::new(), "{when}");
        for checkpoint in self.store.all() {
            assert!(checkpoint.interfaces.iter().all(|it| it.attachment.is_none()), "{when}");
        }
    }
}

fn two_claims(world: &World) {
    world.claim("c1", "web", vec![plan("ens5", "net1"), plan("ens6", "net2")]);
    world.claim("c2", "web", vec![plan("made7", "net3")]);
}

#[tokio::test]
async fn attaches_every_interface_of_the_pod_and_returns_them() {
    let world = World::new();
    two_claims(&world);
    let before = world.links.links_in(&Namespace::Host);
    let outcome = world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    assert_eq!(outcome.attached.len(), 3);
    assert_eq!(outcome.problems, []);
    let there = world.links.links_in(&inside("s1"));
    let names: Vec<_> = there.iter().map(|link| link.home.link.name.as_str()).collect();
    assert_eq!(names, ["net1", "net2", "net3"]);
    for link in &there {
        assert!(link.home.link.up);
        assert_eq!((link.home.link.mtu, link.home.addresses.len(), link.home.routes.len()), (1400, 2, 1));
    }
    let endpoint = outcome.attached[0].endpoint.unwrap();
    assert!(world.datapath.endpoint(endpoint).unwrap().ready);
    // Ready before up, up before routes, programs before the move.
    let calls = world.links.calls();
    let at = |what: &str| calls.iter().position(|call| call.starts_with(what)).unwrap();
    assert!(at("set down") < at("move") && at("move") < at("set up") && at("set up") < at("add the route"));

    // The runtime asks again: nothing is done twice.
    let changes = world.links.changes();
    let again = world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    assert_eq!(again.attached, outcome.attached);
    assert_eq!(world.links.changes(), changes);

    let returned = world.attacher.give_back("s1").await;
    assert_eq!(returned.problems, []);
    assert_eq!(returned.returned.len(), 2);
    world.assert_all_home(&before, "after the return");
    assert_eq!(world.attacher.give_back("s1").await, Outcome::default());
}

#[tokio::test]
async fn a_failure_of_any_change_undoes_everything() {
    let mut failures = 0;
    loop {
        let world = World::new();
        two_claims(&world);
        let before = world.links.links_in(&Namespace::Host);
        world.links.fail_change(failures);
        let Err(failed) = world.attacher.attach(&sandbox("s1", "web")).await else { break };
        assert!(failed.to_string().starts_with("claim default/c"), "{failed}");
        world.assert_all_home(&before, &format!("change {failures} failed"));
        world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
        failures += 1;
    }
    assert!(failures > 20, "only {failures} changes were tried");
}

#[tokio::test]
async fn a_failure_of_the_programs_undoes_everything() {
    for verb in [Verb::ForeignPrograms, Verb::Endpoints, Verb::Attach, Verb::Verify, Verb::SetReady] {
        // Numbers are read from the datapath once, by two calls.
        for nth in 0..if verb == Verb::Endpoints { 2 } else { 3 } {
            let world = World::new();
            two_claims(&world);
            let before = world.links.links_in(&Namespace::Host);
            world.datapath.fail_after(verb, nth, 1);
            world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err();
            world.assert_all_home(&before, &format!("call {nth} of {verb:?} failed"));
        }
    }
}

#[tokio::test]
async fn refuses_what_cannot_be() {
    let world = World::new();
    let host_network = PodSandbox { netns: None, ..sandbox("s1", "web") };
    assert_eq!(world.attacher.attach(&host_network).await.unwrap(), Outcome::default(), "no claims");
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    let refused = world.attacher.attach(&host_network).await.unwrap_err().to_string();
    assert!(refused.contains("hostNetwork: true"), "{refused}");

    world.datapath.set_foreign(5, vec![ForeignProgram { hook: "xdp".into(), id: 9, name: "guard".into() }]);
    let changes = world.links.changes();
    let refused = world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err().to_string();
    assert!(refused.contains("ens5 carries programs that are not ours: xdp 9 \"guard\""), "{refused}");
    assert_eq!(world.links.changes(), changes, "nothing was touched");
    world.datapath.set_foreign(5, vec![]);

    world.claim("c2", "web", vec![plan("ens6", "net1")]);
    let refused = world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err().to_string();
    assert!(refused.contains("name \"net1\" is used by two interfaces"), "{refused}");
    world.store.remove("c2").unwrap();

    world.links.put(&inside("s1"), FakeLink::hardware("net1", 2));
    let refused = world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err().to_string();
    assert!(refused.contains("a link named \"net1\" already exists"), "{refused}");
    assert_eq!(world.links.changes(), changes, "nothing was touched");
    world.links.delete(&inside("s1"), "net1");

    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    world.store.update("c1", |checkpoint| checkpoint.pods.push(pod("other"))).unwrap();
    let refused = world.attacher.attach(&sandbox("s2", "other")).await.unwrap_err().to_string();
    assert!(refused.contains("device ens5 is in pod default/web"), "{refused}");
    assert_eq!(world.links.links_in(&inside("s1")).len(), 1, "the holder keeps it");
}

#[tokio::test]
async fn a_new_sandbox_of_the_pod_takes_the_links_over() {
    let world = World::new();
    two_claims(&world);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let outcome = world.attacher.attach(&sandbox("s2", "web")).await.unwrap();
    assert_eq!(outcome.attached.len(), 3);
    assert_eq!(world.links.links_in(&inside("s1")), []);
    assert_eq!(world.links.links_in(&inside("s2")).len(), 3);
    assert_eq!(world.attacher.give_back("s1").await, Outcome::default(), "a late stop of the old one");
    assert_eq!(world.links.links_in(&inside("s2")).len(), 3);
}

#[tokio::test]
async fn a_vanished_namespace_gives_hardware_back_and_takes_made_links() {
    let world = World::new();
    two_claims(&world);
    let before = world.links.links_in(&Namespace::Host);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    // The pod's name of one of them is taken at home.
    world.links.put(&Namespace::Host, FakeLink::hardware("net2", 99));
    // Also where it is held.
    world.links.destroy(&inside("s1"));
    world.datapath.device_is_at(attached[2].endpoint.unwrap(), None);
    let outcome = world.attacher.give_back("s1").await;
    let reasons: Vec<_> = outcome.problems.iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::LinkGone]);
    assert!(outcome.problems[0].note.contains("made7"));
    world.links.delete(&Namespace::Host, "net2");
    world.assert_all_home(&before[..2], "after the namespace died");
}

#[tokio::test]
async fn a_taken_name_at_home_is_worked_around() {
    let world = World::new();
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    world.links.spoil(&Namespace::Host, "ens5", |link| {
        link.home.link.alt_names = ["enp0s5".to_owned(), "kept".to_owned()].into();
    });
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    let mut usurper = FakeLink::hardware("ens5", 77);
    usurper.home.link.alt_names = ["enp0s5".to_owned()].into();
    world.links.put(&Namespace::Host, usurper);
    let outcome = world.attacher.give_back("s1").await;
    assert_eq!(outcome.problems.len(), 1, "{outcome:?}");
    assert_eq!(outcome.problems[0].reason, Reason::NameTaken);
    assert!(outcome.problems[0].note.contains("\"nf-ens5\""), "{}", outcome.problems[0].note);
    let name = crate::link::LinkRef::Name("nf-ens5".into());
    let link = world.attacher.links.get(&Namespace::Host, &name).await.unwrap();
    assert_eq!((link.ifindex, link.up), (5, true));
    assert_eq!(link.alt_names, ["kept".to_owned()].into());
}

#[tokio::test]
async fn a_link_deleted_or_renamed_in_the_pod_is_handled() {
    let world = World::new();
    two_claims(&world);
    let before = world.links.links_in(&Namespace::Host);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    world.links.spoil(&inside("s1"), "net1", |link| {
        link.home.link.name = "mine".into();
        link.home.link.mac = Some(MacAddr([2, 1, 2, 3, 4, 5]));
    });
    world.links.delete(&inside("s1"), "net3");
    world.datapath.device_is_at(attached[2].endpoint.unwrap(), None);
    let outcome = world.attacher.give_back("s1").await;
    assert_eq!(outcome.problems.iter().map(|problem| problem.reason).collect::<Vec<_>>(), [Reason::LinkGone]);
    world.assert_all_home(&before[..2], "after the return");
}

#[tokio::test]
async fn a_return_that_failed_is_taken_up_again() {
    let mut nth = 0;
    loop {
        let world = World::new();
        two_claims(&world);
        let before = world.links.links_in(&Namespace::Host);
        world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
        world.links.fail_change(world.links.changes() + nth);
        let first = world.attacher.give_back("s1").await;
        let tried = world.links.calls().len();
        let second = world.attacher.give_back("s1").await;
        assert_eq!(second.problems, [], "change {nth} failed: {first:?}");
        // What could not be restored is told, and the link is free all the same.
        if first.problems.iter().all(|problem| problem.reason != Reason::NotRestored) {
            world.assert_all_home(&before, &format!("change {nth} failed"));
        }
        if first.problems.is_empty() && nth > 8 {
            break;
        }
        assert!(tried < 100);
        nth += 1;
    }
}

#[tokio::test]
async fn a_restart_keeps_what_lives_and_returns_the_rest() {
    let mut world = World::new();
    two_claims(&world);
    let before = world.links.links_in(&Namespace::Host);
    let alive = [sandbox("s1", "web")];
    let attached = world.attacher.attach(&alive[0]).await.unwrap().attached;
    world.restart();
    let outcome = world.attacher.recover(&alive).await;
    assert_eq!((outcome.attached, outcome.problems), (attached.clone(), vec![]));

    // Cut off on the way in: rolled back, then attached afresh.
    world
        .store
        .update("c1", |it| it.interfaces[0].attachment.as_mut().unwrap().step = Step::Attaching)
        .unwrap();
    world.restart();
    let outcome = world.attacher.recover(&alive).await;
    assert_eq!(outcome.problems, []);
    assert_eq!(outcome.attached.len(), 3);
    assert_eq!(
        world.store.get("c1").unwrap().interfaces[0].attachment.as_ref().unwrap().step,
        Step::Attached
    );

    // Its programs are gone: out with it, and in again with new ones.
    let endpoint =
        world.store.get("c1").unwrap().interfaces[1].attachment.as_ref().unwrap().endpoint.unwrap();
    world.datapath.detach(endpoint).unwrap();
    let outcome = world.attacher.recover(&alive).await;
    assert_eq!(
        outcome.problems.iter().map(|problem| problem.reason).collect::<Vec<_>>(),
        [Reason::Unprotected]
    );
    assert_eq!(outcome.attached.len(), 3);
    assert!(outcome.attached.iter().all(|interface| interface.endpoint != Some(endpoint)));

    // The sandbox is gone while the daemon was not there.
    world.restart();
    let outcome = world.attacher.recover(&[]).await;
    assert_eq!((outcome.problems, outcome.returned.len()), (vec![], 2));
    world.assert_all_home(&before, "after the last restart");
}

#[tokio::test]
async fn programs_without_a_checkpoint_go_only_with_their_device() {
    let mut world = World::new();
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    let id = attached[0].endpoint.unwrap();
    std::fs::remove_file(world.dir.path().join("c1.json")).unwrap();
    world.store = Arc::new(Store::open(world.dir.path()).unwrap().0);
    world.restart();
    // Its namespace is not held: the link cannot be found.
    for hold in world.links.held().await.unwrap() {
        world.links.release(&hold).await.unwrap();
    }
    let outcome = world.attacher.recover(&[]).await;
    assert_eq!(outcome.problems.len(), 1);
    assert!(!world.datapath.endpoint(id).unwrap().ready, "the gate is closed");
    world.datapath.device_is_at(id, None);
    assert_eq!(world.attacher.recover(&[]).await, Outcome::default());
    assert_eq!(world.datapath.endpoint(id), None);
}

#[tokio::test]
async fn a_sweep_returns_what_no_event_tells_of_and_nothing_else() {
    let world = World::new();
    let before = world.links.links_in(&Namespace::Host);
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    assert_eq!(world.attacher.sweep().await, Outcome::default(), "the sandbox lives");
    assert_eq!(world.links.links_in(&inside("s1")).len(), 1);

    world.links.vanish(&inside("s1"));
    let outcome = world.attacher.sweep().await;
    assert_eq!(outcome.returned.len(), 1, "{outcome:?}");
    world.assert_all_home(&before, "after the sweep");
}

#[tokio::test]
async fn links_are_closed_ahead_and_opened_by_the_attach() {
    let world = World::new();
    let before = world.links.links_in(&Namespace::Host);
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    world.attacher.protect("c1").await;
    let reserved = world.store.get("c1").unwrap().interfaces[0].reserved.unwrap();
    assert!(!world.datapath.endpoint(reserved).unwrap().ready, "closed while it waits");

    // Once more, by a daemon that has restarted, and by its recovery: nothing changes.
    let mut world = world;
    world.restart();
    world.attacher.protect("c1").await;
    assert_eq!(world.attacher.recover(&[]).await, Outcome::default());
    assert_eq!(world.datapath.endpoints().unwrap(), [reserved]);

    let attached = world.attacher.attach(&sandbox("s1", "web")).await.unwrap().attached;
    assert_eq!(attached[0].endpoint, Some(reserved));
    assert!(world.datapath.endpoint(reserved).unwrap().ready);
    world.attacher.give_back("s1").await;
    assert_eq!(world.store.get("c1").unwrap().interfaces[0].reserved, None);
    world.assert_all_home(&before, "after the return");
}

#[tokio::test]
async fn a_claim_that_is_never_used_leaves_no_programs() {
    let world = World::new();
    let before = world.links.links_in(&Namespace::Host);
    world.claim("c1", "web", vec![plan("ens5", "net1")]);
    world.attacher.protect("c1").await;
    assert!(world.store.remove("c1").is_err(), "its link is still closed");
    assert_eq!(world.attacher.give_back_claim("c1").await, Outcome::default());
    world.store.remove("c1").unwrap();
    world.assert_all_home(&before, "after unprepare");
}
