//! A host with several pods, each in a namespace of its own, and ports of networks for them.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{fs, path::Path};

use netferry::{
    attach::Attacher,
    claim::{Checkpoint, ClaimRef, InterfaceKey, InterfacePlan, InterfaceRecord, Made, PodRef, Port, made},
    datapath::{Datapath as _, Isolation},
    link::{Namespace, kernel::KernelLinks},
    network::NetworkRef,
    nri::PodSandbox,
};

use crate::{
    support::{
        netns::{NetNs, Snapshot, may_make_namespaces, unique},
        skip,
    },
    world::Places,
};

/// A network and its number on this node. All have the same subnets.
pub(crate) type Net = (&'static str, u32);

pub(crate) const BLUE: Net = ("blue", 7);
pub(crate) const RED: Net = ("red", 8);

pub(crate) struct Node {
    pub(crate) host: NetNs,
    pub(crate) pods: Vec<NetNs>,
    pub(crate) places: Places,
    before: Snapshot,
    _dir: tempfile::TempDir,
}

pub(crate) fn v4(last: u8) -> String {
    format!("10.78.0.{last}")
}

pub(crate) fn v6(last: u8) -> String {
    format!("fd78::{last:x}")
}

pub(crate) fn claim_ref(uid: &str) -> ClaimRef {
    ClaimRef { namespace: "default".into(), name: uid.into(), uid: uid.into() }
}

pub(crate) fn pod_ref(nth: usize) -> PodRef {
    PodRef { namespace: "default".into(), name: format!("pod{nth}"), uid: format!("uid-pod{nth}") }
}

/// A port of a network with the addresses that end in `last`, under a share of its device.
pub(crate) fn port(claim: &str, net: Net, last: u8, name: &str) -> InterfacePlan {
    let key = InterfaceKey {
        request: "net".into(),
        device: format!("port-{}", net.0),
        share_id: Some(format!("share-{claim}-{last}")),
    };
    let (claim, (network, id)) = (claim_ref(claim), net);
    InterfacePlan {
        request: key.request.clone(),
        pool: "node".into(),
        device: key.device.clone(),
        share_id: key.share_id.clone(),
        host_link: made::host_name(&claim, &key),
        name: name.into(),
        hardware_addr: Some(made::hardware_addr(&claim, &key)),
        mtu: Some(1400),
        addresses: [format!("{}/24", v4(last)), format!("{}/64", v6(last))]
            .map(|address| address.parse().expect("an address"))
            .to_vec(),
        routes: Vec::new(),
        isolation: Isolation::Strict,
        early_drop: true,
        policy: None,
        limits: None,
        made: Some(Made::Port(Port::new(
            NetworkRef { name: network.into(), uid: format!("uid-{network}") },
            id,
        ))),
    }
}

impl Node {
    /// `None`, and the reason printed, where the machine cannot.
    pub(crate) fn new(test: &str, pods: usize) -> Option<Self> {
        if !may_make_namespaces() {
            skip(test, "network namespaces cannot be made here");
            return None;
        }
        let pins = Path::new("/sys/fs/bpf").join(unique("p"));
        if fs::create_dir_all(&pins).is_err() {
            skip(test, "no bpf file system at /sys/fs/bpf");
            return None;
        }
        let (host, pods) = (NetNs::new(), (0..pods).map(|_| NetNs::new()).collect::<Vec<_>>());
        // A port must not need the host to forward, nor be stopped by what the host is.
        host.exec("sysctl -q -w net.ipv4.conf.all.rp_filter=1 net.ipv4.ip_forward=0");
        let dir = tempfile::tempdir().expect("folder");
        let (path, pod) = (host.path.clone(), pods[0].path.clone());
        let places = Places { host: path, pod, store: dir.path().to_owned(), pins };
        let before = host.snapshot();
        Some(Self { host, pods, places, before, _dir: dir })
    }

    pub(crate) fn sandbox(&self, nth: usize) -> PodSandbox {
        let netns = Some(self.pods[nth].path.clone());
        PodSandbox {
            id: format!("s{nth}"),
            pod: pod_ref(nth),
            netns,
            cgroup_parent: None,
            pid: Some(1),
            is_static: false,
            has_containers: false,
        }
    }

    pub(crate) fn sandboxes(&self) -> Vec<PodSandbox> {
        (0..self.pods.len()).map(|nth| self.sandbox(nth)).collect()
    }

    pub(crate) fn claim(&self, uid: &str, pod: usize, plans: Vec<InterfacePlan>) {
        let interfaces = plans.into_iter().map(InterfaceRecord::planned).collect();
        let checkpoint = Checkpoint::new(claim_ref(uid), vec![pod_ref(pod)], interfaces);
        self.places.store().put(checkpoint).expect("checkpoint");
    }

    pub(crate) async fn attach_all(&self, attacher: &Attacher) {
        for sandbox in self.sandboxes() {
            let outcome = attacher.attach(&sandbox).await.expect("attach");
            assert_eq!(outcome.problems, []);
        }
    }

    /// Whether a pod reaches an address, by ping.
    pub(crate) fn reaches(&self, pod: usize, address: &str) -> bool {
        self.pods[pod].try_exec(&format!("ping -q -n -c 1 -W 2 {address}")).is_ok()
    }

    /// The host is as before, no pod has a link, and no program, pin or checkpoint is left.
    pub(crate) fn assert_nothing_left(&self, when: &str) {
        self.before.assert_same(&self.host.snapshot_like(&self.before), when);
        assert_eq!(self.places.datapath().endpoints().expect("endpoints"), Vec::<u32>::new(), "{when}");
        for checkpoint in self.places.store().all() {
            assert!(checkpoint.interfaces.iter().all(|it| it.attachment.is_none()), "{when}: {checkpoint:?}");
        }
    }

    pub(crate) fn links(&self) -> KernelLinks {
        self.places.links()
    }

    pub(crate) fn inside(&self, pod: usize) -> Namespace {
        Namespace::at(&self.pods[pod].path)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.places.pins);
    }
}
