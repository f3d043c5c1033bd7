//! Two networks with the same subnet on one node: each is a world of its own.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    INTERFACE, claim, claimed, indent, ping, run, sandbox, say, step,
    support::{
        daemon::Home,
        kubelet::DriverHandle,
        netns::NetNs,
        runtime::{Plugin, PodSandboxSpec},
    },
};

const NETWORKS: [&str; 2] = ["blue", "red"];
/// Network, pod, and the address that its claim fixes. One without asks for an address as for another device.
const PORTS: [(&str, &str, Option<&str>); 4] = [
    ("blue", "alice", Some("10.80.0.10")),
    ("blue", "bob", None),
    ("red", "carol", Some("10.80.0.10")),
    ("red", "dave", Some("10.80.0.20")),
];

/// Declares the networks, gives each two pods, and tries who reaches whom.
pub(crate) async fn show(home: &Home, binary: &Path, driver: &DriverHandle, plugin: &Plugin) -> Result<()> {
    step(
        "Two networks are declared, both with the subnet 10.80.0.0/24; this is one, and a claim with a policy",
    );
    indent(objects().split("---\n").nth(1).unwrap_or_default());
    indent(claimed(objects().split("---\n").find(|text| text.contains("name: alice")).unwrap_or_default()));
    home.write_object("networks.yaml", &objects());
    let claims = PORTS.map(|(_, pod, _)| claim(pod));
    prepare(driver, &claims).await?;
    let state = home.state_dir();
    let state = state.to_str().context("UTF-8 path")?;
    indent(&run(binary, &["networks", "--state-dir", state])?);

    step("Pods with ports on them: three addresses are fixed, one comes from the network's pool");
    let pods = PORTS.map(|_| NetNs::new());
    let sandboxes: Vec<_> =
        PORTS.iter().zip(&pods).map(|((_, pod, _), netns)| sandbox(pod, &netns.path)).collect();
    for sandbox in &sandboxes {
        start(plugin, sandbox).await?;
    }
    let [alice, bob, carol, _] = &pods;
    for ((network, pod, _), netns) in PORTS.iter().zip(&pods) {
        say(&format!("{pod}, on {network}: {}", address(netns)?));
    }
    let given = address(bob)?;

    step("Members reach each other, also those whose addresses are in both networks");
    indent(&ping(alice, &given, &[])?);
    indent(&ping(carol, "10.80.0.20", &[])?);

    step("Others do not: dave's address is no member of alice's network");
    if ping(alice, "10.80.0.20", &[]).is_ok() {
        bail!("blue reaches a pod of red");
    }
    say("alice's ping to 10.80.0.20: no answer");
    let bpffs = home.bpffs().to_str().context("UTF-8 path")?;
    let held = run(binary, &["pods", "-o", "json", "--bpffs", bpffs, "--state-dir", state])?;
    let held: Vec<Value> = serde_json::from_str(&held)?;
    let drops = held
        .iter()
        .find(|holding| holding["pod"]["name"] == "alice")
        .and_then(|holding| holding["stats"]["drops"].as_object())
        .context("alice is not shown")?;
    ensure!(drops.get("not_member").and_then(Value::as_u64) > Some(0), "the drops were not counted");
    for (reason, count) in drops {
        say(&format!("dropped at alice's port: {reason}={count}"));
    }

    step(
        "A policy in a claim is in force before the first frame; what is allowed, and the flows that are open",
    );
    indent(&run(binary, &["policy", "show", "demo/alice", "--bpffs", bpffs, "--state-dir", state])?);
    for port in ["icmp/8/0", "tcp/80"] {
        let from = ["policy", "explain", "--from", "demo/alice", "--to", &given, "--port", port];
        let shown = run(binary, &[&from[..], &["--bpffs", bpffs, "--state-dir", state]].concat())?;
        say(&format!("alice to bob, {port}:"));
        indent(&shown);
    }
    indent(&ping(alice, &given, &[])?);
    indent(&run(binary, &["flows", "--bpffs", bpffs, "--state-dir", state])?);

    step("The pods stop, and their ports are gone");
    for sandbox in &sandboxes {
        stop(plugin, sandbox).await?;
    }
    for (claim, done) in driver.unprepare(&claims).await? {
        done.map_err(anyhow::Error::msg).with_context(|| format!("claim {claim}"))?;
    }
    for pod in &pods {
        ensure!(pod.link(INTERFACE).is_none(), "{} still has a port", pod.name);
    }
    say("every port was taken away with its pair");
    Ok(())
}

