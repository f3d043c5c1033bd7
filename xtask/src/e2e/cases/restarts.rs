//! Kubelet, runtime and daemon restart, while the runtime has dead sandboxes on its list.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Skip, sandbox};
use crate::e2e::{
    node::far_address,
    objects::{INTERFACE, Source},
    story::Story,
    wait::{sleep, until},
    world::{World, condition},
};

/// How long running pods are watched after a restart.
const SETTLED: Duration = Duration::from_secs(10);
/// How soon after a restart the kubelet has deleted the node's slices, if it does.
const WATCHED: Duration = Duration::from_secs(20);
/// How long the node may be without its slices.
const BACK: f64 = 2.0;
/// How soon after the new daemon of an update a pod that was made meanwhile is ready: there is always one that the kubelet
/// can call.
pub(crate) const UPDATED: f64 = 5.0;
/// The same where there was no daemon for the kubelet to call: it tries a failed prepare again when it synchronizes the pod,
/// 60 to 90 s later (`syncFrequency`, and half of it at random).
const RESYNC: f64 = 95.0;

/// The kubelet is restarted.
pub(crate) fn kubelet(story: &Story<'_>) -> Result<String> {
    part(story, &story.world.commands.restart_kubelet, "--restart-kubelet", true)
}

/// The kubelet is killed.
pub(crate) fn kubelet_kill(story: &Story<'_>) -> Result<String> {
    part(story, &story.world.commands.kill_kubelet, "--kill-kubelet", true)
}

/// The runtime is restarted.
pub(crate) fn runtime(story: &Story<'_>) -> Result<String> {
    part(story, &story.world.commands.restart_runtime, "--restart-runtime", false)
}

/// The runtime is killed.
pub(crate) fn runtime_kill(story: &Story<'_>) -> Result<String> {
    part(story, &story.world.commands.kill_runtime, "--kill-runtime", false)
}

/// A default command needs systemd on the node.
pub(crate) fn possible(world: &World, command: &str, flag: &str) -> Result<()> {
    if command.starts_with("systemctl") && world.node.run("test -d /run/systemd/system").is_err() {
        return Err(Skip(format!("the node has no systemd; {flag} says how")).into());
    }
    Ok(())
}

/// Two pods of a network and one with a link, which has a dead sandbox; the first and the last ping.
pub(crate) fn running(story: &Story<'_>) -> Result<()> {
    let number = story.links[0];
    let template = story.link_template(number)?;
    story.pod("linked", &[Source::Template(&template)])?;
    let network = story.network("net", "198.19.5.0/24", None)?;
    story.port_pod("one", &network, "198.19.5.11/24", &json!({}))?;
    story.port_pod("two", &network, "198.19.5.12/24", &json!({}))?;
    for pod in ["linked", "one", "two"] {
        story.ready(pod)?;
    }
    sandbox::kill(story, "linked").context("before the restart: a sandbox is killed")?;
    story.keep_pinging("linked", &far_address(number))?;
    story.keep_pinging("one", "198.19.5.12")
}

/// Fails unless running pods have their interfaces still, and lost no answer.
pub(crate) fn undisturbed(story: &Story<'_>) -> Result<usize> {
    for pod in ["linked", "one", "two"] {
        story.has_interface(pod, INTERFACE)?;
    }
    Ok(story.nothing_lost("linked")? + story.nothing_lost("one")?)
}

fn part(story: &Story<'_>, command: &str, flag: &str, slices: bool) -> Result<String> {
    let world = story.world;
    possible(world, command, flag)?;
    running(story)?;
    let later = story.link_template(story.links[1])?;
    let absent = thread::scope(|scope| -> Result<Option<f64>> {
        let watch = slices.then(|| scope.spawn(|| absence(story)));
        world.disturb(command)?;
        world.disturbed(command)?;
        let join = |watch: thread::ScopedJoinHandle<'_, Result<f64>>| {
            watch.join().unwrap_or_else(|_| bail!("the slices were not watched"))
        };
        watch.map(join).transpose()
    })?;
    sleep(SETTLED)?;
    let answers = undisturbed(story)?;
    story.pod("later", &[Source::Template(&later)])?;
    let ready = story.ready("later")?;
    story.must_reach_wire("later", story.links[1])?;
    let measured = format!("{answers} answers, none lost; a later pod ready in {ready:.1} s");
    match absent {
        Some(absent) if absent > BACK => {
            bail!("the node was without slices for {absent:.1} s, {BACK} s are allowed; {measured}")
        }
        Some(absent) => Ok(format!("{measured}; without slices for {absent:.1} s")),
        None => Ok(measured),
    }
}

