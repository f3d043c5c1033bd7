//! Policies that change under traffic.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::e2e::{
    ping::{INTERVAL, Trace},
    story::Story,
    wait::{sleep, until},
};

/// How soon a change is in force.
const IN_FORCE: f64 = 2.0;

/// A peer by a label.
pub(crate) fn selector(key: &str, value: &str) -> Value {
    json!({"podSelector": {key: value}})
}

fn label(story: &Story<'_>, pod: &str, label: &str) -> Result<()> {
    story.world.kubectl.run(&["label", "pod", pod, label, "--overwrite", "-n", &story.namespace]).map(drop)
}

/// The seconds until a pod reaches an address. One request at a time, so that it is seen at once.
fn reaches_within(story: &Story<'_>, pod: &str, address: &str) -> Result<f64> {
    let start = Instant::now();
    until(&format!("pod {pod} reaches {address}"), Duration::from_secs(15), || {
        let answer = story.exec(pod, &format!("ping -c 1 -W 1 {address} 2>&1; true"))?;
        if Trace::read(&answer).answered > 0 { Ok(()) } else { bail!("no answer") }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    if seconds > IN_FORCE {
        bail!("pod {pod} reaches {address} after {seconds:.1} s, {IN_FORCE} s are allowed");
    }
    Ok(seconds)
}

/// For how long an open flow goes on after a change that forbids it: its answers from the change on.
fn cut_within(story: &Story<'_>, pod: &str, change: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    change()?;
    let changed = story.trace(pod)?.answered;
    // Requests that were answered between the change and the look at the trace count in full.
    let looked = start.elapsed().as_secs_f64();
    sleep(Duration::from_secs(5))?;
    let seconds = looked + f64::from(u32::try_from(story.trace(pod)?.answered - changed)?) * INTERVAL;
    if story.trace(pod)?.answered > changed && seconds > looked + 4.0 {
        bail!("the open flow of pod {pod} goes on 5 s after the change that forbids it");
    }
    if seconds > IN_FORCE {
        bail!("the open flow of pod {pod} was cut after {seconds:.1} s, {IN_FORCE} s are allowed");
    }
    Ok(seconds)
}

/// Who is let in goes by a label, given and taken while the pods run.
pub(crate) fn labels(story: &Story<'_>) -> Result<String> {
    let policy = json!({"ingress": {"rules": [{"action": "allow", "peers": [selector("role", "front")]}]}});
    let network = story.network("net", "198.19.2.0/24", Some(policy))?;
    let address = "198.19.2.10";
    story.port_pod("server", &network, "198.19.2.10/24", &json!({"role": "server"}))?;
    story.port_pod("front", &network, "198.19.2.11/24", &json!({"role": "front"}))?;
    story.port_pod("other", &network, "198.19.2.12/24", &json!({"role": "other"}))?;
    for pod in ["server", "front", "other"] {
        story.ready(pod)?;
    }
    reaches_within(story, "front", address)?;
    story.must_not_reach("other", address)?;
    label(story, "other", "role=front")?;
    let opened = reaches_within(story, "other", address)?;
    story.keep_pinging("other", address)?;
    let cut = cut_within(story, "other", || label(story, "other", "role=other"))?;
    story.must_not_reach("other", address)?;
    story.must_reach("front", address)?;
    Ok(format!("a label opens in {opened:.1} s, and cuts an open flow in {cut:.1} s"))
}

/// The policy of a network is patched under traffic: closed, and open again.
pub(crate) fn change(story: &Story<'_>) -> Result<String> {
    let network = story.network("net", "198.19.3.0/24", None)?;
    let address = "198.19.3.10";
    story.port_pod("server", &network, "198.19.3.10/24", &json!({}))?;
    story.port_pod("client", &network, "198.19.3.11/24", &json!({}))?;
    story.ready("server")?;
    story.ready("client")?;
    story.keep_pinging("client", address)?;
    let patch = |policy: Value| {
        let patch = json!({"spec": {"policy": policy}}).to_string();
        let patch = ["patch", "networks.netferry.dev", &network, "--type=merge", "-p", &patch];
        story.world.kubectl.run(&patch).map(drop)
    };
    let cut = cut_within(story, "client", || patch(json!({"ingress": {"otherwise": "deny"}})))?;
    story.must_not_reach("client", address)?;
    patch(Value::Null)?;
    let opened = reaches_within(story, "client", address)?;
    Ok(format!("deny cuts an open flow in {cut:.1} s, without it a flow opens in {opened:.1} s"))
}
