//! A node: the daemon in the node's network namespace, and the parts of kubelet and runtime that the test plays.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, UdpSocket},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use netferry::{claim::ClaimRef, datapath::AyaDatapath};
use tokio::{sync::watch, task::JoinHandle, task::block_in_place, time::sleep};

use crate::{
    cluster::{Cluster, NAMESPACE, NODES, Net},
    probe::PORT,
    random::Random,
    support::{
        daemon::{ClusterArgs, Daemon, Home},
        kubelet::{DriverHandle, Kubelet},
        netns::NetNs,
        runtime::{EventError, Generation, Plugin, PodSandboxSpec, Runtime},
    },
};

const BINARY: &str = env!("CARGO_BIN_EXE_netferry");
const PATIENCE: Duration = Duration::from_mins(2);

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Allocated,
    Prepared,
    Running,
    Stopped,
    Gone,
}

/// A pod with one port.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: u32,
    pub(crate) node: usize,
    pub(crate) network: Net,
    /// One of each family that its network has.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) claim: ClaimRef,
    pub(crate) netns: NetNs,
    /// Takes and sends what the matrix is made of, in both families.
    pub(crate) socket: UdpSocket,
    sandbox: PodSandboxSpec,
    stage: Stage,
    /// Whether it is to run.
    wanted: bool,
}

impl Pod {
    fn is_done(&self) -> bool {
        self.stage == if self.wanted { Stage::Running } else { Stage::Gone }
    }
}

/// What happened on the way.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) appeared: u32,
    pub(crate) vanished: u32,
    pub(crate) kills: u32,
    /// Calls to the daemon that failed because it was gone.
    pub(crate) broken: u32,
    /// Prepares that were refused and asked again, by reason.
    pub(crate) refused: BTreeMap<String, u32>,
}

pub(crate) struct Node {
    number: usize,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) counts: Mutex<Counts>,
    pub(crate) maps: AyaDatapath,
    pub(crate) home: Home,
    random: Random,
    serial: u32,
    daemon: Mutex<Option<Daemon>>,
    driver: DriverHandle,
    kubelet: Kubelet,
    plugin: watch::Receiver<Option<Arc<Plugin>>>,
    runtime: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.runtime.abort();
    }
}

impl Node {
    pub(crate) async fn start(cluster: &Arc<Cluster>, number: usize, seed: u64) -> Self {
        let mut home = Home::new();
        NODES[number].clone_into(&mut home.node_name);
        home.cluster = ClusterArgs::Kubeconfig(cluster.server.kubeconfig(home.folder()));
        home.arguments = vec!["--publish".into(), "false".into()];
        let mut runtime = Runtime::listen(home.nri_socket(), Generation::OwnCalls).unwrap();
        runtime.request_timeout = Duration::from_secs(10);
        let (runtime, mut plugin) = runtime.serve();
        let kubelet = Kubelet::new(&home.kubelet_root());
        let netns = &cluster.nodes[number];
        let mut daemon = netns.scoped(|| home.start(Path::new(BINARY)));
        block_in_place(|| netns.scoped(|| daemon.wait_ready()));
        plugin.changed().await.unwrap();
        let driver = kubelet.wait_for_driver(netferry::DRIVER_NAME).await;
        let maps = AyaDatapath::open(&home.bpffs().join("v1")).unwrap();
        Self {
            number,
            cluster: Arc::clone(cluster),
            pods: Vec::new(),
            counts: Mutex::default(),
            maps,
            home,
            random: Random::new(seed),
            serial: 0,
            daemon: Mutex::new(Some(daemon)),
            driver,
            kubelet,
            plugin,
            runtime,
        }
    }

    fn netns(&self) -> &NetNs {
        &self.cluster.nodes[self.number]
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap()
    }

    /// Pods come and go until so many changes are made and so many run. During some of the changes the daemon is killed.
    pub(crate) async fn live(&mut self, changes: usize, most: usize, kills: usize) {
        let kills: BTreeSet<_> = (0..kills).map(|_| 1 + self.random.below(changes)).collect();
        let mut made = 0;
        while made < changes || self.pods.len() < most {
            made += 1;
            let shrink = self.random.once_in(if made < changes { 3 } else { 5 });
            let full = self.pods.len() >= most;
            let index =
                if full || (shrink && !self.pods.is_empty()) { self.vanish() } else { self.appear().await };
            if kills.contains(&made) {
                let after = Duration::from_millis(self.random.next() % 80);
                let mut pod = self.pods.swap_remove(index);
                let kill = async {
                    sleep(after).await;
                    self.kill();
                };
                tokio::join!(self.advance(&mut pod), kill);
                self.pods.push(pod);
                // Something ends while nobody is there to hear of it.
                if self.random.once_in(2) {
                    self.vanish();
                    self.advance_all(1).await;
                }
                self.start_daemon().await;
            }
            self.advance_all(usize::MAX).await;
        }
    }

    /// Every pod goes.
    pub(crate) async fn live_none(&mut self) {
        self.pods.iter_mut().for_each(|pod| pod.wanted = false);
        self.advance_all(usize::MAX).await;
    }

