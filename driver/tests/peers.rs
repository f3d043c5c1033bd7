//! Policies whose peers have names, on a real kernel: a network, pods by their labels, and what is not known yet.

#[path = "port/world.rs"]
mod pods;
mod support;
#[path = "attach/world.rs"]
mod world;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use netferry::{
    DRIVER_NAME,
    attach::Attacher,
    cluster::{kube::KubeCluster, versions::ApiVersion},
    datapath::policy::Action,
    network::{
        facts::{self, Seen},
        follow::SharedTable,
        members::MemberTable,
        peers::{PolicyPeers, told},
        scope::{Admits, Need},
    },
};
use pods::{BLUE, Node, RED, port, v4};
use support::{apiserver::ApiServer, netns::NetNs};
use tokio_util::sync::CancellationToken;

const SERVICE: u16 = 7879;

struct Stand {
    node: Node,
    table: SharedTable,
    peers: Arc<PolicyPeers>,
    attacher: Attacher,
    dir: tempfile::TempDir,
}

impl Stand {
    /// Pod 0 has the address .7 of blue and a policy; pod 1 has .8 of blue, pod 2 .9 of red.
    fn new(test: &str, policy: &str) -> Option<Self> {
        let node = Node::new(test, 3)?;
        let mut guarded = port("c0", BLUE, 7, "net1");
        guarded.policy = Some(serde_yaml_ng::from_str(policy).expect("a policy"));
        node.claim("c0", 0, vec![guarded]);
        node.claim("c1", 1, vec![port("c1", BLUE, 8, "net1")]);
        node.claim("c2", 2, vec![port("c2", RED, 9, "net1")]);
        let table: SharedTable = Arc::new(Mutex::new(MemberTable::new("node")));
        let datapath = Arc::new(node.places.datapath());
        let store = node.places.store();
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("peers.json");
        let peers = Arc::new(PolicyPeers::new(
            Arc::clone(&table),
            Arc::clone(&store),
            Arc::clone(&datapath) as _,
            file,
        ));
        let attacher =
            Attacher::new(Arc::new(node.links()), Arc::new(node.places.namespaces()), datapath, store)
                .knowing(Arc::clone(&peers));
        Some(Self { node, table, peers, attacher, dir })
    }

    async fn attach(&self) {
        self.node.attach_all(&self.attacher).await;
    }

    /// Every claim has come: none of other nodes.
    fn claims_come(&self) {
        let mut table = self.table.lock().expect("table");
        table.apply(Seen::Listing);
        table.apply(Seen::Listed);
    }

    /// The pods come, with this role for pod 1.
    fn pods_come(&self, role: &str) {
        let mut table = self.table.lock().expect("table");
        table.apply_pod(Seen::Listing);
        for nth in 0..3 {
            table.apply_pod(Seen::Is(pod(nth, if nth == 1 { role } else { "other" })));
        }
        table.apply_pod(Seen::Listed);
    }

    fn role(&self, role: &str) {
        self.table.lock().expect("table").apply_pod(Seen::Is(pod(1, role)));
    }

    /// Whether pod 1 reaches pod 0.
    fn reaches(&self) -> bool {
        self.node.reaches(1, &v4(7))
    }

    async fn end(self) {
        for nth in 0..3 {
            assert_eq!(self.attacher.give_back(&format!("s{nth}")).await.problems, []);
        }
        self.node.assert_nothing_left("after the return");
    }
}

fn pod(nth: usize, role: &str) -> facts::PodFacts {
    let metadata = serde_json::json!({
        "namespace": "default", "name": format!("pod{nth}"), "labels": {"role": role},
    });
    facts::pod(&serde_json::from_value(metadata).expect("metadata"))
}

