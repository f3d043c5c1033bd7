//! The node loses its power.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::restarts::{daemon_back, possible, running};
use crate::e2e::{
    objects::INTERFACE,
    story::Story,
    wait::{sleep, until},
    world::condition,
};

/// How long a node may take to start again.
const BOOT: Duration = Duration::from_mins(10);
const PODS: [&str; 3] = ["linked", "one", "two"];

/// Every pod has its interface again after the boot, and after each of two restarts of the daemon.
pub(crate) fn cut(story: &Story<'_>) -> Result<String> {
    let world = story.world;
    let command = &world.commands.reboot;
    possible(world, command, "--reboot")?;
    running(story)?;
    let boot = |node: &serde_json::Value| node["status"]["nodeInfo"]["bootID"].clone();
    let get = || world.kubectl.get(&["node", &world.node.name]);
    let before = boot(&get()?);
    // On the node, the connection may end before the command does.
    if let Err(error) = world.disturb(command)
        && command.starts_with("local:")
    {
        return Err(error);
    }
    until("the node is ready after its boot", BOOT, || {
        let node = get()?;
        if boot(&node) == before {
            bail!("it has not booted");
        }
        if condition(&node, "Ready") { Ok(()) } else { bail!("it has booted and is not ready") }
    })?;
    let ready = Instant::now();
    world.node.ready(world.limit)?;
    let whole = || {
        for pod in PODS {
            story.is_ready(pod)?;
            story.has_interface(pod, INTERFACE)?;
        }
        story.must_reach_wire("linked", story.links[0])?;
        story.must_reach("one", "198.19.5.12")
    };
    until("the pods have their interfaces after the boot", world.limit, whole)?;
    let back = ready.elapsed().as_secs_f64();
    for restart in ["first", "second"] {
        let daemon = world.daemon()?;
        let name = daemon["metadata"]["name"].as_str().unwrap_or_default();
        let delete = ["delete", "pod", name, "-n", &world.driver_namespace, "--wait=true"];
        world.kubectl.call(&delete, None, world.limit)?;
        daemon_back(world, &daemon)?;
        sleep(Duration::from_secs(10))?;
        whole().map_err(|error| anyhow::anyhow!("after the {restart} restart of the daemon: {error:#}"))?;
    }
    Ok(format!(
        "interfaces back {back:.1} s after the node was ready, and there after two restarts of the daemon"
    ))
}
