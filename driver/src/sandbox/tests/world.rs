//! A node of models: its links and namespaces, its runtime's store of sandboxes, and the driver's daemon, which may be killed.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use super::cluster::Claims;
use crate::{
    attach::Attacher,
    claim::{
        Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord, Made, PodRef, Port, service::Release as _,
        store::Store,
    },
    datapath::{Datapath as _, Isolation, fake::FakeDatapath},
    link::{
        KindData, MacAddr, Namespace, Recipe,
        fake::{FakeLink, FakeLinks},
    },
    metrics::{Metrics, Sources},
    netns::Namespaces as _,
    network::NetworkRef,
    nri::{PodEvents as _, PodSandbox},
    readiness::Readiness,
    sandbox::{Registry, Sandboxes},
    status::{Backoff, Reporter},
};

/// Pods 0 to 2 have a claim each; the last one names the claim of pod 0.
pub(super) const PODS: usize = 4;

/// A sandbox in the runtime's store.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) sandbox: PodSandbox,
    pub(super) pod: usize,
    pub(super) alive: bool,
    /// Older than the runtime's start: containerd reports neither its stop nor its removal.
    older: bool,
}

/// See the module.
pub(super) struct World {
    pub(super) links: Arc<FakeLinks>,
    pub(super) datapath: Arc<FakeDatapath>,
    pub(super) claims: Arc<Claims>,
    pub(super) stored: Vec<Stored>,
    pub(super) daemon: Option<Arc<Sandboxes>>,
    /// Links of the host as this boot's configuration made them.
    home: Vec<FakeLink>,
    disk: tempfile::TempDir,
    boots: u32,
    made: u32,
    /// The runtime removes a namespace before it reports the stop (CRI-O), and not after it (containerd).
    pub(super) removes_first: bool,
    /// The runtime names no namespace of a dead sandbox (containerd 1.7), or the stale path (containerd 2.1).
    pub(super) dead_without_path: bool,
}

pub(super) fn pod(number: usize) -> PodRef {
    PodRef { namespace: "default".into(), name: format!("p{number}"), uid: format!("uid-p{number}") }
}

/// Of which claim a pod is.
pub(super) const fn claim_of(pod: usize) -> usize {
    if pod == 3 { 0 } else { pod }
}

fn claim_ref(number: usize) -> ClaimRef {
    let name = format!("c{number}");
    ClaimRef { namespace: "default".into(), name: name.clone(), uid: name }
}

pub(super) fn plan(device: &str, name: &str, isolation: Isolation) -> InterfacePlan {
    InterfacePlan {
        request: name.into(),
        pool: "node".into(),
        device: device.into(),
        share_id: None,
        host_link: device.into(),
        name: name.into(),
        hardware_addr: None,
        mtu: Some(1400),
        addresses: vec!["192.0.2.7/24".parse().unwrap()],
        routes: vec![],
        isolation,
        early_drop: true,
        policy: None,
        limits: None,
        made: None,
    }
}

fn port_plan() -> InterfacePlan {
    let network = NetworkRef { name: "blue".into(), uid: "blue".into() };
    let port = Port::new(network, 7);
    InterfacePlan {
        host_link: "nf-port2".into(),
        hardware_addr: Some(MacAddr([2, 0, 0, 0, 7, 7])),
        made: Some(Made::Port(port)),
        ..plan("port-blue", "net2", Isolation::Strict)
    }
}

/// Two links each: hardware and a software link, the same without isolation, hardware and a port.
pub(super) fn plans(claim: usize) -> Vec<InterfacePlan> {
    match claim {
        0 => vec![plan("hw0", "net1", Isolation::Strict), plan("sw0", "net2", Isolation::Strict)],
        1 => vec![plan("sw1", "net1", Isolation::Off), plan("hw1", "net2", Isolation::BestEffort)],
        _ => vec![plan("hw2", "net1", Isolation::Strict), port_plan()],
    }
}

fn host_links(boot: u32) -> Vec<FakeLink> {
    let recipe = || Recipe { data: KindData::Dummy, parent: None };
    let mut links = vec![
        FakeLink::hardware("hw0", 10),
        FakeLink::hardware("hw1", 11),
        FakeLink::hardware("hw2", 12),
        FakeLink::hardware("sw0", 13).of_kind("dummy").made_by(recipe()),
        FakeLink::hardware("sw1", 14).of_kind("dummy").made_by(recipe()),
    ];
    for link in &mut links {
        // Each boot's configuration is another.
        link.home.link.mtu = 1500 + boot;
    }
    links
}

impl World {
    pub(super) fn new() -> Self {
        let home = host_links(0);
        let links = Arc::new(FakeLinks::new());
        for link in &home {
            links.put(&Namespace::Host, link.clone());
        }
        let memory = std::path::Path::new("/dev/shm");
        let disk = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self {
            links,
            datapath: Arc::default(),
            claims: Arc::default(),
            stored: Vec::new(),
            daemon: None,
            home,
            disk: disk.unwrap(),
            boots: 0,
            made: 0,
            removes_first: false,
            dead_without_path: false,
        }
    }

