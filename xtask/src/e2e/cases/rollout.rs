//! A rollout of the driver's DaemonSet, as an upgrade does it.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::restarts::{UPDATED, meanwhile, running};
use crate::e2e::{story::Story, wait::until};

/// Running pods lose nothing, and a pod that is made between the two daemons starts with the new one.
pub(crate) fn rollout(story: &Story<'_>) -> Result<String> {
    let world = story.world;
    running(story)?;
    let before = world.daemon()?;
    let owner =
        before["metadata"]["ownerReferences"][0]["name"].as_str().context("the daemon has no owner")?;
    let set = format!("daemonset/{owner}");
    world.kubectl.run(&["rollout", "restart", &set, "-n", &world.driver_namespace])?;
    let uid = &before["metadata"]["uid"];
    until("the old daemon ends", world.limit, || match world.daemon() {
        Ok(now) if now["metadata"]["uid"] == *uid => bail!("it runs"),
        _ => Ok(()),
    })?;
    let measured = meanwhile(story, &before, UPDATED)?;
    let status = ["rollout", "status", &set, "-n", &world.driver_namespace, "--timeout=600s"];
    world.kubectl.call(&status, None, Duration::from_mins(10))?;
    Ok(measured)
}
