//! A host in a namespace of its own, with the real links, programs and checkpoints.
#![allow(dead_code, reason = "each test binary uses a part of it")]

#[path = "../support/ports.rs"]
mod ports;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use netferry::{
    attach::{Attacher, PodGuard, Reason, Unguarded},
    claim::{Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord, PodRef, store::Store},
    datapath::{
        AttachedProgram, AyaDatapath, Datapath, DatapathError, EndpointId, EndpointSpec, EndpointStats,
        Features, ForeignProgram, Isolation, cgroup,
        limits::Limits,
        policy::{Policy, Resolved},
        state::{MapPart, Wanted},
    },
    link::{Links, MacAddr, Route, Scope, kernel::KernelLinks},
    netns::{KernelNamespaces, Namespaces as _},
    nri::PodSandbox,
};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
};

pub(crate) use ports::ports;

use crate::support::{
    netns::{NetNs, Snapshot, Veth, may_make_namespaces, unique},
    skip,
};

pub(crate) const MAC: MacAddr = MacAddr([2, 0xaa, 0, 0, 0, 7]);

/// Where a daemon keeps things: enough for another process to be that daemon.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) host: PathBuf,
    pub(crate) pod: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) pins: PathBuf,
}

pub(crate) struct World {
    pub(crate) host: NetNs,
    pub(crate) peer: NetNs,
    pub(crate) pod: NetNs,
    pub(crate) places: Places,
    /// What the host was before.
    pub(crate) before: Snapshot,
    _dir: tempfile::TempDir,
}