    pub(super) fn store(&self) -> Option<Arc<Store>> {
        self.daemon.as_ref().map(|daemon| Arc::clone(&daemon.store))
    }

    /// The daemon starts; the runtime lists its sandboxes.
    pub(super) async fn start(&mut self) {
        if self.daemon.is_some() {
            return;
        }
        self.forget_devices();
        // A daemon that is killed writes nothing afterwards; what its one blocking thread is at here ends first.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        let boot = self.links.boot_id();
        let store = Arc::new(Store::open_in_boot(self.disk.path(), &boot).unwrap().0);
        let attacher = Attacher::new(
            Arc::clone(&self.links) as _,
            Arc::clone(&self.links) as _,
            Arc::clone(&self.datapath) as _,
            Arc::clone(&store),
        );
        let cluster = Arc::clone(&self.claims);
        let (reporter, _) = Reporter::start(
            Arc::clone(&cluster) as _,
            Arc::clone(&store) as _,
            "netferry.dev",
            Backoff::default(),
        );
        let metrics = Metrics::new(Sources {
            readiness: Arc::new(Readiness::new()),
            publisher: Arc::default(),
            followed: Arc::default(),
            network_drops: Box::new(Vec::new),
            pods_waiting: Box::new(|| 0),
            namespaces_held: Box::new(|| 0),
            holdings: Box::new(Vec::new),
        });
        self.daemon = Some(Arc::new(Sandboxes {
            attacher: Arc::new(attacher),
            store,
            cluster,
            reporter,
            metrics: Arc::new(metrics),
            registry: Arc::new(Registry::default()),
            wake: Arc::default(),
        }));
        self.list(false).await;
    }

    /// kill -9.
    pub(super) fn kill(&mut self) {
        self.daemon = None;
    }

    /// The kubelet prepares a claim, once, if it has a daemon to ask.
    pub(super) fn prepare(&self, number: usize) -> bool {
        let Some(store) = self.store() else { return false };
        let claim = claim_ref(number);
        if store.get(&claim.uid).is_none() {
            let consumers =
                self.claims.reserved.lock().unwrap().get(&claim.name).cloned().unwrap_or_default();
            let interfaces = plans(number).into_iter().map(InterfaceRecord::planned).collect();
            let mut checkpoint = Checkpoint::new(claim, consumers, interfaces);
            checkpoint.shareable = number == 0;
            store.put(checkpoint).unwrap();
        }
        true
    }

    pub(super) fn living(&self, pod: usize) -> Option<&Stored> {
        self.stored.iter().find(|stored| stored.pod == pod && stored.alive)
    }

    fn free_path(&self) -> PathBuf {
        // Few, so that they are given again.
        let used =
            |path: &PathBuf| self.stored.iter().any(|it| it.alive && it.sandbox.netns.as_ref() == Some(path));
        let mut paths = (0..=PODS).map(|number| PathBuf::from(format!("/run/netns/cni-{number}")));
        paths.find(|path| !used(path)).unwrap()
    }

    /// The kubelet starts a pod: claim, then sandbox. Nothing if it runs, or cannot be prepared.
    pub(super) async fn run(&mut self, number: usize) {
        let claim = claim_of(number);
        if self.living(number).is_some() {
            return;
        }
        let mut consumers =
            self.claims.reserved.lock().unwrap().get(&format!("c{claim}")).cloned().unwrap_or_default();
        if !consumers.contains(&pod(number)) {
            consumers.push(pod(number));
        }
        self.claims.reserve(&format!("c{claim}"), consumers);
        if !self.prepare(claim) && !self.is_prepared(claim) {
            return;
        }
        self.made += 1;
        let netns = self.free_path();
        self.links.make(&Namespace::at(&netns));
        let sandbox = PodSandbox {
            id: format!("s{}", self.made),
            pod: pod(number),
            netns: Some(netns),
            cgroup_parent: None,
            pid: Some(self.made),
            is_static: false,
            has_containers: false,
        };
        self.stored.push(Stored { sandbox: sandbox.clone(), pod: number, alive: true, older: false });
        if let Some(daemon) = self.daemon.clone() {
            daemon.run_pod_sandbox(sandbox).await;
        }
    }

    /// On disk, as far as a kubelet remembers.
    fn is_prepared(&self, claim: usize) -> bool {
        self.disk.path().join(format!("c{claim}.json")).exists()
    }

    /// The runtime stops a pod's living sandbox.
    pub(super) async fn stop(&mut self, number: usize) {
        let Some(at) = self.stored.iter().position(|it| it.pod == number && it.alive) else { return };
        let Stored { sandbox, older, .. } = self.stored[at].clone();
        let namespace = Namespace::at(sandbox.netns.as_ref().unwrap());
        if self.removes_first {
            self.links.vanish(&namespace);
            self.forget_devices();
        }
        self.stored[at].alive = false;
        if let (false, Some(daemon)) = (older, self.daemon.clone()) {
            daemon.stop_pod_sandbox(sandbox).await;
        }
        self.links.vanish(&namespace);
        self.forget_devices();
    }

