//! A claim whose device another claim is about to give back: prepared as soon as it is home.

use std::{path::Path, sync::Arc, time::Duration};

use netferry::claim::{Attachment, Checkpoint, ClaimRef, Step};
use serde_json::json;
use tokio::time;

use crate::{
    daemon::{DRIVER, Daemon, Objects, allocated},
    kubelet::{DriverHandle, Kubelet},
};

/// Put the interfaces of a claim into a sandbox of pod `web`.
fn attach(checkpoint: &mut Checkpoint) {
    let pod = checkpoint.pods[0].clone();
    for interface in &mut checkpoint.interfaces {
        interface.attachment = Some(Attachment {
            step: Step::Attached,
            sandbox: serde_json::from_value(json!({
                "id": "s1", "pod": pod, "netns": "/run/netns/x", "hold": "/run/netferry/netns/x",
                "namespace": {"cookie": 1, "bootId": "b", "dev": 4, "ino": 1},
            }))
            .unwrap(),
            endpoint: None,
            home: None,
            pod_ifindex: Some(2),
            lost: None,
        });
    }
}

fn detach(checkpoint: &mut Checkpoint) {
    checkpoint.interfaces.iter_mut().for_each(|interface| interface.attachment = None);
}

/// A daemon with claim `old`, which has `ens5` in its pod. The pod and the claim are deleted by force, and `new` has got
/// the device.
async fn deleted_by_force(root: &Path, objects: Objects) -> (Daemon, DriverHandle, ClaimRef, ClaimRef) {
    let daemon = Daemon::over(root, Arc::new(objects));
    let driver = Kubelet::new(root).wait_for_driver(DRIVER).await;
    let old = daemon.add("old", "u1", "ens5", &json!({}));
    assert!(driver.prepare(std::slice::from_ref(&old)).await.unwrap()["u1"].is_ok());
    daemon.store.update("u1", attach).unwrap();
    daemon.cluster.claims.lock().unwrap().clear();
    let new = daemon.add("new", "u2", "ens5", &json!({}));
    (daemon, driver, old, new)
}

