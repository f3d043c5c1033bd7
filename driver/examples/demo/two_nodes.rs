//! Two networks with the same subnet across two nodes: each is a world of its own there, too.

mod wire;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use netferry::cluster::versions::ApiVersion;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use self::wire::Wire;
use crate::{
    INTERFACE, claim, indent,
    networks::{prepare, start, stop},
    ping, run, sandbox, say, step,
    support::{
        apiserver::ApiServer,
        daemon::{ClusterArgs, Daemon, Home},
        kubelet::{DriverHandle, Kubelet},
        netns::NetNs,
        runtime::{Generation, Plugin, PodSandboxSpec, Runtime},
    },
};

const NODES: [&str; 2] = ["node-a", "node-b"];
/// The networks and their numbers in tunnels.
const NETWORKS: [(&str, u32); 2] = [("blue", 100), ("red", 200)];

/// A pod: its network, its node, and its address, which `blue` and `red` both have.
struct Place {
    pod: &'static str,
    network: &'static str,
    node: usize,
    address: &'static str,
}

const PODS: [Place; 4] = [
    Place { pod: "blue-a", network: "blue", node: 0, address: "10.80.0.10" },
    Place { pod: "blue-b", network: "blue", node: 1, address: "10.80.0.11" },
    Place { pod: "red-a", network: "red", node: 0, address: "10.80.0.10" },
    Place { pod: "red-b", network: "red", node: 1, address: "10.80.0.12" },
];

/// A node: a daemon in a network namespace of its own, and the parts that the demo plays.
struct Node {
    daemon: Daemon,
    driver: DriverHandle,
    plugin: Plugin,
    home: Home,
    _kubelet: Kubelet,
    _runtime: Runtime,
}

/// Declares the networks, gives each a pod on each node, and tries who reaches whom, with an eye on the wire between the nodes.
pub(crate) async fn show(binary: &Path) -> Result<()> {
    step("Two nodes with a wire between them, and a server that stands in for Kubernetes' API");
    let wire = Wire::new()?;
    let server = wire.serve(&[ApiVersion::V1])?;
    put_objects(&server);
    let mut nodes = Vec::new();
    for (number, name) in NODES.iter().enumerate() {
        nodes.push(Node::start(binary, &server, &wire.nodes[number], name).await?);
        say(&format!("{name}: tunnels from {}", wire::address(number)));
    }

    step(
        "Networks blue and red have the subnet 10.80.0.0/24, and go on through tunnels: VNI 100 and VNI 200",
    );
    let pods = PODS.each_ref().map(|_| NetNs::new());
    let sandboxes: Vec<PodSandboxSpec> =
        PODS.iter().zip(&pods).map(|(place, netns)| sandbox(place.pod, &netns.path)).collect();
    for (place, sandbox) in PODS.iter().zip(&sandboxes) {
        let node = &nodes[place.node];
        prepare(&node.driver, &[claim(place.pod)]).await?;
        start(&node.plugin, sandbox).await?;
        say(&format!("{}, on {} at {}: {}", place.pod, place.network, NODES[place.node], place.address));
    }
    let [blue, _, red, _] = &pods;
    for (pod, to) in [(blue, PODS[1].address), (red, PODS[3].address)] {
        reached(pod, to).await?;
    }

    for ((network, vni), (from, place)) in NETWORKS.iter().zip([(blue, &PODS[1]), (red, &PODS[3])]) {
        step(&format!("Members of {network} reach each other, and on the wire is VNI {vni} alone"));
        wire.seen();
        indent(&ping(from, place.address, &[])?);
        let seen = wire.seen();
        say(&format!("on the wire: {seen}"));
        ensure!(seen.others == 0, "{} frames were outside of a tunnel", seen.others);
        let tunnelled = seen.tunnelled.get(vni).copied().unwrap_or(0);
        ensure!(tunnelled >= 6 && seen.tunnelled.len() == 1, "another network's tunnel: {seen}");
    }

    step("Others do not, and nothing of it is on the wire");
    for (from, place, to) in [(blue, &PODS[0], PODS[3].address), (red, &PODS[2], PODS[1].address)] {
        if ping(from, to, &[]).is_ok() {
            bail!("{} reaches {to}, which is no member of {}", place.pod, place.network);
        }
        say(&format!("{}'s ping to {to}: no answer", place.pod));
    }
    let seen = wire.seen();
    say(&format!("on the wire: {seen}"));
    ensure!(seen.tunnelled.is_empty() && seen.others == 0, "something left the node: {seen}");

    step(
        "The programs put the tunnels' headers on; what they leave to the kernel's VXLAN device is counted there",
    );
    let shown: Value = serde_json::from_str(&wire.nodes[0].ip("-j -s link show nf-vxlan"))?;
    let sent = shown[0]["stats64"]["tx"]["packets"].as_u64().context("nf-vxlan has no counters")?;
    say(&format!("frames that {} sent by nf-vxlan: {sent}", NODES[0]));
    let state = nodes[0].home.state_dir();
    indent(&run(binary, &["networks", "--state-dir", state.to_str().context("UTF-8 path")?])?);

    step("The pods stop, and the tunnels are gone");
    for (place, sandbox) in PODS.iter().zip(&sandboxes) {
        let node = &nodes[place.node];
        stop(&node.plugin, sandbox).await?;
        for (claim, done) in node.driver.unprepare(&[claim(place.pod)]).await? {
            done.map_err(anyhow::Error::msg).with_context(|| format!("claim {claim}"))?;
        }
    }
    for (node, netns) in nodes.into_iter().zip(&wire.nodes) {
        gone(netns).await?;
        let status = block_in_place(|| node.daemon.stop());
        ensure!(status.success(), "a daemon ended with {status}");
    }
    say("no node has a tunnel device");
    Ok(())
}

