//! The publisher against a stateful cluster that can fail at every call.

mod fake;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fake::{Fake, Fault};
use futures::StreamExt as _;
use netferry::{
    DRIVER_NAME,
    cluster::{Cluster, Subject, watch::SliceVersion},
    device::{Device, Inventory, names::device_name, rule::Rule},
    network::facts::Seen,
    publish::publisher::{self, PublishOptions, PublishStats, Publisher, Standing},
};
use proptest::prelude::*;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NODE: &str = "node-1.example.com";

/// `count` links with the MTU `mtu`; `changed` have another.
fn inventory(count: usize, mtu: u32, changed: &[usize]) -> Inventory {
    let devices = (0..count).map(|index| {
        let ifname = format!("nf{index:04}");
        let device = Device {
            name: device_name(&ifname),
            ifname,
            mtu: if changed.contains(&index) { mtu + 1 } else { mtu },
            speed_mbps: Some(1000),
            ..Device::default()
        };
        (device.name.clone(), device)
    });
    Inventory { devices: devices.collect() }
}

fn expected(inventory: &Inventory) -> Vec<(String, i64)> {
    inventory.devices.values().map(|device| (device.name.clone(), device.mtu.into())).collect()
}

fn rule() -> Arc<Rule> {
    Arc::new(Rule::standard(DRIVER_NAME, false).expect("the default rule compiles"))
}

fn publisher(fake: &Arc<Fake>) -> (Publisher, Arc<PublishStats>) {
    let stats = Arc::new(PublishStats::default());
    (Publisher::new(Arc::clone(fake) as Arc<dyn Cluster>, rule(), Arc::clone(&stats)), stats)
}

