//! The node that the stories happen on, reached through a privileged pod in its namespaces.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    kubectl::{CALL, Kubectl},
    objects::DRIVER,
    wait::until,
};

/// How many links are made.
pub(crate) const LINKS: usize = 6;
/// The pod's name.
const POD: &str = "node";
/// The namespace beyond the links.
const WIRE: &str = "nfe2e-wire";

/// The node, and the pod that reaches it.
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: String,
    /// The run's own namespace, where the pod is.
    pub(crate) namespace: String,
    kubectl: Kubectl,
}

/// The name of a link on the node, counted from 1.
pub(crate) fn link(number: usize) -> String {
    format!("nfe2e{number}")
}

/// The address of a link's far end.
pub(crate) fn far_address(number: usize) -> String {
    format!("198.18.{number}.1")
}

/// The address that a pod gets on a link, with its prefix.
pub(crate) fn pod_address(number: usize) -> String {
    format!("198.18.{number}.7/24")
}

fn hardware_address(number: usize) -> String {
    format!("02:4e:45:00:00:{number:02x}")
}

/// Makes the links, unless this boot of the node has them: those in pods are not on the node.
fn make() -> String {
    let mut script = format!(
        "[ -e /run/netns/{WIRE} ] && exit 0; set -e; ip netns add {WIRE}; ip -n {WIRE} link set lo up\n"
    );
    for number in 1..=LINKS {
        let (name, mac, far) = (link(number), hardware_address(number), far_address(number));
        let _ = write!(
            script,
            "ip link add {name} address {mac} type veth peer name w{number} netns {WIRE}\n\
             ip -n {WIRE} addr add {far}/24 dev w{number}; ip -n {WIRE} link set w{number} up; ip link set {name} up\n"
        );
    }
    script
}

/// Removes the links wherever they are: each dies with its far end.
fn remove() -> String {
    let mut script = String::new();
    for number in 1..=LINKS {
        let _ = write!(script, "ip -n {WIRE} link del w{number} 2>/dev/null; ");
    }
    script + &format!("ip netns del {WIRE} 2>/dev/null; true")
}

/// A command on the node, from a pod that shares its pids.
fn on_node(script: &str) -> String {
    let script = format!(
        "PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin:/run/current-system/sw/bin; export PATH; {script}"
    );
    // By its path: busybox would run its own shell and its own `ip`.
    format!("nsenter -t 1 -m -u -i -n -- /bin/sh -c '{}'", script.replace('\'', r"'\''"))
}

