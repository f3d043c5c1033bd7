//! A node with an uplink, a machine beyond it with a DHCP server, and the parts of kubelet and runtime that the test plays.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use netferry::{DRIVER_NAME, claim::ClaimRef};
use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle, task::block_in_place, time::sleep};

use crate::{
    support::{
        daemon::{Daemon, Home},
        kubelet::{DriverHandle, Kubelet},
        netns::{NetNs, may_make_namespaces, unique},
        runtime::{Generation, Plugin, PodSandboxSpec, Runtime},
        skip,
    },
    tagged::Tagger,
};

const BINARY: &str = env!("CARGO_BIN_EXE_netferry");
/// The server's link and address.
const SERVER_LINK: &str = "srv0";
pub(crate) const SERVER: &str = "10.9.0.1";

/// Whether the machine can, or else says why not.
pub(crate) fn able(test: &str) -> bool {
    if !may_make_namespaces() {
        skip(test, "network namespaces cannot be made here");
        return false;
    }
    if Command::new("dnsmasq").arg("--version").output().is_err() {
        skip(test, "there is no dnsmasq");
        return false;
    }
    true
}

/// dnsmasq beyond the uplink. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- server's log\n{}---", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

pub(crate) struct World {
    pub(crate) node: NetNs,
    pub(crate) outside: NetNs,
    pub(crate) uplink: String,
    pub(crate) home: Home,
    pub(crate) driver: DriverHandle,
    vlan: Option<u16>,
    daemon: Option<Daemon>,
    kubelet: Kubelet,
    plugin: watch::Receiver<Option<Arc<Plugin>>>,
    runtime: JoinHandle<()>,
    _tagger: Option<Tagger>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.runtime.abort();
    }
}

/// Waits; says what for if it does not come.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1200 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("not within two minutes: {what}");
}

impl World {
    /// A node whose network `blue` is bridged over its uplink, and the daemon on it. The server does not run yet.
    pub(crate) async fn start(vlan: Option<u16>) -> Self {
        let (node, outside, uplink) = (NetNs::new(), NetNs::new(), unique("u"));
        let far = if vlan.is_some() { "far0" } else { SERVER_LINK };
        node.ip(&format!("link add {uplink} type veth peer name {far} netns {}", outside.name));
        let tagger = vlan.map(|vlan| {
            outside.ip(&format!("link add {SERVER_LINK} type veth peer name mid0"));
            for link in ["far0", "mid0"] {
                outside.ip(&format!("link set {link} up promisc on"));
            }
            Tagger::start(&outside, "far0", "mid0", vlan)
        });
        outside.ip(&format!("address add {SERVER}/24 dev {SERVER_LINK}"));
        outside.ip(&format!("link set {SERVER_LINK} up"));
        node.ip(&format!("link set {uplink} up"));
        let mut home = Home::new();
        home.arguments = ["--publish", "false", "--check-programs", "1"].map(str::to_owned).to_vec();
        let mut runtime = Runtime::listen(home.nri_socket(), Generation::OwnCalls).unwrap();
        runtime.request_timeout = Duration::from_secs(20);
        let (runtime, mut plugin) = runtime.serve();
        let kubelet = Kubelet::new(&home.kubelet_root());
        home.write_object("network.yaml", &network(&uplink, vlan));
        let mut daemon = node.scoped(|| home.start(Path::new(BINARY)));
        block_in_place(|| node.scoped(|| daemon.wait_ready()));
        plugin.changed().await.unwrap();
        let driver = kubelet.wait_for_driver(DRIVER_NAME).await;
        let daemon = Some(daemon);
        Self { node, outside, uplink, home, driver, vlan, daemon, kubelet, plugin, runtime, _tagger: tagger }
    }

