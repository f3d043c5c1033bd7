//! The daemon in whole on a node: real containerd, real links and programs; kubelet and API server are played.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "node/handover.rs"]
mod handover;
#[path = "node/published.rs"]
mod published;
#[path = "node/shared.rs"]
mod shared;
mod support;
#[path = "node/visible.rs"]
mod visible;
#[path = "node/world.rs"]
mod world;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use netferry::cluster::versions::ApiVersion;
use serde_json::json;
use support::{
    apiserver::{ApiServer, Fault},
    containerd::{ContainerSpec, Series, prerequisites},
    daemon::{ClusterArgs, Home},
    kubelet::Kubelet,
    netns::NetNs,
    runtime::{Generation, Runtime},
};
use tokio::task::block_in_place;
use world::{Cable, NAMESPACE, Node, inside};

const MAC: &str = "02:00:00:00:78:01";

fn ping(from: &NetNs, to: &str, more: &str) -> Result<String, String> {
    from.try_exec(&format!("ping -q -c 2 -i 0.05 -W 1 {more} {to}"))
}

fn spoof_is_dropped(pod: &NetNs, number: u8) {
    let source = format!("10.78.{number}.66");
    let _ = pod.try_exec(&format!("ip address add {source}/24 dev net1"));
    assert!(
        ping(pod, &format!("10.78.{number}.2"), &format!("-I {source}")).is_err(),
        "a spoofed source got out"
    );
}

