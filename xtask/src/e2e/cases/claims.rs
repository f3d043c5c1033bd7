//! One pod and its links.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use crate::e2e::{
    node::{far_address, link, pod_address},
    objects::{self, INTERFACE, Source},
    story::Story,
    wait::until,
};

/// How long a pod may take that is made again under its name.
const RECREATED: f64 = 5.0;

/// A pod with a link by a claim of its own name, and the way home.
pub(crate) fn claim(story: &Story<'_>) -> Result<String> {
    let number = story.links[0];
    let spec = objects::links(&[(&link(number), INTERFACE, pod_address(number))]);
    story.apply(objects::claim("nic", &spec))?;
    story.pod("pod", &[Source::Claim("nic")])?;
    let ready = story.ready("pod")?;
    story.must_reach_wire("pod", number)?;
    let gone = story.delete("pod", "pod")?;
    let home = story.home(number)?;
    Ok(format!("ready in {ready:.1} s, gone in {gone:.1} s, home {home:.1} s later"))
}

/// The same by a template: the claim goes with the pod.
pub(crate) fn template(story: &Story<'_>) -> Result<String> {
    let number = story.links[0];
    let template = story.link_template(number)?;
    story.pod("pod", &[Source::Template(&template)])?;
    let ready = story.ready("pod")?;
    story.must_reach_wire("pod", number)?;
    story.delete("pod", "pod")?;
    let home = story.home(number)?;
    until("the claim is gone", story.world.limit, || {
        let claims = story.world.kubectl.list(&["resourceclaims", "-n", &story.namespace])?;
        if claims.is_empty() { Ok(()) } else { bail!("{} claims", claims.len()) }
    })?;
    Ok(format!("ready in {ready:.1} s, home {home:.1} s after the pod was gone"))
}

/// One claim for two links, each in its own subnet.
pub(crate) fn two(story: &Story<'_>) -> Result<String> {
    let (first, second) = (story.links[0], story.links[1]);
    for (name, number, interface) in [("one", first, INTERFACE), ("two", second, "net2")] {
        story.apply(objects::template(
            name,
            &objects::links(&[(&link(number), interface, pod_address(number))]),
        ))?;
    }
    story.pod("pod", &[Source::Template("one"), Source::Template("two")])?;
    let ready = story.ready("pod")?;
    story.has_interface("pod", "net2")?;
    story.must_reach_wire("pod", first)?;
    story.must_reach_wire("pod", second)?;
    story.delete("pod", "pod")?;
    let home = story.home(first)?.max(story.home(second)?);
    Ok(format!("both reach their wires, ready in {ready:.1} s, home {home:.1} s after the pod"))
}

/// A Job that pings and ends. Its pod stays; its link must not.
pub(crate) fn job(story: &Story<'_>) -> Result<String> {
    let number = story.links[0];
    let template = story.link_template(number)?;
    let ping = format!("ping -c 3 -W 2 {}", far_address(number));
    let world = story.world;
    let spec = objects::pod_spec(&world.image, &world.node.name, &[Source::Template(&template)], Some(&ping));
    story.apply(objects::job("job", &spec))?;
    let ((), seconds) = until("the Job is complete", world.limit, || {
        let job = world.kubectl.get(&["job", "job", "-n", &story.namespace])?;
        let status = &job["status"];
        if status["succeeded"] == 1 { Ok(()) } else { bail!("{status}") }
    })?;
    let home = story.home(number)?;
    Ok(format!("complete in {seconds:.1} s, home {home:.1} s later"))
}

/// A pod that is deleted by force and made again at once claims the link that the old sandbox still has.
pub(crate) fn force(story: &Story<'_>) -> Result<String> {
    let number = story.links[0];
    let template = story.link_template(number)?;
    story.pod("pod", &[Source::Template(&template)])?;
    let first = story.ready("pod")?;
    let delete = ["delete", "pod", "pod", "-n", &story.namespace, "--force", "--grace-period=0"];
    story.world.kubectl.run(&delete)?;
    let start = Instant::now();
    until("the pod is made again", Duration::from_secs(10), || {
        let spec = story.spec(&[Source::Template(&template)]);
        story.apply(objects::pod("pod", &json!({"app": "pod"}), &spec))
    })?;
    story.ready("pod")?;
    let again = start.elapsed().as_secs_f64();
    story.must_reach_wire("pod", number)?;
    if again > RECREATED {
        bail!("ready again in {again:.1} s, {RECREATED} s are allowed; {}", story.last_warning("pod"));
    }
    Ok(format!("ready again in {again:.1} s (the first time {first:.1} s)"))
}
