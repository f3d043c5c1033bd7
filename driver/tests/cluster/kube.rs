//! `KubeCluster` against the API server stand-in.

use std::time::Duration;

use netferry::cluster::{
    Cluster, ClusterError, Event, EventType, Subject, kube::KubeCluster, versions::ApiVersion,
};
use serde_json::{Value, json};

use crate::{
    objects::{DRIVER, NODE, claim, reference, slice, status},
    support::apiserver::{ApiServer, Fault},
};

pub(crate) async fn connect(server: &ApiServer) -> KubeCluster {
    let dir = tempfile::tempdir().expect("tempdir");
    let kubeconfig = server.kubeconfig(dir.path());
    KubeCluster::connect(Some(&kubeconfig), DRIVER, NODE).await.expect("connect")
}

async fn v1() -> (ApiServer, KubeCluster) {
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    let cluster = connect(&server).await;
    (server, cluster)
}

#[tokio::test]
async fn an_examination_finds_what_the_driver_lacks_and_writes_nothing() {
    let (server, cluster) = v1().await;
    let found = cluster.examine().await.expect("a server that answers");
    assert_eq!((found.version.as_str(), found.shares), ("v1.36.2", None));
    assert_eq!(found.dra.expect("served"), "resource.k8s.io/v1");
    assert!(found.denied.expect("reviews").is_empty());
    server.deny("watch", "pods");
    let mut port = serde_json::to_value(slice(0, &["port-blue"])).expect("slice");
    port["metadata"] = json!({"name": "ours"});
    port["spec"]["devices"][0]["attributes"] = json!({"network": {"string": "blue"}});
    server.put(port);
    let before = server.all("resourceslices").len();
    let found = cluster.examine().await.expect("a server that answers");
    assert_eq!(found.denied.expect("reviews"), ["watch pods"]);
    assert_eq!((found.shares, server.all("resourceslices").len()), (Some(false), before));
    server.fail_next("GET", "/version", 1, Fault::Status(500));
    assert!(cluster.examine().await.is_err());
}