#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
async fn life_of_a_pod(series: Series, number: u8) {
    if let Err(why) = prerequisites() {
        return support::skip(&format!("node {series:?}"), &why);
    }
    let (cable, spare) = (Cable::new(number), Cable::new(number + 100));
    let mut node = Node::start(series, &[&cable, &spare]).await;
    let slices = node.server.all("resourceslices");
    assert_eq!(slices.len(), 1);
    assert_eq!(
        slices[0]["spec"]["pool"],
        json!({"name": "node-1", "generation": 1, "resourceSliceCount": 1})
    );

    // A pod without claims is untouched.
    let plain = node.run_pod("plain").await.unwrap();
    assert_eq!(inside(&plain).links(), ["eth0"]);

    let class = json!({"mtu": 1400, "name": "other0"});
    let own = json!({
        "name": "net1", "hardwareAddr": MAC,
        "addresses": [format!("10.78.{number}.1/24"), format!("fd78:{number}::1/64")],
        "routes": [
            {"destination": "203.0.113.0/24", "gateway": format!("10.78.{number}.2")},
            {"destination": "0.0.0.0/0", "gateway": format!("10.78.{number}.2"), "table": 100}],
    });
    let claim = node.claim("web", &cable.link, class, own);
    let foreign = json!([{"driver": "other.dev", "pool": "p", "device": "gpu", "data": {"kept": "yes"}}]);
    node.server.apply_as("other.dev", &claim.to_string(), &foreign);
    let theirs = node.status(&claim, "other.dev");
    let home = cable.look();
    node.prepare(&claim).await.unwrap();

    // The server is in trouble while the pod starts; the hook does not wait for it.
    node.server.fail_next("PATCH", "/status", 1, Fault::Status(409));
    node.server.fail_next("PATCH", "/status", 2, Fault::Status(500));
    node.server.fail_next("POST", "/events", 1, Fault::Status(503));
    let pod = node.run_pod("web").await.unwrap();
    let netns = inside(&pod);
    assert!(!cable.is_home());
    let link = netns.link("net1").unwrap();
    assert_eq!((&link["address"], &link["mtu"]), (&json!(MAC), &json!(1400)));
    assert!(link["flags"].as_array().unwrap().contains(&json!("UP")));
    let addresses = netns.ip("-br address show dev net1");
    assert!(addresses.contains(&format!("10.78.{number}.1/24")), "{addresses}");
    assert!(addresses.contains(&format!("fd78:{number}::1/64")), "{addresses}");
    assert!(netns.ip("route show 203.0.113.0/24").contains("dev net1"));
    assert!(netns.ip("route show table 100").contains("default via"));
    // The cluster's own network is as the runtime made it.
    assert!(netns.ip("route show default").contains("dev eth0"));
    assert!(netns.ip("-4 -br address show dev eth0").contains("198.18."));

    ping(&netns, &format!("10.78.{number}.2"), "").unwrap();
    ping(&netns, &format!("fd78:{number}::2"), "").unwrap();
    spoof_is_dropped(&netns, number);
    let pods = node.pods();
    assert_eq!(pods.as_array().unwrap().len(), 1);
    assert_eq!((&pods[0]["interface"], &pods[0]["hostLink"]), (&json!("net1"), &json!(cable.link)));
    let drops = pods[0]["stats"]["drops"].to_string();
    assert!(drops.contains("arp_sender") || drops.contains("source_ipv4"), "{pods}");
    let pins = node.home.bpffs().join("v1/links");
    let pinned = std::process::Command::new("find").arg(&pins).args(["-type", "f"]).output().unwrap();
    let pinned = String::from_utf8_lossy(&pinned.stdout);
    let mut names: Vec<_> = pinned.lines().filter_map(|path| path.rsplit('/').next()).collect();
    names.sort_unstable();
    // The runtime's own cgroup for the pod is found; `lsm` is where the kernel has it.
    names.retain(|name| *name != "lsm");
    assert_eq!(names, ["egress", "ingress", "sockopt"]);
    assert!(pods[0]["guards"].to_string().contains("cgroup/setsockopt"), "{pods}");
    let (_, metrics) = node.daemon.as_ref().unwrap().get("/metrics").unwrap();
    assert!(metrics.contains("netferry_interface_drops_total{"), "{metrics}");
    assert!(metrics.contains(r#"pod="web""#), "{metrics}");

    // Told in the end, beside what another driver says.
    node.until_ready(&claim, "True", "Attached").await;
    let status = node.status(&claim, "netferry.dev");
    for condition in status["conditions"].as_array().unwrap() {
        assert_eq!(condition["status"], "True", "{status}");
    }
    assert_eq!(status["conditions"].as_array().unwrap().len(), 3);
    assert_eq!(status["networkData"]["interfaceName"], "net1");
    assert_eq!(status["networkData"]["hardwareAddress"], MAC);
    assert_eq!(status["networkData"]["ips"].as_array().unwrap().len(), 2);
    assert_eq!(node.status(&claim, "other.dev"), theirs);
    let applied = node.server.asked("PATCH", "/status");
    assert!(
        !applied.is_empty()
            && applied.iter().all(|request| {
                request.query["fieldManager"] == "netferry.dev"
                    && request.content_type == "application/apply-patch+yaml"
            })
    );
    node.until_event("ResourceClaim", "LinkAttached").await;
    node.until_event("Pod", "LinkAttached").await;
    // The slices do not flap while the link is away.
    assert_eq!(node.server.all("resourceslices"), slices);

    // A spare link changes: the update names the version it is based on, and a conflict is read again.
    node.server.fail_next("PUT", "/resourceslices", 1, Fault::Status(409));
    world::ip(&format!("link set {} mtu 1450", spare.link));
    node.server.until("the new MTU", |_| node.device(&spare.link).to_string().contains("1450")).await;
    let updates = node.server.asked("PUT", "/resourceslices");
    assert!(updates.len() >= 2, "one that failed, and another: {updates:?}");
    assert!(updates.iter().all(|update| update.body["metadata"]["resourceVersion"].is_string()));

    // The daemon is away: traffic and protection stay.
    node.stop_daemon();
    ping(&netns, &format!("10.78.{number}.2"), "").unwrap();
    spoof_is_dropped(&netns, number);
    node.start_daemon();
    node.driver = node.kubelet.wait_for_driver(netferry::DRIVER_NAME).await;
    assert_eq!(node.pods()[0]["step"], pods[0]["step"]);
    ping(&netns, &format!("10.78.{number}.2"), "").unwrap();

    // The server is away while the pod stops.
    for method in ["GET", "PATCH", "POST"] {
        node.server.fail_next(method, "/", usize::MAX, Fault::Status(503));
    }
    let began = Instant::now();
    node.containerd.stop_pod(&pod.id).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(cable.look(), home);
    node.server.heal();
    node.until_ready(&claim, "False", "Prepared").await;
    assert_eq!(node.pods(), json!([]));
    let outcomes = node.driver.unprepare(std::slice::from_ref(&claim)).await.unwrap();
    assert_eq!(outcomes[&claim.uid], Ok(()));
    assert!(!pins.exists() || std::fs::read_dir(&pins).unwrap().next().is_none());
    node.containerd.remove_pod(&pod.id).await.unwrap();
    assert_eq!(node.status(&claim, "other.dev"), theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn life_of_a_pod_on_containerd_2_1() {
    life_of_a_pod(Series::V2_1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn life_of_a_pod_on_containerd_1_7() {
    life_of_a_pod(Series::V1_7, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_said() {
    if let Err(why) = prerequisites() {
        return support::skip("node refusals", &why);
    }
    let (cable, spare) = (Cable::new(3), Cable::new(103));
    let node = Node::start(Series::V2_1, &[&cable, &spare]).await;

    let bad = node.claim("bad", &spare.link, json!({}), json!({"mtu": 12}));
    let host = node.claim("host", &cable.link, json!({}), json!({"name": "net1"}));
    let outcomes = node.driver.prepare(&[bad.clone(), host.clone()]).await.unwrap();
    let why = outcomes[&bad.uid].as_ref().unwrap_err();
    assert!(["mtu", "12", "68 to 65535"].iter().all(|part| why.contains(part)), "{why}");
    assert!(outcomes[&host.uid].is_ok(), "{outcomes:?}");
    node.until_ready(&bad, "False", "PrepareFailed").await;
    node.until_event("ResourceClaim", "PrepareFailed").await;

    let pod = node.containerd.run_pod(NAMESPACE, "host", "pod-host", true).await.unwrap();
    let container = ContainerSpec::sleeping("main");
    let error = node.containerd.create_container(&pod, &container).await.unwrap_err();
    assert!(format!("{error:#}").contains("hostNetwork"), "{error:#}");
    node.until_ready(&host, "False", "AttachFailed").await;
    node.until_event("Pod", "AttachFailed").await;
    assert!(cable.is_home());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_comes_home_from_a_pod_that_ended_without_the_daemon() {
    if let Err(why) = prerequisites() {
        return support::skip("node gone", &why);
    }
    let cable = Cable::new(4);
    let mut node = Node::start(Series::V1_7, &[&cable]).await;
    let claim = node.claim("web", &cable.link, json!({}), json!({"name": "net1"}));
    node.prepare(&claim).await.unwrap();
    let pod = node.run_pod("web").await.unwrap();
    node.stop_daemon();
    node.containerd.stop_pod(&pod.id).await.unwrap();
    // Its namespace is held: the software link has not gone with the pod.
    node.start_daemon();
    node.until_ready(&claim, "False", "Prepared").await;
    assert_eq!(node.pods(), json!([]));
    assert!(cable.is_home());
    assert_eq!(node.home.holds(), Vec::<PathBuf>::new());
}

/// containerd tells no plugin of the end of a sandbox that is older than itself: its table of what needs a stop
/// is filled by RunPodSandbox alone (`needsStopping`, pkg/nri/nri.go). The kubelet's unprepare is the first news.
async fn a_pod_that_outlives_its_runtime(series: Series, number: u8) {
    if let Err(why) = prerequisites() {
        return support::skip(&format!("node, restart of {series:?}"), &why);
    }
    let cable = Cable::new(number);
    let mut node = Node::start(series, &[&cable]).await;
    let own = json!({"name": "net1", "addresses": [format!("10.78.{number}.1/24")]});
    let claim = node.claim("web", &cable.link, json!({}), own);
    node.prepare(&claim).await.unwrap();
    let pod = node.run_pod("web").await.unwrap();
    let netns = inside(&pod);
    node.until_ready(&claim, "True", "Attached").await;
    node.containerd.restart().await.unwrap();
    block_in_place(|| node.daemon.as_mut().unwrap().wait_ready());
    ping(&netns, &format!("10.78.{number}.2"), "").unwrap();
    spoof_is_dropped(&netns, number);
    assert_eq!(node.pods().as_array().unwrap().len(), 1);

    node.containerd.stop_pod(&pod.id).await.unwrap();
    let outcomes = node.driver.unprepare(std::slice::from_ref(&claim)).await.unwrap();
    assert_eq!(outcomes[&claim.uid], Ok(()));
    assert_eq!(node.pods(), json!([]));
    assert!(cable.is_home());
    assert_eq!(node.home.holds(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outlives_containerd_2_1() {
    a_pod_that_outlives_its_runtime(Series::V2_1, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outlives_containerd_1_7() {
    a_pod_that_outlives_its_runtime(Series::V1_7, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_starts_before_the_api_server() {
    if !support::netns::may_make_namespaces() {
        return support::skip("node without API server", "needs root");
    }
    let cable = Cable::new(7);
    let mut home = Home::new();
    let server = ApiServer::start(&[ApiVersion::V1]).await;
    home.cluster = ClusterArgs::Kubeconfig(server.kubeconfig(home.folder()));
    let address = server.address();
    drop(server);
    let rule = format!(r#"device.attributes["netferry.dev"].ifName == "{}""#, cable.link);
    home.arguments = vec!["--publish".into(), rule];
    let runtime = Runtime::listen(home.nri_socket(), Generation::OwnCalls).unwrap();
    let kubelet = Kubelet::new(&home.kubelet_root());
    let daemon = home.start(Path::new(world::BINARY));
    // Both neighbours of the node are served already.
    kubelet.wait_for_driver(netferry::DRIVER_NAME).await;
    runtime.accept().await.unwrap();
    let (code, missing) = block_in_place(|| daemon.get("/readyz")).unwrap();
    assert!(code != 200 && missing.contains("slices"), "{code} {missing}");

    let server = ApiServer::start_at(address, &[ApiVersion::V1]).await;
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    server.until("slices", |server| server.all("resourceslices").len() == 1).await;
    assert!(block_in_place(|| daemon.stop()).success());
}
