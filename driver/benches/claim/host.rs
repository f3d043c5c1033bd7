//! A host with one claimed link, a peer on its wire, and a pod.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use netferry::{
    attach::Attacher,
    claim::{Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord, PodRef, store::Store},
    datapath::{AyaDatapath, Isolation},
    link::{MacAddr, Route, Scope, kernel::KernelLinks},
    netns::KernelNamespaces,
    nri::PodSandbox,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    netns::{NetNs, unique},
    spread::Spread,
    timed,
    watched::{Steps, Watched},
};

pub(crate) struct Host {
    _peer: NetNs,
    pod: NetNs,
    pins: PathBuf,
    store: Arc<Store>,
    namespaces: Arc<KernelNamespaces>,
    links: Arc<KernelLinks>,
    datapath: Option<Arc<AyaDatapath>>,
    attacher: Option<Attacher>,
    _disk: TempDir,
}

/// The claim whose link goes to and fro.
const CLAIM: &str = "c7";

impl Host {
    /// In the namespace of the process.
    pub(crate) fn new(runtime: &Runtime) -> Self {
        let _inside = runtime.enter();
        let pins = Path::new("/sys/fs/bpf").join(unique("bench"));
        fs::create_dir_all(&pins).expect("a bpf file system at /sys/fs/bpf");
        let (peer, pod) = (NetNs::new(), NetNs::new());
        ip("link set lo up");
        ip(&format!("link add eth7 type veth peer name far7 netns {}", peer.name));
        peer.ip("link set far7 up");
        peer.ip("addr add 198.51.100.1/24 dev far7");
        for words in [
            "link set eth7 up",
            "addr add 198.51.100.70/24 brd + dev eth7",
            "addr add 2001:db8:7::70/64 dev eth7",
            "route add 192.0.2.0/24 via 198.51.100.1 metric 9",
        ] {
            ip(words);
        }
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        let store = Arc::new(Store::open(disk.path()).expect("store").0);
        let claim = ClaimRef { namespace: "default".into(), name: CLAIM.into(), uid: CLAIM.into() };
        let interfaces = vec![InterfaceRecord::planned(plan())];
        store.put(Checkpoint::new(claim, vec![pod_ref()], interfaces)).expect("checkpoint");
        let links = Arc::new(KernelLinks::new());
        let datapath = Arc::new(AyaDatapath::open(&pins).expect("datapath"));
        let namespaces = Arc::new(KernelNamespaces::new(disk.path().join("netns")));
        let attacher = Attacher::new(
            Arc::clone(&links) as _,
            Arc::clone(&namespaces) as _,
            Arc::clone(&datapath) as _,
            Arc::clone(&store),
        );
        let (attacher, datapath) = (Some(attacher), Some(datapath));
        Self { _peer: peer, pod, pins, store, namespaces, links, datapath, attacher, _disk: disk }
    }

    /// Attach and return so many times; how long each took.
    pub(crate) async fn pass(&self, times: u64) -> Vec<(Duration, Duration)> {
        let attacher = self.attacher.as_ref().expect("open");
        let mut took = Vec::new();
        for _ in 0..times {
            took.push(self.round(attacher).await);
        }
        took
    }

    /// The steps of an attach and of a return, as the two seams and the store see them.
    pub(crate) async fn stages(&self, times: usize) -> [(&'static str, Spread); 2] {
        let steps: Steps = Arc::new(Mutex::default());
        let links = Watched::new(Arc::clone(&self.links), &steps);
        let datapath = Watched::new(Arc::clone(self.datapath.as_ref().expect("open")), &steps);
        let attacher = Attacher::new(
            Arc::new(links),
            Arc::clone(&self.namespaces) as _,
            Arc::new(datapath),
            Arc::clone(&self.store),
        );
        let taken = || std::mem::take(&mut *steps.lock().expect("steps"));
        let (mut way_in, mut way_home) = (Spread::default(), Spread::default());
        for _ in 0..times {
            attacher.protect(CLAIM).await;
            let (whole, outcome) = timed(attacher.attach(&self.sandbox())).await;
            assert_eq!(outcome.expect("attach").attached.len(), 1);
            way_in.add_run(&with_rest(taken(), whole));
            let (whole, _) = timed(attacher.give_back("s1")).await;
            way_home.add_run(&with_rest(taken(), whole));
        }
        [("steps of an attach", way_in), ("steps of a return", way_home)]
    }

    async fn round(&self, attacher: &Attacher) -> (Duration, Duration) {
        // As on a node: the programs go on when the kubelet has its answer.
        attacher.protect(CLAIM).await;
        let (attach, outcome) = timed(attacher.attach(&self.sandbox())).await;
        assert_eq!(outcome.expect("attach").attached.len(), 1);
        let (home, outcome) = timed(attacher.give_back("s1")).await;
        assert_eq!(outcome.problems, []);
        (attach, home)
    }

    fn sandbox(&self) -> PodSandbox {
        let netns = Some(self.pod.path.clone());
        PodSandbox {
            id: "s1".into(),
            pod: pod_ref(),
            netns,
            cgroup_parent: None,
            pid: Some(1),
            is_static: false,
            has_containers: false,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        (self.attacher, self.datapath) = (None, None);
        let _ = fs::remove_dir_all(&self.pins);
    }
}

/// What is no call of a seam: the two checkpoints, and the way between threads.
fn with_rest(mut steps: Vec<(&'static str, Duration)>, whole: Duration) -> Vec<(&'static str, Duration)> {
    let seen: Duration = steps.iter().map(|(_, took)| *took).sum();
    steps.push(("checkpoints and the rest", whole.saturating_sub(seen)));
    steps.push(("whole", whole));
    steps
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).status().expect("ip");
    assert!(done.success(), "ip {words}");
}

fn pod_ref() -> PodRef {
    PodRef { namespace: "default".into(), name: "web".into(), uid: "uid-web".into() }
}

fn plan() -> InterfacePlan {
    let route = |destination: &str, gateway: Option<&str>| Route {
        destination: destination.parse().expect("network"),
        gateway: gateway.map(|gateway| gateway.parse().expect("address")),
        source: None,
        scope: if gateway.is_some() { Scope::Universe } else { Scope::Link },
        table: 254,
        protocol: 4,
        metric: 0,
        onlink: false,
    };
    InterfacePlan {
        request: "nic".into(),
        pool: "node".into(),
        device: "eth7".into(),
        share_id: None,
        host_link: "eth7".into(),
        name: "net1".into(),
        hardware_addr: Some(MacAddr([2, 0xaa, 0, 0, 0, 7])),
        mtu: Some(1400),
        addresses: ["198.51.100.7/24", "2001:db8:7::7/64"].map(|it| it.parse().expect("address")).to_vec(),
        routes: vec![
            route("10.7.0.0/16", None),
            route("0.0.0.0/0", Some("198.51.100.1")),
            route("::/0", Some("2001:db8:7::1")),
        ],
        isolation: Isolation::Strict,
        early_drop: true,
        policy: None,
        limits: None,
        made: None,
    }
}