#[tokio::test]
async fn slices_live_through_create_list_update_delete_in_every_version() {
    for version in ApiVersion::PREFERRED {
        let server = ApiServer::start(&[version]).await;
        let cluster = connect(&server).await;
        assert_eq!(cluster.version().await.expect("version"), version);
        for index in 0..5 {
            let created = cluster.create_slice(&slice(index, &["eth1", "eth2"])).await.expect("create");
            assert!(created.metadata.resource_version.is_some() && created.metadata.uid.is_some());
            assert_eq!(created.spec, slice(index, &["eth1", "eth2"]).spec, "{version}");
        }
        let mut foreign = serde_json::to_value(slice(9, &["gpu"])).expect("slice");
        foreign["metadata"] = json!({"name": "foreign"});
        foreign["spec"]["driver"] = "other.dev".into();
        server.put(foreign);
        let slices = cluster.slices().await.expect("list");
        assert_eq!(slices.len(), 5, "all pages, and no other driver's");
        let asked = server.asked("GET", "/resourceslices");
        let selector = &asked[0].query["fieldSelector"];
        assert_eq!(selector, "spec.driver=netferry.dev,spec.nodeName=node-1");
        assert!(asked[0].path.contains(version.version()));

        let stale = slices[0].clone();
        let mut changed = stale.clone();
        changed.spec.pool.generation = 2;
        let updated = cluster.update_slice(&changed).await.expect("update");
        assert_eq!(updated.spec.pool.generation, 2);
        let error = cluster.update_slice(&stale).await.expect_err("the resource version is old");
        assert!(matches!(error, ClusterError::Conflict { .. }), "{error:?}");
        let mut blind = stale.clone();
        blind.metadata.resource_version = None;
        assert!(matches!(cluster.update_slice(&blind).await, Err(ClusterError::Refused { .. })));

        let name = stale.metadata.name.expect("name");
        cluster.delete_slice(&name).await.expect("delete");
        cluster.delete_slice(&name).await.expect("one that is gone is no error");
        assert_eq!(cluster.slices().await.expect("list").len(), 4);
        let error = cluster.update_slice(&updated).await.expect_err("it is gone");
        assert!(matches!(error, ClusterError::NotFound { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn claims_read_the_same_in_every_version() {
    let mut read = Vec::new();
    for version in ApiVersion::PREFERRED {
        let server = ApiServer::start(&[version]).await;
        server.put(claim("a"));
        let cluster = connect(&server).await;
        read.push(cluster.claim("default", "a").await.expect("claim"));
        let error = cluster.claim("default", "b").await.expect_err("there is none");
        assert_eq!(error.to_string(), "ResourceClaim default/b not found");
    }
    assert_eq!(read[0], read[1]);
    assert_eq!(read[0], read[2]);
    let requests = read[0].spec.devices.as_ref().and_then(|devices| devices.requests.as_ref());
    let exactly = requests.expect("requests")[0].exactly.as_ref().expect("exactly");
    assert_eq!(exactly.device_class_name, "net");
}

#[tokio::test]
async fn the_newest_version_is_spoken_and_none_is_said() {
    let server = ApiServer::start(&[ApiVersion::V1beta1, ApiVersion::V1, ApiVersion::V1beta2]).await;
    assert_eq!(connect(&server).await.version().await.expect("version"), ApiVersion::V1);
    let server = ApiServer::start(&[]).await;
    let result = connect(&server).await.slices().await;
    let error = result.expect_err("nothing is served").to_string();
    assert!(error.contains("resource.k8s.io") && error.contains("served: none"), "{error}");
}

#[tokio::test]
async fn a_server_that_comes_late_is_found() {
    let server = ApiServer::start(&[]).await;
    let (cluster, address) = (connect(&server).await, server.address());
    drop(server);
    let error = cluster.slices().await.expect_err("nobody listens");
    assert!(matches!(error, ClusterError::Unavailable { .. }), "{error:?}");
    let server = ApiServer::start_at(address, &[ApiVersion::V1beta1]).await;
    assert_eq!(cluster.slices().await.expect("list"), []);
    assert_eq!(cluster.version().await.expect("version"), ApiVersion::V1beta1);
    assert_eq!(server.asked("GET", "/apis").iter().filter(|request| request.path == "/apis").count(), 1);
}

#[tokio::test]
async fn the_node_gives_its_uid() {
    let (server, cluster) = v1().await;
    assert!(matches!(cluster.node().await, Err(ClusterError::NotFound { .. })));
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "uid": "node-uid"}}));
    assert_eq!(cluster.node().await.expect("node").uid.as_deref(), Some("node-uid"));
}

#[tokio::test]
async fn device_status_is_applied_and_other_drivers_keep_theirs() {
    for version in ApiVersion::PREFERRED {
        let server = ApiServer::start(&[version]).await;
        let cluster = connect(&server).await;
        let claim = reference(&server.put(claim("a")));
        let gpu = json!([{"driver": "other.dev", "pool": "p", "device": "gpu", "data": {"x": 1}}]);
        server.apply_as("other.dev", "default/a", &gpu);
        cluster.apply_device_status(&claim, &[status("True")]).await.expect("apply");

        let asked = server.asked("PATCH", "/resourceclaims/a/status");
        assert_eq!(asked[0].content_type, "application/apply-patch+yaml");
        assert_eq!(asked[0].query["fieldManager"], DRIVER);
        assert_eq!(asked[0].query["force"], "true");
        assert_eq!(asked[0].body["apiVersion"], version.api_version());
        assert_eq!(asked[0].body["metadata"], json!({"name": "a", "namespace": "default", "uid": claim.uid}));
        assert_eq!(asked[0].body["status"].as_object().expect("status").len(), 1, "devices and nothing else");

        let drivers = |server: &ApiServer| -> Vec<Value> {
            let stored = server.get("resourceclaims", "default/a").expect("claim");
            let devices = stored["status"]["devices"].as_array().cloned().unwrap_or_default();
            devices.iter().map(|device| device["driver"].clone()).collect()
        };
        let both = drivers(&server);
        assert!(both.len() == 2 && both.contains(&DRIVER.into()) && both.contains(&"other.dev".into()));
        let stored = server.get("resourceclaims", "default/a").expect("claim");
        assert!(!stored["status"]["reservedFor"].is_null() && !stored["status"]["allocation"].is_null());

        cluster.apply_device_status(&claim, &[]).await.expect("apply nothing");
        assert_eq!(drivers(&server), [Value::from("other.dev")], "ours are gone, the other's stay");
    }
}

#[tokio::test]
async fn a_claim_that_was_made_again_is_not_touched() {
    let (server, cluster) = v1().await;
    let old = reference(&server.put(claim("a")));
    server.remove("resourceclaims", "default/a");
    let error = cluster.apply_device_status(&old, &[status("True")]).await.expect_err("it is gone");
    assert!(matches!(error, ClusterError::Conflict { .. }), "{error:?}");
    let new = server.put(claim("a"));
    assert_ne!(reference(&new), old);
    let error = cluster.apply_device_status(&old, &[status("True")]).await.expect_err("another claim");
    assert!(matches!(error, ClusterError::Conflict { .. }), "{error:?}");
    assert_eq!(server.get("resourceclaims", "default/a"), Some(new));
}

#[tokio::test]
async fn a_device_that_is_not_allocated_is_refused_with_the_servers_words() {
    let (server, cluster) = v1().await;
    let claim = reference(&server.put(claim("a")));
    let mut foreign = status("True");
    foreign.device = "eth9".to_owned();
    let error = cluster.apply_device_status(&claim, &[foreign]).await.expect_err("not allocated").to_string();
    assert!(error.contains("422") && error.contains("allocated device"), "{error}");
}

#[tokio::test]
async fn failures_say_whether_a_retry_helps() {
    let (server, cluster) = v1().await;
    let cluster = cluster.with_timeout(Duration::from_millis(300));
    server.put(claim("a"));
    for (code, retry) in [(500, true), (503, true), (429, true), (401, true), (403, false), (422, false)] {
        server.fail_next("GET", "/resourceclaims/", 1, Fault::Status(code));
        match cluster.claim("default", "a").await {
            Err(ClusterError::Unavailable { .. }) => assert!(retry, "{code}"),
            Err(ClusterError::Refused { code: told, .. }) => assert!(!retry && told == code, "{code}"),
            other => panic!("{code}: {other:?}"),
        }
    }
    server.fail_next("GET", "/resourceclaims/", 1, Fault::Hang);
    let error = cluster.claim("default", "a").await.expect_err("no answer");
    let source = std::error::Error::source(&error).expect("source").to_string();
    assert!(source.contains("300ms"), "{source}");
    cluster.claim("default", "a").await.expect("and it works again");
    drop(server);
    assert!(matches!(cluster.claim("default", "a").await, Err(ClusterError::Unavailable { .. })));
}

#[tokio::test]
async fn repeated_events_are_one_series() {
    let (server, cluster) = v1().await;
    let claim = reference(&server.put(claim("a")));
    let event = |subject: Subject, note: &str| Event {
        subject,
        event_type: EventType::Warning,
        reason: "AttachFailed",
        action: "Attach",
        note: note.to_owned(),
    };
    for _ in 0..2 {
        cluster.event(&event(Subject::Claim(claim.clone()), "no such link")).await.expect("event");
    }
    cluster.event(&event(Subject::Claim(claim.clone()), "another note")).await.expect("event");
    cluster.event(&event(Subject::Node, &"x".repeat(5000))).await.expect("event");
    let events = server.all("events");
    assert_eq!(events.len(), 3, "{events:#?}");
    let series: Vec<_> = events.iter().filter(|event| !event["series"].is_null()).collect();
    assert_eq!(series.len(), 1);
    assert_eq!(series[0]["series"]["count"], 2);
    assert_eq!(series[0]["regarding"]["uid"], claim.uid);
    assert_eq!(series[0]["reportingController"], DRIVER);
    assert_eq!(series[0]["reportingInstance"], NODE);

    let name = series[0]["metadata"]["name"].as_str().expect("name");
    server.remove("events", &format!("default/{name}"));
    cluster.event(&event(Subject::Claim(claim), "no such link")).await.expect("an expired Event begins anew");
    assert_eq!(server.all("events").len(), 3);
}