impl Node {
    async fn start(binary: &Path, server: &ApiServer, netns: &NetNs, name: &str) -> Result<Self> {
        let mut home = Home::new();
        name.clone_into(&mut home.node_name);
        home.cluster = ClusterArgs::Kubeconfig(server.kubeconfig(home.folder()));
        home.arguments = vec!["--publish".to_owned(), "false".to_owned()];
        let runtime = Runtime::listen(home.nri_socket(), Generation::OwnCalls)?;
        let kubelet = Kubelet::new(&home.kubelet_root());
        let mut daemon = netns.scoped(|| home.start(binary));
        let driver = kubelet.wait_for_driver(netferry::DRIVER_NAME).await;
        let plugin = runtime.accept().await?;
        block_in_place(|| netns.scoped(|| daemon.wait_ready()));
        Ok(Self { daemon, driver, plugin, home, _kubelet: kubelet, _runtime: runtime })
    }
}

/// The networks, and a claim for each pod that a scheduler has allocated.
fn put_objects(server: &ApiServer) {
    server.put(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "demo", "labels": {"team": "demo"}}}));
    for (number, name) in NODES.iter().enumerate() {
        let address = json!({"type": "InternalIP", "address": wire::address(number)});
        server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {},
            "status": {"addresses": [address]}}));
    }
    for (name, vni) in NETWORKS {
        server.put(
            json!({"apiVersion": "netferry.dev/v1alpha1", "kind": "Network", "metadata": {"name": name},
            "spec": {"subnets": ["10.80.0.0/24"], "transport": {"overlay": {"vni": vni}},
                "namespaceSelector": {"matchLabels": {"team": "demo"}}}}),
        );
    }
    for (nth, Place { pod, network, node, address }) in PODS.iter().enumerate() {
        let parameters = json!({"apiVersion": "netferry.dev/v1alpha1", "kind": "InterfaceConfig",
            "name": INTERFACE, "addresses": [format!("{address}/24")]});
        let result = json!({"request": "port", "driver": netferry::DRIVER_NAME, "pool": NODES[*node],
            "device": format!("port-{network}"), "shareID": format!("00000000-0000-4000-8000-00000000000{nth}"),
            "consumedCapacity": {"ports": "1"}});
        server.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"namespace": "demo", "name": pod, "uid": format!("claim-{pod}")},
            "spec": {"devices": {"requests": [
                {"name": "port", "exactly": {"deviceClassName": format!("netferry-network-{network}")}}]}},
            "status": {
                "allocation": {"devices": {"results": [result], "config": [
                    {"source": "FromClaim", "requests": ["port"],
                        "opaque": {"driver": netferry::DRIVER_NAME, "parameters": parameters}}]}},
                "reservedFor": [{"resource": "pods", "name": pod, "uid": format!("pod-{pod}")}],
            },
        }));
    }
}

/// Waits until the nodes have heard of each other's pods.
async fn reached(from: &NetNs, to: &str) -> Result<()> {
    for _ in 0..100 {
        if ping(from, to, &[]).is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{to} is not reached")
}

async fn gone(node: &NetNs) -> Result<()> {
    for _ in 0..100 {
        if node.link("nf-vxlan").is_none() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{} still has its tunnel device", node.name)
}
