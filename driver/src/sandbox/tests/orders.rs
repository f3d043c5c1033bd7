//! Any order of what happens to sandboxes ends well.
//!
//! 2,000 orders in a plain run; `NETFERRY_ORDERS` sets another number.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use proptest::{prelude::*, test_runner::TestRunner};

use super::world::{PODS, World, claim_of, plans};
use crate::{claim::Made, datapath::Datapath as _, link::Namespace, netns::Namespaces as _};

/// What may happen.
#[derive(Clone, Copy, Debug)]
enum Step {
    Run(usize),
    /// The pause container is killed: the kubelet stops the sandbox and makes another.
    Killed(usize),
    End(usize),
    Remove(usize),
    Create(usize),
    List(bool),
    DaemonKilled,
    /// Killed in the middle of the start of a pod's sandbox, after so many turns of the event loop.
    KilledInRun(usize, u8),
    /// The same in the middle of its end.
    KilledInStop(usize, u8),
    DaemonStarted,
    RuntimeRestarted,
    Reboot,
    ApiAway(bool),
    /// Somebody takes away what holds a pod's namespace, while the pod runs.
    HoldLost(usize),
    /// The n-th change of a link from now on fails once.
    ChangeFails(u8),
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let pod = 0..PODS;
    prop_oneof![
        6 => pod.clone().prop_map(Step::Run),
        3 => pod.clone().prop_map(Step::Killed),
        2 => pod.clone().prop_map(Step::End),
        1 => pod.clone().prop_map(Step::Remove),
        3 => pod.clone().prop_map(Step::Create),
        2 => any::<bool>().prop_map(Step::List),
        2 => Just(Step::DaemonKilled),
        2 => (pod.clone(), 0..40_u8).prop_map(|(pod, turns)| Step::KilledInRun(pod, turns)),
        1 => (pod.clone(), 0..40_u8).prop_map(|(pod, turns)| Step::KilledInStop(pod, turns)),
        4 => Just(Step::DaemonStarted),
        1 => Just(Step::RuntimeRestarted),
        1 => Just(Step::Reboot),
        1 => any::<bool>().prop_map(Step::ApiAway),
        1 => pod.prop_map(Step::HoldLost),
        1 => (0..30_u8).prop_map(Step::ChangeFails),
        1 => Just(Step::Sweep),
    ]
}

/// Let a future go on for so many turns, and then drop it, as a kill does.
async fn cut<F: Future<Output = ()>>(future: F, turns: u8) {
    let turns = async {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = turns => {}
        () = future => {}
    }
    // What a thread had begun is done before the next daemon starts: there is one such thread.
    tokio::task::spawn_blocking(|| ()).await.unwrap();
}

async fn take(world: &mut World, step: Step) {
    match step {
        Step::Run(pod) => world.run(pod).await,
        Step::Killed(pod) => {
            if world.living(pod).is_some() {
                world.stop(pod).await;
                world.run(pod).await;
            }
        }
        Step::End(pod) => world.end(pod).await,
        Step::Remove(pod) => world.remove(pod).await,
        Step::Create(pod) => drop(world.create(pod).await),
        Step::List(reversed) => world.list(reversed).await,
        Step::DaemonKilled => world.kill(),
        Step::KilledInRun(pod, turns) => {
            cut(world.run(pod), turns).await;
            world.kill();
        }
        Step::KilledInStop(pod, turns) => {
            cut(world.stop(pod), turns).await;
            world.kill();
            world.finish_stop();
        }
        Step::DaemonStarted => world.start().await,
        Step::RuntimeRestarted => world.restart_runtime().await,
        Step::Reboot => world.reboot(),
        Step::ApiAway(away) => world.api_away(away),
        Step::HoldLost(pod) => {
            if let Some(stored) = world.living(pod) {
                let hold = world.links.hold(stored.sandbox.netns.as_ref().unwrap()).await.unwrap();
                world.links.release(&hold.path).await.unwrap();
            }
        }
        // What fails twice in a row at the same place is reported and left: see `Reason::NotRestored`.
        Step::ChangeFails(nth) if !world.links.fails() => {
            world.links.fail_change(world.links.changes() + u32::from(nth));
        }
        Step::ChangeFails(_) => {}
        Step::Sweep => {
            if let Some(daemon) = world.daemon.clone() {
                daemon.attacher.sweep().await;
            }
        }
    }
    world.forget_devices();
    never(world);
}

/// A link is in no namespace but the host's and those of living sandboxes of its claim's pods.
fn never(world: &World) {
    for stored in world.stored.iter().filter(|stored| stored.alive) {
        let allowed: BTreeSet<String> =
            plans(claim_of(stored.pod)).into_iter().map(|plan| plan.name).collect();
        let inside = world.names_in(stored);
        assert!(inside.iter().all(|name| allowed.contains(name)), "{stored:?} has {inside:?}");
    }
}

/// How often what was seen at the end of orders.
type Seen = BTreeMap<&'static str, u32>;

