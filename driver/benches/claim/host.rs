//! A host with one claimed link, a peer on its wire, and a pod.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use netferry::{
    attach::{Attacher, PodGuard, Unguarded},
    claim::{Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord, PodRef, store::Store},
    datapath::{AyaDatapath, Isolation, cgroup},
    link::{LinkRef, Links as _, MacAddr, Namespace, Route, Scope, kernel::KernelLinks},
    netns::KernelNamespaces,
    nri::PodSandbox,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    netns::{NetNs, unique},
    spread::Spread,
    timed,
    watched::{Listed, Steps, Watched},
};

pub(crate) struct Host {
    _peer: NetNs,
    pod: NetNs,
    pins: PathBuf,
    links: Arc<KernelLinks>,
    datapath: Option<Arc<AyaDatapath>>,
    /// Plain, and with a clock beside every call of the seams.
    attacher: Option<[Attacher; 2]>,
    steps: Steps,
    /// The pod's, where there is a hierarchy of version 2: then the pod is guarded, as a node does.
    cgroup: Option<PathBuf>,
    _disk: TempDir,
}

/// How long the parts of one round took.
pub(crate) struct Round {
    /// The link moved into the pod by one request, as it is, and back: by the same netlink code.
    pub(crate) bare: [Duration; 2],
    pub(crate) protect: Duration,
    pub(crate) attach: Duration,
    pub(crate) home: Duration,
    pub(crate) programs_off: Duration,
}

/// The claim whose link goes to and fro.
const CLAIM: &str = "c7";
/// Whole passes with the clocks and without them: they must agree, or a step is not seen.
pub(crate) const WITH: &str = "whole";
pub(crate) const WITHOUT: &str = "whole, steps not listed";

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
        let cgroup =
            cgroup::unified(Path::new(cgroup::DEFAULT_CGROUPS)).ok().map(|root| root.join(unique("bench")));
        let guard = |attacher: Attacher| match &cgroup {
            Some(folder) => {
                fs::create_dir_all(folder).expect("a cgroup");
                let cgroups = cgroup::DEFAULT_CGROUPS.into();
                attacher.guarding(PodGuard { cgroups, unguarded: Unguarded::Refuse })
            }
            None => attacher,
        };
        let steps = Steps::default();
        let plain = Attacher::new(
            Arc::clone(&links) as _,
            Arc::clone(&namespaces) as _,
            Arc::clone(&datapath) as _,
            Arc::clone(&store),
        );
        let watched = Attacher::new(
            Arc::new(Watched::new(Arc::clone(&links), &steps)),
            namespaces,
            Arc::new(Watched::new(Arc::clone(&datapath), &steps)),
            store,
        );
        let attacher = Some([guard(plain), guard(watched)]);
        Self { _peer: peer, pod, pins, links, datapath: Some(datapath), attacher, steps, cgroup, _disk: disk }
    }

    /// Attach and return so many times, by the plain attacher.
    pub(crate) async fn pass(&self, times: u64) -> Vec<Round> {
        let [plain, _] = self.attacher.as_ref().expect("open");
        let mut took = Vec::new();
        for _ in 0..times {
            took.push(self.round(plain).await.0);
        }
        took
    }

    /// The steps of an attach and of a return, as the two seams see them, and the whole of both in turn without the clocks.
    pub(crate) async fn stages(&self, times: usize) -> [(&'static str, Spread); 2] {
        let [plain, watched] = self.attacher.as_ref().expect("open");
        let (mut way_in, mut way_home) = (Spread::default(), Spread::default());
        for _ in 0..times {
            let (round, [attach, home]) = self.round(watched).await;
            way_in.add_run(&with_rest(attach, round.attach));
            way_home.add_run(&with_rest(home, round.home));
            let (round, _) = self.round(plain).await;
            way_in.add(WITHOUT, round.attach);
            way_home.add(WITHOUT, round.home);
        }
        [("steps of an attach", way_in), ("steps of a return", way_home)]
    }

    /// And the steps of attach and return, if the attacher lists them.
    async fn round(&self, attacher: &Attacher) -> (Round, [Listed; 2]) {
        let bare = self.bare_move().await;
        settle().await;
        // As on a node: the programs go on when the kubelet has its answer.
        let (protect, ()) = timed(attacher.protect(CLAIM)).await;
        settle().await;
        let _ = self.taken();
        let (attach, outcome) = timed(attacher.attach(&self.sandbox())).await;
        assert_eq!(outcome.expect("attach").attached.len(), 1);
        let in_steps = self.taken();
        settle().await;
        let (home, outcome) = timed(attacher.give_back_links("s1")).await;
        assert_eq!(outcome.problems, []);
        let home_steps = self.taken();
        let (programs_off, problems) = timed(attacher.finish_removals()).await;
        assert_eq!(problems, []);
        settle().await;
        (Round { bare, protect, attach, home, programs_off }, [in_steps, home_steps])
    }

    /// There and back, up as it is at home; what it loses on the way is put back after.
    async fn bare_move(&self) -> [Duration; 2] {
        let (host, pod) = (Namespace::Host, Namespace::at(&self.pod.path));
        let link = self.links.get(&host, &LinkRef::Name("eth7".into())).await.expect("eth7");
        let home = self.links.home(&host, link.ifindex).await.expect("its home");
        let (there, index) = timed(self.links.move_to(&host, link.ifindex, &pod, "net1", None)).await;
        let index = index.expect("move");
        self.links.set_up(&pod, index, true).await.expect("up, as it is when a pod ends");
        settle().await;
        let (back, index) = timed(self.links.move_to(&pod, index, &host, "eth7", Some(link.ifindex))).await;
        self.links.restore(index.expect("move"), &home).await.expect("restore");
        [there, back]
    }

    fn taken(&self) -> Listed {
        std::mem::take(&mut *self.steps.lock().expect("steps"))
    }

    fn sandbox(&self) -> PodSandbox {
        let netns = Some(self.pod.path.clone());
        PodSandbox {
            id: "s1".into(),
            pod: pod_ref(),
            netns,
            cgroup_parent: self.cgroup_name(),
            pid: Some(1),
            is_static: false,
            has_containers: false,
        }
    }
}

impl Host {
    fn cgroup_name(&self) -> Option<String> {
        Some(format!("/{}", self.cgroup.as_ref()?.file_name()?.to_string_lossy()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        (self.attacher, self.datapath) = (None, None);
        if let Some(folder) = &self.cgroup {
            let _ = fs::remove_dir(folder);
        }
        let _ = fs::remove_dir_all(&self.pins);
    }
}

/// On a node some tenths of a second are between these steps, in which the kernel ends what the one before has left to it:
/// the next one must not wait for that.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(40)).await;
}

/// What is no call of these seams: checkpoints, the hold of the namespace, and the way between threads.
fn with_rest(mut steps: Listed, whole: Duration) -> Listed {
    let seen: Duration = steps.iter().map(|(_, took)| *took).sum();
    steps.push(("checkpoints, hold and rest", whole.saturating_sub(seen)));
    steps.push((WITH, whole));
    steps
}

pub(crate) fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).status().expect("ip");
    assert!(done.success(), "ip {words}");
}

fn pod_ref() -> PodRef {
    PodRef { namespace: "default".into(), name: "web".into(), uid: "uid-web".into() }
}

pub(crate) fn plan() -> InterfacePlan {
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
