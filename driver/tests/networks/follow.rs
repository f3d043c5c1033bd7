//! What a node watches of an API server, and what it learns from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use netferry::{
    DRIVER_NAME,
    cluster::{Cluster, kube::KubeCluster, versions::ApiVersion},
    datapath::DatapathError,
    network::{
        Network, NetworkId, NetworkRef, Networks,
        changeover::Pace,
        demand::{Demand, Ports},
        follow::{Follow, FollowOptions, Members, SharedTable},
        identity::Identities,
        members::{Change, MemberTable, Remote},
        nodes::NodePace,
        share::{self, Sharing},
        validate,
        watch::NetworkWatch,
    },
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::support::apiserver::{ApiServer, Fault};

pub(super) const HERE: &str = "n0";

type Entries = BTreeMap<(NetworkId, IpAddr), Remote>;

/// The node's map, and every address that was ever taken out of it.
#[derive(Default)]
pub(super) struct Map(Mutex<(Entries, Vec<IpAddr>)>);

fn ip(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

impl Map {
    /// The last numbers of the IPv4 addresses in it.
    fn hosts(&self) -> Vec<u8> {
        let inner = self.0.lock().expect("map");
        let last = |(_, address): &(NetworkId, IpAddr)| match address {
            IpAddr::V4(address) => Some(address.octets()[3]),
            IpAddr::V6(_) => None,
        };
        inner.0.keys().filter_map(last).collect()
    }

    /// Where a member of the first network is reached.
    pub(super) fn node_of(&self, host: u8) -> Option<IpAddr> {
        self.0.lock().expect("map").0.get(&(1, ip(host)))?.node
    }

    pub(super) fn lost(&self, host: u8) -> bool {
        self.0.lock().expect("map").1.contains(&ip(host))
    }
}

impl Members for Map {
    fn put(&self, change: &Change) -> Result<bool, DatapathError> {
        let mut inner = self.0.lock().expect("map");
        let key = (change.network, change.address);
        if let Some(member) = change.member {
            inner.0.insert(key, member);
        } else {
            inner.0.remove(&key);
            inner.1.push(change.address);
        }
        Ok(true)
    }

    fn remote(&self) -> Result<Vec<Change>, DatapathError> {
        let inner = self.0.lock().expect("map");
        let change = |((network, address), member): (&(NetworkId, IpAddr), &Remote)| Change {
            network: *network,
            address: *address,
            member: Some(*member),
        };
        Ok(inner.0.iter().map(change).collect())
    }
}

fn namespace(server: &ApiServer, name: &str, team: &str) {
    server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}}));
}

/// A claim with a port of `network` on node `n1`, which has told it, or, without a host, on this node.
fn claim(server: &ApiServer, namespace: &str, name: &str, network: &str, host: Option<u8>) {
    claim_on(server, if host.is_some() { "n1" } else { HERE }, (namespace, name), network, host);
}

/// The same on a node.
pub(super) fn claim_on(
    server: &ApiServer,
    node: &str,
    (namespace, name): (&str, &str),
    network: &str,
    host: Option<u8>,
) {
    let device = format!("port-{network}");
    let told = |host: u8| {
        json!([{"driver": DRIVER_NAME, "pool": node, "device": device, "networkData":
            {"ips": [format!("10.0.0.{host}/24")], "hardwareAddress": format!("02:00:00:00:00:{host:02x}")}}])
    };
    server.put(json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"namespace": namespace, "name": name}, "spec": {"devices": {}},
        "status": {"devices": host.map_or(json!([]), told), "allocation": {"devices": {"results": [
            {"request": "port", "driver": DRIVER_NAME, "pool": node, "device": device}]}}}}));
}

fn network(name: &str, id: u32, selector: &Value) -> Network {
    let spec = json!({"subnets": ["10.0.0.0/24"], "transport": {"overlay": {"vni": id}}, "namespaceSelector": selector});
    let reference = NetworkRef { name: name.to_owned(), uid: format!("u-{name}") };
    Network { reference, id, spec: validate::parse(&spec).expect("a network") }
}

/// A node that is reached at an address that ends so.
pub(super) fn node(server: &ApiServer, name: &str, last: u8) {
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{last}")}]}}));
}

pub(super) async fn server() -> ApiServer {
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    node(&server, "n1", 1);
    for (name, team) in [("a", "blue"), ("b", "blue"), ("c", "red"), ("d", "none")] {
        namespace(&server, name, team);
    }
    server
}