/// The API server is back, the daemon runs, the kubelet tries its containers again; then all is as it must be.
async fn settle(world: &mut World, seen: &mut Seen) {
    world.api_away(false);
    world.start().await;
    world.list(false).await;
    let daemon = world.daemon.clone().unwrap();
    let mut last = BTreeMap::new();
    for _ in 0..4 {
        daemon.attacher.sweep().await;
        daemon.attacher.clear_orphans().await;
        world.forget_devices();
        for pod in 0..PODS {
            last.insert(pod, world.create(pod).await);
        }
    }
    let mut note = |what| *seen.entry(what).or_default() += 1;
    let mut away: Vec<String> = Vec::new();
    let mut endpoints = BTreeSet::new();
    let mut holds = BTreeSet::new();
    for pod in 0..PODS {
        let Some(stored) = world.living(pod).cloned() else { continue };
        let wanted = plans(claim_of(pod));
        let inside = world.names_in(&stored);
        match last[&pod].clone().expect("the daemon runs") {
            Ok(()) => {
                note("attached");
                let names: Vec<_> = wanted.iter().map(|plan| plan.name.clone()).collect();
                assert_eq!(inside.iter().collect::<BTreeSet<_>>(), names.iter().collect(), "pod {pod}");
                away.extend(
                    wanted.iter().filter(|plan| plan.made.is_none()).map(|plan| plan.host_link.clone()),
                );
                let checkpoint = daemon.store.get(&format!("c{}", claim_of(pod))).expect("prepared");
                for interface in &checkpoint.interfaces {
                    let attachment = interface.attachment.as_ref().expect("attached");
                    assert!(attachment.is_in(&stored.sandbox.id), "{attachment:?}");
                    holds.insert(attachment.sandbox.hold.clone());
                    if let Some(id) = attachment.endpoint {
                        assert!(world.datapath.endpoint(id).expect("programs").ready, "open");
                        endpoints.insert(id);
                    }
                }
            }
            Err(why) => {
                assert!(!why.is_empty(), "held for a reason");
                assert_eq!(inside, Vec::<String>::new(), "nothing half-way: {why}");
                let other = (0..PODS).filter(|other| *other != pod && claim_of(*other) == claim_of(pod));
                let held_by = other.filter_map(|other| Some((other, world.living(other)?)));
                let holder = held_by.filter(|(other, _)| last[other] == Some(Ok(()))).count();
                assert_eq!(holder, 1, "pod {pod} waits for nothing: {why}");
                note("held behind another pod");
            }
        }
    }
    world.assert_home(&away);
    let ports = world.links.links_in(&Namespace::Host);
    let ports = ports.iter().filter(|link| link.home.link.name.starts_with("nf-")).count();
    let wanted = (0..PODS).filter(|pod| world.living(*pod).is_some());
    let wanted =
        wanted.flat_map(|pod| plans(claim_of(pod))).filter(|plan| matches!(plan.made, Some(Made::Port(_))));
    assert_eq!(ports, wanted.count(), "a port for each pod that has one");
    assert_eq!(world.datapath.endpoints().unwrap().into_iter().collect::<BTreeSet<_>>(), endpoints);
    assert_eq!(world.links.held().await.unwrap().into_iter().collect::<BTreeSet<_>>(), holds);
    let alive = world.stored.iter().filter(|stored| stored.alive).count();
    assert_eq!(world.links.namespaces(), alive, "no namespace lives on by its hold alone");
    for pod in 0..PODS {
        world.end(pod).await;
    }
    world.restart_runtime().await;
    daemon.attacher.sweep().await;
    world.assert_home(&[]);
    assert_eq!(world.links.namespaces(), 0, "nothing is left");
    assert_eq!(world.datapath.endpoints().unwrap(), Vec::<u32>::new());
}

fn orders() -> u32 {
    std::env::var("NETFERRY_ORDERS")
        .map_or(2_000, |orders| orders.parse().expect("NETFERRY_ORDERS: a number"))
}

#[test]
fn any_order_ends_with_every_living_pod_having_its_links_or_being_held() {
    let seen = Mutex::new(Seen::new());
    let config = ProptestConfig { cases: orders(), failure_persistence: None, ..ProptestConfig::default() };
    let order = (proptest::collection::vec(step(), 1..24), any::<[bool; 2]>());
    let result = TestRunner::new(config).run(&order, |(steps, [removes_first, dead_without_path])| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            (world.removes_first, world.dead_without_path) = (removes_first, dead_without_path);
            world.start().await;
            for step in &steps {
                take(&mut world, *step).await;
                let name = match step {
                    Step::Reboot => "reboots",
                    Step::KilledInRun(..) | Step::KilledInStop(..) => "kills in the middle",
                    Step::DaemonKilled => "kills",
                    Step::RuntimeRestarted => "restarts of the runtime",
                    _ => "other steps",
                };
                *seen.lock().unwrap().entry(name).or_default() += 1;
            }
            let mut ended = Seen::new();
            settle(&mut world, &mut ended).await;
            for (what, count) in ended {
                *seen.lock().unwrap().entry(what).or_default() += count;
            }
        });
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let seen = seen.into_inner().unwrap();
    eprintln!("{} orders: {seen:?}", orders());
    for what in ["attached", "held behind another pod", "reboots", "kills in the middle"] {
        assert!(seen.get(what).is_some_and(|count| *count > 50), "{what}: {seen:?}");
    }
}
