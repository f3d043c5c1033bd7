//! One case's own part of the cluster: a namespace, links, networks; and what cases do with pods.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    kubectl::CALL,
    node::{far_address, link, pod_address},
    objects::{self, INTERFACE, Source},
    ping::{INTERVAL, Trace},
    wait::until,
    world::{LABEL, World, condition},
};

/// A case that runs.
pub(crate) struct Story<'a> {
    /// The cluster.
    pub(crate) world: &'a World,
    /// The case's namespace.
    pub(crate) namespace: String,
    /// Its links on the node.
    pub(crate) links: Vec<usize>,
    name: &'a str,
}

impl<'a> Story<'a> {
    /// Makes the case's namespace.
    pub(crate) fn start(world: &'a World, name: &'a str, links: Vec<usize>) -> Result<Self> {
        let namespace = format!("netferry-e2e-{}-{name}", world.run);
        let story = Self { world, namespace, links, name };
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": story.namespace}});
        story.apply_as(object, None)?;
        for number in &story.links {
            until("the link at the beginning", world.limit, || world.node.has_link(*number))?;
        }
        // What the kubelet mounts into each pod.
        until("the default service account", world.limit, || {
            world.kubectl.run(&["get", "serviceaccount", "default", "-n", &story.namespace]).map(drop)
        })?;
        Ok(story)
    }

    /// Removes everything of the case, and waits for its links.
    pub(crate) fn end(&self) -> Result<()> {
        let kubectl = self.world.kubectl.closing();
        let delete = ["delete", "namespace", &self.namespace, "--wait=true", "--ignore-not-found"];
        kubectl.call(&delete, None, self.world.limit)?;
        let selector = format!("netferry-e2e-case={},{LABEL}={}", self.name, self.world.run);
        for kind in ["networks.netferry.dev", "deviceclasses.resource.k8s.io"] {
            let delete = ["delete", kind, "-l", &selector, "--wait=true", "--ignore-not-found"];
            kubectl.call(&delete, None, self.world.limit)?;
        }
        for number in &self.links {
            until("the link at the end", self.world.limit, || self.world.node.has_link(*number))?;
        }
        Ok(())
    }

    /// Applies an object in the case's namespace.
    pub(crate) fn apply(&self, object: Value) -> Result<()> {
        self.apply_as(object, Some(&self.namespace))
    }

    /// Applies objects of the cluster.
    pub(crate) fn apply_wide(&self, objects: Vec<Value>) -> Result<()> {
        objects.into_iter().try_for_each(|object| self.apply_as(object, None))
    }

    fn apply_as(&self, mut object: Value, namespace: Option<&str>) -> Result<()> {
        self.mark(&mut object, namespace);
        self.world.kubectl.apply(&object)
    }

    /// Gives an object the labels by which it is removed.
    pub(crate) fn mark(&self, object: &mut Value, namespace: Option<&str>) {
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object["metadata"]["labels"][LABEL] = json!(self.world.run);
        object["metadata"]["labels"]["netferry-e2e-case"] = json!(self.name);
    }