    /// A server for a range of addresses; `more` are options of dnsmasq.
    pub(crate) fn serve(&self, range: &str, more: &[&str]) -> Server {
        let log = self.home.folder().join("dnsmasq.log");
        let file = |option: &str, path: &Path| format!("--{option}={}", path.display());
        let outside = &self.outside;
        let child = outside.scoped(|| {
            Command::new("dnsmasq")
                .args([
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--port=0",
                    "--no-ping",
                    "--user=root",
                ])
                .args(["--bind-interfaces", "--dhcp-authoritative", "--log-dhcp", "--pid-file="])
                .args([format!("--interface={SERVER_LINK}"), format!("--dhcp-range={range}")])
                .args([file("dhcp-leasefile", &self.lease_file()), file("log-facility", &log)])
                .args(more)
                .stdin(Stdio::null())
                .spawn()
                .expect("dnsmasq")
        });
        Server { child, log }
    }

    fn lease_file(&self) -> PathBuf {
        self.home.folder().join("dnsmasq.leases")
    }

    /// What the server has leased: when it ends, hardware address, and address.
    pub(crate) fn leases(&self) -> Vec<[String; 3]> {
        let text = fs::read_to_string(self.lease_file()).unwrap_or_default();
        let line = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            Some([words.next()?, words.next()?, words.next()?])
        };
        text.lines().filter_map(line).collect()
    }

    /// The files in which the daemon keeps leases.
    pub(crate) fn kept(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.home.state_dir().join("leases")).into_iter().flatten().flatten();
        files.map(|file| file.path()).collect()
    }

    pub(crate) fn checkpoints(&self) -> usize {
        fs::read_dir(self.home.state_dir().join("claims")).into_iter().flatten().count()
    }

    /// A claim for a port of `blue`, and a namespace for its pod. `fields` are more of its configuration.
    pub(crate) fn claim(&self, name: &str, fields: &str) -> (ClaimRef, NetNs, PodSandboxSpec) {
        let pod = NetNs::new();
        self.home.write_object(&format!("{name}.yaml"), &claim(name, fields));
        let sandbox = PodSandboxSpec::new("demo", name, &format!("pod-{name}"), Some(&pod.path));
        let claim = ClaimRef { namespace: "demo".into(), name: name.into(), uid: format!("claim-{name}") };
        (claim, pod, sandbox)
    }

    /// Prepares, once: why not, if it is refused.
    pub(crate) async fn prepare(&self, claim: &ClaimRef) -> Result<(), String> {
        // At its start the daemon has to learn of the network first, and publish it.
        for _ in 0..300 {
            let outcomes = self.driver.prepare(std::slice::from_ref(claim)).await;
            let outcome =
                outcomes.map_err(|error| format!("{error:#}"))?.remove(&claim.uid).expect("an answer");
            match outcome {
                Err(why) if why.contains("cannot be allocated") || why.contains("one of a network that") => {
                    sleep(Duration::from_millis(100)).await;
                }
                outcome => return outcome.map(drop),
            }
        }
        panic!("{claim} is not allocated: {:?}", self.driver.prepare(std::slice::from_ref(claim)).await);
    }

    pub(crate) async fn unprepare(&self, claim: &ClaimRef) -> Result<(), String> {
        let outcomes = self.driver.unprepare(std::slice::from_ref(claim)).await.expect("an answer");
        outcomes[&claim.uid].clone()
    }

    fn plugin(&self) -> Arc<Plugin> {
        self.plugin.borrow().clone().expect("a plugin")
    }

    pub(crate) async fn run(&self, sandbox: &PodSandboxSpec) {
        self.plugin().start_pod(sandbox).await.expect("the pod starts");
    }

    pub(crate) async fn stop(&self, sandbox: &PodSandboxSpec) {
        self.plugin().stop_pod_sandbox(sandbox).await.expect("stop");
        self.plugin().remove_pod_sandbox(sandbox).await.expect("remove");
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.daemon.take().expect("a daemon").kill();
    }

    /// Wait for a daemon that kills itself.
    #[cfg(feature = "failpoints")]
    pub(crate) async fn died(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        for _ in 0..600 {
            if daemon.has_ended() {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("the daemon lives");
    }

    pub(crate) async fn start_again(&mut self, failpoints: &str) {
        failpoints.clone_into(&mut self.home.failpoints);
        self.plugin.borrow_and_update();
        let mut daemon = self.node.scoped(|| self.home.start(Path::new(BINARY)));
        block_in_place(|| self.node.scoped(|| daemon.wait_ready()));
        self.driver = self.kubelet.wait_for_another(&self.driver).await;
        self.plugin.changed().await.unwrap();
        self.daemon = Some(daemon);
    }

    /// Another daemon, for which these times of every lease are over.
    pub(crate) async fn late(&mut self, times: &[&str]) {
        self.kill();
        for file in self.kept() {
            let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            for entry in record["entries"].as_array_mut().unwrap() {
                entry["lease"]["granted"] = "2020-01-01T00:00:00Z".into();
                for time in times {
                    entry["lease"]["times"][time] = "2020-01-01T01:00:00Z".into();
                }
            }
            fs::write(&file, record.to_string()).unwrap();
        }
        self.start_again("").await;
    }

    /// What `/metrics` counts of a result.
    pub(crate) fn counted(&self, result: &str) -> u64 {
        let daemon = self.daemon.as_ref().expect("a daemon");
        let (_, text) = block_in_place(|| self.node.scoped(|| daemon.get("/metrics"))).expect("metrics");
        let name = format!("netferry_dhcp_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
    }

    /// What is told of a claim.
    pub(crate) fn status(&self, claim: &ClaimRef) -> String {
        let file = format!("status/{}/{}.yaml", claim.namespace, claim.name);
        fs::read_to_string(self.home.objects().join(file)).unwrap_or_default()
    }

    pub(crate) fn events(&self) -> String {
        fs::read_to_string(self.home.objects().join("events.yaml")).unwrap_or_default()
    }

    /// Where messages of DHCP go, as errors name it.
    pub(crate) fn wire(&self) -> String {
        match self.vlan {
            Some(vlan) => format!("VLAN {vlan} of uplink {}", self.uplink),
            None => format!("uplink {}", self.uplink),
        }
    }
}

/// The IPv4 address that a pod has.
pub(crate) fn address(pod: &NetNs) -> Option<String> {
    let shown = pod.try_exec("ip -j -4 address show dev net1").ok()?;
    let shown: Value = serde_json::from_str(&shown).ok()?;
    Some(shown[0]["addr_info"][0]["local"].as_str()?.to_owned())
}

/// Whether an address answers, within some tries.
pub(crate) fn answers(from: &NetNs, to: &str) -> bool {
    (0..10).any(|_| from.try_exec(&format!("ping -n -c 1 -W 1 {to}")).is_ok())
}

fn network(uplink: &str, vlan: Option<u16>) -> String {
    let vlan = vlan.map(|vlan| format!("      vlan: {vlan}\n")).unwrap_or_default();
    format!(
        r#"---
apiVersion: netferry.dev/v1alpha1
kind: Network
metadata: {{name: blue}}
spec:
  subnets: [10.9.0.0/24]
  addresses: dhcp
  transport:
    uplink:
      selector: device.attributes["netferry.dev"].ifName == "{uplink}"
{vlan}  namespaceSelector: {{}}
  policy:
    egress: {{rules: [{{action: allow, peers: [{{cidr: 0.0.0.0/0}}]}}]}}
    ingress: {{rules: [{{action: allow, peers: [{{cidr: 10.9.0.0/24}}]}}]}}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {{name: netferry-network-blue}}
spec:
  selectors:
  - cel:
      expression: >-
        device.driver == "netferry.dev" && "network" in device.attributes["netferry.dev"] &&
        device.attributes["netferry.dev"].network == "blue"
"#
    )
}

fn claim(name: &str, fields: &str) -> String {
    format!(
        r"---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {{namespace: demo, name: {name}, uid: claim-{name}}}
spec:
  devices:
    requests:
    - name: port
      exactly: {{deviceClassName: netferry-network-blue}}
    config:
    - requests: [port]
      opaque:
        driver: netferry.dev
        parameters: {{apiVersion: netferry.dev/v1alpha1, kind: InterfaceConfig, name: net1{fields}}}
status:
  reservedFor:
  - {{resource: pods, name: {name}, uid: pod-{name}}}
"
    )
}