impl Node {
    /// Starts the pod in the run's namespace; it makes the links, after a reboot too, and removes them when it
    /// is deleted.
    pub(crate) fn start(
        kubectl: &Kubectl,
        name: &str,
        namespace: &str,
        label: &Value,
        image: &str,
    ) -> Result<Self> {
        let script = format!(
            "{} || {{ {}; exit 1; }}\ntrap '{}; exit 0' TERM\ntouch /tmp/ready; while :; do sleep 3600 & wait $!; done",
            on_node(&make()),
            on_node(&remove()),
            on_node(&remove()).replace('\'', r"'\''"),
        );
        let node = Self { name: name.to_owned(), namespace: namespace.to_owned(), kubectl: kubectl.clone() };
        kubectl.apply(&json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": POD, "namespace": namespace, "labels": label}, "spec": {
            // Not by the scheduler: it has nothing to choose.
            "nodeName": name, "hostPID": true, "hostNetwork": true, "terminationGracePeriodSeconds": 20,
            "tolerations": [{"operator": "Exists"}], "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script], "securityContext": {"privileged": true, "runAsUser": 0},
                "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1}}]}}))?;
        node.ready(Duration::from_mins(2)).with_context(|| {
            let log = kubectl.run(&["logs", "-n", namespace, POD, "--tail=5"]).unwrap_or_default();
            format!(
                "the pod that reaches the node did not start; if links of an earlier run are left, \
                 `cargo xtask e2e --clean` removes them. It says: {log}"
            )
        })?;
        Ok(node)
    }

    /// Waits until the pod can be used, as after a reboot.
    pub(crate) fn ready(&self, limit: Duration) -> Result<f64> {
        let ask = || {
            let answer = self.kubectl.exec(&self.namespace, POD, "test -e /tmp/ready && echo yes", CALL)?;
            if answer.trim() == "yes" { Ok(()) } else { bail!("it is not ready") }
        };
        until("the pod on the node", limit, ask).map(|((), seconds)| seconds)
    }

    /// Runs a shell's command on the node, in the namespaces of its first process.
    pub(crate) fn run(&self, script: &str) -> Result<String> {
        self.kubectl.exec(&self.namespace, POD, &on_node(script), CALL)
    }

    /// Starts a command on the node that outlives the connection, and the pod's own processes as far as the
    /// node's service manager lets it. Its exit status is read by `ended`.
    pub(crate) fn start_apart(&self, script: &str) -> Result<()> {
        let inner = format!("({script}) </dev/null >/run/nfe2e.out 2>&1; echo $? >/run/nfe2e.rc");
        let quoted = inner.replace('\'', r"'\''");
        self.run(&format!(
            "rm -f /run/nfe2e.rc; setsid sh -c '{quoted}' </dev/null >/dev/null 2>&1 & sleep 0.1"
        ))
        .map(drop)
    }

    /// The end of what `start_apart` has started: an error while it runs and if it failed.
    pub(crate) fn ended(&self) -> Result<()> {
        let answer = self.run("cat /run/nfe2e.rc && tail -n 3 /run/nfe2e.out")?;
        match answer.lines().next() {
            Some("0") => Ok(()),
            Some(_) => bail!("the command on the node failed: {}", answer.trim()),
            None => bail!("the command on the node runs still"),
        }
    }

    /// Whether a link is on the node, up and with its own hardware address.
    pub(crate) fn has_link(&self, number: usize) -> Result<()> {
        let found = self.run(&format!("ip -o link show {} 2>&1 || true", link(number)))?;
        if !found.contains(&hardware_address(number)) {
            bail!("{} is not on the node: {}", link(number), found.trim());
        }
        if !found.contains(",UP") && !found.contains("<UP") {
            bail!("{} is on the node, but down: {}", link(number), found.trim());
        }
        Ok(())
    }

    /// This node's slices of the driver.
    pub(crate) fn slices(&self, kubectl: &Kubectl) -> Result<Vec<Value>> {
        let mut slices = kubectl.list(&["resourceslices"])?;
        slices.retain(|slice| {
            slice["spec"]["driver"] == DRIVER && slice["spec"]["nodeName"] == self.name.as_str()
        });
        Ok(slices)
    }

    /// Whether the driver publishes the links that are not in pods.
    pub(crate) fn publishes(&self, kubectl: &Kubectl, numbers: &[usize]) -> Result<()> {
        let slices = self.slices(kubectl)?;
        let published: Vec<&str> = slices
            .iter()
            .filter_map(|slice| slice["spec"]["devices"].as_array())
            .flatten()
            .filter_map(attribute_name)
            .collect();
        let missing: Vec<_> = numbers
            .iter()
            .map(|number| link(*number))
            .filter(|name| !published.contains(&name.as_str()))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        bail!("the driver on {} does not publish {}", self.name, missing.join(", "))
    }
}

/// The host's name of a device, where attributes may be written with their domain.
fn attribute_name(device: &Value) -> Option<&str> {
    let attributes = &device["attributes"];
    let qualified = format!("{DRIVER}/ifName");
    attributes["ifName"]["string"].as_str().or_else(|| attributes[&qualified]["string"].as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_go_through_two_shells() {
        let script = on_node("echo 'a b'").replace("nsenter -t 1 -m -u -i -n -- ", "");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b\n");
    }

    #[test]
    fn devices_are_known_by_either_spelling() {
        assert_eq!(attribute_name(&json!({"attributes": {"ifName": {"string": "a"}}})), Some("a"));
        assert_eq!(
            attribute_name(&json!({"attributes": {"netferry.dev/ifName": {"string": "a"}}})),
            Some("a")
        );
        assert_eq!(attribute_name(&json!({"attributes": {"type": {"string": "port"}}})), None);
    }
}
