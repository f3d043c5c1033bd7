//! A network that is changed while pods talk, on a real kernel: from the object at the API server to the flow that is cut.
#![cfg(feature = "failpoints")]

#[path = "port/world.rs"]
mod pods;
mod support;
#[path = "attach/world.rs"]
mod world;

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use netferry::{
    DRIVER_NAME,
    attach::{Attacher, follow::FAILPOINTS},
    claim::{Asked, Made},
    cluster::{Cluster, kube::KubeCluster, versions::ApiVersion},
    datapath::policy::Otherwise,
    follow::PortFollow,
    network::{
        Network, NetworkRef, Networks, identity::Identities, known::ByUid, validate::parse,
        watch::NetworkWatch,
    },
};
use pods::{BLUE, Node, port, v4};
use serde_json::{Value, json};
use support::{apiserver::ApiServer, netns::NetNs};
use tokio::task::{JoinHandle, block_in_place};
use tokio_util::sync::CancellationToken;
use world::Places;

const SERVICE: u16 = 7880;
const OTHER: u16 = 7881;

/// The network of the pods' ports; `more` goes into its spec.
#[expect(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]
fn blue(uid: &str, more: Value) -> Value {
    let mut spec = json!({"subnets": ["10.78.0.0/24", "fd78::/64"], "transport": {"local": {}}});
    spec.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
    json!({
        "apiVersion": "netferry.dev/v1alpha1", "kind": "Network", "spec": spec,
        "metadata": {"name": "blue", "uid": uid},
    })
}

fn deny_all() -> Value {
    json!({"policy": {"ingress": {"otherwise": "deny"}, "egress": {"otherwise": "deny"}}})
}

fn deny(port: u16) -> Value {
    json!({"policy": {"ingress": {"rules": [
        {"action": "deny", "ports": [{"protocol": "UDP", "port": port}]}]}}})
}

/// The part of the daemon that is looked at.
struct Daemon {
    networks: Arc<Networks>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Daemon {
    async fn start(server: &ApiServer, node: &Node, attacher: &Arc<Attacher>, wait: Duration) -> Self {
        let dir = node.places.store.join("daemon");
        std::fs::create_dir_all(&dir).expect("folder");
        let kubeconfig = server.kubeconfig(&dir);
        let cluster = KubeCluster::connect(Some(&kubeconfig), DRIVER_NAME, "node").await.expect("connect");
        let (networks, stop) = (Arc::new(Networks::default()), CancellationToken::new());
        let identities = Identities::open(&dir.join("networks.json")).expect("numbers");
        let known = identities.list();
        networks.replace_all(known.networks, known.retired);
        let store = node.places.store();
        let ports = Arc::clone(&store);
        let watch = NetworkWatch {
            addresses: tokio::sync::watch::channel(std::collections::BTreeMap::new()).1,
            cluster: Arc::new(cluster) as Arc<dyn Cluster>,
            networks: Arc::clone(&networks),
            identities,
            counts: Box::new(|_| None),
            held: Box::new(move |network: &NetworkRef| {
                let records = ports.all().into_iter().flat_map(|checkpoint| checkpoint.interfaces);
                records.into_iter().any(|it| it.plan.port().is_some_and(|port| port.network == *network))
            }),
            spread: Duration::from_millis(50),
        };
        let mut tasks = vec![tokio::spawn(watch.run(stop.clone()))];
        let follow = PortFollow {
            attacher: Arc::clone(attacher),
            networks: Arc::clone(&networks),
            checkpoints: store.changes(),
        };
        follow.catch_up(wait).await;
        tasks.push(tokio::spawn(follow.run(stop.clone())));
        Self { networks, stop, tasks }
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("ends in order");
        }
    }
}

