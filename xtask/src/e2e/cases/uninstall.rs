//! The driver is removed, in either order, and installed again as it was.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::restarts::running;
use crate::e2e::{
    kubectl::Kubectl,
    story::Story,
    wait::until,
    world::{World, condition},
};

/// How long the removal of anything may take.
const REMOVED: Duration = Duration::from_mins(1);
/// What the manifests make, in the order in which it is made; without namespace and definition, which are apart.
const KINDS: [&str; 8] = [
    "serviceaccounts",
    "clusterroles",
    "clusterrolebindings",
    "roles",
    "rolebindings",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "deviceclasses",
];
const DEFINITION: &str = "networks.netferry.dev";
const SELECTOR: &str = "app.kubernetes.io/part-of=netferry";

/// The DaemonSet and everything of the driver first, while networks are there.
pub(crate) fn driver_first(story: &Story<'_>) -> Result<String> {
    story_of(story, |story, installed| {
        let driver = installed.remove_driver(story.world)?;
        let networks = Installed::remove_networks(story)?;
        Ok(format!("driver gone in {driver:.1} s, networks in {networks:.1} s"))
    })
}

/// Networks and their definition first.
pub(crate) fn networks_first(story: &Story<'_>) -> Result<String> {
    story_of(story, |story, installed| {
        let networks = Installed::remove_networks(story)?;
        let driver = installed.remove_driver(story.world)?;
        Ok(format!("networks gone in {networks:.1} s, driver in {driver:.1} s"))
    })
}

