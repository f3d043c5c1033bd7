//! Two instances of the driver on one node, as in an update of its DaemonSet: the kubelet prepares claims all through it.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use netferry::{DRIVER_NAME, claim::ClaimRef, cluster::versions::ApiVersion};
use serde_json::json;
use tokio::{
    sync::watch,
    task::{JoinHandle, block_in_place},
    time::sleep,
};

use crate::{
    support::{
        self,
        apiserver::ApiServer,
        daemon::{ClusterArgs, Daemon, Home},
        kubelet::Kubelet,
        netns::may_make_namespaces,
        runtime::{Generation, Plugin, Runtime},
    },
    world::{BINARY, Cable, NAMESPACE},
};

struct Stand {
    home: Home,
    rule: String,
    kubelet: Arc<Kubelet>,
    server: Arc<ApiServer>,
    cable: Arc<Cable>,
    runtime: (JoinHandle<()>, watch::Receiver<Option<Arc<Plugin>>>),
}

/// Claims that are prepared and unprepared one after the other until they are told to stop.
struct Calls {
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<String>>,
}

impl Stand {
    async fn start(number: u8) -> Self {
        let cable = Arc::new(Cable::new(number));
        let server = Arc::new(ApiServer::start(&[ApiVersion::V1]).await);
        server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
        let mut home = Home::new();
        home.cluster = ClusterArgs::Kubeconfig(server.kubeconfig(home.folder()));
        let rule = format!(r#"device.attributes["netferry.dev"].ifName == "{}""#, cable.link);
        let runtime = Runtime::listen(home.nri_socket(), Generation::OwnCalls).unwrap().serve();
        let kubelet = Arc::new(Kubelet::new(&home.kubelet_root()));
        Self { home, rule, kubelet, server, cable, runtime }
    }

    /// Start an instance of this name.
    fn instance(&mut self, name: &str) -> Daemon {
        self.home.arguments =
            ["--publish", &self.rule, "--instance", name].map(str::to_owned).into_iter().collect();
        self.home.start(Path::new(BINARY))
    }

    /// What the startup probe of an instance says.
    fn is_up(&self, name: &str) -> bool {
        let mut probe = Command::new(BINARY);
        probe.args(["probe", "--instance", name, "--run-dir"]).arg(self.home.run_dir());
        probe.output().unwrap().status.success()
    }

    async fn until_up(&self, name: &str) {
        for _ in 0..1200 {
            if block_in_place(|| self.is_up(name)) {
                return;
            }
            sleep(Duration::from_millis(25)).await;
        }
        panic!("instance {name} did not come up");
    }

    fn device(&self) -> String {
        let slices = self.server.all("resourceslices");
        slices[0]["spec"]["devices"][0]["name"].as_str().unwrap().to_owned()
    }

    fn calls(&self) -> Calls {
        let (kubelet, server, device) = (Arc::clone(&self.kubelet), Arc::clone(&self.server), self.device());
        let (done, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut uids = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let claim = claim(&server, &format!("c{}", uids.len()), &device);
                // The one that was registered last, as the kubelet chooses.
                let instance = || kubelet.instances(DRIVER_NAME).pop().expect("an instance is registered");
                let claims = std::slice::from_ref(&claim);
                let outcome = instance().prepare(claims).await.expect("an answer")[&claim.uid].clone();
                assert_eq!(outcome.expect("prepared").len(), 1);
                let outcome = instance().unprepare(claims).await.expect("an answer")[&claim.uid].clone();
                outcome.expect("unprepared");
                uids.push(claim.uid);
                count.fetch_add(1, Ordering::SeqCst);
            }
            uids
        });
        Calls { done, stop, task }
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.runtime.0.abort();
    }
}

impl Calls {
    /// Wait until some more claims were prepared.
    async fn go_on(&self) {
        let before = self.done.load(Ordering::SeqCst);
        while self.done.load(Ordering::SeqCst) < before + 5 {
            assert!(!self.task.is_finished(), "a call failed");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The UIDs of all claims; none was refused.
    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("no call fails")
    }
}

fn claim(server: &ApiServer, name: &str, device: &str) -> ClaimRef {
    let stored = server.put(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"devices": {"requests": [{"name": "nic", "exactly": {"deviceClassName": "netferry.dev"}}]}},
        "status": {
            "allocation": {"devices": {
                "results": [{"request": "nic", "driver": "netferry.dev", "pool": "node-1", "device": device}]}},
            "reservedFor": [{"resource": "pods", "name": name, "uid": format!("pod-{name}")}]
        }
    }));
    let uid = stored["metadata"]["uid"].as_str().unwrap().to_owned();
    ClaimRef { namespace: NAMESPACE.into(), name: name.into(), uid }
}

/// How often the daemons have prepared a claim, by their log.
fn times_prepared(log: &str, uid: &str) -> usize {
    let of = |line: &&str| line.contains(" prepared") && line.contains(uid);
    log.lines().filter(of).count()
}

async fn replaced(number: u8, end: impl FnOnce(Daemon)) {
    if !may_make_namespaces() {
        return support::skip("two instances", "needs root");
    }
    let mut stand = Stand::start(number).await;
    let mut first = stand.instance("a");
    block_in_place(|| first.wait_ready());
    stand.until_up("a").await;
    let calls = stand.calls();
    calls.go_on().await;

    // Both are registered; the second one is called, and forwards to the first.
    let mut second = stand.instance("b");
    stand.until_up("b").await;
    stand.kubelet.wait_for_instances(DRIVER_NAME, 2).await;
    calls.go_on().await;
    assert!(!second.has_ended());

    let began = std::time::Instant::now();
    block_in_place(|| end(first));
    let ended = began.elapsed();
    calls.go_on().await;
    stand.kubelet.wait_for_instances(DRIVER_NAME, 1).await;
    block_in_place(|| second.wait_ready());
    eprintln!(
        "the first instance ended in {ended:?}; the second was ready {:?} after its signal",
        began.elapsed()
    );
    calls.go_on().await;
    let uids = calls.end().await;
    let log = stand.home.log();
    for uid in &uids {
        assert_eq!(times_prepared(&log, uid), 1, "claim {uid}");
    }
    assert!(stand.cable.is_home());
    // The next one, and then nobody.
    assert!(block_in_place(|| second.stop()).success());
    stand.kubelet.wait_until_gone(DRIVER_NAME).await;
    let left = |folder: &str| {
        let folder = stand.home.kubelet_root().join(folder);
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    assert_eq!(left("plugins_registry"), Vec::<std::path::PathBuf>::new());
    assert_eq!(left("plugins/netferry.dev"), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ends_hands_over() {
    replaced(71, |first| assert!(first.stop().success())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_killed_is_replaced() {
    replaced(72, Daemon::kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stands_by_can_end_first() {
    if !may_make_namespaces() {
        return support::skip("an instance that stands by", "needs root");
    }
    let mut stand = Stand::start(73).await;
    let mut first = stand.instance("a");
    block_in_place(|| first.wait_ready());
    let calls = stand.calls();
    calls.go_on().await;
    let second = stand.instance("b");
    stand.until_up("b").await;
    stand.kubelet.wait_for_instances(DRIVER_NAME, 2).await;
    calls.go_on().await;
    assert!(block_in_place(|| second.stop()).success());
    stand.kubelet.wait_for_instances(DRIVER_NAME, 1).await;
    calls.go_on().await;
    calls.end().await;
    assert!(!first.has_ended());
    assert!(block_in_place(|| first.stop()).success());
}
