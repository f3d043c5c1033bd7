//! Claims as the kubelet handles them: once for all pods of a claim, and again only at a later sync.

use std::{fs, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    daemon::{DRIVER, Daemon},
    kubelet::Kubelet,
};

const RESYNC: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_prepared_once_for_all_of_its_pods() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let kubelet = Kubelet::new(root.path());
    kubelet.wait_for_driver(DRIVER).await;
    let claim = [daemon.add("fast", "u1", "ens5", &json!({}))];
    kubelet.sync_pod(DRIVER, "p1", &claim).await.unwrap();
    kubelet.sync_pod(DRIVER, "p2", &claim).await.unwrap();
    kubelet.sync_pod(DRIVER, "p1", &claim).await.unwrap();
    assert_eq!(kubelet.calls(), ["prepare fast"]);
    kubelet.end_pod(DRIVER, "p1", &claim).await.unwrap();
    assert!(root.path().join("claims/u1.json").exists(), "a pod still has it");

    // A restart: prepared again at a sync, and still known to be the second pod's.
    drop(kubelet);
    let kubelet = Kubelet::new(root.path());
    kubelet.wait_for_driver(DRIVER).await;
    kubelet.sync_pod(DRIVER, "p2", &claim).await.unwrap();
    kubelet.sync_pod(DRIVER, "p2", &claim).await.unwrap();
    kubelet.end_pod(DRIVER, "p2", &claim).await.unwrap();
    assert_eq!(kubelet.calls(), ["prepare fast", "unprepare fast"]);
    assert!(!root.path().join("claims/u1.json").exists());
    // It was unprepared: nothing is left to end, and the name may come with another UID.
    kubelet.end_pod(DRIVER, "p2", &claim).await.unwrap();
    let again = [daemon.add("fast", "u2", "ens5", &json!({}))];
    kubelet.sync_pod(DRIVER, "p3", &again).await.unwrap();
    let refused = kubelet.sync_pod(DRIVER, "p4", &claim).await.unwrap_err();
    assert!(refused.to_string().starts_with("old ResourceClaim with same name fast"), "{refused}");
    assert_eq!(fs::read_dir(root.path().join("claims")).unwrap().count(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_prepare_is_tried_again_at_the_next_sync() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let kubelet = Kubelet::new(root.path()).with_resync(RESYNC);
    kubelet.wait_for_driver(DRIVER).await;
    let good = daemon.add("good", "u1", "ens5", &json!({}));
    let holder = [daemon.add("holder", "u2", "ens6", &json!({}))];
    let waiting = daemon.add("waiting", "u3", "ens6", &json!({}));
    kubelet.sync_pod(DRIVER, "p1", &holder).await.unwrap();
    let claims = [good, waiting];
    let started = Instant::now();
    let (errors, ended) =
        tokio::join!(kubelet.start_pod(DRIVER, "p2", &claims, Duration::from_secs(10)), async {
            tokio::time::sleep(RESYNC / 2).await;
            kubelet.end_pod(DRIVER, "p1", &holder).await
        },);
    ended.unwrap();
    let errors = errors.unwrap();
    assert!(!errors.is_empty() && started.elapsed() >= RESYNC, "{errors:?}");
    assert!(errors[0].starts_with("NodePrepareResources failed for ResourceClaim waiting"), "{errors:?}");
    // The one that was prepared is asked for again, with the other.
    let calls = kubelet.calls();
    assert_eq!(calls[..3], ["prepare holder", "prepare good waiting", "unprepare holder"]);
    assert!(calls[3..].iter().all(|call| call == "prepare good waiting"), "{calls:?}");
    daemon.stop().await;
}
