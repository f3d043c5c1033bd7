//! Claims that several pods name: the kubelet prepares them once, and nobody tells the driver of the second pod.

use std::{path::Path, sync::Arc, time::Duration};

use netferry::{claim::ClaimRef, cluster::versions::ApiVersion};
use serde_json::{Value, json};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use crate::{
    support::{
        self,
        apiserver::{ApiServer, Fault},
        daemon::{ClusterArgs, Daemon, Home},
        kubelet::{DriverHandle, Kubelet},
        netns::{NetNs, may_make_namespaces},
        runtime::{ContainerSpec, EventError, Generation, Plugin, PodSandboxSpec, Runtime},
    },
    world::{BINARY, Cable, NAMESPACE},
};

const SOON: Duration = Duration::from_secs(15);

struct Stand {
    daemon: Option<Daemon>,
    plugin: Arc<Plugin>,
    driver: DriverHandle,
    cable: Cable,
    server: ApiServer,
    home: Home,
    _kubelet: Kubelet,
    _runtime: Runtime,
}

/// A pod of the test, in a namespace of its own.
struct Pod {
    sandbox: PodSandboxSpec,
    netns: NetNs,
    main: ContainerSpec,
}

impl Pod {
    fn new(name: &str) -> Self {
        let netns = NetNs::new();
        let sandbox = PodSandboxSpec::new(NAMESPACE, name, &format!("pod-{name}"), Some(&netns.path));
        let main = ContainerSpec::new(&sandbox, "main");
        Self { sandbox, netns, main }
    }
}

