//! A node: real containerd, the real daemon, and stand-ins for kubelet and API server around them.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{mem::ManuallyDrop, path::Path, process::Command, time::Duration};

use netferry::{claim::ClaimRef, cluster::versions::ApiVersion};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::support::{
    apiserver::ApiServer,
    containerd::{ContainerSpec, Containerd, RunningPod, Series},
    daemon::{ClusterArgs, Daemon, Home},
    kubelet::{DriverHandle, Kubelet},
    netns::{NetNs, unique},
};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_netferry");
pub(crate) const NAMESPACE: &str = "team-a";

pub(crate) fn ip(words: &str) -> String {
    let out = Command::new("ip").args(words.split(' ')).output().expect("ip");
    assert!(out.status.success(), "ip {words}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

/// A link at home whose other end is in a namespace of the test.
pub(crate) struct Cable {
    pub(crate) link: String,
    pub(crate) far: NetNs,
}

impl Cable {
    pub(crate) fn new(number: u8) -> Self {
        let (link, far) = (unique("h"), NetNs::new());
        ip(&format!("link add {link} type veth peer name far netns {}", far.name));
        let cable = Self { link, far };
        let link = &cable.link;
        ip(&format!("link set {link} addrgenmode none"));
        cable.far.ip("link set far up");
        ip(&format!("link set {link} up"));
        ip(&format!("address add 198.19.{number}.1/25 dev {link}"));
        ip(&format!("-6 address add fd19:{number}::1/64 dev {link} nodad"));
        ip(&format!("route add 198.19.{number}.128/25 dev {link} table {}", 4000 + u32::from(number)));
        cable.far.ip(&format!("address add 10.78.{number}.2/24 dev far"));
        cable.far.ip(&format!("-6 address add fd78:{number}::2/64 dev far nodad"));
        cable
    }

    /// Link, addresses and routes at home, as a machine reads them.
    pub(crate) fn look(&self) -> String {
        let link = &self.link;
        [
            format!("-j -d address show dev {link}"),
            format!("-j -4 route show table all dev {link}"),
            format!("-j -6 route show table all dev {link}"),
        ]
        .iter()
        .map(|words| ip(words))
        .collect()
    }

    pub(crate) fn is_home(&self) -> bool {
        Path::new("/sys/class/net").join(&self.link).exists()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "delete", &self.link])
            .stderr(std::process::Stdio::null())
            .status();
    }
}

/// The namespace of a sandbox: containerd's, so it is not unmounted here.
pub(crate) fn inside(pod: &RunningPod) -> ManuallyDrop<NetNs> {
    let path = pod.netns.clone().expect("a namespace");
    ManuallyDrop::new(NetNs { name: path.display().to_string(), path })
}

pub(crate) struct Node {
    pub(crate) daemon: Option<Daemon>,
    pub(crate) driver: DriverHandle,
    pub(crate) kubelet: Kubelet,
    pub(crate) server: ApiServer,
    pub(crate) containerd: Containerd,
    pub(crate) home: Home,
}

