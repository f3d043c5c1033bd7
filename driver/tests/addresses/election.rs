//! The election as it runs: tasks, real time, a Lease that is lost.

use std::{sync::Arc, time::Duration};

use netferry::network::leader::{self, ADDRESSES, Candidate, Timing};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::Memory;

const TIMING: Timing = Timing {
    duration: Duration::from_secs(1),
    renew: Duration::from_millis(100),
    give_up: Duration::from_millis(700),
    look: Duration::from_millis(50),
};

struct Standing {
    leading: watch::Receiver<bool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn stand(memory: &Arc<Memory>, identity: &str) -> Standing {
    let (sender, leading) = watch::channel(false);
    let stop = CancellationToken::new();
    let (memory, token) = (Arc::clone(memory), stop.clone());
    let candidate = Candidate::new(ADDRESSES, identity, TIMING);
    let task = tokio::spawn(async move { leader::run(&*memory, candidate, &sender, &token).await });
    Standing { leading, stop, task }
}

async fn wins(standing: &mut Standing) {
    let won = tokio::time::timeout(Duration::from_secs(30), standing.leading.wait_for(|leads| *leads));
    won.await.expect("within 30 s").expect("a candidate");
}

fn holder(memory: &Memory) -> Option<String> {
    memory.state().leases.get(ADDRESSES)?.spec.as_ref()?.holder_identity.clone()
}

#[tokio::test]
async fn one_leads_until_it_stops_and_then_another() {
    let memory = Memory::new();
    let mut first = stand(&memory, "n1");
    wins(&mut first).await;
    let mut second = stand(&memory, "n2");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!*second.leading.borrow());
    assert_eq!(holder(&memory).as_deref(), Some("n1"));

    // It stops and gives the Lease back.
    first.stop.cancel();
    first.task.await.expect("ended");
    wins(&mut second).await;
    assert_eq!(holder(&memory).as_deref(), Some("n2"));

    // It dies: the Lease runs out.
    second.task.abort();
    let mut third = stand(&memory, "n3");
    wins(&mut third).await;
    let lease = memory.state().leases[ADDRESSES].clone().spec.expect("a spec");
    assert_eq!((lease.holder_identity.as_deref(), lease.lease_transitions), (Some("n3"), Some(2)));
    third.stop.cancel();
    third.task.await.expect("ended");
    assert_eq!(holder(&memory).as_deref(), Some(""));
}

#[tokio::test]
async fn who_cannot_renew_stops_leading() {
    let memory = Memory::new();
    let mut standing = stand(&memory, "n1");
    wins(&mut standing).await;
    memory.state().faults.extend(std::iter::repeat_n(crate::Fault::Unavailable, 1_000));
    let lost = tokio::time::timeout(Duration::from_secs(30), standing.leading.wait_for(|leads| !*leads));
    lost.await.expect("within 30 s").expect("a candidate");
    memory.state().faults.clear();
    wins(&mut standing).await;
    standing.stop.cancel();
    standing.task.await.expect("ended");
}
