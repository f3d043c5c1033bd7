//! Networks of an API server: watched, judged, numbered, published.

use std::{path::Path, sync::Arc, time::Duration};

use netferry::{
    DRIVER_NAME,
    cluster::{
        Cluster, ClusterError,
        kube::KubeCluster,
        versions::ApiVersion,
        watch::{SlicesOf, Watch as _},
    },
    device::{Inventory, rule::Rule},
    network::{
        Network, NetworkRef, Networks, identity::Identities, offer::Offers, spec::NetworkStatus, validate,
        watch::NetworkWatch,
    },
    publish::publisher::{self, PublishOptions, PublishStats, Publisher},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::apiserver::{ApiServer, Fault};

fn network(name: &str, vni: u32, created: &str) -> Value {
    json!({
        "apiVersion": "netferry.dev/v1alpha1", "kind": "Network",
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"subnets": ["10.1.0.0/16"], "transport": {"overlay": {"vni": vni}}, "namespaceSelector": {}},
    })
}

/// A node's part in networks.
struct Node {
    networks: Arc<Networks>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    /// With its numbers in `state`; `held` are the networks it has ports on.
    async fn start(server: &ApiServer, state: &Path, held: &'static [&'static str]) -> Self {
        let cluster = Arc::new(connect(server).await);
        let news = Arc::clone(&cluster).slice_versions(SlicesOf::ThisNode);
        let cluster = cluster as Arc<dyn Cluster>;
        let networks = Arc::new(Networks::default());
        let stop = CancellationToken::new();
        let (_, inventory) = tokio::sync::watch::channel(Arc::new(Inventory::default()));
        let publish = publisher::run(
            Arc::clone(&cluster),
            news,
            inventory,
            Arc::clone(&networks),
            Arc::new(Rule::standard(DRIVER_NAME, false).expect("a rule")),
            Arc::new(|_| false),
            PublishOptions::default(),
            Arc::new(PublishStats::default()),
            stop.clone(),
        );
        let watch = NetworkWatch {
            addresses: tokio::sync::watch::channel(std::collections::BTreeMap::new()).1,
            cluster,
            networks: Arc::clone(&networks),
            identities: Identities::open(&state.join("networks.json")).expect("numbers"),
            counts: Box::new(|_| None),
            held: Box::new(move |network: &NetworkRef| held.contains(&network.name.as_str())),
            spread: Duration::from_millis(50),
        };
        let tasks = vec![tokio::spawn(publish), tokio::spawn(watch.run(stop.clone()))];
        Self { networks, stop, tasks }
    }

    async fn until(&self, what: &str, condition: impl Fn(&Networks) -> bool) {
        for _ in 0..1200 {
            if condition(&self.networks) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not within 30 s: {what}; known: {:?}", self.networks);
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("ends in order");
        }
    }
}

async fn connect(server: &ApiServer) -> KubeCluster {
    let dir = tempfile::tempdir().expect("a folder");
    let kubeconfig = server.kubeconfig(dir.path());
    KubeCluster::connect(Some(&kubeconfig), DRIVER_NAME, "node-1").await.expect("connect")
}

async fn server() -> (ApiServer, TempDir) {
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    (server, tempfile::tempdir().expect("a folder"))
}

