//! Pods with claims on a node with a real containerd, of each series: where they are held back, and that no restart takes
//! their links away.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "gate/life.rs"]
mod life;
#[path = "gate/orders.rs"]
mod orders;
#[path = "gate/refusals.rs"]
mod refusals;
mod support;
#[path = "node/world.rs"]
mod world;

use std::time::{Duration, Instant};

use netferry::claim::ClaimRef;
use serde_json::{Value, json};
use support::containerd::{ContainerSpec, PodSpec, RunningPod, Series, prerequisites};
use tokio::{task::block_in_place, time::sleep};
use world::{Cable, NAMESPACE, Node, inside};

const SOON: Duration = Duration::from_secs(20);

/// A number of each series that sets its cables apart from those of other tests at the same time.
const fn number(series: Series, test: u8) -> u8 {
    let series = match series {
        Series::V2_1 => 0,
        Series::V1_7 => 100,
    };
    20 + series + test
}

/// Why a test cannot run here, said once.
fn able(test: &str, series: Series) -> bool {
    let Err(why) = prerequisites() else { return true };
    support::skip(&format!("{test} {series:?}"), &why);
    false
}

/// A claim of a link, reserved for pods. One that a template made is its first pod's alone.
fn put_claim(
    node: &Node,
    name: &str,
    pods: &[&str],
    cable: (&Cable, u8),
    interface: &str,
    by_template: bool,
) -> ClaimRef {
    let (cable, number) = cable;
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": pods[0], "uid": uid(pods[0]), "controller": true}]);
    let consumers: Vec<Value> =
        pods.iter().map(|pod| json!({"resource": "pods", "name": pod, "uid": uid(pod)})).collect();
    let stored = node.server.put(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"namespace": NAMESPACE, "name": name, "ownerReferences": if by_template { owner } else { json!([]) }},
        "spec": {"devices": {"requests": [{"name": "nic", "exactly": {"deviceClassName": "netferry.dev"}}]}},
        "status": {
            "allocation": {"devices": {
                "results": [{"request": "nic", "driver": "netferry.dev", "pool": "node-1",
                    "device": node.device(&cable.link)["name"]}],
                "config": [{"source": "FromClaim", "requests": ["nic"], "opaque": {"driver": "netferry.dev", "parameters": {
                    "apiVersion": "netferry.dev/v1alpha1", "kind": "InterfaceConfig", "name": interface,
                    "addresses": [format!("10.78.{number}.1/24")]}}}]}},
            "reservedFor": consumers}
    }));
    let uid = stored["metadata"]["uid"].as_str().expect("uid").to_owned();
    ClaimRef { namespace: NAMESPACE.into(), name: name.into(), uid }
}

fn uid(pod: &str) -> String {
    format!("uid-{pod}")
}

fn spec(pod: &str) -> PodSpec {
    PodSpec::new(NAMESPACE, pod, &uid(pod))
}

/// Make a container in a sandbox, and take it away again.
async fn create(node: &Node, pod: &RunningPod, attempt: u32) -> Result<(), String> {
    let container = ContainerSpec { attempt, ..ContainerSpec::sleeping("main") };
    match node.containerd.create_container(pod, &container).await {
        Ok(id) => {
            node.containerd.remove_container(&id).await.unwrap();
            Ok(())
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

/// As a kubelet: a container that is refused is tried again.
async fn create_soon(node: &Node, pod: &RunningPod, attempt: u32) -> Result<(), String> {
    let began = Instant::now();
    loop {
        match create(node, pod, attempt).await {
            Err(_) if began.elapsed() < SOON => sleep(Duration::from_millis(100)).await,
            answer => return answer,
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !block_in_place(&mut holds) {
        assert!(began.elapsed() < SOON, "in vain: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The daemon serves its runtime again.
fn wait_ready(node: &mut Node) {
    block_in_place(|| node.daemon.as_mut().expect("a daemon").wait_ready());
}

/// Pods are removed and their claims unprepared, as a kubelet does; then nothing of them is left.
async fn end(node: &mut Node, pods: &[&RunningPod], claims: &[ClaimRef], cables: &[&Cable]) {
    for pod in pods {
        node.containerd.stop_pod(&pod.id).await.unwrap();
        node.containerd.remove_pod(&pod.id).await.unwrap();
    }
    let outcomes = node.driver.unprepare(claims).await.unwrap();
    assert!(outcomes.values().all(Result::is_ok), "{outcomes:?}");
    until("links at home", || cables.iter().all(|cable| cable.is_home())).await;
    until("nothing held", || node.home.holds().is_empty()).await;
}
