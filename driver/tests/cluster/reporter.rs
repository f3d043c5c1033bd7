//! The reporter: what it is told is written in the end, and nobody waits for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use netferry::{
    claim::{ClaimRef, Step},
    cluster::{Event, EventType, Subject, versions::ApiVersion},
    status::{Backoff, Reporter},
};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    kube::connect,
    objects::{DRIVER, Memory, checkpoint, claim, pod, reference},
    support::apiserver::{ApiServer, Fault},
};

const FAST: Backoff = Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(200) };

struct Setting {
    server: ApiServer,
    memory: Arc<Memory>,
    reporter: Reporter,
    task: JoinHandle<()>,
    claim: ClaimRef,
}

async fn setting() -> Setting {
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    let claim = reference(&server.put(claim("a")));
    let memory = Arc::new(Memory::default());
    let (reporter, task) = start(&server, &memory).await;
    Setting { server, memory, reporter, task, claim }
}

async fn start(server: &ApiServer, memory: &Arc<Memory>) -> (Reporter, JoinHandle<()>) {
    let cluster = connect(server).await.with_timeout(Duration::from_millis(200));
    Reporter::start(Arc::new(cluster), Arc::<Memory>::clone(memory), DRIVER, FAST)
}

fn condition(server: &ApiServer, type_: &str) -> Option<Value> {
    let claim = server.get("resourceclaims", "default/a")?;
    let device = claim["status"]["devices"].as_array()?.iter().find(|device| device["driver"] == DRIVER)?;
    device["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_).cloned()
}

fn is(server: &ApiServer, type_: &str, status: &str, reason: &str) -> bool {
    condition(server, type_).is_some_and(|known| known["status"] == status && known["reason"] == reason)
}

#[tokio::test]
async fn status_is_retried_until_it_is_written() {
    let Setting { server, memory, reporter, claim, .. } = setting().await;
    server.fail_next("GET", "/resourceclaims/", 2, Fault::Status(500));
    server.fail_next("PATCH", "/status", 1, Fault::Status(409));
    server.fail_next("PATCH", "/status", 1, Fault::Hang);
    server.fail_next("PATCH", "/status", 1, Fault::Status(403));
    server.fail_next("PATCH", "/status", 1, Fault::DoneBut(504));
    memory.set(checkpoint(&claim, Some(Step::Attached)));
    let before = Instant::now();
    reporter.claim_changed(&claim);
    assert!(before.elapsed() < Duration::from_millis(50), "the caller does not wait");
    server.until("Ready", |server| is(server, "Ready", "True", "Attached")).await;
    server
        .until("the answer that was lost is found written", |server| {
            server.asked("GET", "/resourceclaims/").len() >= 7
        })
        .await;
    let stored = server.get("resourceclaims", "default/a").expect("claim");
    assert_eq!(stored["status"]["devices"][0]["networkData"]["ips"], serde_json::json!(["10.0.0.2/24"]));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(server.asked("PATCH", "/status").len(), 4, "written once, and then left alone");
}

#[tokio::test]
async fn a_transition_keeps_the_time_of_what_did_not_change() {
    let Setting { server, memory, reporter, claim, .. } = setting().await;
    memory.set(checkpoint(&claim, Some(Step::Attaching)));
    reporter.claim_changed(&claim);
    server.until("Attaching", |server| is(server, "Ready", "False", "Attaching")).await;
    let first = condition(&server, "Ready").expect("condition");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    memory.set(checkpoint(&claim, Some(Step::Returning)));
    reporter.claim_changed(&claim);
    server.until("Returning", |server| is(server, "Ready", "False", "Returning")).await;
    let second = condition(&server, "Ready").expect("condition");
    assert_eq!(first["lastTransitionTime"], second["lastTransitionTime"]);
}

#[tokio::test]
async fn a_restart_reports_everything_again() {
    let Setting { server, memory, reporter, task, claim } = setting().await;
    server.fail_next("PATCH", "/status", 1000, Fault::Status(500));
    memory.set(checkpoint(&claim, Some(Step::Attached)));
    reporter.claim_changed(&claim);
    server.until("an attempt", |server| !server.asked("PATCH", "/status").is_empty()).await;
    task.abort();
    server.heal();
    assert!(condition(&server, "Ready").is_none());
    let (_reporter, _task) = start(&server, &memory).await;
    server.until("Ready", |server| is(server, "Ready", "True", "Attached")).await;
}

#[tokio::test]
async fn a_claim_that_is_gone_or_another_ends_it() {
    let Setting { server, memory, reporter, claim, .. } = setting().await;
    memory.set(checkpoint(&claim, Some(Step::Attached)));
    server.remove("resourceclaims", "default/a");
    reporter.claim_changed(&claim);
    server.until("one look", |server| !server.asked("GET", "/resourceclaims/").is_empty()).await;
    server.put(crate::objects::claim("a"));
    reporter.claim_changed(&claim);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.asked("GET", "/resourceclaims/").len(), 2, "no retries for a claim that is no more");
    assert!(server.asked("PATCH", "/status").is_empty());
}