    /// What a pod of the case is.
    pub(crate) fn spec(&self, sources: &[Source<'_>]) -> Value {
        objects::pod_spec(&self.world.image, &self.world.node.name, sources, None)
    }

    /// Makes a pod.
    pub(crate) fn pod(&self, name: &str, sources: &[Source<'_>]) -> Result<()> {
        self.apply(objects::pod(name, &json!({"app": name}), &self.spec(sources)))
    }

    /// Makes a template of claims for one link, named after it, which is `net1` in the pod.
    pub(crate) fn link_template(&self, number: usize) -> Result<String> {
        let name = link(number);
        let spec = objects::links(&[(&name, INTERFACE, pod_address(number))]);
        self.apply(objects::template(&name, &spec))?;
        Ok(name)
    }

    /// Declares a network with a policy that this case's namespace may join, and waits for its ports.
    pub(crate) fn network(&self, suffix: &str, subnet: &str, policy: Option<Value>) -> Result<String> {
        let fields = policy.map_or_else(|| json!({}), |policy| json!({"policy": policy}));
        self.network_with(suffix, subnet, &fields)
    }

    /// Declares a network with further fields that this case's namespace may join, and waits until the node
    /// publishes its ports.
    pub(crate) fn network_with(&self, suffix: &str, subnet: &str, fields: &Value) -> Result<String> {
        let name = format!("nfe2e-{}-{}-{suffix}", self.world.run, self.name);
        self.apply_wide(objects::network(&name, &self.namespace, subnet, fields))?;
        until("the port in the node's slices", self.world.limit, || {
            let slices = self.world.node.slices(&self.world.kubectl)?;
            let device = format!("port-{name}");
            let mut devices = slices.iter().filter_map(|slice| slice["spec"]["devices"].as_array()).flatten();
            devices
                .find(|entry| entry["name"] == device.as_str())
                .map(drop)
                .with_context(|| format!("no device {device}"))
        })?;
        Ok(name)
    }

    /// Makes a pod with a port of a network and a fixed address.
    pub(crate) fn port_pod(&self, name: &str, network: &str, address: &str, labels: &Value) -> Result<()> {
        self.apply(objects::template(name, &objects::port(network, Some(address))))?;
        self.apply(objects::pod(name, labels, &self.spec(&[Source::Template(name)])))
    }

    /// Waits until a pod is ready and has its interface; the seconds.
    pub(crate) fn ready(&self, pod: &str) -> Result<f64> {
        let ((), seconds) = until(&format!("pod {pod} is ready"), self.world.limit, || self.is_ready(pod))
            .map_err(|error| anyhow::anyhow!("{error:#}; {}", self.last_warning(pod)))?;
        self.has_interface(pod, INTERFACE)?;
        Ok(seconds)
    }

    /// Whether a pod is ready: an error says what it does instead.
    pub(crate) fn is_ready(&self, pod: &str) -> Result<()> {
        let object = self.world.kubectl.get(&["pod", pod, "-n", &self.namespace])?;
        if !object["metadata"]["deletionTimestamp"].is_null() {
            bail!("it is being deleted");
        }
        if condition(&object, "Ready") { Ok(()) } else { bail!("{}", phase(&object)) }
    }

    /// The last Warning about a pod, for the message of a failure.
    pub(crate) fn last_warning(&self, pod: &str) -> String {
        let selector = format!("involvedObject.name={pod},type=Warning");
        let events =
            self.world.kubectl.list(&["events", "-n", &self.namespace, "--field-selector", &selector]);
        let last = events.ok().and_then(|events| events.last().cloned());
        last.map_or_else(String::new, |event| {
            format!("{}: {}", event["reason"].as_str().unwrap_or(""), event["message"].as_str().unwrap_or(""))
        })
    }

    /// The notes of the driver's Events about an object.
    pub(crate) fn notes(&self, kind: &str, name: &str) -> Result<Vec<String>> {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let events =
            self.world.kubectl.list(&["events", "-n", &self.namespace, "--field-selector", &selector])?;
        Ok(events.iter().filter_map(|event| event["message"].as_str()).map(str::to_owned).collect())
    }

    /// Fails unless a pod has an interface with an address on it.
    pub(crate) fn has_interface(&self, pod: &str, interface: &str) -> Result<()> {
        let found = self.exec(pod, &format!("ip -o -4 addr show dev {interface} 2>&1"))?;
        if found.contains("inet ") {
            return Ok(());
        }
        bail!("pod {pod} runs without an address on {interface}: {}", found.trim())
    }

    /// Runs a shell's command in a pod.
    pub(crate) fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.world.kubectl.exec(&self.namespace, pod, script, CALL)
    }

    /// Whether a pod reaches an address: three requests are sent, and one answer is enough.
    pub(crate) fn reaches(&self, pod: &str, address: &str) -> Result<bool> {
        let answer = self.exec(pod, &format!("ping -c 3 -i 0.3 -W 1 {address} 2>&1; true"))?;
        Ok(Trace::read(&answer).answered > 0)
    }

    /// Fails unless a pod reaches an address.
    pub(crate) fn must_reach(&self, pod: &str, address: &str) -> Result<()> {
        if self.reaches(pod, address)? { Ok(()) } else { bail!("pod {pod} does not reach {address}") }
    }

    /// Fails if a pod reaches an address.
    pub(crate) fn must_not_reach(&self, pod: &str, address: &str) -> Result<()> {
        if self.reaches(pod, address)? {
            bail!("pod {pod} reaches {address}")
        }
        Ok(())
    }

    /// Fails unless a pod reaches the far end of a link.
    pub(crate) fn must_reach_wire(&self, pod: &str, number: usize) -> Result<()> {
        self.must_reach(pod, &far_address(number))
    }

    /// Starts a ping in a pod that goes on, and waits for its first answers.
    pub(crate) fn keep_pinging(&self, pod: &str, address: &str) -> Result<()> {
        self.exec(
            pod,
            &format!("ping -i {INTERVAL} {address} </dev/null >/tmp/ping 2>&1 & echo $! >/tmp/ping.pid"),
        )?;
        until(&format!("pod {pod} reaches {address}"), Duration::from_secs(10), || {
            let trace = self.trace(pod)?;
            if trace.answered > 2 { Ok(()) } else { bail!("{} answers", trace.answered) }
        })
        .map(drop)
    }

    /// What the ping of a pod has seen so far.
    pub(crate) fn trace(&self, pod: &str) -> Result<Trace> {
        Ok(Trace::read(&self.exec(pod, "cat /tmp/ping")?))
    }

    /// Fails if the ping of a pod lost anything or does not go on; otherwise the number of answers.
    pub(crate) fn nothing_lost(&self, pod: &str) -> Result<usize> {
        let before = self.trace(pod).with_context(|| format!("the ping of pod {pod}"))?;
        let ask = || {
            let now = self.trace(pod)?;
            if now.answered > before.answered + 2 {
                Ok(now)
            } else {
                bail!("no more than {} answers", now.answered)
            }
        };
        let (now, _) = until(&format!("the ping of pod {pod} goes on"), Duration::from_secs(5), ask)?;
        if now.lost > 0 {
            bail!("the ping of pod {pod} lost {} of {}", now.lost, now.answered + now.lost);
        }
        Ok(now.answered)
    }

    /// Deletes an object, and waits until it is gone; the seconds.
    pub(crate) fn delete(&self, kind: &str, name: &str) -> Result<f64> {
        let start = std::time::Instant::now();
        let delete = ["delete", kind, name, "-n", &self.namespace, "--wait=true"];
        self.world.kubectl.call(&delete, None, self.world.limit)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Waits until a link is on the node as it was; the seconds.
    pub(crate) fn home(&self, number: usize) -> Result<f64> {
        let ask = || self.world.node.has_link(number);
        until("the link comes home", self.world.limit, ask).map(|((), seconds)| seconds)
    }

    /// The one pod with a label, whatever its name; the newest of several.
    pub(crate) fn pods(&self, label: &str) -> Result<Vec<String>> {
        let pods = self.world.kubectl.list(&[
            "pods",
            "-n",
            &self.namespace,
            "-l",
            label,
            "--sort-by=.metadata.creationTimestamp",
        ])?;
        Ok(pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect())
    }
}

/// What a pod does, in a few words.
pub(crate) fn phase(pod: &Value) -> String {
    let status = &pod["status"];
    let state = &status["containerStatuses"][0]["state"];
    let waiting = &state["waiting"];
    let said = [&waiting["reason"], &waiting["message"], &state["terminated"]["reason"]];
    let said: Vec<_> = said.iter().filter_map(|value| value.as_str()).collect();
    let conditions = status["conditions"].as_array();
    let unscheduled = conditions
        .into_iter()
        .flatten()
        .find(|entry| entry["type"] == "PodScheduled" && entry["status"] == "False");
    let unscheduled = unscheduled.and_then(|entry| entry["message"].as_str()).unwrap_or("");
    format!("{} {} {unscheduled}", status["phase"].as_str().unwrap_or("?"), said.join(": ")).trim().to_owned()
}
