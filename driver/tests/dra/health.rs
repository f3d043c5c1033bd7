//! Health of devices as each version of the kubelet reads it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use netferry::{
    claim::{Attachment, Checkpoint, Step},
    device::Inventory,
    findings::Supervisor,
};
use netferry_proto::dra::health::{HealthStatus, NodeWatchResourcesResponse};
use serde_json::json;
use tokio::time;

use crate::{
    daemon::{DRIVER, Daemon, device},
    kubelet::{DriverHandle, HEALTH, Kubelet},
};

type Stream = tonic::Streaming<NodeWatchResourcesResponse>;
/// Status and message by `pool/device`.
type Report = BTreeMap<String, (HealthStatus, String)>;

/// Read reports until one is as wanted.
async fn until(stream: &mut Stream, what: &str, wanted: impl Fn(&Report) -> bool) -> Report {
    let mut last = Report::new();
    let read = async {
        loop {
            let report = stream.message().await.unwrap().expect("the stream goes on");
            last = report
                .devices
                .iter()
                .map(|it| {
                    let device = it.device.clone().unwrap();
                    let name = format!("{}/{}", device.pool_name, device.device_name);
                    (name, (it.health(), it.message.clone()))
                })
                .collect();
            if wanted(&last) {
                return;
            }
        }
    };
    let done = time::timeout(Duration::from_secs(30), read).await;
    assert!(done.is_ok(), "{what}: {last:?}");
    last
}

fn is(report: &Report, device: &str, status: HealthStatus) -> bool {
    report.get(device).is_some_and(|(found, _)| *found == status)
}

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
            endpoint: Some(1),
            home: None,
            pod_ifindex: Some(2),
            lost: None,
        });
    }
}

/// A claim with a port of network `blue` and its address.
async fn port(daemon: &Daemon, driver: &DriverHandle) {
    let claim = daemon.add("port", "u2", "port-blue", &json!({}));
    let address =
        json!({"request": "v4", "driver": DRIVER, "pool": "networks/blue", "device": "ip-10-0-0-7"});
    {
        let mut claims = daemon.cluster.claims.lock().unwrap();
        let status = claims.get_mut("port").unwrap().status.as_mut().unwrap();
        let devices = status.allocation.as_mut().unwrap().devices.as_mut().unwrap();
        devices.results.as_mut().unwrap().push(serde_json::from_value(address).unwrap());
    }
    assert!(driver.prepare(&[claim]).await.unwrap()["u2"].is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_the_kubelet_reads_what_was_last_seen() {
    for service in HEALTH {
        let root = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(root.path());
        let driver = Kubelet::new(root.path()).wait_for_driver(DRIVER).await;
        let mut stream = driver.watch_health_by(service).await.unwrap();
        until(&mut stream, "links at home", |report| {
            report.len() == 4 && report.values().all(|it| *it == (HealthStatus::Healthy, String::new()))
        })
        .await;

        // Ports are published, also those that nobody has.
        daemon.networks.set_published(["blue".to_owned(), "red".to_owned()].into());
        until(&mut stream, "published ports", |report| is(report, "node-1/port-red", HealthStatus::Healthy))
            .await;

        let claim = daemon.add("fast", "u1", "ens5", &json!({"name": "net1"}));
        assert!(driver.prepare(std::slice::from_ref(&claim)).await.unwrap()["u1"].is_ok());
        port(&daemon, &driver).await;
        let all = ["node-1/ens5", "node-1/port-blue", "networks/blue/ip-10-0-0-7"];
        until(&mut stream, "prepared", |report| all.iter().all(|it| is(report, it, HealthStatus::Healthy)))
            .await;

        // In pods: unknown before the supervisor has looked.
        for uid in ["u1", "u2"] {
            daemon.store.update(uid, attach).unwrap();
        }
        until(&mut stream, "not looked at", |report| {
            all.iter().all(|it| is(report, it, HealthStatus::Unknown))
        })
        .await;
        daemon.findings.looked(Supervisor::Programs, true, []);
        daemon.inventory.send_modify(|_| {});
        until(&mut stream, "looked at", |report| all.iter().all(|it| is(report, it, HealthStatus::Healthy)))
            .await;

        // Its programs are gone and do not come back; then they do.
        let unprotected = || [(claim.clone(), "net1".to_owned(), "interface net1: no programs".to_owned())];
        daemon.findings.looked(Supervisor::Programs, true, unprotected());
        let report =
            until(&mut stream, "unprotected", |report| is(report, "node-1/ens5", HealthStatus::Unhealthy))
                .await;
        let message = &report["node-1/ens5"].1;
        assert!(message.contains("default/web") && message.contains("no programs"), "{message}");
        daemon.findings.looked(Supervisor::Programs, true, []);
        until(&mut stream, "protected", |report| is(report, "node-1/ens5", HealthStatus::Healthy)).await;

        // The port is taken away: its address goes with it.
        let lost = |checkpoint: &mut Checkpoint| {
            let attachment = checkpoint.interfaces[0].attachment.as_mut().unwrap();
            attachment.lost = Some("it was deleted".to_owned());
        };
        daemon.store.update("u2", lost).unwrap();
        let port = ["node-1/port-blue", "networks/blue/ip-10-0-0-7"];
        let report = until(&mut stream, "a lost port", |report| {
            port.iter().all(|it| is(report, it, HealthStatus::Unhealthy))
        })
        .await;
        assert!(port.iter().all(|it| report[*it].1.contains("it was deleted")), "{report:?}");
        assert!(is(&report, "node-1/ens5", HealthStatus::Healthy), "{report:?}");

        // At home again, and the link's carrier is lost; another link is gone from the node.
        let home = |checkpoint: &mut Checkpoint| checkpoint.interfaces[0].attachment = None;
        daemon.store.update("u1", home).unwrap();
        let devices = [("ens5".to_owned(), device("ens5", "lowerlayerdown"))];
        daemon.inventory.send_replace(Arc::new(Inventory { devices: devices.into() }));
        until(&mut stream, "no carrier", |report| is(report, "node-1/ens5", HealthStatus::Unhealthy)).await;
        daemon.inventory.send_replace(Arc::default());
        let report =
            until(&mut stream, "gone", |report| report["node-1/ens5"].1.contains("gone from the node")).await;
        assert!(is(&report, "node-1/ens5", HealthStatus::Unhealthy));

        daemon.stop().await;
        while let Ok(Some(_)) = stream.message().await {}
    }
}