/// How long the node had no slices: they may go within `WATCHED`, and are waited for.
fn absence(story: &Story<'_>) -> Result<f64> {
    let end = Instant::now() + WATCHED;
    let mut longest: f64 = 0.0;
    let mut since: Option<Instant> = None;
    while Instant::now() < end || since.is_some() {
        if story.world.node.slices(&story.world.kubectl)?.is_empty() {
            let begin = *since.get_or_insert_with(Instant::now);
            longest = begin.elapsed().as_secs_f64().max(longest);
            if begin.elapsed() > story.world.limit {
                bail!("the node has no slices for {longest:.0} s");
            }
        } else {
            since = None;
        }
        sleep(Duration::from_millis(200))?;
    }
    Ok(longest)
}

/// The daemon's pod is deleted (SIGTERM), and a pod is made while it is away.
pub(crate) fn daemon(story: &Story<'_>) -> Result<String> {
    let world = story.world;
    running(story)?;
    let before = world.daemon()?;
    let name = before["metadata"]["name"].as_str().unwrap_or_default();
    let delete = ["delete", "pod", name, "-n", &world.driver_namespace, "--wait=true"];
    world.kubectl.call(&delete, None, world.limit)?;
    meanwhile(story, &before, RESYNC)
}

/// The daemon's process is killed; the kubelet starts it again in the same pod.
pub(crate) fn daemon_kill(story: &Story<'_>) -> Result<String> {
    let world = story.world;
    running(story)?;
    let before = world.daemon()?;
    let uid = before["metadata"]["uid"].as_str().unwrap_or_default();
    let escaped = uid.replace('-', "_");
    world.node.run(&format!(
        "for p in $(pidof netferry); do grep -qE \"{uid}|{escaped}\" /proc/$p/cgroup && kill -9 $p && k=$p; done; [ -n \"$k\" ]"
    ))?;
    meanwhile(story, &before, RESYNC)
}

/// A pod is made while the daemon is away: it is ready soon after the daemon is, and nothing was lost.
pub(crate) fn meanwhile(story: &Story<'_>, before: &Value, limit: f64) -> Result<String> {
    let template = story.link_template(story.links[1])?;
    story.pod("meanwhile", &[Source::Template(&template)])?;
    let start = Instant::now();
    daemon_back(story.world, before)?;
    let back = start.elapsed().as_secs_f64();
    story.ready("meanwhile")?;
    let after = start.elapsed().as_secs_f64() - back;
    story.must_reach_wire("meanwhile", story.links[1])?;
    sleep(SETTLED)?;
    let answers = undisturbed(story)?;
    if after > limit {
        bail!("a pod made meanwhile was ready {after:.1} s after the daemon, {limit} s are allowed");
    }
    Ok(format!(
        "{answers} answers, none lost; daemon back in {back:.1} s, a pod made meanwhile ready {after:.1} s later"
    ))
}

/// Waits until another daemon than before is ready on the node.
pub(crate) fn daemon_back(world: &World, before: &Value) -> Result<f64> {
    let identity = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        (pod["metadata"]["uid"].clone(), status["containerID"].clone())
    };
    let old = identity(before);
    let ask = || {
        let now = world.daemon()?;
        if identity(&now) != old && condition(&now, "Ready") { Ok(()) } else { bail!("it is not ready") }
    };
    until("the daemon is back", world.limit, ask).map(|((), seconds)| seconds)
}