#[tokio::test]
async fn failures_are_told_in_conditions_and_events() {
    let Setting { server, memory, reporter, claim, .. } = setting().await;
    let message = "mtu: 70000 is above 65535";
    reporter.prepare_failed(&claim, message);
    server.until("PrepareFailed", |server| is(server, "Ready", "False", "PrepareFailed")).await;
    assert_eq!(condition(&server, "Ready").expect("condition")["message"], message);
    memory.set(checkpoint(&claim, None));
    reporter.claim_changed(&claim);
    server.until("Prepared", |server| is(server, "Ready", "False", "Prepared")).await;
    reporter.attach_failed(&claim, &pod(), "link \"eth1\" is gone");
    server.until("AttachFailed", |server| is(server, "ProgramsAttached", "False", "AttachFailed")).await;
    memory.set(checkpoint(&claim, Some(Step::Attached)));
    reporter.claim_changed(&claim);
    server.until("Attached", |server| is(server, "Ready", "True", "Attached")).await;
    memory.set(checkpoint(&claim, None));
    reporter.claim_changed(&claim);
    server
        .until("home, and the old failure is forgotten", |server| is(server, "Ready", "False", "Prepared"))
        .await;
    memory.0.lock().expect("memory").clear();
    reporter.claim_changed(&claim);
    server.until("unprepared: nothing is said", |server| condition(server, "Ready").is_none()).await;
    server.until("three Events", |server| server.all("events").len() == 3).await;
    let told: Vec<_> = server
        .all("events")
        .iter()
        .map(|event| format!("{} {}", event["regarding"]["kind"], event["reason"]).replace('"', ""))
        .collect();
    for wanted in ["ResourceClaim PrepareFailed", "ResourceClaim AttachFailed", "Pod AttachFailed"] {
        assert!(told.iter().any(|told| told == wanted), "{told:?}");
    }
}

#[tokio::test]
async fn shutdown_writes_what_waits_and_keeps_its_bound() {
    let Setting { server, memory, reporter, task, claim } = setting().await;
    server.fail_next("GET", "/resourceclaims/", 1, Fault::Status(500));
    memory.set(checkpoint(&claim, Some(Step::Attached)));
    reporter.claim_changed(&claim);
    for number in 0..20 {
        let note = format!("note {number}");
        let (subject, event_type) = (Subject::Pod(pod()), EventType::Normal);
        reporter.event(Event { subject, event_type, reason: "Attached", action: "Attach", note });
    }
    server.until("a first failure", |server| !server.asked("GET", "/resourceclaims/").is_empty()).await;
    reporter.shutdown(task, Duration::from_secs(5)).await;
    assert!(is(&server, "Ready", "True", "Attached"));
    assert_eq!(server.all("events").len(), 20);

    let (reporter, task) = start(&server, &memory).await;
    server.fail_next("GET", "/resourceclaims/", 1000, Fault::Hang);
    reporter.claim_changed(&claim);
    let before = Instant::now();
    reporter.shutdown(task, Duration::from_millis(100)).await;
    assert!(before.elapsed() < Duration::from_secs(1));
}