impl Node {
    pub(crate) async fn start(series: Series, cables: &[&Cable]) -> Self {
        let containerd = Containerd::start(series).await.expect("containerd");
        let server = ApiServer::start(&[ApiVersion::V1]).await;
        server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
        let mut home = Home::new();
        home.cluster = ClusterArgs::Kubeconfig(server.kubeconfig(home.folder()));
        home.nri_socket = Some(containerd.nri_socket());
        let one = |cable: &&Cable| format!(r#"device.attributes["netferry.dev"].ifName == "{}""#, cable.link);
        let rule = cables.iter().map(one).collect::<Vec<_>>().join(" || ");
        home.arguments = vec!["--publish".into(), rule];
        let kubelet = Kubelet::new(&home.kubelet_root());
        let mut daemon = home.start(Path::new(BINARY));
        block_in_place(|| daemon.wait_ready());
        let driver = kubelet.wait_for_driver(netferry::DRIVER_NAME).await;
        Self { daemon: Some(daemon), driver, kubelet, server, containerd, home }
    }

    pub(crate) fn stop_daemon(&mut self) {
        let daemon = self.daemon.take().expect("a daemon");
        assert!(block_in_place(|| daemon.stop()).success());
    }

    pub(crate) fn start_daemon(&mut self) {
        let mut daemon = self.home.start(Path::new(BINARY));
        block_in_place(|| daemon.wait_ready());
        self.daemon = Some(daemon);
    }

    /// The device that was published for a link.
    pub(crate) fn device(&self, link: &str) -> Value {
        let slices = self.server.all("resourceslices");
        let devices = slices.iter().flat_map(|slice| slice["spec"]["devices"].as_array().expect("devices"));
        let named = |device: &&Value| {
            let attributes = &device["attributes"];
            attributes["netferry.dev/ifName"]["string"] == link || attributes["ifName"]["string"] == link
        };
        devices.clone().find(named).unwrap_or_else(|| panic!("{link} is not published: {slices:?}")).clone()
    }

    /// A claim as the scheduler leaves it, for the pod of the same name.
    pub(crate) fn claim(&self, name: &str, link: &str, class: Value, claim: Value) -> ClaimRef {
        let config = |source: &str, mut fields: Value| {
            fields["apiVersion"] = "netferry.dev/v1alpha1".into();
            fields["kind"] = "InterfaceConfig".into();
            json!({"source": source, "requests": ["nic"],
                "opaque": {"driver": "netferry.dev", "parameters": fields}})
        };
        let device = &self.device(link)["name"];
        let stored = self.server.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"namespace": NAMESPACE, "name": name},
            "spec": {"devices": {"requests": [{"name": "nic", "exactly": {"deviceClassName": "netferry.dev"}}]}},
            "status": {
                "allocation": {"devices": {
                    "results": [
                        {"request": "nic", "driver": "netferry.dev", "pool": "node-1", "device": device},
                        {"request": "gpu", "driver": "other.dev", "pool": "p", "device": "gpu"}],
                    "config": [config("FromClass", class), config("FromClaim", claim)]}},
                "reservedFor": [{"resource": "pods", "name": name, "uid": format!("pod-{name}")}]
            }
        }));
        let uid = stored["metadata"]["uid"].as_str().expect("uid").to_owned();
        ClaimRef { namespace: NAMESPACE.into(), name: name.into(), uid }
    }

    pub(crate) async fn prepare(&self, claim: &ClaimRef) -> Result<(), String> {
        let mut outcomes = self.driver.prepare(std::slice::from_ref(claim)).await.expect("prepare");
        outcomes.remove(&claim.uid).expect("an outcome").map(drop)
    }

    /// A sandbox, and a container in it, which is tried again while it is refused.
    pub(crate) async fn run_pod(&self, name: &str) -> anyhow::Result<RunningPod> {
        let pod = self.containerd.run_pod(NAMESPACE, name, &format!("pod-{name}"), false).await?;
        let mut tries = 0;
        while let Err(error) = self.containerd.create_container(&pod, &ContainerSpec::sleeping("main")).await
        {
            tries += 1;
            anyhow::ensure!(tries < 100, "{error:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(pod)
    }

    /// A device's status in a claim.
    pub(crate) fn status(&self, claim: &ClaimRef, driver: &str) -> Value {
        let claim = self.server.get("resourceclaims", &claim.to_string()).expect("claim");
        let devices = claim["status"]["devices"].as_array().cloned().unwrap_or_default();
        devices.into_iter().find(|device| device["driver"] == driver).unwrap_or_default()
    }

    /// Wait until the condition `Ready` has this status and reason.
    pub(crate) async fn until_ready(&self, claim: &ClaimRef, status: &str, reason: &str) {
        let is = |_: &ApiServer| {
            let conditions = self.status(claim, "netferry.dev")["conditions"].clone();
            conditions.as_array().into_iter().flatten().any(|condition| {
                condition["type"] == "Ready" && condition["status"] == status && condition["reason"] == reason
            })
        };
        self.server.until(&format!("{claim}: Ready={status}, {reason}"), is).await;
    }

    /// Wait for an Event about an object.
    pub(crate) async fn until_event(&self, kind: &str, reason: &str) {
        let is = |server: &ApiServer| {
            let events = server.all("events");
            events.iter().any(|event| event["reason"] == reason && event["regarding"]["kind"] == kind)
        };
        self.server.until(&format!("Event {reason} on a {kind}"), is).await;
    }

    /// `netferry pods -o json`.
    pub(crate) fn pods(&self) -> Value {
        let out = Command::new(BINARY)
            .args(["pods", "-o", "json", "--bpffs"])
            .arg(self.home.bpffs())
            .arg("--state-dir")
            .arg(self.home.state_dir())
            .output()
            .expect("netferry pods");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    }
}
