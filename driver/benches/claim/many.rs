//! Many pods at once: how long until all have their links, beside the same links moved bare, and one after the other.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use netferry::{
    attach::Attacher,
    claim::{Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord, PodRef, store::Store},
    datapath::AyaDatapath,
    link::{LinkRef, Links as _, Namespace, kernel::KernelLinks},
    netns::KernelNamespaces,
    nri::PodSandbox,
};
use tokio::runtime::Runtime;

use crate::{
    host::{ip, plan},
    netns::{NetNs, unique},
};

/// Pods at once.
const PODS: usize = 100;
/// Rounds, each with the three ways in turn.
const ROUNDS: usize = 3;

/// Print the medians of some rounds.
pub(crate) fn run(runtime: &Runtime) {
    let _inside = runtime.enter();
    let pins = Path::new("/sys/fs/bpf").join(unique("many"));
    fs::create_dir_all(&pins).expect("a bpf file system at /sys/fs/bpf");
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
    let store = Arc::new(Store::open(disk.path()).expect("store").0);
    let peer = NetNs::new();
    let pods: Vec<NetNs> = (0..PODS).map(|_| NetNs::new()).collect();
    for number in 0..PODS {
        ip(&format!("link add many{number} type veth peer name far{number} netns {}", peer.name));
        ip(&format!("link set many{number} up"));
        let claim = ClaimRef { namespace: "default".into(), name: name(number), uid: name(number) };
        let link = format!("many{number}");
        let plan = InterfacePlan { device: link.clone(), host_link: link, ..plan() };
        let interfaces = vec![InterfaceRecord::planned(plan)];
        store.put(Checkpoint::new(claim, vec![pod_ref(number)], interfaces)).expect("checkpoint");
    }
    let attacher = Attacher::new(
        Arc::new(KernelLinks::new()),
        Arc::new(KernelNamespaces::new(disk.path().join("netns"))),
        Arc::new(AyaDatapath::open(&pins).expect("datapath")),
        store,
    );
    let mut took = [const { Vec::new() }; 3];
    runtime.block_on(async {
        for _ in 0..ROUNDS {
            took[0].push(bare(&pods).await);
            for (at, together) in [(1, true), (2, false)] {
                for number in 0..PODS {
                    attacher.protect(&name(number)).await;
                }
                took[at].push(attach(&attacher, &pods, together).await);
                join_all((0..PODS).map(|number| attacher_home(&attacher, number))).await;
            }
        }
    });
    println!("\n{PODS} pods at once, wall clock until all have their link; median of {ROUNDS}");
    let names = ["bare moves at once", "attaches at once", "attaches one by one"];
    for (name, times) in names.iter().zip(&mut took) {
        times.sort_unstable();
        println!("{name:<28}{:>10.0} ms", times[times.len() / 2].as_secs_f64() * 1e3);
    }
    drop(attacher);
    let _ = fs::remove_dir_all(&pins);
}

async fn bare(pods: &[NetNs]) -> Duration {
    let (links, host) = (KernelLinks::new(), Namespace::Host);
    let start = Instant::now();
    let moved = join_all(pods.iter().enumerate().map(|(number, pod)| {
        let (links, host, pod) = (links.clone(), host.clone(), Namespace::at(&pod.path));
        tokio::spawn(async move {
            let link = links.get(&host, &LinkRef::Name(format!("many{number}"))).await.expect("link");
            links.move_to(&host, link.ifindex, &pod, "net1", None).await.expect("move")
        })
    }));
    let moved = moved.await;
    let took = start.elapsed();
    for (number, (pod, index)) in pods.iter().zip(moved).enumerate() {
        let pod = Namespace::at(&pod.path);
        let index = index.expect("no panic");
        let home = links.move_to(&pod, index, &host, &format!("many{number}"), None).await.expect("move");
        links.set_up(&host, home, true).await.expect("up");
    }
    took
}

async fn attach(attacher: &Attacher, pods: &[NetNs], together: bool) -> Duration {
    let start = Instant::now();
    let pending = pods.iter().enumerate().map(|(number, pod)| async move {
        let sandbox = PodSandbox {
            id: name(number),
            pod: pod_ref(number),
            netns: Some(pod.path.clone()),
            cgroup_parent: None,
            pid: Some(1),
            is_static: false,
            has_containers: false,
        };
        assert_eq!(attacher.attach(&sandbox).await.expect("attach").attached.len(), 1);
    });
    if together {
        join_all(pending).await;
    } else {
        for attach in pending {
            attach.await;
        }
    }
    start.elapsed()
}

async fn attacher_home(attacher: &Attacher, number: usize) {
    assert_eq!(attacher.give_back(&name(number)).await.problems, []);
}

fn name(number: usize) -> String {
    format!("many-{number}")
}

fn pod_ref(number: usize) -> PodRef {
    PodRef { namespace: "default".into(), name: name(number), uid: name(number) }
}
