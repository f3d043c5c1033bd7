//! Many pods at once.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::e2e::{
    cases::Skip,
    objects::{self, Source},
    story::Story,
    wait::until,
    world::condition,
};

/// How much longer than plain pods those with a port may take.
const FACTOR: f64 = 2.0;

/// 50 pods.
pub(crate) fn fifty(story: &Story<'_>) -> Result<String> {
    many(story, 50)
}

/// 100 pods.
pub(crate) fn hundred(story: &Story<'_>) -> Result<String> {
    many(story, 100)
}

fn many(story: &Story<'_>, count: usize) -> Result<String> {
    room(story, count)?;
    let plain = start(story, "plain", count, &[])?;
    stop(story, "plain")?;
    let network = story.network("net", "198.19.4.0/24", None)?;
    story.apply(objects::template("port", &objects::port(&network, None)))?;
    let ported = start(story, "port", count, &[Source::Template("port")])?;
    // Each of them has its interface: asked of a few, with the first and the last.
    for number in [0, count / 2, count - 1] {
        story.has_interface(&format!("port-{number}"), objects::INTERFACE)?;
    }
    let gone = stop(story, "port")?;
    let factor = ported / plain;
    let measured = format!(
        "{count} pods ready in {ported:.1} s, plain ones in {plain:.1} s ({factor:.2} times); gone in {gone:.1} s"
    );
    if factor > FACTOR {
        bail!("{measured}; {FACTOR} times are allowed");
    }
    Ok(measured)
}

/// Whether the node takes so many pods more.
fn room(story: &Story<'_>, count: usize) -> Result<()> {
    let world = story.world;
    let node = world.kubectl.get(&["node", &world.node.name])?;
    let allowed: usize = node["status"]["allocatable"]["pods"].as_str().unwrap_or("110").parse()?;
    let field = format!("spec.nodeName={}", world.node.name);
    let running = world.kubectl.list(&["pods", "-A", "--field-selector", &field])?.len();
    if running + count > allowed {
        return Err(Skip(format!("the node takes {allowed} pods and has {running}")).into());
    }
    Ok(())
}

/// Makes pods with one call, and waits until all are ready; the seconds.
fn start(story: &Story<'_>, group: &str, count: usize, sources: &[Source<'_>]) -> Result<f64> {
    let spec = story.spec(sources);
    let pods: Vec<Value> = (0..count)
        .map(|number| {
            let mut pod = objects::pod(&format!("{group}-{number}"), &json!({"group": group}), &spec);
            story.mark(&mut pod, Some(&story.namespace));
            pod
        })
        .collect();
    let start = Instant::now();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
    story.world.kubectl.call(&["create", "-f", "-"], Some(&list), story.world.limit)?;
    // They come one after another: the limit is for the group, and grows with it.
    until(&format!("{count} pods are ready"), story.world.limit * 2, || {
        let pods = list_of(story, group)?;
        let ready = pods.iter().filter(|pod| condition(pod, "Ready")).count();
        if ready == count {
            return Ok(());
        }
        let late = pods.iter().find(|pod| !condition(pod, "Ready"));
        bail!("{ready} are; one is {}", late.map(crate::e2e::story::phase).unwrap_or_default())
    })?;
    Ok(start.elapsed().as_secs_f64())
}

fn list_of(story: &Story<'_>, group: &str) -> Result<Vec<Value>> {
    story.world.kubectl.list(&["pods", "-n", &story.namespace, "-l", &format!("group={group}")])
}

fn stop(story: &Story<'_>, group: &str) -> Result<f64> {
    let start = Instant::now();
    let delete = ["delete", "pods", "-n", &story.namespace, "-l", &format!("group={group}"), "--wait=true"];
    story.world.kubectl.call(&delete, None, story.world.limit * 2)?;
    Ok(start.elapsed().as_secs_f64())
}
