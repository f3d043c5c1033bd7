//! What all cases of a run share: the cluster, the node, its links.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    kubectl::Kubectl,
    links::Pool,
    node::{LINKS, Node, link},
    options::{Commands, Options},
    wait::until,
};

/// The label of everything that any run makes; its value is the run's.
pub(crate) const LABEL: &str = "netferry-e2e";
/// What a run makes beside namespaces, and in all of the cluster.
const CLUSTER_WIDE: &str = "networks.netferry.dev,deviceclasses.resource.k8s.io";

/// The cluster that the cases run on.
pub(crate) struct World {
    /// How it is reached.
    pub(crate) kubectl: Kubectl,
    /// The node of all pods.
    pub(crate) node: Node,
    /// The node's links.
    pub(crate) links: Pool,
    /// Why cases with links cannot run.
    pub(crate) unpublished: Option<String>,
    /// The run's own part of names.
    pub(crate) run: String,
    /// Image of the pods.
    pub(crate) image: String,
    /// How long anything may take.
    pub(crate) limit: Duration,
    /// The namespace of the driver.
    pub(crate) driver_namespace: String,
    /// How the node is disturbed.
    pub(crate) commands: Commands,
    /// Whether what was made is left.
    pub(crate) keep: bool,
}

/// The cluster of the options.
pub(crate) fn kubectl(options: &Options) -> Kubectl {
    Kubectl { program: options.kubectl.clone(), kubeconfig: options.kubeconfig.clone(), closing: false }
}

impl World {
    /// Makes the run's namespace, the pod on the node and the links.
    pub(crate) fn start(options: &Options, run: &str) -> Result<Self> {
        let kubectl = kubectl(options);
        let name = match &options.node {
            Some(name) => name.clone(),
            None => first_node(&kubectl, &options.driver_namespace)?,
        };
        let namespace = format!("netferry-e2e-{run}");
        let label = json!({LABEL: run});
        kubectl.apply(&privileged_namespace(&namespace, &label))?;
        let node = Node::start(&kubectl, &name, &namespace, &label, &options.image)?;
        let numbers: Vec<_> = (1..=LINKS).collect();
        let published =
            until("links", Duration::from_secs(20), || node.publishes(&kubectl, &numbers)).map(drop);
        let unpublished = published.err().map(|error| {
            format!(
                "{error:#}; its rule must publish veth links named {}…, for example --publish \
                 'device.attributes[\"netferry.dev\"].ifName.startsWith(\"nfe2e\")'",
                link(1)
            )
        });
        Ok(Self {
            kubectl,
            node,
            links: Pool::new(),
            unpublished,
            run: run.to_owned(),
            image: options.image.clone(),
            limit: Duration::from_secs(options.timeout),
            driver_namespace: options.driver_namespace.clone(),
            commands: options.commands.clone(),
            keep: options.keep,
        })
    }

    /// The daemon's pod on the node.
    pub(crate) fn daemon(&self) -> Result<Value> {
        daemons(&self.kubectl, &self.driver_namespace)?
            .into_iter()
            .find(|pod| {
                pod["spec"]["nodeName"] == self.node.name.as_str()
                    && pod["metadata"]["deletionTimestamp"].is_null()
            })
            .with_context(|| format!("no daemon of the driver on {}", self.node.name))
    }

    /// Starts a command that disturbs the node: on it, or here if it begins with `local:`. A local one has
    /// ended when this returns.
    pub(crate) fn disturb(&self, command: &str) -> Result<()> {
        match command.strip_prefix("local:") {
            Some(command) => local(command),
            None => self.node.start_apart(command),
        }
    }

    /// Waits until a command of `disturb` has ended.
    pub(crate) fn disturbed(&self, command: &str) -> Result<()> {
        if command.starts_with("local:") {
            return Ok(());
        }
        until("the command on the node", self.limit, || self.node.ended()).map(drop)
    }
}

/// Runs a shell's command on this machine.
pub(crate) fn local(command: &str) -> Result<()> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start sh")?;
    let status = child.wait().context("sh")?;
    if !status.success() {
        bail!("`{command}` failed ({status})");
    }
    Ok(())
}

fn privileged_namespace(name: &str, label: &Value) -> Value {
    let mut labels = label.clone();
    labels["pod-security.kubernetes.io/enforce"] = json!("privileged");
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn daemons(kubectl: &Kubectl, namespace: &str) -> Result<Vec<Value>> {
    kubectl.list(&["pods", "-n", namespace, "-l", "app.kubernetes.io/component=daemon"])
}

/// Whether a condition of an object is true.
pub(crate) fn condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|entry| entry["type"] == kind && entry["status"] == "True")
}

fn first_node(kubectl: &Kubectl, namespace: &str) -> Result<String> {
    let daemons = daemons(kubectl, namespace)?;
    let nodes = kubectl.list(&["nodes"])?;
    nodes
        .iter()
        .filter(|node| condition(node, "Ready") && node["spec"]["unschedulable"] != true)
        .filter_map(|node| node["metadata"]["name"].as_str())
        .find(|name| daemons.iter().any(|pod| pod["spec"]["nodeName"] == *name))
        .map(str::to_owned)
        .with_context(|| {
            format!("no ready node runs a pod of the driver's DaemonSet in namespace {namespace}")
        })
}

/// Removes what runs made: one run's, or every one's. Says what is left.
pub(crate) fn remove(kubectl: &Kubectl, run: Option<&str>) -> Result<()> {
    let kubectl = kubectl.closing();
    let selector = run.map_or_else(|| LABEL.to_owned(), |run| format!("{LABEL}={run}"));
    // Pods first, so that links are home and ports gone before what they belong to. The node's pod ends last,
    // with the links.
    let mut namespaces = names(&kubectl, "namespaces", &selector)?;
    let own = |name: &str| run.is_some_and(|run| name == format!("netferry-e2e-{run}"));
    namespaces.sort_by_key(|name| own(name) || name.matches('-').count() == 2);
    for name in &namespaces {
        kubectl.call(&["delete", "namespace", name, "--wait=true"], None, Duration::from_secs(90))?;
    }
    // Where the driver is gone, its kind is too.
    for kind in CLUSTER_WIDE.split(',') {
        if let Ok(objects) = names(&kubectl, kind, &selector) {
            for name in objects {
                kubectl.call(&["delete", kind, &name, "--wait=true"], None, Duration::from_mins(1))?;
            }
        }
    }
    Ok(())
}

fn names(kubectl: &Kubectl, kind: &str, selector: &str) -> Result<Vec<String>> {
    let list = kubectl.run(&["get", kind, "-l", selector, "-o", "name", "--ignore-not-found"])?;
    Ok(list.lines().filter_map(|line| Some(line.split_once('/')?.1.to_owned())).collect())
}

/// The versions of what takes part, for the report.
pub(crate) fn versions(world: &World) -> String {
    let node = world.kubectl.get(&["node", &world.node.name]).unwrap_or_default();
    let info = |name: &str| node["status"]["nodeInfo"][name].as_str().unwrap_or("?").to_owned();
    let daemon = world.daemon().unwrap_or_default();
    format!(
        "node {}: kubelet {}, {}, Linux {}, {}; driver {}",
        world.node.name,
        info("kubeletVersion"),
        info("containerRuntimeVersion"),
        info("kernelVersion"),
        info("osImage"),
        daemon["spec"]["containers"][0]["image"].as_str().unwrap_or("?"),
    )
}