    /// The runtime goes on where a stop was cut off by the daemon's end.
    pub(super) fn finish_stop(&mut self) {
        for stored in self.stored.iter().filter(|stored| !stored.alive) {
            let path = stored.sandbox.netns.as_ref().unwrap();
            if !self.stored.iter().any(|it| it.alive && it.sandbox.netns.as_ref() == Some(path)) {
                self.links.vanish(&Namespace::at(path));
            }
        }
        self.forget_devices();
    }

    /// The runtime forgets dead sandboxes of a pod.
    pub(super) async fn remove(&mut self, number: usize) {
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.stored).into_iter().partition(|it| it.pod == number && !it.alive);
        self.stored = kept;
        for stored in gone {
            if let (false, Some(daemon)) = (stored.older, self.daemon.clone()) {
                daemon.remove_pod_sandbox(stored.sandbox).await;
            }
        }
    }

    /// A pod ends for good: its sandbox is stopped and, after the last pod that names it, its claim unprepared.
    pub(super) async fn end(&mut self, number: usize) {
        self.stop(number).await;
        self.remove(number).await;
        let claim = format!("c{}", claim_of(number));
        let mut consumers = self.claims.reserved.lock().unwrap().get(&claim).cloned().unwrap_or_default();
        consumers.retain(|consumer| *consumer != pod(number));
        self.claims.reserve(&claim, consumers.clone());
        let in_use =
            (0..PODS).any(|other| claim_of(other) == claim_of(number) && self.living(other).is_some());
        if let (false, Some(daemon)) = (in_use, self.daemon.clone())
            && daemon.store.get(&claim).is_some()
            && daemon.release(&claim).await.is_ok()
        {
            daemon.store.remove(&claim).unwrap();
        }
    }

    /// The runtime lists all its sandboxes to the daemon.
    pub(super) async fn list(&mut self, reversed: bool) {
        let Some(daemon) = self.daemon.clone() else { return };
        let mut listed: Vec<PodSandbox> = self.stored.iter().map(|stored| self.message(stored)).collect();
        if reversed {
            listed.reverse();
        }
        daemon.synchronize(listed).await;
    }

    fn message(&self, stored: &Stored) -> PodSandbox {
        let mut sandbox = stored.sandbox.clone();
        if !stored.alive {
            sandbox.pid = None;
            sandbox.netns = sandbox.netns.filter(|_| !self.dead_without_path);
        }
        sandbox
    }

    /// The runtime starts again; sandboxes run on.
    pub(super) async fn restart_runtime(&mut self) {
        self.stored.iter_mut().for_each(|stored| stored.older = true);
        self.list(true).await;
    }

    /// The machine starts anew: no process, namespace, hold or program is left, and the host's links are configured again.
    pub(super) fn reboot(&mut self) {
        self.kill();
        self.boots += 1;
        self.home = host_links(self.boots);
        self.links.reboot(self.home.clone());
        self.datapath = Arc::default();
        self.stored.iter_mut().for_each(|stored| (stored.alive, stored.older) = (false, true));
    }

    /// Programs go with their device.
    pub(super) fn forget_devices(&self) {
        let there = self.links.indices();
        for id in self.datapath.endpoints().unwrap() {
            let at = self.datapath.endpoint(id).and_then(|endpoint| endpoint.ifindex);
            if at.is_some_and(|ifindex| !there.contains(&ifindex)) {
                self.datapath.device_is_at(id, None);
            }
        }
    }

    /// A container is made in the pod's living sandbox.
    pub(super) async fn create(&self, number: usize) -> Option<Result<(), String>> {
        let (daemon, stored) = (self.daemon.clone()?, self.living(number)?);
        if daemon.is_free(&stored.sandbox) {
            return Some(Ok(()));
        }
        Some(daemon.create_container(stored.sandbox.clone(), "main").await)
    }

    pub(super) fn names_in(&self, stored: &Stored) -> Vec<String> {
        let inside = self.links.links_in(&Namespace::at(stored.sandbox.netns.as_ref().unwrap()));
        inside.into_iter().map(|link| link.home.link.name).collect()
    }

    /// Links at home are as this boot's configuration made them, and no others are there.
    pub(super) fn assert_home(&self, without: &[String]) {
        let mut home = self.links.links_in(&Namespace::Host);
        home.retain(|link| !link.home.link.name.starts_with("nf-"));
        let expected: Vec<_> =
            self.home.iter().filter(|link| !without.contains(&link.home.link.name)).cloned().collect();
        let differ: Vec<_> = home.iter().filter(|link| !expected.contains(link)).collect();
        let lack: Vec<_> = expected.iter().filter(|link| !home.contains(link)).collect();
        assert!(differ.is_empty() && lack.is_empty(), "at home {differ:#?}\nand not {lack:#?}");
    }

    pub(super) fn api_away(&self, away: bool) {
        self.claims.away.store(away, Ordering::Relaxed);
    }
}