/// `status` and `reason` of a condition.
fn condition(server: &ApiServer, network: &str, name: &str) -> Option<(String, String)> {
    let network = server.get("networks", network)?;
    let conditions = network["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == name)?;
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason")))
}

fn is(server: &ApiServer, network: &str, name: &str, status: &str, reason: &str) -> bool {
    condition(server, network, name) == Some((status.to_owned(), reason.to_owned()))
}

/// Names of the devices in the node's slices.
fn devices(server: &ApiServer) -> Vec<String> {
    let slices = server.all("resourceslices");
    let devices =
        slices.iter().flat_map(|slice| slice["spec"]["devices"].as_array().cloned().unwrap_or_default());
    devices.map(|device| device["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_known_published_and_told_about() {
    let (server, state) = server().await;
    server.put(network("blue", 7, "2026-01-01T00:00:00Z"));
    let node = Node::start(&server, state.path(), &[]).await;
    node.until("blue is known", |networks| networks.get("blue").is_some_and(|blue| blue.id == 1)).await;
    server.until("a port is published", |server| devices(server) == ["port-blue"]).await;
    let device = server.all("resourceslices")[0]["spec"]["devices"][0].clone();
    assert_eq!(device["allowMultipleAllocations"], true);
    server.until("ready", |server| is(server, "blue", "Ready", "True", "Published")).await;
    assert!(is(&server, "blue", "Accepted", "True", "Valid"));

    // One that is younger and wants the same, one that is wrong, and one that is right.
    server.put(network("late", 7, "2026-01-02T00:00:00Z"));
    let mut wrong = network("wrong", 8, "2026-01-02T00:00:00Z");
    wrong["spec"]["mtu"] = 1.into();
    server.put(wrong.clone());
    server.put(network("red", 9, "2026-01-02T00:00:00Z"));
    server.until("conflict", |s| is(s, "late", "Accepted", "False", "Conflict")).await;
    server.until("invalid", |s| is(s, "wrong", "Accepted", "False", "Invalid")).await;
    server.until("red", |server| devices(server) == ["port-blue", "port-red"]).await;
    assert!(node.networks.get("late").is_none() && node.networks.get("wrong").is_none());
    server
        .until("Events", |server| {
            let events = server.all("events");
            let about = |name: &str| {
                events.iter().any(|event| {
                    event["regarding"]["kind"] == "Network"
                        && event["regarding"]["name"] == name
                        && event["reason"] == "NetworkNotAccepted"
                })
            };
            about("late") && about("wrong")
        })
        .await;

    // Mended, it counts; broken again, what was valid stays.
    wrong["spec"]["mtu"] = 1400.into();
    let mut stored = server.get("networks", "wrong").expect("stored");
    stored["spec"] = wrong["spec"].clone();
    server.put(stored.clone());
    node.until("mended", |n| n.get("wrong").is_some_and(|n| n.spec.mtu == Some(1400))).await;
    server.until("valid", |s| is(s, "wrong", "Accepted", "True", "Valid")).await;
    let mut stored = server.get("networks", "wrong").expect("stored");
    stored["spec"]["mtu"] = 2.into();
    server.put(stored);
    server.until("invalid", |s| is(s, "wrong", "Accepted", "False", "Invalid")).await;
    assert_eq!(node.networks.get("wrong").expect("still known").spec.mtu, Some(1400));

    // The older one goes, and the younger one gets its VNI.
    server.remove("networks", "blue");
    node.until("late takes over", |n| n.get("late").is_some() && n.get("blue").is_none()).await;
    server.until("published", |s| devices(s) == ["port-late", "port-red", "port-wrong"]).await;
    // A status that is as it should be is not written again.
    let written = server.asked("PATCH", "/networks/red/status").len();
    assert!(written <= 2, "{written} writes: accepted, and published");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_survives_a_restart_without_the_server() {
    let (server, state) = server().await;
    server.put(network("blue", 7, "2026-01-01T00:00:00Z"));
    server.put(network("red", 8, "2026-01-01T00:00:00Z"));
    let node = Node::start(&server, state.path(), &[]).await;
    node.until("both are known", |networks| networks.list().len() == 2).await;
    let before = node.networks.list();
    node.stop().await;

    server.fail_next("GET", "/networks", 1000, Fault::Status(503));
    let node = Node::start(&server, state.path(), &[]).await;
    node.until("both are known", |networks| networks.list() == before).await;
    // Nothing is taken as deleted while nobody answers.
    server.remove("networks", "red");
    server.until("it is asked", |server| server.asked("GET", "/networks").len() > 4).await;
    assert_eq!(node.networks.list(), before);
    server.heal();
    node.until("red is gone", |networks| networks.get("red").is_none()).await;
    assert_eq!(node.networks.get("blue").expect("blue"), before[0]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_network_lives_as_long_as_its_ports() {
    let (server, state) = server().await;
    let uid = server.put(network("blue", 7, "2026-01-01T00:00:00Z"))["metadata"]["uid"].clone();
    let uid = uid.as_str().expect("a UID").to_owned();
    let node = Node::start(&server, state.path(), &["blue"]).await;
    node.until("blue is known", |networks| networks.get("blue").is_some()).await;
    server.remove("networks", "blue");
    node.until("nobody may join", |networks| networks.get("blue").is_none()).await;
    assert_eq!(node.networks.of_uid(&uid).expect("its ports have it").id, 1);
    // Made again under its name, it is another one.
    let again = server.put(network("blue", 7, "2026-01-02T00:00:00Z"));
    node.until("the new one", |networks| networks.get("blue").is_some_and(|blue| blue.id == 2)).await;
    assert_eq!(node.networks.get("blue").expect("blue").reference.uid, again["metadata"]["uid"]);
    assert_eq!(node.networks.of_uid(&uid).expect("the old one").id, 1);
    node.stop().await;

    // No port any more.
    let node = Node::start(&server, state.path(), &[]).await;
    node.until("the old one is forgotten", |n| n.of_uid(&uid).is_none() && n.get("blue").is_some()).await;
    assert_eq!(node.networks.get("blue").expect("blue").id, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_definition_may_come_later() {
    let (server, state) = server().await;
    server.serve_networks(false);
    let node = Node::start(&server, state.path(), &[]).await;
    server.until("it is asked again", |server| server.asked("GET", "/networks").len() > 1).await;
    server.until("the rest works", |server| !server.all("resourceslices").is_empty()).await;
    server.serve_networks(true);
    server.put(network("blue", 7, "2026-01-01T00:00:00Z"));
    node.until("blue is known", |networks| networks.get("blue").is_some()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_the_same_in_every_version() {
    let mut stored = Vec::new();
    for version in ApiVersion::PREFERRED {
        let server = ApiServer::start(&[version]).await;
        server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
        server.put(network("blue", 7, "2026-01-01T00:00:00Z"));
        let state = tempfile::tempdir().expect("a folder");
        let node = Node::start(&server, state.path(), &[]).await;
        server.until("a port is published", |server| devices(server) == ["port-blue"]).await;
        let slice = connect(&server).await.slices().await.expect("slices").remove(0);
        stored.push(slice.spec.devices.expect("devices").remove(0));
        node.stop().await;
    }
    assert_eq!(stored[0].allow_multiple_allocations, Some(true));
    let policy = stored[0].capacity.as_ref().expect("capacity")["ports"].request_policy.clone();
    assert_eq!(policy.and_then(|policy| policy.default).expect("a default").0, "1");
    assert!(stored.iter().all(|device| *device == stored[0]), "{stored:#?}");
}

#[tokio::test]
async fn a_server_without_shared_devices_is_written_to_once() {
    let (server, _state) = server().await;
    server.without_shared_devices();
    let networks = Arc::new(Networks::default());
    let spec = validate::parse(&network("blue", 7, "2026-01-01T00:00:00Z")["spec"]).expect("a spec");
    let reference = NetworkRef { name: "blue".to_owned(), uid: "1".to_owned() };
    networks.replace([Network { reference, id: 1, spec }]);
    let rule = Arc::new(Rule::standard(DRIVER_NAME, false).expect("a rule"));
    let cluster = Arc::new(connect(&server).await) as Arc<dyn Cluster>;
    let mut publisher = Publisher::new(cluster, rule, Arc::default()).with_networks(networks);
    for _ in 0..3 {
        publisher.sync(&Inventory::default()).await.expect("published");
    }
    assert_eq!(devices(&server), ["port-blue"]);
    let device = server.all("resourceslices")[0]["spec"]["devices"][0].clone();
    assert!(device.get("allowMultipleAllocations").is_none(), "{device}");
    assert_eq!(server.asked("POST", "/resourceslices").len(), 1);
    assert_eq!(server.asked("PUT", "/resourceslices").len(), 0);
}

#[tokio::test]
async fn who_may_join_is_not_guessed() {
    let (server, _state) = server().await;
    let networks = Arc::new(Networks::default());
    let reference = |name: &str| NetworkRef { name: name.to_owned(), uid: name.to_owned() };
    let everybody = network("blue", 7, "2026-01-01T00:00:00Z");
    let mut elsewhere = everybody.clone();
    elsewhere["spec"]["transport"] = json!({"uplink": {"selector": "false"}});
    let spec = |network: &Value| validate::parse(&network["spec"]).expect("a spec");
    networks.replace([
        Network { reference: reference("blue"), id: 1, spec: spec(&everybody) },
        Network { reference: reference("elsewhere"), id: 2, spec: spec(&elsewhere) },
    ]);
    let (_, inventory) = tokio::sync::watch::channel(Arc::new(Inventory::default()));
    let cluster = Arc::new(connect(&server).await) as Arc<dyn Cluster>;
    let offers = Offers {
        networks,
        cluster,
        inventory,
        members: crate::no_members(),
        demand: None,
        driver: DRIVER_NAME.to_owned(),
    };
    let refused = async |network| offers.of(network, "shop").await.expect("known").refused;
    assert!(refused("blue").await.is_some_and(|why| why.contains("Namespace shop not found")));
    server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    assert_eq!(refused("blue").await, None);
    assert!(refused("elsewhere").await.is_some_and(|why| why.contains("no link of this node")));
}

#[tokio::test]
async fn labels_and_status_are_of_the_right_object() {
    let (server, _state) = server().await;
    server.put(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"team": "shop"}}}));
    let cluster = connect(&server).await;
    let labels = cluster.namespace_labels("shop").await.expect("labels");
    assert_eq!(labels.get("team").map(String::as_str), Some("shop"));
    let error = cluster.namespace_labels("none").await.expect_err("there is none");
    assert!(matches!(error, ClusterError::NotFound { .. }), "{error}");

    server.put(network("blue", 7, "2026-01-01T00:00:00Z"));
    let uid = server.get("networks", "blue").expect("blue")["metadata"]["uid"].clone();
    let blue = NetworkRef { name: "blue".to_owned(), uid: uid.as_str().expect("a UID").to_owned() };
    cluster.apply_network_counts(&blue, 3, 7).await.expect("counted");
    assert_eq!(server.get("networks", "blue").expect("blue")["status"], json!({"nodes": 3, "members": 7}));
    let asked = server.asked("PATCH", "/networks/blue/status").remove(0);
    assert_eq!(asked.query["fieldManager"], "netferry.dev/counts");
    let former = NetworkRef { name: "blue".to_owned(), uid: "another".to_owned() };
    let error =
        cluster.apply_network_status(&former, &NetworkStatus::default()).await.expect_err("another one");
    assert!(matches!(error, ClusterError::Conflict { .. }), "{error}");
    assert!(server.get("networks", "blue").expect("blue")["status"]["conditions"].is_null());
}