impl World {
    /// `None`, and the reason printed, where the machine cannot. Duplicate address detection is off: it takes
    /// a second for each look at the host.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::make(test, false)
    }

    /// With duplicate address detection, as on a real host.
    pub(crate) fn patient(test: &str) -> Option<Self> {
        Self::make(test, true)
    }

    fn make(test: &str, dad: bool) -> Option<Self> {
        if !may_make_namespaces() {
            skip(test, "network namespaces cannot be made here");
            return None;
        }
        let pins = Path::new("/sys/fs/bpf").join(unique("p"));
        if fs::create_dir_all(&pins).is_err() {
            skip(test, "no bpf file system at /sys/fs/bpf");
            return None;
        }
        let (host, peer, pod) = (NetNs::new(), NetNs::new(), NetNs::new());
        if !dad {
            host.run(|| {
                for scope in ["all", "default"] {
                    fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0").expect("sysctl");
                }
            });
        }
        Veth::pair(&host, "eth7", &peer, "far7");
        Veth::pair(&host, "eth8", &peer, "far8");
        for words in ["link set far7 up", "link set far8 up", "addr add 198.51.100.1/24 dev far7"] {
            peer.ip(words);
        }
        peer.ip("addr add 2001:db8:7::1/64 dev far7 nodad");
        for words in [
            "link property add dev eth7 altname enp9s0",
            "link set eth7 mtu 1480 txqueuelen 777",
            "addr add 198.51.100.70/24 brd + dev eth7",
            "link set eth7 up",
            "addr add 2001:db8:7::70/64 dev eth7",
            "route add 192.0.2.0/24 via 198.51.100.1 metric 9",
            "-6 route add 2001:db8:99::/48 via 2001:db8:7::1 table 1007",
            "neigh add 198.51.100.50 lladdr 02:00:00:00:00:50 dev eth7 nud permanent",
            "addr add 203.0.113.1/24 dev eth8",
        ] {
            host.ip(words);
        }
        let dir = tempfile::tempdir().expect("folder");
        let places =
            Places { host: host.path.clone(), pod: pod.path.clone(), store: dir.path().to_owned(), pins };
        if let Some(cgroup) = places.cgroup_folder() {
            fs::create_dir(cgroup).expect("the pod's cgroup");
        }
        // The kernel works out the state of a link that is up a moment later.
        for _ in 0..100 {
            if host.link("eth7").is_some_and(|link| link["operstate"] == "UP") {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
        let before = host.snapshot();
        Some(Self { host, peer, pod, places, before, _dir: dir })
    }

    /// The claims of the pod: `eth7` with everything, and `eth8` without isolation.
    pub(crate) fn claim(&self) {
        let store = self.places.store();
        for (uid, plan) in [("c7", plan_of_eth7()), ("c8", plan_of_eth8())] {
            let claim = ClaimRef { namespace: "default".into(), name: uid.into(), uid: uid.into() };
            let interfaces = vec![InterfaceRecord::planned(plan)];
            store.put(Checkpoint::new(claim, vec![pod_ref()], interfaces)).expect("checkpoint");
        }
    }

    pub(crate) fn assert_home(&self, when: &str) {
        self.before.assert_same(&self.host.snapshot_like(&self.before), when);
        self.assert_nothing_left(when);
    }

    /// Attaches one link of the host, lets it die with the pod's namespace, and finds it as it was after the return.
    pub(crate) async fn dies_and_is_made_anew(&self, link: &str, plan: InterfacePlan) {
        self.host.settle();
        let before = self.host.snapshot();
        let claim = ClaimRef { namespace: "default".into(), name: "c".into(), uid: "c".into() };
        let plan = InterfacePlan { device: link.into(), host_link: link.into(), ..plan };
        let interfaces = vec![InterfaceRecord::planned(plan)];
        self.places.store().put(Checkpoint::new(claim, vec![pod_ref()], interfaces)).expect("checkpoint");
        let attacher = self.places.attacher();
        let outcome = attacher.attach(&self.places.sandbox()).await.expect("attach");
        assert_eq!(outcome.problems, [], "{link}");
        assert!(self.host.link(link).is_none(), "{link} is in the pod");
        // Somebody has taken away what keeps the namespace.
        for hold in self.places.namespaces().held().await.expect("holds") {
            self.places.namespaces().release(&hold).await.expect("release");
        }
        self.pod.vanish();
        let mut outcome = attacher.give_back("s1").await;
        // An emulated kernel takes its time to clear a namespace up.
        for _ in 0..100 {
            if !outcome.problems.iter().any(|problem| problem.reason == Reason::NotReturned) {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(100));
            outcome = attacher.give_back("s1").await;
        }
        let reasons: Vec<_> = outcome.problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, [Reason::Remade], "{:?}", outcome.problems);
        before.assert_same(&self.host.snapshot_like(&before), link);
        self.assert_nothing_left(link);
    }

    /// No program, pin or checkpoint is left over.
    pub(crate) fn assert_nothing_left(&self, when: &str) {
        assert_eq!(self.places.datapath().endpoints().expect("endpoints"), Vec::<u32>::new(), "{when}");
        for checkpoint in self.places.store().all() {
            assert!(checkpoint.interfaces.iter().all(|it| it.attachment.is_none()), "{when}: {checkpoint:?}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for hold in fs::read_dir(self.places.store.join("netns")).into_iter().flatten().flatten() {
            let _ = umount2(&hold.path(), MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.places.pins);
        self.places.cgroup_folder().map(fs::remove_dir);
    }
}

impl Places {
    pub(crate) fn sandbox(&self) -> PodSandbox {
        PodSandbox {
            id: "s1".into(),
            pod: pod_ref(),
            netns: Some(self.pod.clone()),
            cgroup_parent: Some(self.cgroup()),
            pid: Some(1),
            is_static: false,
            has_containers: false,
        }
    }

    /// The pod's cgroup, as a runtime names it.
    fn cgroup(&self) -> String {
        format!("/{}", self.pins.file_name().expect("a name").to_str().expect("UTF-8"))
    }

    /// Where it is; `None` on a machine with cgroups of version 1 alone.
    pub(crate) fn cgroup_folder(&self) -> Option<PathBuf> {
        let unified = cgroup::unified(Path::new(cgroup::DEFAULT_CGROUPS)).ok()?;
        Some(unified.join(self.cgroup().trim_start_matches('/')))
    }

    /// The real parts, guarded where this machine can.
    pub(crate) fn guarded(&self, attacher: Attacher) -> Attacher {
        if self.cgroup_folder().is_none() {
            return attacher;
        }
        let cgroups = PathBuf::from(cgroup::DEFAULT_CGROUPS);
        attacher.guarding(PodGuard { cgroups, unguarded: Unguarded::Refuse })
    }

    pub(crate) fn store(&self) -> Arc<Store> {
        Arc::new(Store::open(&self.store).expect("store").0)
    }

    pub(crate) fn namespaces(&self) -> KernelNamespaces {
        KernelNamespaces::new(self.store.join("netns")).of_host(&self.host)
    }

    /// These parts, without guards.
    pub(crate) fn plain(&self, links: impl Links + 'static, datapath: impl Datapath + 'static) -> Attacher {
        Attacher::new(Arc::new(links), Arc::new(self.namespaces()), Arc::new(datapath), self.store())
    }

    pub(crate) fn links(&self) -> KernelLinks {
        KernelLinks::with_host(&self.host)
    }

    pub(crate) fn datapath(&self) -> InHost {
        self.datapath_with(Features::probe())
    }

    /// The datapath as on a kernel with these features.
    pub(crate) fn datapath_with(&self, features: Features) -> InHost {
        let datapath = AyaDatapath::open_with(&self.pins, features).expect("datapath");
        InHost { datapath: Arc::new(datapath), host: self.host.clone() }
    }

    /// A daemon that has just started.
    pub(crate) fn attacher(&self) -> Attacher {
        self.guarded(self.plain(self.links(), self.datapath()).making(ports()))
    }
}

pub(crate) fn pod_ref() -> PodRef {
    PodRef { namespace: "default".into(), name: "web".into(), uid: "uid-web".into() }
}

fn route(destination: &str, gateway: Option<&str>) -> Route {
    Route {
        destination: destination.parse().expect("network"),
        gateway: gateway.map(|gateway| gateway.parse().expect("address")),
        source: None,
        scope: if gateway.is_some() { Scope::Universe } else { Scope::Link },
        table: 254,
        protocol: 4,
        metric: 0,
        onlink: false,
    }
}

pub(crate) fn plan_of_eth7() -> InterfacePlan {
    InterfacePlan {
        request: "nic".into(),
        pool: "node".into(),
        device: "eth7".into(),
        share_id: None,
        host_link: "eth7".into(),
        name: "net1".into(),
        hardware_addr: Some(MAC),
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

pub(crate) fn plan_of_eth8() -> InterfacePlan {
    InterfacePlan {
        device: "eth8".into(),
        host_link: "eth8".into(),
        name: "net2".into(),
        hardware_addr: None,
        mtu: None,
        addresses: vec!["203.0.113.8/24".parse().expect("address")],
        routes: vec![],
        isolation: Isolation::Off,
        early_drop: true,
        ..plan_of_eth7()
    }
}

/// The programs' side, with every call made in the namespace that plays the host.
#[derive(Clone)]
pub(crate) struct InHost {
    pub(crate) datapath: Arc<AyaDatapath>,
    host: PathBuf,
}

impl InHost {
    fn call<T: Send>(&self, call: impl FnOnce(&AyaDatapath) -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(File::open(&self.host).expect("host"), CloneFlags::CLONE_NEWNET).expect("setns");
                call(&self.datapath)
            });
            inside.join().expect("call")
        })
    }
}

