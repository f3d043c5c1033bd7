//! The DRA side in whole: real sockets, the kubelet's side played by `support::kubelet`, claims from a cluster
//! in memory.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "dra/daemon.rs"]
mod daemon;
#[path = "dra/health.rs"]
mod health;
#[path = "support/kubelet.rs"]
#[allow(dead_code, missing_docs, unreachable_pub, reason = "shared with other test binaries")]
mod kubelet;
#[path = "dra/pods.rs"]
mod pods;
#[path = "dra/returns.rs"]
mod returns;
#[path = "dra/wire.rs"]
mod wire;

use std::{
    fs,
    os::unix::net::UnixListener,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use daemon::{DRIVER, Daemon, Objects};
use kubelet::{Kubelet, OLDER};
use netferry::{
    claim::{Attachment, Checkpoint, ClaimRef, Step},
    dra::registration::RegistrationState,
};
use netferry_proto::dra::registration::{
    InfoRequest, RegistrationStatus, registration_client::RegistrationClient,
};
use serde_json::json;
use tokio::time;
use tonic::transport::Endpoint;

#[tokio::test(flavor = "multi_thread")]
async fn prepares_and_unprepares_in_both_versions() {
    for (services, expected) in [(kubelet::CURRENT, "v1.DRAPlugin"), (OLDER, "v1beta1.DRAPlugin")] {
        let root = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(root.path());
        let kubelet = Kubelet::speaking(root.path(), services);
        let driver = kubelet.wait_for_driver(DRIVER).await;
        assert_eq!(driver.service, expected);
        assert_eq!(
            *daemon.state.clone().wait_for(|state| *state != RegistrationState::Waiting).await.unwrap(),
            RegistrationState::Registered
        );

        let claim = daemon.add("fast", "u1", "ens5", &json!({"addresses": ["192.0.2.7/24"]}));
        let outcomes = driver.prepare(std::slice::from_ref(&claim)).await.unwrap();
        let [device] = outcomes["u1"].as_deref().unwrap() else { panic!("{outcomes:?}") };
        assert_eq!(device.request_names, ["nic"]);
        assert_eq!((device.pool_name.as_str(), device.device_name.as_str()), ("node-1", "ens5"));
        assert!(device.cdi_device_ids.is_empty());
        // On disk before the answer.
        let on_disk = fs::read_to_string(root.path().join("claims/u1.json")).unwrap();
        assert!(on_disk.contains("192.0.2.7/24"), "{on_disk}");

        // Again: the same answer, and not one more question to the cluster, even if the object is gone.
        daemon.cluster.claims.lock().unwrap().clear();
        assert_eq!(driver.prepare(std::slice::from_ref(&claim)).await.unwrap(), outcomes);
        assert_eq!(daemon.reads(), 1);

        assert_eq!(driver.unprepare(std::slice::from_ref(&claim)).await.unwrap()["u1"], Ok(()));
        assert_eq!(driver.unprepare(std::slice::from_ref(&claim)).await.unwrap()["u1"], Ok(()));
        assert!(!root.path().join("claims/u1.json").exists());
        assert_eq!(*daemon.reports.0.lock().unwrap(), ["default/fast changed", "default/fast changed"]);
        daemon.stop().await;
        assert!(!root.path().join("plugins_registry/netferry.dev-reg.sock").exists());
        assert!(!root.path().join("plugins/netferry.dev/dra.sock").exists());
        kubelet.wait_until_gone(DRIVER).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_each_claim_for_itself() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let driver = Kubelet::new(root.path()).wait_for_driver(DRIVER).await;
    let good = daemon.add("good", "u1", "ens5", &json!({}));
    let mut other_uid = daemon.add("again", "u2", "ens6", &json!({}));
    other_uid.uid = "u2-before".into();
    let bad = daemon.add("bad", "u3", "ens7", &json!({"mtu": 40}));
    let absent = ClaimRef { namespace: "default".into(), name: "absent".into(), uid: "u4".into() };
    let path = daemon.add("path", "../x", "ens8", &json!({}));
    let mut nameless = good.clone();
    (nameless.name, nameless.uid) = (String::new(), "u5".into());

    let outcomes = driver.prepare(&[good, other_uid, bad, absent, path, nameless]).await.unwrap();
    assert!(outcomes["u1"].is_ok());
    let error = |uid: &str| outcomes[uid].clone().unwrap_err();
    assert_eq!(
        error("u2-before"),
        "metadata.uid: u2 is not allowed; u2-before, for which the kubelet asks: the claim was made again"
    );
    assert_eq!(
        error("u3"),
        "status.allocation.devices.config[0].opaque.parameters.mtu: 40 is not allowed; 68 to 65535"
    );
    assert_eq!(error("u4"), "ResourceClaim default/absent not found");
    assert!(error("../x").starts_with("claim UID \"../x\" is not allowed"), "{}", error("../x"));
    assert_eq!(error("u5"), "claim default/: name is missing");
    let files: Vec<_> =
        fs::read_dir(root.path().join("claims")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["u1.json"]);
    assert!(
        daemon
            .reports
            .0
            .lock()
            .unwrap()
            .iter()
            .any(|report| report.starts_with("default/bad failed: status."))
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_end_as_one_would() {
    let root = tempfile::tempdir().unwrap();
    let cluster = Objects { delay: Duration::from_millis(100), ..Objects::default() };
    let daemon = Daemon::over(root.path(), Arc::new(cluster));
    let driver = Kubelet::new(root.path()).wait_for_driver(DRIVER).await;
    // One claim three times at once: one reads, the others find it done.
    let claim = daemon.add("one", "u1", "ens5", &json!({}));
    let one = std::slice::from_ref(&claim);
    let answers = tokio::join!(driver.prepare(one), driver.prepare(one), driver.prepare(one));
    let first = answers.0.unwrap();
    assert!(first["u1"].is_ok());
    for other in [answers.1, answers.2] {
        assert_eq!(other.unwrap(), first);
    }
    assert_eq!(daemon.reads(), 1);

    // Two claims for one device, and two that want one name in one pod: one of each pair is refused.
    let x = daemon.add("x", "u2", "ens6", &json!({"name": "x0"}));
    let y = daemon.add("y", "u3", "ens6", &json!({"name": "y0"}));
    let outcomes = driver.prepare(&[x, y]).await.unwrap();
    assert_eq!(
        daemon.cluster.busiest.load(Ordering::SeqCst),
        2,
        "claims of one call are prepared in parallel"
    );
    let refused: Vec<_> = outcomes.values().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{outcomes:?}");
    assert!(refused[0].contains("holds this one"), "{refused:?}");
    let one = daemon.add("v", "u4", "ens7", &json!({"name": "same0"}));
    let other = daemon.add("w", "u5", "ens8", &json!({"name": "same0"}));
    let outcomes = driver.prepare(&[one, other]).await.unwrap();
    let refused: Vec<_> = outcomes.values().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{outcomes:?}");
    assert!(refused[0].contains("a name that is free in the pod"), "{refused:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prepares_ports_of_networks_that_may_be_joined() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let driver = Kubelet::new(root.path()).wait_for_driver(DRIVER).await;
    let add = |uid: &str, network: &str| {
        let claim = daemon.add(uid, uid, &format!("port-{network}"), &json!({}));
        let address = json!({
            "request": "v4", "driver": DRIVER, "pool": format!("networks/{network}"), "device": "ip-10-0-0-7",
        });
        let mut claims = daemon.cluster.claims.lock().unwrap();
        let status = claims.get_mut(uid).unwrap().status.as_mut().unwrap();
        let devices = status.allocation.as_mut().unwrap().devices.as_mut().unwrap();
        devices.results.as_mut().unwrap().push(serde_json::from_value(address).unwrap());
        claim
    };
    let claims = [add("u1", "blue"), add("u2", "red"), add("u3", "green"), add("u4", "blue")];
    let outcomes = driver.prepare(&claims[..3]).await.unwrap();
    let prepared = outcomes["u1"].as_ref().unwrap();
    let devices: Vec<_> =
        prepared.iter().map(|it| (it.pool_name.as_str(), it.device_name.as_str())).collect();
    assert_eq!(devices, [("node-1", "port-blue"), ("networks/blue", "ip-10-0-0-7")]);
    let refused = |uid: &str| outcomes[uid].as_ref().unwrap_err();
    assert!(refused("u2").contains("may join: it lets nobody in"), "{}", refused("u2"));
    assert!(refused("u3").contains("that this node knows; green is none"), "{}", refused("u3"));
    let outcomes = driver.prepare(&claims[3..]).await.unwrap();
    assert!(outcomes["u4"].as_ref().unwrap_err().contains("claim default/u1 has this one"));
    assert_eq!(driver.unprepare(&claims[..1]).await.unwrap()["u1"], Ok(()));
    assert!(driver.prepare(&claims[3..]).await.unwrap()["u4"].is_ok(), "its address is free again");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_cannot_be_moved_now_is_refused_and_nothing_is_written_down() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let driver = Kubelet::new(root.path()).wait_for_driver(DRIVER).await;
    let claim = daemon.add("fast", "u1", "ens5", &json!({}));
    let claim = std::slice::from_ref(&claim);
    daemon.home.stuck.lock().unwrap().insert("ens5".into(), "it has a program of others".into());
    let refused = driver.prepare(claim).await.unwrap()["u1"].clone().unwrap_err();
    assert!(refused.contains("device ens5: it has a program of others"), "{refused}");
    assert_eq!(daemon.store.all(), []);
    daemon.home.stuck.lock().unwrap().clear();
    assert!(driver.prepare(claim).await.unwrap()["u1"].is_ok());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_out_comes_home_before_the_claim_is_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let driver = Kubelet::new(root.path()).wait_for_driver(DRIVER).await;
    let claim = daemon.add("fast", "u1", "ens5", &json!({}));
    let claim = std::slice::from_ref(&claim);
    assert!(driver.prepare(claim).await.unwrap()["u1"].is_ok());
    let attach = |checkpoint: &mut Checkpoint| {
        let pod = checkpoint.pods[0].clone();
        checkpoint.interfaces[0].attachment = Some(Attachment {
            step: Step::Attached,
            sandbox: serde_json::from_value(json!({
                "id": "s1", "pod": pod, "netns": "/run/netns/x", "hold": "/run/netferry/netns/x",
                "namespace": {"cookie": 1, "bootId": "b", "dev": 4, "ino": 1},
            }))
            .unwrap(),
            endpoint: Some(1),
            home: Some(serde_json::from_value(json!({
                "link": {"ifindex": 2, "name": "ens5", "mac": null, "permanentMac": null, "mtu": 1500, "up": true,
                         "kind": null, "altNames": []},
                "addresses": [], "routes": [], "neighbours": [],
            }))
            .unwrap()),
            pod_ifindex: Some(2),
            lost: None,
        });
    };
    daemon.store.update("u1", attach).unwrap();
    *daemon.home.broken.lock().unwrap() = Some("the link is stuck".into());
    assert_eq!(driver.unprepare(claim).await.unwrap()["u1"], Err("the link is stuck".into()));
    assert!(daemon.store.get("u1").is_some());
    *daemon.home.broken.lock().unwrap() = None;
    assert_eq!(driver.unprepare(claim).await.unwrap()["u1"], Ok(()));
    assert_eq!(daemon.store.all(), []);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_a_restart_of_either_side() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let kubelet = Kubelet::new(root.path());
    let driver = kubelet.wait_for_driver(DRIVER).await;
    let claim = daemon.add("fast", "u1", "ens5", &json!({}));
    let claim = std::slice::from_ref(&claim);
    let prepared = driver.prepare(claim).await.unwrap();

    // The kubelet restarts: it finds the socket where it is.
    drop(kubelet);
    let kubelet = Kubelet::new(root.path());
    let driver = kubelet.wait_for_driver(DRIVER).await;
    assert_eq!(driver.prepare(claim).await.unwrap(), prepared);

    // Its registry is emptied, folder and all: we come back.
    fs::remove_dir_all(root.path().join("plugins_registry")).unwrap();
    let driver = kubelet.wait_for_another(&driver).await;
    assert_eq!(driver.prepare(claim).await.unwrap(), prepared);

    // So with the plugin socket; the kubelet's connection to the old one lasts, a new one works too.
    fs::remove_dir_all(root.path().join("plugins")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !root.path().join("plugins/netferry.dev/dra.sock").exists() {
        assert!(Instant::now() < deadline, "the plugin socket did not come back");
        time::sleep(Duration::from_millis(50)).await;
    }
    drop(kubelet);
    let kubelet = Kubelet::new(root.path());
    let driver = kubelet.wait_for_driver(DRIVER).await;
    assert_eq!(driver.prepare(claim).await.unwrap(), prepared);

    // We are killed: stale sockets are replaced, and the store knows the claim.
    daemon.kill().await;
    assert!(root.path().join("plugins_registry/netferry.dev-reg.sock").exists());
    let daemon = Daemon::start(root.path());
    let driver = kubelet.wait_for_another(&driver).await;
    assert_eq!(driver.prepare(claim).await.unwrap(), prepared);
    assert_eq!(daemon.reads(), 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn does_not_take_a_socket_that_is_served_or_a_file_that_is_none() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("plugins/netferry.dev")).unwrap();
    let path = root.path().join("plugins/netferry.dev/dra.sock");
    let other = UnixListener::bind(&path).unwrap();
    let error = Daemon::start(root.path()).served.await.unwrap().unwrap_err();
    assert!(error.to_string().ends_with("dra.sock: another process serves it"), "{error}");
    drop(other);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let error = Daemon::start(root.path()).served.await.unwrap().unwrap_err();
    assert!(error.to_string().ends_with("there is a file that is no socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_registration_is_seen_and_tried_again() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let kubelet = Kubelet::speaking(root.path(), &["v2.DRAPlugin"]);
    let mut state = daemon.state.clone();
    let failed = time::timeout(
        Duration::from_secs(5),
        state.wait_for(|state| matches!(state, RegistrationState::Failed(_))),
    );
    let RegistrationState::Failed(why) = failed.await.unwrap().unwrap().clone() else { unreachable!() };
    assert!(why.contains("is supported by the kubelet"), "{why}");
    drop(kubelet);

    // A kubelet that notices new sockets only.
    let socket = root.path().join("plugins_registry/netferry.dev-reg.sock");
    let deadline = Instant::now() + Duration::from_secs(15);
    let before = fs::metadata(&socket).unwrap().modified().unwrap();
    while fs::metadata(&socket).and_then(|found| found.modified()).is_ok_and(|now| now == before) {
        assert!(Instant::now() < deadline, "the socket was not made anew");
        time::sleep(Duration::from_millis(100)).await;
    }
    let _kubelet = Kubelet::new(root.path());
    let registered = state.wait_for(|state| *state == RegistrationState::Registered);
    time::timeout(Duration::from_secs(5), registered).await.unwrap().unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn says_who_it_is() {
    let root = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(root.path());
    let socket = root.path().join("plugins_registry/netferry.dev-reg.sock");
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        time::sleep(Duration::from_millis(20)).await;
    };
    let mut client = RegistrationClient::new(channel);
    let info = client.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("DRAPlugin", DRIVER));
    let services = [
        "v1.DRAPlugin",
        "v1beta1.DRAPlugin",
        "v1.DRAResourceHealth",
        "v1beta1.DRAResourceHealth",
        "v1alpha1.DRAResourceHealth",
    ];
    assert_eq!(info.supported_versions, services);
    assert_eq!(info.endpoint, root.path().join("plugins/netferry.dev/dra.sock").to_str().unwrap());
    let status = RegistrationStatus { plugin_registered: true, error: String::new() };
    client.notify_registration_status(status).await.unwrap();
    assert_eq!(*daemon.state.borrow(), RegistrationState::Registered);
    daemon.stop().await;
}