/// Sends back what it is sent.
fn echo(pod: &NetNs) {
    let listener = pod.run(|| TcpListener::bind(("0.0.0.0", SERVICE)).expect("listen"));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut byte = [7];
    stream.write_all(&byte).is_ok() && stream.read_exact(&mut byte).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_lets_in_and_its_loss_cuts_open_flows() {
    const POLICY: &str = "ingress: {rules: [{action: allow, peers: [{podSelector: {role: db}}]}]}";
    let name = "a_label_lets_in_and_its_loss_cuts_open_flows";
    let Some(stand) = Stand::new(name, POLICY) else { return };
    stand.attach().await;
    assert!(!stand.reaches(), "nobody is known");
    stand.claims_come();
    stand.pods_come("web");
    assert_eq!(stand.peers.refresh(), 1);
    assert!(!stand.reaches(), "its role is web");

    stand.role("db");
    assert_eq!((stand.peers.refresh(), stand.peers.refresh()), (1, 0), "set once, and not again");
    assert!(stand.reaches(), "its role is db");
    echo(&stand.node.pods[0]);
    let to = SocketAddr::new(v4(7).parse().expect("an address"), SERVICE);
    let mut stream = stand.node.pods[1]
        .run(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)))
        .expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("time-out");
    assert!(echoes(&mut stream));
    let said = told(&stand.dir.path().join("peers.json"));
    let addresses = said[0].addresses.as_ref().expect("known");
    assert!(addresses.contains(&v4(8).parse().expect("an address")), "{said:?}");

    stand.role("web");
    assert_eq!(stand.peers.refresh(), 1);
    assert!(!echoes(&mut stream), "the open flow is cut");
    assert!(!stand.reaches());
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_watched_at_the_api_server() {
    const POLICY: &str = "ingress: {rules: [{action: allow, peers: [{podSelector: {role: db}}]}]}";
    let Some(stand) = Stand::new("labels_are_watched_at_the_api_server", POLICY) else { return };
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    let put = |role: &str| {
        server.put(serde_json::json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
            "metadata": {"namespace": "default", "name": "pod1", "labels": {"role": role}}}));
    };
    put("web");
    let kubeconfig = server.kubeconfig(stand.dir.path());
    let cluster = KubeCluster::connect(Some(&kubeconfig), DRIVER_NAME, "node").await.expect("connect");
    stand.attach().await;
    // The network takes one namespace of two.
    server.put(serde_json::json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
        "metadata": {"namespace": "other", "name": "pod1", "labels": {"role": "web"}}}));
    let admits = Admits::Only([String::from("default")].into());
    let needs = [("blue".to_owned(), Need { here: true, admits })].into();
    stand.table.lock().expect("table").set_needs(&needs);
    stand.claims_come();
    let stop = CancellationToken::new();
    let following = tokio::spawn(Arc::clone(&stand.peers).run(Arc::new(cluster), stop.clone()));
    let label = std::collections::BTreeMap::from([("role".to_owned(), "web".to_owned())]);
    let is = |action| stand.table.lock().expect("table").is_selected("blue", "default/pod1", &label, action);
    server.until("the list", |_| is(Action::Allow) == Some(true)).await;
    assert!(!stand.reaches());
    put("db");
    server.until("the label lets in", |_| stand.reaches()).await;
    server.remove("pods", "default/pod1");
    server.until("the pod is gone", |_| !stand.reaches()).await;
    let asked = server.asked("GET", "/pods");
    assert!(!asked.is_empty(), "pods are watched");
    assert!(asked.iter().all(|request| request.path == "/api/v1/namespaces/default/pods"), "{asked:?}");
    stop.cancel();
    following.await.expect("ends in order");
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_rule_denies_is_out_before_anybody_is_known() {
    const POLICY: &str = "ingress: {rules: [{action: deny, peers: [{podSelector: {role: bad}}]}]}";
    let name = "whom_a_rule_denies_is_out_before_anybody_is_known";
    let Some(stand) = Stand::new(name, POLICY) else { return };
    stand.attach().await;
    assert!(!stand.reaches(), "it may be one of them");
    stand.claims_come();
    stand.peers.refresh();
    assert!(!stand.reaches(), "pods have not come");
    stand.pods_come("good");
    assert_eq!(stand.peers.refresh(), 1);
    assert!(stand.reaches(), "it is none of them");
    stand.role("bad");
    assert_eq!(stand.peers.refresh(), 1);
    assert!(!stand.reaches());
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_network_are_peers() {
    const POLICY: &str = "ingress: {rules: [{action: allow, peers: [{network: blue}]}]}
egress: {rules: [{action: deny, peers: [{network: red}]}]}";
    let Some(stand) = Stand::new("members_of_a_network_are_peers", POLICY) else { return };
    stand.attach().await;
    assert!(!stand.reaches());
    stand.claims_come();
    assert_eq!(stand.peers.refresh(), 1);
    assert!(stand.reaches());
    let said = told(&stand.dir.path().join("peers.json"));
    assert_eq!(said.len(), 2);
    assert!(
        said.iter()
            .any(|it| it.addresses.as_ref().is_some_and(|all| all.iter().any(|a| a.to_string() == v4(9)))),
        "{said:?}"
    );

    // A daemon that starts again leaves what is in force until it knows.
    let peers = PolicyPeers::new(
        Arc::new(Mutex::new(MemberTable::new("node"))),
        stand.node.places.store(),
        Arc::new(stand.node.places.datapath()),
        stand.dir.path().join("peers.json"),
    );
    assert_eq!(peers.refresh(), 0);
    assert!(stand.reaches());
    stand.end().await;
}