impl Datapath for InHost {
    fn foreign_programs(&self, ifindex: u32) -> Result<Vec<ForeignProgram>, DatapathError> {
        self.call(|datapath| datapath.foreign_programs(ifindex))
    }
    fn attach(&self, ifindex: u32, spec: &EndpointSpec) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.call(|datapath| datapath.attach(ifindex, spec))
    }
    fn travels(&self) -> bool {
        self.datapath.travels()
    }
    fn attach_inside(
        &self,
        netns: &Path,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.call(|datapath| datapath.attach_inside(netns, ifindex, spec))
    }
    fn verify(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.call(|datapath| datapath.verify(id, ifindex))
    }
    fn preload(&self, spec: &EndpointSpec) -> Result<(), DatapathError> {
        self.call(|datapath| datapath.preload(spec))
    }
    fn set_policy(&self, id: EndpointId, policy: &Policy) -> Result<(), DatapathError> {
        self.call(|datapath| datapath.set_policy(id, policy))
    }
    fn set_policy_for(&self, id: EndpointId, policy: &Policy, peers: &Resolved) -> Result<(), DatapathError> {
        self.call(|datapath| datapath.set_policy_for(id, policy, peers))
    }
    fn set_limits(&self, id: EndpointId, limits: &Limits) -> Result<(), DatapathError> {
        self.call(|datapath| datapath.set_limits(id, limits))
    }
    fn guard_link(&self, id: EndpointId, ifindex: u32) -> Result<Option<String>, DatapathError> {
        self.call(|datapath| datapath.guard_link(id, ifindex))
    }
    fn guard_pod(&self, id: EndpointId, cgroup: &Path) -> Result<(), DatapathError> {
        self.call(|datapath| datapath.guard_pod(id, cgroup))
    }
    fn guards(&self, id: EndpointId) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.call(|datapath| datapath.guards(id))
    }
    fn serves(&self, id: EndpointId, netns: &Path, ifindex: u32) -> Result<bool, DatapathError> {
        self.datapath.serves(id, netns, ifindex)
    }
    fn verify_inside(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.call(|datapath| datapath.verify_inside(id, ifindex))
    }
    fn compare(&self, wanted: &[Wanted]) -> Result<BTreeMap<EndpointId, Vec<MapPart>>, DatapathError> {
        self.call(|datapath| datapath.compare(wanted))
    }
    fn mend(&self, wanted: &Wanted) -> Result<(), DatapathError> {
        self.call(|datapath| datapath.mend(wanted))
    }
    fn set_ready(&self, id: EndpointId, ready: bool) -> Result<(), DatapathError> {
        self.call(|datapath| datapath.set_ready(id, ready))
    }
    fn attached_ifindex(&self, id: EndpointId) -> Result<Option<u32>, DatapathError> {
        self.call(|datapath| datapath.attached_ifindex(id))
    }
    fn detach(&self, id: EndpointId) -> Result<(), DatapathError> {
        self.call(|datapath| datapath.detach(id))
    }
    fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        self.call(AyaDatapath::endpoints)
    }
    fn last_endpoint(&self) -> Result<EndpointId, DatapathError> {
        self.call(AyaDatapath::last_endpoint)
    }
    fn stats(&self, id: EndpointId) -> Result<EndpointStats, DatapathError> {
        self.call(|datapath| datapath.stats(id))
    }
}
