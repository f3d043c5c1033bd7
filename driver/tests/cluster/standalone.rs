//! The folder in place of an API server.

use std::{fs, path::Path};

use netferry::{
    claim::ClaimRef,
    cluster::{
        Cluster, ClusterError, Event, EventType, Subject,
        standalone::{Standalone, derived_uid},
    },
};
use serde_json::json;
use tempfile::TempDir;

use crate::objects::{DRIVER, NODE, slice, status};

const CLASS: &str = "
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: net}
spec:
  selectors: [{cel: {expression: \"device.driver == 'netferry.dev'\"}}]
  config: [{opaque: {driver: netferry.dev, parameters: {mtu: 1400}}}]
";

fn claim(name: &str, wanted: &str) -> String {
    format!(
        "
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata:
  name: {name}
  annotations: {{netferry.dev/reserved-for: pod-{name}=uid-{name}}}
spec:
  devices:
    requests:
    - name: r
      exactly:
        deviceClassName: net
        selectors: [{{cel: {{expression: \"device.attributes['netferry.dev'].ifName == '{wanted}'\"}}}}]
    config: [{{opaque: {{driver: netferry.dev, parameters: {{name: net1}}}}}}]
"
    )
}

async fn folder(objects: &str) -> (TempDir, Standalone) {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::create_dir(dir.path().join("sub")).expect("sub-folder");
    fs::write(dir.path().join("sub/objects.yaml"), objects).expect("objects");
    let cluster = open(dir.path());
    cluster.create_slice(&slice(0, &["eth1", "eth2"])).await.expect("slice");
    (dir, cluster)
}

fn open(dir: &Path) -> Standalone {
    Standalone::open(dir, DRIVER, NODE).expect("open")
}

#[tokio::test]
async fn a_claim_is_allocated_once_and_stays_so_after_a_restart() {
    let (dir, cluster) = folder(&format!("{CLASS}{}{}", claim("a", "eth2"), claim("b", "eth2"))).await;
    let first = cluster.claim("default", "a").await.expect("a");
    assert_eq!(first.metadata.uid, Some(derived_uid("default", "a")));
    let status = first.status.clone().expect("status");
    let pods = status.reserved_for.expect("reservedFor");
    assert_eq!(
        (pods[0].name.as_str(), pods[0].uid.as_str(), pods[0].resource.as_str()),
        ("pod-a", "uid-a", "pods")
    );
    let devices = status.allocation.expect("allocation").devices.expect("devices");
    let results = devices.results.expect("results");
    assert_eq!((results[0].device.as_str(), results[0].pool.as_str()), ("eth2", NODE));
    let sources: Vec<_> = devices.config.expect("config").into_iter().map(|config| config.source).collect();
    assert_eq!(sources, ["FromClass", "FromClaim"]);

    let error = cluster.claim("default", "b").await.expect_err("eth2 is taken");
    assert!(matches!(error, ClusterError::Unavailable { .. }), "{error:?}");
    let source = std::error::Error::source(&error).expect("source").to_string();
    assert!(source.contains("eth2 belongs to claim default/a"), "{source}");

    // After a restart, and even once the device is published no more (a pod has it), the answer is the same.
    let again = open(dir.path());
    for slice in again.slices().await.expect("slices") {
        again.delete_slice(&slice.metadata.name.expect("name")).await.expect("delete");
    }
    assert_eq!(again.claim("default", "a").await.expect("a"), first);

    fs::write(dir.path().join("sub/objects.yaml"), format!("{CLASS}{}", claim("b", "eth2")))
        .expect("remove a");
    again.create_slice(&slice(0, &["eth1", "eth2"])).await.expect("slice");
    again.claim("default", "b").await.expect("a is gone, so its device is free");
    assert!(matches!(again.claim("default", "a").await, Err(ClusterError::NotFound { .. })));
}

#[tokio::test]
async fn many_claims_at_once_never_share_a_device() {
    let any = |name: &str| claim(name, "eth1").replace("ifName == 'eth1'", "ifName != ''");
    let objects: String = (0..6).map(|index| any(&format!("c{index}"))).collect();
    let (_dir, cluster) = folder(&format!("{CLASS}{objects}")).await;
    let names: Vec<String> = (0..6).map(|index| format!("c{index}")).collect();
    let claims = futures::future::join_all(names.iter().map(|name| cluster.claim("default", name))).await;
    let mut devices: Vec<String> = claims
        .into_iter()
        .flatten()
        .filter_map(|claim| claim.status?.allocation?.devices?.results)
        .flatten()
        .map(|result| result.device)
        .collect();
    devices.sort();
    assert_eq!(devices, ["eth1", "eth2"]);
}

#[tokio::test]
async fn an_allocation_in_the_file_is_kept_and_counts() {
    let given = claim("a", "eth1").replace(
        "spec:",
        "status: {allocation: {devices: {results: \
        [{request: r, driver: netferry.dev, pool: node-1, device: eth2}]}}}\nspec:",
    );
    let (_dir, cluster) = folder(&format!("{CLASS}{given}{}", claim("b", "eth2"))).await;
    let status = cluster.claim("default", "a").await.expect("a").status.expect("status");
    let results = status.allocation.and_then(|allocation| allocation.devices?.results).expect("results");
    assert_eq!(results[0].device, "eth2", "the user's word, not the selector's");
    cluster.claim("default", "b").await.expect_err("eth2 is taken");
}

#[tokio::test]
async fn device_status_is_kept_beside_the_claim() {
    let (dir, cluster) = folder(&format!("{CLASS}{}", claim("a", "eth1"))).await;
    let claim = cluster.claim("default", "a").await.expect("a");
    let uid = claim.metadata.uid.clone().expect("uid");
    let reference = |uid: &str| ClaimRef { namespace: "default".into(), name: "a".into(), uid: uid.into() };
    cluster.apply_device_status(&reference(&uid), &[status("True")]).await.expect("apply");
    let after = open(dir.path()).claim("default", "a").await.expect("a");
    assert_ne!(after.metadata.resource_version, claim.metadata.resource_version);
    assert_eq!(after.status.as_ref().and_then(|status| status.devices.clone()), Some(vec![status("True")]));
    let text = fs::read_to_string(dir.path().join("status/default/a.yaml")).expect("status file");
    assert!(text.contains("interfaceName: net1"), "{text}");

    let error = cluster.apply_device_status(&reference("other"), &[status("True")]).await.expect_err("uid");
    assert!(matches!(error, ClusterError::Conflict { .. }), "{error:?}");
    let mut foreign = status("True");
    foreign.device = "eth2".to_owned();
    let error = cluster.apply_device_status(&reference(&uid), &[foreign]).await.expect_err("device");
    assert!(error.to_string().contains("status.devices[0]: node-1/eth2 is not allocated"), "{error}");
    cluster.apply_device_status(&reference(&uid), &[]).await.expect("apply nothing");
    let after = cluster.claim("default", "a").await.expect("a");
    assert_eq!(after.status.and_then(|status| status.devices), None);
}

#[tokio::test]
async fn slices_keep_resource_versions() {
    let (dir, cluster) = folder(CLASS).await;
    let stored = cluster.slices().await.expect("slices").remove(0);
    let mut changed = stored.clone();
    changed.spec.pool.generation = 2;
    let updated = cluster.update_slice(&changed).await.expect("update");
    assert_eq!(updated.metadata.generation, Some(2));
    assert!(matches!(cluster.update_slice(&stored).await, Err(ClusterError::Conflict { .. })));
    assert_eq!(open(dir.path()).slices().await.expect("slices"), std::slice::from_ref(&updated));
    let name = updated.metadata.name.clone().expect("name");
    cluster.delete_slice(&name).await.expect("delete");
    cluster.delete_slice(&name).await.expect("again");
    assert!(matches!(cluster.update_slice(&updated).await, Err(ClusterError::NotFound { .. })));
    cluster.create_slice(&slice(0, &["eth1"])).await.expect("same name again");
    let mut old = updated;
    old.metadata.resource_version = Some("1".to_owned());
    assert!(matches!(cluster.update_slice(&old).await, Err(ClusterError::Conflict { .. })), "another uid");
    assert!(matches!(cluster.delete_slice("../x").await, Err(ClusterError::Refused { .. })));
}

#[tokio::test]
async fn what_is_broken_is_named_and_the_rest_works() {
    let objects = format!(
        "{CLASS}{}\n---\napiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {{name: bad}}\n\
         spec: {{devices: {{requests: [{{name: r, exactly: {{deviceClassName: net, count: two}}}}]}}}}\n",
        claim("good", "eth1")
    );
    let (dir, cluster) = folder(&objects).await;
    cluster.claim("default", "good").await.expect("good");
    let error = cluster.claim("default", "bad").await.expect_err("bad").to_string();
    for part in ["objects.yaml, document 3", "spec.devices.requests[0].exactly.count", "\"two\""] {
        assert!(error.contains(part), "{part}: {error}");
    }
    fs::write(dir.path().join("broken.yaml"), "a: [").expect("broken");
    fs::write(dir.path().join("twice.yml"), claim("good", "eth2")).expect("twice");
    let problems = cluster.problems();
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(
        problems.iter().any(|problem| problem.contains("broken.yaml, document 1: not YAML")),
        "{problems:?}"
    );
    assert!(problems.iter().any(|problem| problem.contains("in the folder twice")), "{problems:?}");
    cluster.claim("default", "good").await.expect("good, still");
    let error = cluster.claim("default", "unknown").await.expect_err("may be in broken.yaml").to_string();
    assert!(error.contains("broken.yaml"), "{error}");
}

#[tokio::test]
async fn a_changed_spec_and_a_bad_annotation_are_refused() {
    let (dir, cluster) = folder(&format!("{CLASS}{}", claim("a", "eth1"))).await;
    cluster.claim("default", "a").await.expect("a");
    let file = dir.path().join("sub/objects.yaml");
    fs::write(&file, format!("{CLASS}{}", claim("a", "eth2"))).expect("edit");
    let error = cluster.claim("default", "a").await.expect_err("changed").to_string();
    assert!(error.contains("spec: it has changed") && error.contains("status/default/a.yaml"), "{error}");
    fs::write(&file, format!("{CLASS}{}", claim("a", "eth1").replace("pod-a=uid-a", "pod-a"))).expect("edit");
    let error = cluster.claim("default", "a").await.expect_err("annotation").to_string();
    assert!(error.contains("netferry.dev/reserved-for") && error.contains("<pod>=<uid>"), "{error}");
    fs::write(&file, format!("{CLASS}{}", claim("a", "eth1"))).expect("mend");
    fs::write(dir.path().join("status/default/a.yaml"), "status: 3").expect("break");
    let error = cluster.claim("default", "a").await.expect_err("status file").to_string();
    assert!(error.contains("status file is broken"), "{error}");
}

#[tokio::test]
async fn claims_of_older_versions_are_read() {
    let old = json!({"apiVersion": "resource.k8s.io/v1beta1", "kind": "ResourceClaim", "metadata": {"name": "a"},
        "spec": {"devices": {"requests": [{"name": "r", "deviceClassName": "net"}]}}});
    let (_dir, cluster) = folder(&format!("{CLASS}---\n{old}\n")).await;
    let claims = cluster.claims().await.expect("claims");
    assert_eq!(claims.len(), 1);
    assert!(claims[0].status.as_ref().is_some_and(|status| status.allocation.is_some()));
}

#[tokio::test]
async fn events_are_kept_within_bounds() {
    let (dir, cluster) = folder(CLASS).await;
    let event = Event {
        subject: Subject::Node,
        event_type: EventType::Normal,
        reason: "Test",
        action: "Test",
        note: "x".repeat(1000),
    };
    for _ in 0..700 {
        cluster.event(&event).await.expect("event");
    }
    let size = |name: &str| fs::metadata(dir.path().join(name)).expect(name).len();
    assert!(size("events.yaml") + size("events.old.yaml") < 2 * 260 * 1024);
    let text = fs::read_to_string(dir.path().join("events.yaml")).expect("events");
    assert!(text.contains("reason: Test"));
    assert!(cluster.problems().is_empty(), "the driver's own files are not read as the user's");
}

#[test]
fn a_folder_that_is_not_there_is_said() {
    let error = Standalone::open(Path::new("/nonexistent/x"), DRIVER, NODE).err().expect("none").to_string();
    assert!(error.contains("/nonexistent/x"), "{error}");
}