/// Wait until the daemon has looked at a claim's object: then it is being prepared.
async fn until_read(daemon: &Daemon, reads: usize) {
    while daemon.reads() < reads {
        time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_prepared_when_the_device_is_given_back() {
    let root = tempfile::tempdir().unwrap();
    let (daemon, driver, old, new) = deleted_by_force(root.path(), Objects::default()).await;
    let waiting = {
        let (driver, new) = (driver.clone(), new.clone());
        tokio::spawn(async move { driver.prepare(&[new]).await })
    };
    time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "the device is in a pod still");

    // More claims than are worked on at once wait as well, and keep nobody from being served.
    let crowd: Vec<_> =
        (0..40).map(|n| daemon.add(&format!("w{n}"), &format!("w{n}"), "ens5", &json!({}))).collect();
    let others = {
        let driver = driver.clone();
        tokio::spawn(async move { driver.prepare(&crowd).await })
    };
    let before = daemon.reads();
    until_read(&daemon, before + 40).await;
    let free = daemon.add("free", "u3", "ens6", &json!({}));
    assert!(driver.prepare(std::slice::from_ref(&free)).await.unwrap()["u3"].is_ok());
    assert_eq!(driver.unprepare(std::slice::from_ref(&free)).await.unwrap()["u3"], Ok(()));
    assert!(!waiting.is_finished());
    others.abort();
    daemon.cluster.claims.lock().unwrap().retain(|name, _| name == "new");

    assert_eq!(driver.unprepare(std::slice::from_ref(&old)).await.unwrap()["u1"], Ok(()));
    let outcomes = waiting.await.unwrap().unwrap();
    assert!(outcomes["u2"].is_ok(), "{outcomes:?}");
    assert_eq!(daemon.store.held_devices()["ens5"].0, new);
    let failed = |report: &String| report.starts_with("default/new failed");
    assert!(!daemon.reports.0.lock().unwrap().iter().any(failed), "nothing was refused");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_return_of_the_link_is_enough_once_the_claim_is_deleted() {
    let root = tempfile::tempdir().unwrap();
    let (daemon, driver, old, new) = deleted_by_force(root.path(), Objects::default()).await;
    let waiting = tokio::spawn({
        let driver = driver.clone();
        async move { driver.prepare(&[new]).await }
    });
    time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    daemon.store.update("u1", detach).unwrap();
    assert!(waiting.await.unwrap().unwrap()["u2"].is_ok());
    // The kubelet's own call comes late, and changes nothing.
    assert_eq!(driver.unprepare(&[old]).await.unwrap()["u1"], Ok(()));
    assert_eq!(daemon.store.held_devices()["ens5"].0.uid, "u2");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_time_a_wait_ends_with_who_has_the_device_and_since_when() {
    let root = tempfile::tempdir().unwrap();
    let objects = Objects { wait: Some(Duration::from_millis(200)), ..Objects::default() };
    let (daemon, driver, _, new) = deleted_by_force(root.path(), objects).await;
    let since = daemon.store.get("u1").unwrap().since.unwrap();
    let why = driver.prepare(&[new]).await.unwrap()["u2"].clone().unwrap_err();
    let parts =
        ["ens5", "claim default/old", "pod default/web", "not given back within", &format!("{since:.0}")];
    for part in parts {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_in_use_is_not_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let (daemon, driver, _, new) = deleted_by_force(root.path(), Objects::default()).await;
    // The scheduler would not do this; somebody's view is behind.
    daemon.cluster.claims.lock().unwrap().insert("old".into(), allocated("old", "u1", "ens5", &json!({})));
    let refused = time::timeout(Duration::from_secs(20), driver.prepare(std::slice::from_ref(&new)));
    let why = refused.await.expect("at once").unwrap()["u2"].clone().unwrap_err();
    assert!(why.contains("claim default/old is prepared since") && why.contains("default/web"), "{why}");

    // Its pod is being deleted: now there is something to wait for.
    daemon.cluster.leaving.lock().unwrap().insert("p1".into());
    let waiting = tokio::spawn(async move { driver.prepare(&[new]).await });
    assert!(time::timeout(Duration::from_millis(300), waiting).await.is_err(), "it did not wait");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_call_and_with_the_daemon() {
    let root = tempfile::tempdir().unwrap();
    let (daemon, driver, old, new) = deleted_by_force(root.path(), Objects::default()).await;
    let waiting = tokio::spawn({
        let (driver, new) = (driver.clone(), new.clone());
        async move { driver.prepare(&[new]).await }
    });
    time::sleep(Duration::from_millis(200)).await;
    // The kubelet gives the pod up: what comes home later is not prepared for it.
    waiting.abort();
    let ended = |report: &String| report.contains("the kubelet does not wait for it any more");
    while !daemon.reports.0.lock().unwrap().iter().any(ended) {
        time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(driver.unprepare(&[old]).await.unwrap()["u1"], Ok(()));
    assert_eq!(daemon.store.all(), []);

    let old = daemon.add("old", "u1", "ens5", &json!({}));
    assert!(driver.prepare(&[old]).await.unwrap()["u1"].is_ok());
    daemon.store.update("u1", attach).unwrap();
    daemon.cluster.claims.lock().unwrap().remove("old");
    let waiting = tokio::spawn(async move { driver.prepare(&[new]).await });
    time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    // Within the 5 s that this allows.
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_a_port_is_waited_for_as_well() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let driver = Kubelet::new(root.path()).wait_for_driver(DRIVER).await;
    let fixed = json!({"addresses": ["10.0.0.9/24"]});
    let old = daemon.add("old", "u1", "port-blue", &fixed);
    assert!(driver.prepare(std::slice::from_ref(&old)).await.unwrap()["u1"].is_ok());
    let new = daemon.add("new", "u2", "port-blue", &fixed);
    // In use: refused.
    let why = driver.prepare(std::slice::from_ref(&new)).await.unwrap()["u2"].clone().unwrap_err();
    assert!(why.contains("10.0.0.9") && why.contains("claim default/old"), "{why}");
    // Its pod is on its way out.
    daemon.cluster.leaving.lock().unwrap().insert("p1".into());
    let waiting = tokio::spawn({
        let driver = driver.clone();
        async move { driver.prepare(&[new]).await }
    });
    time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    assert_eq!(driver.unprepare(&[old]).await.unwrap()["u1"], Ok(()));
    assert!(waiting.await.unwrap().unwrap()["u2"].is_ok());
    daemon.stop().await;
}