fn story_of(
    story: &Story<'_>,
    removal: impl FnOnce(&Story<'_>, &Installed) -> Result<String>,
) -> Result<String> {
    let world = story.world;
    let others = others(story)?;
    if !others.is_empty() {
        return Err(
            super::Skip(format!("networks of others are in the cluster: {}", others.join(", "))).into()
        );
    }
    running(story)?;
    let installed = Installed::read(world)?;
    let file = installed.save(&world.run)?;
    for pod in ["linked", "one", "two"] {
        story.delete("pod", pod)?;
    }
    let removed = removal(story, &installed).and_then(|removed| {
        world.node.has_link(story.links[0]).context("after the removal")?;
        Ok(removed)
    });
    let start = Instant::now();
    // Whatever came of the removal, and after Ctrl-C too.
    installed
        .install(world)
        .with_context(|| format!("install it by hand: kubectl apply -f {}", file.display()))?;
    let back = start.elapsed().as_secs_f64();
    let _ = std::fs::remove_file(&file);
    let removed = removed?;
    let template = story.link_template(story.links[0])?;
    story.pod("again", &[crate::e2e::objects::Source::Template(&template)])?;
    let ready = story.ready("again")?;
    story.must_reach_wire("again", story.links[0])?;
    Ok(format!("{removed}; installed again in {back:.1} s, a pod ready {ready:.1} s later"))
}

/// Networks that this run has not made: they would be lost.
fn others(story: &Story<'_>) -> Result<Vec<String>> {
    let networks = story.world.kubectl.list(&[
        DEFINITION,
        "-l",
        &format!("{}!={}", crate::e2e::world::LABEL, story.world.run),
    ])?;
    Ok(networks
        .iter()
        .filter_map(|network| network["metadata"]["name"].as_str())
        .map(str::to_owned)
        .collect())
}

/// The driver's objects, to make them again.
struct Installed {
    namespace: Value,
    definition: Value,
    objects: Vec<Value>,
    daemon_set: Value,
}

impl Installed {
    fn read(world: &World) -> Result<Self> {
        let kubectl = &world.kubectl;
        let space = world.driver_namespace.as_str();
        let mut objects = Vec::new();
        for kind in KINDS {
            objects.extend(kubectl.list(&[kind, "-n", space, "-l", SELECTOR])?);
        }
        let sets = kubectl.list(&["daemonsets", "-n", space, "-l", SELECTOR])?;
        let set =
            sets.into_iter().next().with_context(|| format!("no DaemonSet with the label {SELECTOR}"))?;
        Ok(Self {
            namespace: plain(kubectl.get(&["namespace", space])?),
            definition: plain(kubectl.get(&["customresourcedefinition", DEFINITION])?),
            objects: objects.into_iter().map(plain).collect(),
            daemon_set: plain(set),
        })
    }

    fn all(&self) -> Value {
        let mut items = vec![self.namespace.clone(), self.definition.clone()];
        items.extend(self.objects.iter().cloned());
        items.push(self.daemon_set.clone());
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }

    /// Keeps them in a file, for the case that this process is killed.
    fn save(&self, run: &str) -> Result<std::path::PathBuf> {
        let file = std::env::temp_dir().join(format!("netferry-e2e-{run}-installed.json"));
        std::fs::write(&file, self.all().to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// Everything but networks and their definition; the seconds.
    fn remove_driver(&self, world: &World) -> Result<f64> {
        let start = Instant::now();
        let kubectl = &world.kubectl;
        delete(kubectl, &["namespace", &world.driver_namespace])?;
        for object in &self.objects {
            if object["metadata"]["namespace"].is_null() {
                let kind = object["kind"].as_str().unwrap_or_default();
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                delete(kubectl, &[kind, name])?;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// The case's networks, then the definition; the seconds.
    fn remove_networks(story: &Story<'_>) -> Result<f64> {
        let start = Instant::now();
        let kubectl = &story.world.kubectl;
        let selector = format!("{}={}", crate::e2e::world::LABEL, story.world.run);
        delete(kubectl, &[DEFINITION, "-l", &selector])?;
        delete(kubectl, &["customresourcedefinition", DEFINITION])?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Makes everything again, and waits for the daemon and its slices.
    fn install(&self, world: &World) -> Result<()> {
        let kubectl = world.kubectl.closing();
        unblock(&kubectl)?;
        let apply = || kubectl.call(&["apply", "-f", "-"], Some(&self.all().to_string()), REMOVED).map(drop);
        until("the driver is installed", world.limit, apply)?;
        let ask = || {
            if condition(&world.daemon()?, "Ready") { Ok(()) } else { bail!("the daemon is not ready") }
        };
        until("the driver is back", world.limit, ask)?;
        until("the links are published", world.limit, || world.node.publishes(&kubectl, &[1])).map(drop)
    }
}

/// Deletes, and says so if it hangs.
fn delete(kubectl: &Kubectl, what: &[&str]) -> Result<()> {
    let arguments = [&["delete", "--wait=true", "--ignore-not-found"], what].concat();
    kubectl.call(&arguments, None, REMOVED).map(drop).context("the removal hangs")
}

/// After a removal that hung: networks lose their finalizers, so that the definition goes and can be made again.
fn unblock(kubectl: &Kubectl) -> Result<()> {
    let Ok(networks) = kubectl.list(&[DEFINITION]) else { return Ok(()) };
    for network in networks.iter().filter(|network| !network["metadata"]["deletionTimestamp"].is_null()) {
        let name = network["metadata"]["name"].as_str().unwrap_or_default();
        let patch = r#"{"metadata":{"finalizers":null}}"#;
        // It may be gone meanwhile.
        let _ = kubectl.run(&["patch", DEFINITION, name, "--type=merge", "-p", patch]);
    }
    let definition = kubectl.get(&["customresourcedefinition", DEFINITION]);
    if definition.is_ok_and(|definition| !definition["metadata"]["deletionTimestamp"].is_null()) {
        kubectl.call(&["wait", "--for=delete", "crd", DEFINITION, "--timeout=60s"], None, REMOVED * 2)?;
    }
    Ok(())
}

/// An object as it was applied.
fn plain(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            annotations.remove("deprecated.daemonset.template.generation");
        }
    }
    if object["kind"] == "Namespace"
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("spec");
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_writes_is_left_out() {
        let object = json!({"kind": "Namespace", "metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {}});
        assert_eq!(
            plain(object),
            json!({"kind": "Namespace", "metadata": {"name": "n", "labels": {"a": "b"}}})
        );
    }
}