async fn connect(server: &ApiServer) -> KubeCluster {
    let dir = tempfile::tempdir().expect("a folder");
    let kubeconfig = server.kubeconfig(dir.path());
    KubeCluster::connect(Some(&kubeconfig), DRIVER_NAME, HERE).await.expect("connect")
}

pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_mins(1), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Namespaces whose claims were asked for; `*` for all at once.
fn asked(server: &ApiServer) -> BTreeSet<String> {
    let name =
        |path: &str| match path.strip_prefix("/apis/resource.k8s.io/v1/")?.split('/').collect::<Vec<_>>()[..]
        {
            ["resourceclaims"] => Some("*".to_owned()),
            ["namespaces", namespace, "resourceclaims"] => Some(namespace.to_owned()),
            _ => None,
        };
    server.asked("GET", "resourceclaims").iter().filter_map(|request| name(&request.path)).collect()
}

pub(super) fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(super) struct Node {
    pub(super) map: Arc<Map>,
    pub(super) table: SharedTable,
    ports: Arc<Mutex<Ports>>,
    networks: Arc<Networks>,
    pub(super) demand: Arc<Demand>,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    async fn start(server: &ApiServer) -> Self {
        Self::start_on(connect(server).await, Arc::default(), &[])
    }

    /// With the map that an earlier one has left, and ports of networks from the first moment on, as a daemon has them
    /// from its checkpoints: without a port what is left is nobody's.
    pub(super) async fn paced(server: &ApiServer, pace: NodePace, map: Arc<Map>, here: &[&str]) -> Self {
        let cluster = connect(server).await.with_node_pace(pace).with_timeout(Duration::from_millis(300));
        Self::start_on(cluster, map, here)
    }

    fn start_on(cluster: KubeCluster, map: Arc<Map>, here: &[&str]) -> Self {
        let ports = Arc::new(Mutex::new(Ports { here: set(here), ..Ports::default() }));
        let demand = Arc::<Demand>::default();
        let table: SharedTable = Arc::new(Mutex::new(MemberTable::new(HERE)));
        let networks = Arc::new(Networks::default());
        networks.replace([
            network("blue", 1, &json!({"matchLabels": {"team": "blue"}})),
            network("red", 2, &json!({"matchLabels": {"team": "red"}})),
        ]);
        let (leads, leading) = watch::channel(false);
        let shown = Arc::clone(&ports);
        let follow = Follow {
            watch: Arc::new(cluster),
            networks: Arc::clone(&networks),
            table: Arc::clone(&table),
            members: Arc::clone(&map) as _,
            ports: Box::new(move || shown.lock().expect("ports").clone()),
            demand: Arc::clone(&demand),
            leading,
            stats: Arc::default(),
        };
        let options = FollowOptions {
            networks: Duration::from_millis(20),
            compare: Duration::from_millis(100),
            linger: Duration::from_secs(2),
            pace: Pace { linger: Duration::from_millis(500), settle: Duration::from_millis(200) },
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(follow.run(options, stop.clone()));
        Self { map, table, ports, networks, demand, leads, stop, task }
    }

    pub(super) fn here(&self, names: &[&str]) {
        self.ports.lock().expect("ports").here = set(names);
    }

    pub(super) async fn has(&self, hosts: &[u8]) {
        let what = format!("the members {hosts:?}, not {:?}", self.map.hosts());
        until(&what, || self.map.hosts() == hosts).await;
    }

    pub(super) async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("ends in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_asks_for_the_claims_that_may_be_members_here() {
    let server = server().await;
    for (space, network, host) in [("a", "blue", 1), ("b", "blue", 2), ("c", "red", 3), ("d", "blue", 4)] {
        claim(&server, space, "c", network, Some(host));
    }
    let node = Node::start(&server).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(asked(&server), set(&[]), "without ports it asks for nothing");
    assert!(server.asked("GET", "/api/v1/n").is_empty());

    // A claim is being prepared: its network's members are known before it is, and there is no port yet.
    assert!(node.demand.bring(&set(&["blue"])).await, "known");
    assert_eq!(asked(&server), set(&["a", "b"]));
    assert!(node.map.hosts().is_empty());
    node.here(&["blue"]);
    node.has(&[1, 2]).await;

    // Claims, labels and selectors change.
    claim(&server, "b", "late", "blue", Some(5));
    node.has(&[1, 2, 5]).await;
    namespace(&server, "d", "blue");
    node.has(&[1, 2, 4, 5]).await;
    namespace(&server, "a", "none");
    node.has(&[2, 4, 5]).await;
    server.remove("namespaces", "d");
    node.has(&[2, 5]).await;
    server.remove("resourceclaims", "b/late");
    node.has(&[2]).await;
    assert_eq!(asked(&server), set(&["a", "b", "d"]), "nobody here is on red");

    // One network goes, another stays; with the last one everything goes.
    node.here(&["blue", "red"]);
    node.has(&[2, 3]).await;
    node.here(&["red"]);
    node.has(&[3]).await;
    assert!(!node.map.lost(3));
    node.here(&[]);
    node.has(&[]).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_lost_when_one_watch_takes_the_place_of_others() {
    let server = server().await;
    for (space, host) in [("a", 1), ("b", 2), ("d", 4)] {
        claim(&server, space, "c", "blue", Some(host));
    }
    let node = Node::start(&server).await;
    node.here(&["blue"]);
    node.has(&[1, 2]).await;
    // The list of all claims fails at first.
    server.fail_next("GET", "/v1/resourceclaims", 2, Fault::Status(500));
    node.leads.send_replace(true);
    until("all claims are asked for", || asked(&server).contains("*")).await;
    let watched = |what: &str| {
        let is = |path: &str, watch: bool| path.contains(what) && watch;
        server.requests().iter().filter(|it| is(&it.path, it.query.contains_key("watch"))).count()
    };
    until("they are watched", || watched("/v1/resourceclaims") > 0).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    // Only by the one watch now; it tells of members, and not of those who may not be.
    claim(&server, "a", "late", "blue", Some(5));
    claim(&server, "d", "late", "blue", Some(6));
    node.has(&[1, 2, 5]).await;

    node.leads.send_replace(false);
    let before = watched("/namespaces/a/resourceclaims");
    until("namespaces are watched again", || watched("/namespaces/a/resourceclaims") > before).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    server.remove("resourceclaims", "a/late");
    claim(&server, "b", "later", "blue", Some(7));
    node.has(&[1, 2, 7]).await;

    // A network that takes all namespaces makes it one again.
    let before = watched("/v1/resourceclaims");
    node.networks.replace([network("blue", 1, &json!({}))]);
    until("all are watched again", || watched("/v1/resourceclaims") > before).await;
    node.has(&[1, 2, 4, 6, 7]).await;
    assert!(![1, 2, 7].into_iter().any(|host| node.map.lost(host)));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_elected_node_counts_for_all() {
    let server = server().await;
    let mut blue =
        json!({"apiVersion": "netferry.dev/v1alpha1", "kind": "Network", "metadata": {"name": "blue"}});
    blue["spec"] = json!({"subnets": ["10.0.0.0/24"], "transport": {"overlay": {"vni": 7}},
        "namespaceSelector": {"matchLabels": {"team": "blue"}}});
    server.put(blue);
    for (space, name, host) in [("a", "1", Some(1)), ("b", "2", Some(2)), ("a", "3", None)] {
        claim(&server, space, name, "blue", host);
    }
    let cluster = Arc::new(connect(&server).await);
    let (networks, stop) = (Arc::new(Networks::default()), CancellationToken::new());
    let table: SharedTable = Arc::new(Mutex::new(MemberTable::new(HERE)));
    let sharing = Sharing {
        cluster: Arc::clone(&cluster) as _,
        networks: Arc::clone(&networks),
        table: Arc::clone(&table),
        members: Arc::<Map>::default(),
        ports: Box::new(Ports::default),
        stats: Arc::default(),
        driver: DRIVER_NAME.to_owned(),
        node: HERE.to_owned(),
    };
    let parts = sharing.parts(&stop);
    let state = tempfile::tempdir().expect("a folder");
    let watch = NetworkWatch {
        addresses: parts.conditions,
        cluster: cluster as Arc<dyn Cluster>,
        networks,
        identities: Identities::open(&state.path().join("networks.json")).expect("numbers"),
        counts: share::counts(table, parts.leading),
        held: Box::new(|_| false),
        spread: Duration::from_millis(50),
    };
    let tasks =
        [parts.follow, parts.election, parts.addresses, Box::pin(watch.run(stop.clone()))].map(tokio::spawn);
    let status = || server.get("networks", "blue").expect("blue")["status"].clone();
    until("the counts", || (&status()["nodes"], &status()["members"]) == (&json!(1), &json!(2))).await;
    // Who is elected and has no port knows every claim, and needs neither nodes nor namespaces.
    assert_eq!(asked(&server), set(&["*"]));
    server.remove("resourceclaims", "b/2");
    until("one is gone", || status()["members"] == 1).await;
    stop.cancel();
    for task in tasks {
        task.await.expect("ends in order");
    }
}