    async fn appear(&mut self) -> usize {
        self.serial += 1;
        let name = format!("{}-{}", ["a", "b"][self.number], self.serial);
        let network = self.cluster.networks[self.random.below(self.cluster.networks.len())].clone();
        let (claim, addresses) = self.cluster.claim(&name, &network, self.number).await;
        let netns = NetNs::new();
        let socket = netns.scoped(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap());
        socket.set_nonblocking(true).unwrap();
        let sandbox = PodSandboxSpec::new(NAMESPACE, &name, &format!("pod-{name}"), Some(&netns.path));
        let id = self.serial * 2 + u32::try_from(self.number).unwrap();
        let stage = Stage::Allocated;
        let node = self.number;
        self.pods.push(Pod {
            id,
            node,
            network,
            addresses,
            claim,
            netns,
            socket,
            sandbox,
            stage,
            wanted: true,
        });
        self.counts().appeared += 1;
        self.pods.len() - 1
    }

    /// Let one that is there go.
    fn vanish(&mut self) -> usize {
        let index = self.random.below(self.pods.len());
        if std::mem::replace(&mut self.pods[index].wanted, false) {
            self.counts().vanished += 1;
        }
        index
    }

    /// Bring every pod where it is to be; `tries` for each.
    async fn advance_all(&mut self, tries: usize) {
        let mut pods = std::mem::take(&mut self.pods);
        for pod in &mut pods {
            let start = Instant::now();
            for _ in 0..tries {
                if pod.is_done() {
                    break;
                }
                assert!(start.elapsed() < PATIENCE, "{} stays {:?}", pod.claim, pod.stage);
                self.advance(pod).await;
            }
        }
        pods.retain(|pod| pod.stage != Stage::Gone);
        self.pods = pods;
    }

    /// What kubelet and runtime do for a pod, up to what fails.
    async fn advance(&self, pod: &mut Pod) {
        while !pod.is_done() {
            let done = match (pod.stage, pod.wanted) {
                (Stage::Allocated, true) => self.prepare(pod).await,
                (Stage::Prepared, true) => {
                    self.run(pod).await;
                    true
                }
                (Stage::Running, _) => {
                    self.stop(pod).await;
                    true
                }
                _ => self.unprepare(pod).await,
            };
            if !done {
                sleep(Duration::from_millis(50)).await;
                return;
            }
        }
    }

    async fn prepare(&self, pod: &mut Pod) -> bool {
        match self.driver.prepare(std::slice::from_ref(&pod.claim)).await {
            Ok(outcomes) => match &outcomes[&pod.claim.uid] {
                Ok(_) => {
                    pod.stage = Stage::Prepared;
                    return true;
                }
                Err(why) => *self.counts().refused.entry(why.clone()).or_default() += 1,
            },
            Err(_) => self.counts().broken += 1,
        }
        false
    }

    fn plugin(&self) -> Arc<Plugin> {
        self.plugin.borrow().clone().expect("a plugin was there")
    }

    /// The runtime starts a pod without a plugin that it lost.
    async fn run(&self, pod: &mut Pod) {
        match self.plugin().start_pod(&pod.sandbox).await {
            Ok(()) => {}
            Err(EventError::PluginLost(_)) => self.counts().broken += 1,
            Err(EventError::Refused(why)) => panic!("{}: its container is refused: {why}", pod.claim),
        }
        pod.stage = Stage::Running;
    }

    async fn stop(&self, pod: &mut Pod) {
        let plugin = self.plugin();
        let stopped = plugin.stop_pod_sandbox(&pod.sandbox).await;
        pod.netns.vanish();
        let removed = plugin.remove_pod_sandbox(&pod.sandbox).await;
        self.counts().broken += u32::from(stopped.is_err()) + u32::from(removed.is_err());
        pod.stage = Stage::Stopped;
    }

    async fn unprepare(&self, pod: &mut Pod) -> bool {
        match self.driver.unprepare(std::slice::from_ref(&pod.claim)).await {
            Ok(outcomes) => match &outcomes[&pod.claim.uid] {
                Ok(()) => {
                    self.cluster.server.remove("resourceclaims", &pod.claim.to_string());
                    pod.stage = Stage::Gone;
                    return true;
                }
                Err(why) => *self.counts().refused.entry(why.clone()).or_default() += 1,
            },
            Err(_) => self.counts().broken += 1,
        }
        false
    }

    fn kill(&self) {
        let daemon = self.daemon.lock().unwrap().take().expect("a daemon");
        daemon.kill();
        self.counts().kills += 1;
    }

    async fn start_daemon(&mut self) {
        self.plugin.borrow_and_update();
        let mut daemon = self.netns().scoped(|| self.home.start(Path::new(BINARY)));
        block_in_place(|| self.netns().scoped(|| daemon.wait_ready()));
        self.driver = self.kubelet.wait_for_another(&self.driver).await;
        self.plugin.changed().await.unwrap();
        *self.daemon.lock().unwrap() = Some(daemon);
    }

    /// Pairs that the node has for ports.
    pub(crate) fn pairs(&self) -> usize {
        let links = self.netns().links();
        links.iter().filter(|name| name.len() == 15 && name.starts_with("nf")).count()
    }

    /// The node's numbers of networks.
    pub(crate) fn networks(&self) -> BTreeMap<String, u32> {
        let out = Command::new(BINARY)
            .args(["networks", "-o", "json", "--state-dir"])
            .arg(self.home.state_dir())
            .output()
            .unwrap();
        let all: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
        let number = |it: &serde_json::Value| u32::try_from(it["id"].as_u64().unwrap()).unwrap();
        all.iter().map(|it| (it["name"].as_str().unwrap().to_owned(), number(it))).collect()
    }

    /// End the daemon in order.
    pub(crate) fn end(&self) {
        let daemon = self.daemon.lock().unwrap().take().expect("a daemon");
        assert!(block_in_place(|| daemon.stop()).success());
    }
}