#[tokio::test]
async fn writes_only_differences() {
    let fake = Fake::new();
    let (mut publisher, stats) = publisher(&fake);
    publisher.sync(&inventory(300, 1500, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), ["create 00000", "create 00001", "create 00002"]);
    for slice in fake.slices() {
        let name = slice.metadata.name.as_deref().expect("a name");
        assert!(name[5..].starts_with("-netferry.dev-node-1.example.com-"), "{name}");
        assert_eq!(slice.spec.pool.generation, 1);
        let owners = slice.metadata.owner_references.expect("an owner");
        assert_eq!(
            (owners[0].kind.as_str(), owners[0].name.as_str(), owners[0].uid.as_str()),
            ("Node", NODE, "uid-1")
        );
    }
    assert_eq!(fake.complete_pool(), Some(expected(&inventory(300, 1500, &[]))));

    publisher.sync(&inventory(300, 1500, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), [""; 0]);

    // One slice differs: one write, and the pool stays complete.
    publisher.sync(&inventory(300, 1500, &[200])).await.expect("published");
    assert_eq!(fake.take_writes(), ["update 00001"]);
    assert_eq!(stats.generation.load(Ordering::Relaxed), 1);

    // Two differ: every slice gets the new generation.
    publisher.sync(&inventory(300, 1500, &[5, 200])).await.expect("published");
    publisher.sync(&inventory(300, 1500, &[6, 201])).await.expect("published");
    assert_eq!(fake.take_writes(), ["update 00000", "update 00000", "update 00001", "update 00002"]);
    assert_eq!(stats.generation.load(Ordering::Relaxed), 2);

    // Fewer slices, then none of the devices: an empty pool is still a pool.
    publisher.sync(&inventory(130, 1500, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), ["delete 00002", "update 00000", "update 00001"]);
    publisher.sync(&inventory(0, 1500, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), ["delete 00001", "update 00000"]);
    assert_eq!(fake.complete_pool(), Some(vec![]));
    publisher.sync(&inventory(0, 1500, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), [""; 0]);
    assert_eq!(stats.devices.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn programs_of_others_on_a_link_are_published() {
    let fake = Fake::new();
    let (publisher, _) = publisher(&fake);
    let mut publisher =
        publisher.with_foreign_programs(Arc::new(|device: &Device| device.ifname == "nf0001"));
    publisher.sync(&inventory(3, 1500, &[])).await.expect("published");
    let devices = fake.slices().into_iter().flat_map(|slice| slice.spec.devices.unwrap_or_default());
    let foreign: Vec<_> = devices
        .filter_map(|device| Some((device.name, device.attributes?.remove("foreignPrograms")?.bool)))
        .collect();
    assert_eq!(foreign, [("nf0001".to_owned(), Some(true))]);
}

#[tokio::test]
async fn a_restarted_publisher_writes_nothing() {
    let fake = Fake::new();
    publisher(&fake).0.sync(&inventory(200, 1500, &[])).await.expect("published");
    fake.take_writes();
    publisher(&fake).0.sync(&inventory(200, 1500, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), [""; 0]);
}

#[tokio::test]
async fn slices_deleted_or_edited_behind_its_back_come_back() {
    let fake = Fake::new();
    let (mut publisher, _) = publisher(&fake);
    let wanted = inventory(200, 1500, &[]);
    publisher.sync(&wanted).await.expect("published");
    let first = fake.slices()[0].metadata.name.clone().expect("a name");
    fake.state().slices.remove(&first);
    assert_eq!(fake.complete_pool(), None);
    publisher.sync(&wanted).await.expect("published");
    assert_eq!(fake.complete_pool(), Some(expected(&wanted)));
    // A person edits a device, and makes a slice of an own name.
    {
        let mut state = fake.state();
        let mut slice = state.slices.values().next().cloned().expect("a slice");
        slice.spec.devices.as_mut().expect("devices").pop();
        state.store("edit", slice.clone());
        slice.metadata.name = Some("by-hand".to_owned());
        state.store("edit", slice);
    }
    publisher.sync(&wanted).await.expect("published");
    assert_eq!(fake.complete_pool(), Some(expected(&wanted)));
    assert_eq!(fake.slices().len(), 2);
}

#[tokio::test]
async fn a_node_made_anew_becomes_the_owner() {
    let fake = Fake::new();
    let (mut publisher, _) = publisher(&fake);
    publisher.sync(&inventory(3, 1500, &[])).await.expect("published");
    fake.state().uid = Some("uid-2".to_owned());
    fake.take_writes();
    publisher.sync(&inventory(3, 1500, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), ["update 00000"]);
    let owners = fake.slices()[0].metadata.owner_references.clone().expect("an owner");
    assert_eq!(owners.iter().map(|owner| owner.uid.as_str()).collect::<Vec<_>>(), ["uid-2"]);
}

#[tokio::test]
async fn only_own_slices_are_touched() {
    let fake = Fake::new();
    let (mut publisher, _) = publisher(&fake);
    publisher.sync(&inventory(3, 1500, &[])).await.expect("published");
    {
        let mut state = fake.state();
        let own = state.slices.values().next().cloned().expect("a slice");
        for (name, driver, node, pool) in [
            ("other-driver", "gpu.example.com", NODE, NODE),
            ("other-node", DRIVER_NAME, "node-2", "node-2"),
            ("other-pool", DRIVER_NAME, NODE, "old-pool"),
        ] {
            let mut slice = own.clone();
            slice.metadata.name = Some(name.to_owned());
            slice.spec.driver = driver.to_owned();
            slice.spec.node_name = Some(node.to_owned());
            slice.spec.pool.name = pool.to_owned();
            slice.spec.pool.generation = 7;
            state.store("add", slice);
        }
    }
    fake.take_writes();
    publisher.sync(&inventory(3, 1500, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), ["delete other"]);
    let names: BTreeSet<_> = fake.slices().into_iter().filter_map(|slice| slice.metadata.name).collect();
    assert!(names.contains("other-driver") && names.contains("other-node") && !names.contains("other-pool"));
}

#[tokio::test]
async fn a_server_that_drops_fields_is_not_written_for_ever() {
    let fake = Fake::new();
    fake.state().drops_capacity = true;
    let (mut publisher, _) = publisher(&fake);
    for _ in 0..3 {
        publisher.sync(&inventory(3, 1500, &[])).await.expect("published");
    }
    assert_eq!(fake.take_writes(), ["create 00000"]);
    // A real change is still written.
    publisher.sync(&inventory(3, 9000, &[])).await.expect("published");
    assert_eq!(fake.take_writes(), ["update 00000"]);
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn runs_through_failures_keeps_slices_on_stop_and_cleans_up_when_told() {
    let fake = Fake::new();
    fake.state().faults.extend([
        Fault::Unavailable,
        Fault::None,
        Fault::Refused,
        Fault::None,
        Fault::Refused,
    ]);
    let (sender, receiver) = watch::channel(Arc::new(inventory(200, 1500, &[])));
    let options = PublishOptions {
        gather: Duration::from_millis(5),
        first_retry: Duration::from_millis(2),
        longest_retry: Duration::from_millis(10),
        ..PublishOptions::default()
    };
    let (stats, shutdown) = (Arc::new(PublishStats::default()), CancellationToken::new());
    let cluster = Arc::clone(&fake) as Arc<dyn Cluster>;
    let (news, seen) = futures::channel::mpsc::unbounded();
    let run = tokio::spawn(publisher::run(
        cluster,
        seen.boxed(),
        receiver,
        Arc::default(),
        rule(),
        Arc::new(|_| false),
        options,
        Arc::clone(&stats),
        shutdown.clone(),
    ));
    let whole = |fake: &Fake, count, mtu| fake.complete_pool() == Some(expected(&inventory(count, mtu, &[])));
    eventually("first publication", || whole(&fake, 200, 1500)).await;
    assert_eq!(stats.failures.load(Ordering::Relaxed), 3);
    // The same refusal twice is one Event.
    let events = fake.state().events.clone();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((events[0].subject.clone(), events[0].reason), (Subject::Node, "PublishFailed"));
    eventually("readiness", || stats.last_success.load(Ordering::Relaxed) > 0).await;

    // Somebody else writes between the read and the write.
    fake.state().faults.extend([Fault::None, Fault::Conflict]);
    sender.send_replace(Arc::new(inventory(200, 9000, &[])));
    eventually("a change", || whole(&fake, 200, 9000)).await;

    // All slices deleted by hand: the watch says so.
    eventually("readiness", || *stats.standing.borrow() == Standing::InPlace).await;
    let names: Vec<_> = fake.slices().into_iter().filter_map(|slice| slice.metadata.name).collect();
    fake.state().slices.clear();
    for name in names {
        news.unbounded_send(Seen::Gone(name)).expect("watched");
    }
    eventually("slices", || whole(&fake, 200, 9000)).await;
    eventually("readiness", || *stats.standing.borrow() == Standing::InPlace).await;

    // While they cannot be written again, readiness says so.
    fake.state().faults.extend(vec![Fault::Unavailable; 20]);
    let name = fake.slices()[0].metadata.name.clone().expect("a name");
    fake.state().slices.clear();
    news.unbounded_send(Seen::Gone(name)).expect("watched");
    eventually("no readiness", || matches!(*stats.standing.borrow(), Standing::Other(_))).await;
    eventually("slices", || whole(&fake, 200, 9000)).await;
    eventually("readiness", || *stats.standing.borrow() == Standing::InPlace).await;
    // The echo of the driver's own writes is nobody else's.
    fake.take_writes();
    let own = fake.slices();
    for slice in &own {
        let (name, version) = (slice.metadata.name.clone(), slice.metadata.resource_version.clone());
        let (name, version) = (name.expect("a name"), version.expect("a version"));
        let pool = slice.spec.pool.name.clone();
        news.unbounded_send(Seen::Is(SliceVersion { name, version, pool })).expect("watched");
    }
    news.unbounded_send(Seen::Gone("deleted-by-the-driver".to_owned())).expect("watched");
    eventually("echoes are read", || news.is_empty()).await;
    assert_eq!(fake.take_writes(), [""; 0]);

    shutdown.cancel();
    run.await.expect("stopped");
    assert!(whole(&fake, 200, 9000), "an ordinary stop keeps the slices");
    assert_eq!(publisher::cleanup(fake.as_ref()).await.expect("cleaned"), 2);
    assert!(fake.slices().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever fails and whenever, each complete pool that a scheduler can see is one of the inventories, and
    /// the last of them is published in the end.
    #[test]
    fn converges_whatever_fails(
        steps in proptest::collection::vec((0usize..400, 0u32..3), 1..6),
        faults in proptest::collection::vec(
            prop_oneof![
                4 => Just(Fault::None),
                1 => Just(Fault::Unavailable),
                1 => Just(Fault::Lost),
                1 => Just(Fault::Conflict),
                1 => Just(Fault::Refused),
            ],
            0..40,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let fake = Fake::new();
        fake.state().faults.extend(faults);
        let (mut publisher, _) = publisher(&fake);
        let (last, _) = steps.last().copied().map(|(count, mtu)| (inventory(count, mtu, &[]), mtu)).expect("a step");
        let allowed: Vec<_> = steps.iter().map(|(count, mtu)| expected(&inventory(*count, *mtu, &[]))).collect();
        for (count, mtu) in steps {
            // Each inventory gets one round only, as if the next change came at once.
            let _ = runtime.block_on(publisher.sync(&inventory(count, mtu, &[])));
        }
        for _ in 0..60 {
            if runtime.block_on(publisher.sync(&last)).is_ok() {
                break;
            }
        }
        prop_assert_eq!(fake.complete_pool(), Some(expected(&last)));
        for pool in &fake.state().complete {
            prop_assert!(allowed.contains(pool), "a mixture of {} devices looked complete", pool.len());
        }
        fake.state().faults.clear();
        let generations: BTreeSet<_> = fake.slices().iter().map(|slice| slice.spec.pool.generation).collect();
        prop_assert_eq!(generations.len(), 1);
        fake.take_writes();
        runtime.block_on(publisher.sync(&last)).expect("nothing fails any more");
        prop_assert_eq!(fake.take_writes().len(), 0);
    }
}
