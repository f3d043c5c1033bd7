//! A Network that claims use, deleted by its administrator, and the driver uninstalled.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use netferry::{
    DRIVER_NAME,
    cluster::{Cluster, kube::KubeCluster, lease::Leases as _, versions::ApiVersion},
    network::{
        NetworkRef, Networks, cleanup,
        facts::{ClaimFacts, PortFacts, Seen},
        follow::SharedTable,
        identity::Identities,
        in_use::{FINALIZER, InUse, WAITING},
        known::{AllInForce, InForce},
        members::MemberTable,
        report,
        spec::InForceStatus,
        watch::NetworkWatch,
    },
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::support::apiserver::{ApiServer, Fault};

async fn connect(server: &ApiServer) -> KubeCluster {
    let dir = tempfile::tempdir().expect("a folder");
    let kubeconfig = server.kubeconfig(dir.path());
    KubeCluster::connect(Some(&kubeconfig), DRIVER_NAME, "node-1").await.expect("connect")
}

fn network() -> Value {
    json!({
        "apiVersion": "netferry.dev/v1alpha1", "kind": "Network",
        "metadata": {"name": "blue", "finalizers": ["example.com/other"]},
        "spec": {"subnets": ["10.1.0.0/16"], "transport": {"local": {}}, "namespaceSelector": {}},
    })
}

fn claim(name: &str) -> ClaimFacts {
    let port = PortFacts { network: "blue".to_owned(), node: "node-2".to_owned(), told: None };
    ClaimFacts {
        pod: None,
        uid: format!("uid-{name}"),
        name: format!("shop/{name}"),
        version: 1,
        since: 0,
        ports: vec![port],
        addresses: vec![("blue".to_owned(), "10.1.0.7".parse().expect("an address"))],
        block_node: None,
    }
}

/// An elected node.
struct Node {
    networks: Arc<Networks>,
    table: SharedTable,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _state: tempfile::TempDir,
}

impl Node {
    /// `has_ports` is whether it has ports of every network.
    async fn start(server: &ApiServer, has_ports: bool) -> Self {
        let cluster = Arc::new(connect(server).await);
        let (networks, stop) = (Arc::new(Networks::default()), CancellationToken::new());
        let table: SharedTable = Arc::new(Mutex::new(MemberTable::new("node-1")));
        let (leads, leading) = watch::channel(true);
        let state = tempfile::tempdir().expect("a folder");
        let watch = NetworkWatch {
            addresses: watch::channel(std::collections::BTreeMap::new()).1,
            cluster: Arc::clone(&cluster) as Arc<dyn Cluster>,
            networks: Arc::clone(&networks),
            identities: Identities::open(&state.path().join("networks.json")).expect("numbers"),
            counts: Box::new(|_| None),
            held: Box::new(move |_: &NetworkRef| has_ports),
            spread: Duration::from_millis(50),
        };
        let in_use = InUse {
            uses: Arc::clone(&cluster) as _,
            cluster,
            networks: Arc::clone(&networks),
            table: Arc::clone(&table),
            leading,
            sum: Duration::from_millis(100),
        };
        let tasks = vec![tokio::spawn(watch.run(stop.clone())), tokio::spawn(in_use.run(stop.clone()))];
        Self { networks, table, leads, stop, tasks, _state: state }
    }

    fn see(&self, seen: impl IntoIterator<Item = Seen<ClaimFacts, String>>) {
        let mut table = self.table.lock().expect("table");
        seen.into_iter().for_each(|seen| drop(table.apply(seen)));
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("ends in order");
        }
    }
}

