//! Claims on a kernel without tcx: `strict` is refused, `best-effort` gets filters inside the pod.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use netferry::{
    attach::Attacher,
    claim::{Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord},
    datapath::{Features, Isolation},
    drift::{Drift, DriftWatch, Told},
};

use crate::world::{InHost, World, plan_of_eth7, pod_ref};

struct Heard(Mutex<Vec<Drift>>);

#[async_trait]
impl Told for &'static Heard {
    fn drifted(&self, drift: &Drift) {
        self.0.lock().expect("not poisoned").push(drift.clone());
    }

    fn looked(&self, _: &[Drift]) {}

    async fn take_out(&self, drift: &Drift) {
        panic!("taken out: {}", drift.note());
    }
}

fn datapath(world: &World) -> InHost {
    world.places.datapath_with(Features { tcx: false, ..Features::probe() })
}

fn claim(world: &World, isolation: Isolation) {
    let claim = ClaimRef { namespace: "default".into(), name: "c7".into(), uid: "c7".into() };
    let plan = InterfacePlan { isolation, ..plan_of_eth7() };
    let interfaces = vec![InterfaceRecord::planned(plan)];
    world.places.store().put(Checkpoint::new(claim, vec![pod_ref()], interfaces)).expect("checkpoint");
}

#[tokio::test]
async fn strict_is_refused_without_tcx() {
    let Some(world) = World::new("strict_is_refused_without_tcx") else { return };
    claim(&world, Isolation::Strict);
    let attacher = Attacher::new(
        Arc::new(world.places.links()),
        Arc::new(world.places.namespaces()),
        Arc::new(datapath(&world)),
        world.places.store(),
    );
    let plan = world.places.store().all()[0].interfaces[0].plan.clone();
    let why = attacher.unattachable(&plan).expect("refused at prepare");
    assert!(why.contains("isolation: \"strict\" is not allowed") && why.contains("\"best-effort\""), "{why}");
    attacher.protect("c7").await;
    let failed = attacher.attach(&world.places.sandbox()).await.expect_err("refused").to_string();
    assert!(failed.contains("lacks tcx (upstream since Linux 6.6)"), "{failed}");
    assert!(failed.contains("best-effort"), "it says what can be had: {failed}");
    world.assert_home("after the refusal");
}

#[tokio::test]
async fn best_effort_guards_from_inside_the_pod_and_comes_back() {
    let Some(world) = World::new("best_effort_guards_from_inside_the_pod_and_comes_back") else { return };
    claim(&world, Isolation::BestEffort);
    let (datapath, store) = (datapath(&world), world.places.store());
    let attacher = Attacher::new(
        Arc::new(world.places.links()),
        Arc::new(world.places.namespaces()),
        Arc::new(datapath.clone()),
        Arc::clone(&store),
    );
    assert_eq!(attacher.unattachable(&world.places.store().all()[0].interfaces[0].plan), None);
    attacher.protect("c7").await;
    let outcome = attacher.attach(&world.places.sandbox()).await.expect("attach");
    assert_eq!(outcome.problems, []);
    let programs = &outcome.attached[0].programs;
    let hooks: Vec<_> = programs.iter().map(|it| it.hook.as_str()).collect();
    assert_eq!(hooks, ["clsact/ingress", "clsact/egress"]);
    world.pod.exec("ping -c 1 -W 2 198.51.100.1");
    assert_eq!(attacher.attach(&world.places.sandbox()).await.expect("again").attached, outcome.attached);

    let heard: &'static Heard = Box::leak(Box::new(Heard(Mutex::default())));
    let watch = DriftWatch {
        links: world.places.links(),
        datapath: Arc::clone(&datapath.datapath),
        store,
        told: heard,
    };
    assert!(watch.look_at_all().await.is_empty());
    world.pod.exec("tc qdisc del dev net1 clsact");
    assert_eq!(watch.look_at_all().await.len(), 1);
    let note = heard.0.lock().expect("not poisoned")[0].note();
    assert!(
        note.contains("does not run its clsact/ingress program; its programs are in place, and first again"),
        "{note}"
    );
    assert!(watch.look_at_all().await.is_empty());
    world.pod.exec("ping -c 1 -W 2 198.51.100.1");

    // A new daemon keeps what lives and gives it its own programs.
    let restarted = self::datapath(&world);
    let attacher = Attacher::new(
        Arc::new(world.places.links()),
        Arc::new(world.places.namespaces()),
        Arc::new(restarted.clone()),
        world.places.store(),
    );
    let outcome = attacher.recover(&[world.places.sandbox()]).await;
    assert_eq!(outcome.problems, []);
    let watch = DriftWatch { datapath: Arc::clone(&restarted.datapath), ..watch };
    assert!(watch.look_at_all().await.is_empty());

    assert_eq!(attacher.give_back("s1").await.problems, []);
    world.assert_home("after the return");
}