/// Sends back what it is sent, by TCP and UDP.
fn echo(pod: &NetNs, port: u16) {
    let (listener, socket) = pod.run(move || {
        let listener = TcpListener::bind(("0.0.0.0", port)).expect("listen");
        (listener, UdpSocket::bind(("0.0.0.0", port)).expect("bind"))
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    thread::spawn(move || {
        let mut byte = [0];
        while let Ok((_, from)) = socket.recv_from(&mut byte) {
            let _ = socket.send_to(&byte, from);
        }
    });
}

/// An open flow of each protocol from pod 1 to pod 0.
struct Flows {
    tcp: TcpStream,
    udp: UdpSocket,
    sent: u8,
}

impl Flows {
    fn open(pod: &NetNs, port: u16) -> Self {
        let to = SocketAddr::new(v4(7).parse().expect("an address"), port);
        let (tcp, udp) = pod.run(move || {
            let udp = UdpSocket::bind(("0.0.0.0", 0)).expect("bind");
            udp.connect(to).expect("connect");
            (TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("connect"), udp)
        });
        let pause = Some(Duration::from_millis(500));
        tcp.set_read_timeout(pause).expect("time-out");
        udp.set_read_timeout(pause).expect("time-out");
        Self { tcp, udp, sent: 0 }
    }

    fn tcp_passes(&mut self) -> bool {
        let mut byte = [0];
        self.tcp.write_all(&[7]).is_ok() && self.tcp.read_exact(&mut byte).is_ok()
    }

    fn udp_passes(&mut self) -> bool {
        self.sent = self.sent.wrapping_add(1);
        let mut byte = [0];
        // Of an earlier one an answer may be left.
        self.udp.send(&[self.sent]).is_ok()
            && std::iter::from_fn(|| self.udp.recv(&mut byte).ok().map(|_| byte[0])).any(|it| it == self.sent)
    }
}

/// Two pods of blue, the first of which has a service; the network says nothing yet.
async fn two_pods(test: &str) -> Option<(Node, ApiServer, Arc<Attacher>)> {
    let node = Node::new(test, 2)?;
    node.claim("c0", 0, vec![port("c0", BLUE, 7, "net1")]);
    node.claim("c1", 1, vec![port("c1", BLUE, 8, "net1")]);
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    server.put(blue("uid-blue", json!({})));
    let (links, namespaces) = (Arc::new(node.links()), Arc::new(node.places.namespaces()));
    let attacher = Attacher::new(links, namespaces, Arc::new(node.places.datapath()), node.places.store());
    let attacher = Arc::new(attacher);
    node.attach_all(&attacher).await;
    for port in [SERVICE, OTHER] {
        echo(&node.pods[0], port);
    }
    Some((node, server, attacher))
}

async fn end(node: Node, attacher: &Attacher) {
    for nth in 0..2 {
        assert_eq!(attacher.give_back(&format!("s{nth}")).await.problems, []);
    }
    node.assert_nothing_left("after the return");
}

fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if block_in_place(&mut condition) {
            return start.elapsed();
        }
    }
    panic!("not within 20 s: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_that_the_new_policy_denies_are_cut_and_others_go_on() {
    let name = "flows_that_the_new_policy_denies_are_cut_and_others_go_on";
    let Some((node, server, attacher)) = two_pods(name).await else { return };
    let daemon = Daemon::start(&server, &node, &attacher, Duration::from_secs(10)).await;
    let (mut flows, mut other) = (Flows::open(&node.pods[1], SERVICE), Flows::open(&node.pods[1], OTHER));
    assert!(flows.tcp_passes() && flows.udp_passes() && other.udp_passes());

    server.put(blue("uid-blue", deny(SERVICE)));
    let took = until("UDP is cut", || !flows.udp_passes());
    println!("a flow was cut {took:?} after the change, with the 500 ms in which nothing came");
    assert!(flows.tcp_passes() && other.udp_passes(), "what is not denied goes on");
    server.put(blue("uid-blue", deny_all()));
    until("TCP is cut", || !flows.tcp_passes());
    assert!(!other.udp_passes() && !node.reaches(1, &v4(7)));
    let shown = node.places.store().get("c0").expect("c0").interfaces.remove(0).plan;
    let policy = shown.policy.expect("a policy");
    assert_eq!(policy.ingress.otherwise(), Otherwise::Deny, "as `netferry policy show` reads it");

    // One that is not valid changes nothing, and says so.
    server.put(blue("uid-blue", json!({"mtu": 1})));
    server
        .until("it is said", |server| {
            let network = server.get("networks", "blue").expect("blue");
            network["status"]["conditions"].to_string().contains("spec.mtu")
        })
        .await;
    assert!(!other.udp_passes(), "what was accepted last stays in force");
    server.put(blue("uid-blue", json!({})));
    until("all may talk again", || other.udp_passes() && node.reaches(1, &v4(7)));
    assert!(Flows::open(&node.pods[1], SERVICE).tcp_passes());
    daemon.stop().await;
    end(node, &attacher).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_without_a_daemon_is_in_force_before_the_next_one_serves() {
    let name = "what_was_changed_without_a_daemon_is_in_force_before_the_next_one_serves";
    let Some((node, server, attacher)) = two_pods(name).await else { return };
    let daemon = Daemon::start(&server, &node, &attacher, Duration::from_secs(10)).await;
    let mut flows = Flows::open(&node.pods[1], SERVICE);
    assert!(flows.tcp_passes());
    daemon.stop().await;
    server.put(blue("uid-blue", deny_all()));
    assert!(flows.tcp_passes(), "nobody has told");
    let attacher = Arc::new(node.places.attacher());
    let daemon = Daemon::start(&server, &node, &attacher, Duration::from_secs(30)).await;
    assert!(!flows.tcp_passes());

    // Deleted, it stays in force here, over a restart as well.
    server.remove("networks", "blue");
    until("it is deleted", || daemon.networks.get("blue").is_none() && !daemon.networks.retired().is_empty());
    daemon.stop().await;
    let daemon = Daemon::start(&server, &node, &attacher, Duration::from_secs(30)).await;
    assert!(!flows.udp_passes() && daemon.networks.of_uid("uid-blue").is_some());

    // Another network of the name is another network: its policy is not that of the ports there are.
    server.put(blue("uid-another", json!({})));
    until("another is known", || daemon.networks.get("blue").is_some());
    thread::sleep(Duration::from_millis(300));
    assert!(!flows.udp_passes());
    daemon.stop().await;
    end(node, &attacher).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_of_pods_go_through_the_gateway_of_now() {
    let name = "routes_of_pods_go_through_the_gateway_of_now";
    let Some(node) = Node::new(name, 1) else { return };
    let mut plan = port("c0", BLUE, 7, "net1");
    let route = |family: &str, gateway: &str| {
        json!({"destination": family, "gateway": gateway, "source": null, "scope": "universe", "table": 254,
            "protocol": 4, "metric": 0, "onlink": false})
    };
    let routes = [route("203.0.113.0/24", "10.78.0.1"), route("2001:db8:9::/48", "fd78::1")];
    plan.routes = routes.map(|route| serde_json::from_value(route).expect("a route")).into();
    let mut asked = plan.routes.clone();
    for route in &mut asked {
        route.gateway = None;
    }
    if let Some(Made::Port(port)) = &mut plan.made {
        port.asked = Some(Box::new(Asked { routes: asked, ..Asked::default() }));
    }
    node.claim("c0", 0, vec![plan]);
    let attacher = node.places.attacher();
    node.attach_all(&attacher).await;
    let shown = || node.pods[0].exec("ip route") + &node.pods[0].exec("ip -6 route");
    assert!(shown().contains("203.0.113.0/24 via 10.78.0.1"), "{}", shown());
    let followed = attacher.follow(&known(json!({"gateways": ["10.78.0.2", "fd78::2"]}))).await;
    assert_eq!(followed.changed, 1, "{followed:?}");
    for route in ["203.0.113.0/24 via 10.78.0.2", "2001:db8:9::/48 via fd78::2"] {
        assert!(shown().contains(route), "{}", shown());
    }
    assert!(!shown().contains("10.78.0.1 ") && !shown().contains("fd78::1 "), "{}", shown());
    assert_eq!(attacher.give_back("s0").await.problems, []);
    node.assert_nothing_left("after the return");
}

fn known(more: Value) -> Arc<ByUid> {
    let reference = NetworkRef { name: "blue".into(), uid: "uid-blue".into() };
    let spec = parse(&blue("uid-blue", more)["spec"]).expect("a spec");
    Arc::new(ByUid::from([("uid-blue".to_owned(), Arc::new(Network { reference, id: BLUE.1, spec }))]))
}

/// Names the places of the daemon that dies, which is this binary again.
const PART: &str = "NETFERRY_TEST_PART";

#[tokio::test]
async fn daemon_that_dies() {
    if env::var(PART).is_err() {
        return;
    }
    let place = |name: &str| PathBuf::from(env::var_os(name).expect("place"));
    let places =
        Places { host: place("HOST"), pod: place("POD"), store: place("STORE"), pins: place("PINS") };
    let attacher = places.attacher();
    let _scenario = fail::FailScenario::setup();
    attacher.follow(&known(deny_all())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_is_finished_by_the_next_daemon() {
    let name = "a_death_between_is_finished_by_the_next_daemon";
    let Some((node, _server, attacher)) = two_pods(name).await else { return };
    let points = FAILPOINTS.into_iter().chain(["store-before-write", "store-after-write"]);
    for point in
        points.flat_map(|point| ["", "1*off->", "2*off->"].map(|off| format!("{point}={off}return(abort)")))
    {
        let mut flows = Flows::open(&node.pods[1], SERVICE);
        assert!(flows.udp_passes(), "{point}");
        let died = Command::new(env::current_exe().expect("this binary"))
            .args(["--exact", "daemon_that_dies"])
            .env(PART, "follow")
            .env("FAILPOINTS", &point)
            .env("HOST", &node.places.host)
            .env("POD", &node.places.pod)
            .env("STORE", &node.places.store)
            .env("PINS", &node.places.pins)
            .output()
            .expect("child");
        println!("{point}: {}", died.status);
        let next = node.places.attacher();
        let followed = next.follow(&known(deny_all())).await;
        assert!(followed.networks.values().all(Vec::is_empty) && !followed.again, "{point}: {followed:?}");
        assert!(!flows.udp_passes() && !node.reaches(1, &v4(7)), "{point}");
        assert_eq!(next.follow(&known(deny_all())).await.changed, 0, "{point}: nothing is left to do");
        let back = next.follow(&known(json!({}))).await;
        assert_eq!(back.changed, 2, "{point}");
    }
    // The first one's view of the checkpoints is as old as its daemon.
    drop(attacher);
    let last = node.places.attacher();
    end(node, &last).await;
}