fn finalizers(server: &ApiServer) -> Vec<String> {
    let network = server.get("networks", "blue").expect("blue");
    let all = network["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    all.iter().map(|one| one.as_str().expect("text").to_owned()).collect()
}

fn condition(server: &ApiServer, name: &str) -> Option<Value> {
    let network = server.get("networks", "blue")?;
    network["status"]["conditions"].as_array()?.iter().find(|it| it["type"] == name).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_kept_while_claims_use_it_and_says_whom_it_waits_for() {
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    server.put(network());
    let node = Node::start(&server, true).await;
    server.until("blue is known", |_| node.networks.get("blue").is_some()).await;
    // Before every claim has come, nobody is known to use it or not to.
    node.see([Seen::Listing, Seen::Is(claim("a"))]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(finalizers(&server), ["example.com/other"]);
    server.fail_next("PATCH", "/networks/blue", 1, Fault::Status(500));
    node.see([Seen::Is(claim("b")), Seen::Listed]);
    let both = ["example.com/other", FINALIZER];
    server.until("it is kept", |server| finalizers(server) == both).await;

    server.delete_network("blue");
    server.until("it is said", |server| condition(server, WAITING).is_some()).await;
    let said = condition(&server, WAITING).expect("a condition");
    let message = said["message"].as_str().expect("text");
    assert!(message.contains("2 claims") && message.contains("shop/a, shop/b"), "{message}");
    let told = |server: &ApiServer| {
        server
            .all("events")
            .iter()
            .any(|it| it["reason"] == "DeletionWaits" && it["regarding"]["name"] == "blue")
    };
    server.until("an Event", told).await;
    server.until("not ready", |s| condition(s, "Ready").is_some_and(|it| it["reason"] == "Deleting")).await;
    assert!(condition(&server, WAITING).is_some(), "what one says stays when another speaks");
    // No other claim can join it, and what is in force stays.
    assert!(node.networks.get("blue").is_none());
    let uid = server.get("networks", "blue").expect("blue")["metadata"]["uid"].clone();
    assert!(node.networks.of_uid(uid.as_str().expect("text")).is_some());
    assert_eq!(node.networks.with_members().len(), 1, "its peers are known still");

    node.see([Seen::Gone("uid-a".to_owned())]);
    server
        .until("one is left", |s| {
            condition(s, WAITING)
                .is_some_and(|it| it["message"].as_str().is_some_and(|it| it.contains("1 claims")))
        })
        .await;
    node.see([Seen::Gone("uid-b".to_owned())]);
    server.until("the other's is left", |server| finalizers(server) == ["example.com/other"]).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_elected_writes_no_finalizer() {
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    server.put(network());
    let node = Node::start(&server, false).await;
    node.leads.send_replace(false);
    node.see([Seen::Listing, Seen::Is(claim("a")), Seen::Listed]);
    server.until("blue is known", |_| node.networks.get("blue").is_some()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(finalizers(&server), ["example.com/other"]);
    node.leads.send_replace(true);
    server.until("it is kept", |server| finalizers(server).contains(&FINALIZER.to_owned())).await;
    node.stop().await;
}

fn slice(name: &str, node: Option<&str>, pool: &str) -> Value {
    let mut spec = json!({
        "driver": DRIVER_NAME, "devices": [],
        "pool": {"name": pool, "generation": 1, "resourceSliceCount": 1},
    });
    match node {
        Some(node) => spec["nodeName"] = node.into(),
        None => spec["allNodes"] = true.into(),
    }
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_takes_away_what_belongs_to_none() {
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    let mut kept = network();
    kept["metadata"]["finalizers"] = json!([FINALIZER]);
    server.put(kept);
    server.put(slice("pool", None, "networks/blue"));
    server.put(slice("block", Some("node-1"), "networks/blue/node-1"));
    server.put(slice("other", Some("node-2"), "node-2"));
    let mut foreign = slice("foreign", None, "networks/blue");
    foreign["spec"]["driver"] = "other.example.com".into();
    server.put(foreign);
    let cluster = connect(&server).await;
    let now = Timestamp::now();
    let mut lease: Lease = serde_json::from_value(json!({
        "metadata": {"name": "netferry-addresses"},
        "spec": {"holderIdentity": "node-2", "leaseDurationSeconds": 60, "renewTime": now.to_string()},
    }))
    .expect("a Lease");
    lease = cluster.write_lease(&lease).await.expect("write");
    let names = |server: &ApiServer| -> Vec<String> {
        let name = |slice: &Value| slice["metadata"]["name"].as_str().expect("a name").to_owned();
        server.all("resourceslices").iter().map(name).collect()
    };
    let cleaned = cleanup::run(&cluster, now).await.expect("a cleanup");
    assert_eq!((cleaned.slices, cleaned.networks, cleaned.others.len()), (0, 0, 1), "node-2 goes on");
    assert_eq!(finalizers(&server), [FINALIZER]);

    server.remove("resourceslices", "other");
    // An administrator deletes the network first: it waits for the finalizer.
    server.delete_network("blue");
    assert!(server.get("networks", "blue").is_some());
    let cleaned = cleanup::run(&cluster, now).await.expect("a cleanup");
    assert_eq!((cleaned.slices, cleaned.networks), (2, 1));
    assert_eq!(names(&server), ["foreign"], "another driver's stay");
    assert!(server.get("networks", "blue").is_none(), "nothing keeps it");
    let again = cleanup::run(&cluster, now).await.expect("again");
    assert_eq!((again.slices, again.networks), (0, 0));

    // Where nobody is elected any more, slices of nodes that are gone keep nothing.
    let mut kept = network();
    kept["metadata"]["finalizers"] = json!([FINALIZER]);
    server.put(kept);
    server.put(slice("other", Some("node-2"), "node-2"));
    lease.spec.as_mut().expect("a spec").holder_identity = Some(String::new());
    cluster.write_lease(&lease).await.expect("write");
    assert_eq!(cleanup::run(&cluster, now).await.expect("a cleanup").networks, 1);
    assert_eq!(finalizers(&server), [""; 0]);
    // The definition is gone.
    server.serve_networks(false);
    assert_eq!(cleanup::run(&cluster, now).await.expect("a cleanup").networks, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_says_on_how_many_nodes_the_last_generation_is_in_force() {
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    for name in ["node-1", "node-2"] {
        server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
    }
    let blue = server.put(network());
    let uid = blue["metadata"]["uid"].as_str().expect("text").to_owned();
    let node = Node::start(&server, true).await;
    let mut with_port = claim("a");
    with_port.ports[0].node = "node-1".to_owned();
    let mut on_another = claim("b");
    for (facts, last) in [(&mut with_port, 7), (&mut on_another, 8)] {
        let address = format!("10.1.0.{last}").parse().expect("an address");
        let mac = format!("02:00:00:00:00:0{last}").parse().expect("an address");
        facts.ports[0].told = Some((mac, vec![address]));
        facts.addresses = vec![("blue".to_owned(), address)];
    }
    node.see([Seen::Listing, Seen::Is(with_port), Seen::Is(on_another), Seen::Listed]);
    let said = |server: &ApiServer| {
        let network = server.get("networks", "blue")?;
        serde_json::from_value::<InForceStatus>(network["status"]["inForce"].clone()).ok()
    };
    let is = |server: &ApiServer, generation: i64, nodes: u32, behind: &[&str]| {
        said(server).is_some_and(|said| {
            (said.generation, said.nodes, said.nodes_behind as usize) == (generation, nodes, behind.len())
                && said.behind == behind
        })
    };
    server.until("nobody has reported", |server| is(server, 1, 0, &["node-1", "node-2"])).await;
    // This node has a port, and all of it is in force.
    let reference = NetworkRef { name: "blue".to_owned(), uid: uid.clone() };
    let in_force = |generation| {
        let of = InForce { generation: Some(generation), problems: Vec::new() };
        AllInForce::from([(reference.clone(), of)])
    };
    let cluster = Arc::new(connect(&server).await);
    let (networks, stop) = (Arc::clone(&node.networks), node.stop.clone());
    let reporting = tokio::spawn(async move { report::run(&*cluster, &*cluster, networks, stop).await });
    node.networks.set_in_force(in_force(1));
    server.until("one has reported", |server| is(server, 1, 1, &["node-2"])).await;
    let lease = server.all("leases").remove(0);
    assert_eq!(lease["metadata"]["name"], "node-1");
    assert_eq!(lease["metadata"]["ownerReferences"][0]["kind"], "Node", "it goes with the node");

    let mut changed = server.get("networks", "blue").expect("blue");
    changed["spec"]["mtu"] = 1300.into();
    server.put(changed);
    server.until("the new one is nowhere", |server| is(server, 2, 0, &["node-1", "node-2"])).await;
    node.networks.set_in_force(in_force(2));
    server.until("one has it", |server| is(server, 2, 1, &["node-2"])).await;
    node.see([Seen::Gone("uid-b".to_owned())]);
    server.until("the other has no port any more", |server| is(server, 2, 1, &[])).await;
    let lists = |server: &ApiServer| {
        server.asked("GET", "/leases").iter().filter(|it| it.path.ends_with("/leases")).count()
    };
    // One may be under way still.
    let mut quiet = false;
    for _ in 0..20 {
        let before = lists(&server);
        tokio::time::sleep(Duration::from_millis(500)).await;
        quiet = lists(&server) == before;
        if quiet {
            break;
        }
    }
    assert!(quiet, "what is complete is listed again and again");
    node.stop().await;
    reporting.await.expect("ends in order");
}