impl Stand {
    async fn start(number: u8) -> Self {
        let cable = Cable::new(number);
        let server = ApiServer::start(&[ApiVersion::V1]).await;
        server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
        let mut home = Home::new();
        home.cluster = ClusterArgs::Kubeconfig(server.kubeconfig(home.folder()));
        let rule = format!(r#"device.attributes["netferry.dev"].ifName == "{}""#, cable.link);
        home.arguments = vec!["--publish".into(), rule];
        let runtime = Runtime::listen(home.nri_socket(), Generation::OwnCalls).unwrap();
        let kubelet = Kubelet::new(&home.kubelet_root());
        let mut daemon = home.start(Path::new(BINARY));
        let plugin = Arc::new(runtime.accept().await.unwrap());
        block_in_place(|| daemon.wait_ready());
        let driver = kubelet.wait_for_driver(netferry::DRIVER_NAME).await;
        let daemon = Some(daemon);
        Self { daemon, plugin, driver, cable, server, home, _kubelet: kubelet, _runtime: runtime }
    }

    /// The claim as the scheduler has it, reserved for these pods.
    fn claim(&self, pods: &[&str]) -> Value {
        let slices = self.server.all("resourceslices");
        let device = &slices[0]["spec"]["devices"][0]["name"];
        let reserved = |name: &&str| json!({"resource": "pods", "name": name, "uid": format!("pod-{name}")});
        let reserved: Vec<_> = pods.iter().map(reserved).collect();
        let parameters =
            json!({"apiVersion": "netferry.dev/v1alpha1", "kind": "InterfaceConfig", "name": "net1"});
        let mut claim = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"namespace": NAMESPACE, "name": "shared"},
            "spec": {"devices": {"requests": [{"name": "nic", "exactly": {"deviceClassName": "netferry.dev"}}]}},
            "status": {
                "allocation": {"devices": {
                    "results": [
                        {"request": "nic", "driver": "netferry.dev", "pool": "node-1", "device": device}],
                    "config": [{"source": "FromClaim", "requests": ["nic"],
                        "opaque": {"driver": "netferry.dev", "parameters": parameters}}]}},
                "reservedFor": reserved
            }
        });
        if let Some(before) = self.server.get("resourceclaims", &format!("{NAMESPACE}/shared")) {
            claim["metadata"]["uid"] = before["metadata"]["uid"].clone();
        }
        self.server.put(claim)
    }

    async fn prepared(&self, pods: &[&str]) -> ClaimRef {
        let uid = self.claim(pods)["metadata"]["uid"].as_str().unwrap().to_owned();
        let claim = ClaimRef { namespace: NAMESPACE.into(), name: "shared".into(), uid };
        let outcomes = self.driver.prepare(std::slice::from_ref(&claim)).await.unwrap();
        assert!(outcomes[&claim.uid].is_ok(), "{outcomes:?}");
        claim
    }

    async fn run(&self, pod: &Pod) {
        self.plugin.run_pod_sandbox(&pod.sandbox).await.unwrap();
    }

    /// Make the pod's container, or say why not.
    async fn create(&self, pod: &Pod) -> Result<(), String> {
        match self.plugin.create_container(&pod.sandbox, &pod.main).await {
            Ok(()) => Ok(()),
            Err(EventError::Refused(why)) => Err(why),
            Err(lost) => panic!("{lost:?}"),
        }
    }

    async fn create_soon(&self, pod: &Pod) {
        let began = Instant::now();
        while let Err(why) = self.create(pod).await {
            assert!(began.elapsed() < SOON, "{why}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn end(&self, pod: &Pod) {
        self.plugin.stop_pod_sandbox(&pod.sandbox).await.unwrap();
        self.plugin.remove_pod_sandbox(&pod.sandbox).await.unwrap();
    }

    /// Wait for an Event about an object with these words.
    async fn until_event(&self, kind: &str, name: &str, words: &[&str]) {
        let is = |server: &ApiServer| {
            server.all("events").iter().any(|event| {
                let note = event["note"].as_str().unwrap_or_default();
                event["regarding"]["kind"] == kind
                    && event["regarding"]["name"] == name
                    && words.iter().all(|word| note.contains(word))
            })
        };
        self.server.until(&format!("Event on {kind} {name} with {words:?}"), is).await;
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        drop(self.daemon.take());
        assert!(std::thread::panicking() || self.home.holds().is_empty(), "{:?}", self.home.holds());
    }
}

fn able(test: &str) -> bool {
    let able = may_make_namespaces();
    if !able {
        support::skip(test, "needs root");
    }
    able
}

/// The everyday case: the next pod of a Deployment whose template names a claim.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_pod_of_a_claim_is_held_and_has_it_when_the_first_is_gone() {
    if !able("the second pod of a claim") {
        return;
    }
    let stand = Stand::start(20).await;
    let before = stand.cable.look();
    let claim = stand.prepared(&["first"]).await;
    let (first, second, other) = (Pod::new("first"), Pod::new("second"), Pod::new("other"));
    stand.run(&first).await;
    stand.create_soon(&first).await;
    assert!(first.netns.link("net1").is_some());

    // A pod that the claim does not name runs, once the API server has said so.
    stand.run(&other).await;
    stand.create_soon(&other).await;
    assert!(other.netns.link("net1").is_none());

    stand.claim(&["first", "second"]);
    stand.run(&second).await;
    for attempt in 0..5 {
        let why = stand.create(&second).await.unwrap_err();
        assert!(why.contains("team-a/first") || attempt == 0, "{why}");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(second.netns.link("net1").is_none() && first.netns.link("net1").is_some());
    // Both say who has it and what helps.
    stand.until_event("Pod", "second", &["team-a/first", "Recreate", "maxUnavailable"]).await;
    stand.until_event("ResourceClaim", "shared", &["team-a/first", "Recreate", "maxUnavailable"]).await;

    stand.end(&first).await;
    stand.create_soon(&second).await;
    assert!(second.netns.link("net1").is_some());
    stand.end(&second).await;
    stand.end(&other).await;
    let outcomes = stand.driver.unprepare(std::slice::from_ref(&claim)).await.unwrap();
    assert_eq!(outcomes[&claim.uid], Ok(()));
    assert_eq!(stand.cable.look(), before);
}

/// While the API server does not say whose a claim is, a pod that might name it is held; others are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_name_a_claim_is_held_until_the_api_server_answers() {
    if !able("held until the API server answers") {
        return;
    }
    let stand = Stand::start(21).await;
    let elsewhere = Pod::new("elsewhere");
    let mut elsewhere_sandbox = elsewhere.sandbox.clone();
    elsewhere_sandbox.namespace = "team-b".into();
    let fixed = Pod::new("fixed");
    let mut fixed_sandbox = fixed.sandbox.clone();
    fixed_sandbox.is_static = true;
    let claim = stand.prepared(&["first"]).await;
    let (first, second, plain) = (Pod::new("first"), Pod::new("second"), Pod::new("plain"));
    stand.run(&first).await;
    stand.create_soon(&first).await;
    stand.claim(&["first", "second"]);

    stand.server.fail_next("GET", "/resourceclaims", usize::MAX, Fault::Status(503));
    for pod in [&second, &plain] {
        stand.run(pod).await;
        for _ in 0..3 {
            let why = stand.create(pod).await.unwrap_err();
            assert!(why.contains("waits for its network interfaces"), "{why}");
            sleep(Duration::from_millis(200)).await;
        }
        let why = stand.create(pod).await.unwrap_err();
        assert!(why.contains("team-a/shared") && why.contains("not known"), "{why}");
    }
    stand.until_event("Pod", "plain", &["team-a/shared"]).await;
    // Pods of other namespaces, and those that are not the API server's, run on.
    for (sandbox, pod) in [(&elsewhere_sandbox, &elsewhere), (&fixed_sandbox, &fixed)] {
        stand.plugin.run_pod_sandbox(sandbox).await.unwrap();
        let began = Instant::now();
        stand.plugin.create_container(sandbox, &pod.main).await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    }

    stand.server.heal();
    stand.create_soon(&plain).await;
    assert!(plain.netns.link("net1").is_none());
    let why = stand.create(&second).await.unwrap_err();
    assert!(why.contains("waits for its network interfaces"), "{why}");
    stand.end(&first).await;
    stand.create_soon(&second).await;
    assert!(second.netns.link("net1").is_some());
    stand.end(&second).await;
    let outcomes = stand.driver.unprepare(std::slice::from_ref(&claim)).await.unwrap();
    assert_eq!(outcomes[&claim.uid], Ok(()));
}
