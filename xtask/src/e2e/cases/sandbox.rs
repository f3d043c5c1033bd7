//! The sandbox's process is killed: the kubelet makes another sandbox for the same pod.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::e2e::{objects::Source, story::Story, wait::until, world::condition};

/// The link is in the new sandbox.
pub(crate) fn killed(story: &Story<'_>) -> Result<String> {
    let number = story.links[0];
    let template = story.link_template(number)?;
    story.pod("pod", &[Source::Template(&template)])?;
    story.ready("pod")?;
    story.must_reach_wire("pod", number)?;
    let back = kill(story, "pod")?;
    story.must_reach_wire("pod", number)?;
    Ok(format!("back in {back:.1} s"))
}

/// Kills the process of a pod's sandbox, and waits until the pod is ready in another with its interface; the
/// seconds. The runtime goes on to list the dead sandbox.
pub(crate) fn kill(story: &Story<'_>, pod: &str) -> Result<f64> {
    let get = || story.world.kubectl.get(&["pod", pod, "-n", &story.namespace]);
    let before = get()?;
    let uid = before["metadata"]["uid"].as_str().context("the pod has no uid")?.to_owned();
    let container = container(&before).context("the pod has no container")?;
    let start = Instant::now();
    story.world.node.run(&script(&uid, &container))?;
    let ask = || {
        let pod = get()?;
        let now = self::container(&pod);
        if condition(&pod, "Ready") && now.as_ref().is_some_and(|now| *now != container) {
            return Ok(());
        }
        bail!("{}", crate::e2e::story::phase(&pod))
    };
    until(&format!("pod {pod} is ready in another sandbox"), story.world.limit, ask)?;
    let seconds = start.elapsed().as_secs_f64();
    story.has_interface(pod, crate::e2e::objects::INTERFACE)?;
    Ok(seconds)
}

/// The id of the pod's container, without the runtime's name.
fn container(pod: &Value) -> Option<String> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str()?;
    Some(id.rsplit('/').next()?.to_owned())
}

/// Kills what is in the pod's cgroup and neither in the container's nor the runtime's monitor: the sandbox.
fn script(uid: &str, container: &str) -> String {
    let escaped = uid.replace('-', "_");
    format!(
        "k=; for f in /proc/[0-9]*/cgroup; do \
         if grep -qE \"{uid}|{escaped}\" $f 2>/dev/null && ! grep -qE \"{container}|conmon\" $f; then \
         p=${{f#/proc/}}; p=${{p%/cgroup}}; kill -9 $p && k=$p; fi; done; \
         [ -n \"$k\" ] || {{ echo no process of the sandbox was found >&2; exit 9; }}"
    )
}