/// As the kubelet does: again until the driver knows the networks and their pools are published.
pub(crate) async fn prepare(driver: &DriverHandle, claims: &[netferry::claim::ClaimRef]) -> Result<()> {
    let mut last = String::new();
    for _ in 0..300 {
        let outcomes = driver.prepare(claims).await?;
        let failed: Vec<String> = outcomes.into_values().filter_map(Result::err).collect();
        if failed.is_empty() {
            return Ok(());
        }
        last = failed.join("; ");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the claims cannot be prepared: {last}")
}

/// As kubelet and runtime do.
pub(crate) async fn start(plugin: &Plugin, sandbox: &PodSandboxSpec) -> Result<()> {
    let started = plugin.start_pod(sandbox).await;
    started.map_err(|error| anyhow::anyhow!("pod {} does not start: {error:?}", sandbox.name))
}

pub(crate) async fn stop(plugin: &Plugin, sandbox: &PodSandboxSpec) -> Result<()> {
    plugin.stop_pod_sandbox(sandbox).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    plugin.remove_pod_sandbox(sandbox).await.map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// The IPv4 address in a pod.
fn address(pod: &NetNs) -> Result<String> {
    let shown = pod.ip(&format!("-j -4 address show dev {INTERFACE}"));
    let shown: Value = serde_json::from_str(&shown)?;
    let address = shown[0]["addr_info"][0]["local"].as_str();
    Ok(address.with_context(|| format!("{} has no address", pod.name))?.to_owned())
}

/// What alice may not open, though her network lets her.
const POLICY: &str = "          policy:
            egress:
              rules:
              - {action: deny, ports: [{protocol: TCP, port: 80}]}
";

fn objects() -> String {
    let networks = NETWORKS.map(|name| {
        format!(
            r#"---
apiVersion: netferry.dev/v1alpha1
kind: Network
metadata: {{name: {name}}}
spec:
  subnets: [10.80.0.0/24]
  transport: {{local: {{}}}}
  namespaceSelector:
    matchLabels: {{kubernetes.io/metadata.name: demo}}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {{name: netferry-network-{name}}}
spec:
  selectors:
  - cel:
      expression: >-
        device.driver == "netferry.dev" && "network" in device.attributes["netferry.dev"] &&
        device.attributes["netferry.dev"].network == "{name}"
"#
        )
    });
    let claims = PORTS.map(|(network, pod, address)| {
        let (more, addresses) = match address {
            Some(address) => (String::new(), format!("          addresses: [{address}/24]\n")),
            None => (request(network, "address"), String::new()),
        };
        let port = request(network, "port");
        let policy = if pod == "alice" { POLICY } else { "" };
        let constraints = match address {
            Some(_) => "",
            None => "    constraints: [{requests: [port, address], matchAttribute: netferry.dev/network}]\n",
        };
        format!(
            r"---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {{namespace: demo, name: {pod}, uid: claim-{pod}}}
spec:
  devices:
    requests:
{port}{more}{constraints}    config:
    - requests: [port]
      opaque:
        driver: netferry.dev
        parameters:
          apiVersion: netferry.dev/v1alpha1
          kind: InterfaceConfig
          name: {INTERFACE}
{addresses}{policy}status:
  reservedFor:
  - {{resource: pods, name: {pod}, uid: pod-{pod}}}
"
        )
    });
    networks.concat() + &claims.concat()
}

/// A request for a device of the type, `port` or `address`.
fn request(network: &str, kind: &str) -> String {
    format!(
        r#"    - name: {kind}
      exactly:
        deviceClassName: netferry-network-{network}
        selectors:
        - cel: {{expression: 'device.attributes["netferry.dev"].type == "{kind}"'}}
"#
    )
}
