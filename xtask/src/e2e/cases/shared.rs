//! One claim that outlives its pods, and the Deployment that uses it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::e2e::{
    node::{link, pod_address},
    objects::{self, INTERFACE, Source},
    story::Story,
    wait::{sleep, until},
};

/// How long the second pod is watched while the first has the link.
const WATCHED: Duration = Duration::from_secs(15);
/// Words of which the Events of a pod that waits have one.
const CURES: [&str; 2] = ["Recreate", "maxUnavailable"];

fn deploy(story: &Story<'_>, strategy: &str) -> Result<String> {
    let number = story.links[0];
    let spec = objects::links(&[(&link(number), INTERFACE, pod_address(number))]);
    story.apply(objects::claim("shared", &spec))?;
    story.apply(objects::deployment("web", strategy, &story.spec(&[Source::Claim("shared")])))?;
    let (pod, _) = until("the Deployment's pod", story.world.limit, || one_pod(story))?;
    story.ready(&pod)?;
    story.must_reach_wire(&pod, number)?;
    Ok(pod)
}

fn one_pod(story: &Story<'_>) -> Result<String> {
    story.pods("app=web")?.pop().context("no pod")
}

fn restart(story: &Story<'_>) -> Result<()> {
    story.world.kubectl.run(&["rollout", "restart", "deployment/web", "-n", &story.namespace]).map(drop)
}

/// Waits for a pod that was not there before.
fn next_pod(story: &Story<'_>, before: &str) -> Result<String> {
    let ask = || {
        let pods: BTreeSet<_> = story.pods("app=web")?.into_iter().collect();
        pods.into_iter().find(|pod| pod != before).context("only the old pod")
    };
    until("the next pod", story.world.limit, ask).map(|(pod, _)| pod)
}

/// With `Recreate` a rollout takes the link from pod to pod.
pub(crate) fn recreate(story: &Story<'_>) -> Result<String> {
    let first = deploy(story, "Recreate")?;
    let start = Instant::now();
    restart(story)?;
    let second = next_pod(story, &first)?;
    story.ready(&second)?;
    let back = start.elapsed().as_secs_f64();
    story.must_reach_wire(&second, story.links[0])?;
    Ok(format!("back in {back:.1} s"))
}

/// With the default strategy the second pod waits, and says what to do; done so, it gets the link.
pub(crate) fn rolling(story: &Story<'_>) -> Result<String> {
    let first = deploy(story, "RollingUpdate")?;
    restart(story)?;
    let second = next_pod(story, &first)?;
    sleep(WATCHED)?;
    if story.is_ready(&second).is_ok() {
        bail!("pod {second} runs while {first} has the link");
    }
    story.must_reach_wire(&first, story.links[0])?;
    for (kind, name) in [("Pod", second.as_str()), ("ResourceClaim", "shared")] {
        let notes = story.notes(kind, name)?;
        if !notes.iter().any(|note| CURES.iter().any(|cure| note.contains(cure))) {
            bail!("no Event on {kind} {name} says the cure; there are: {}", notes.join(" | "));
        }
    }
    let cure: Value = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}}});
    let patch = ["patch", "deployment", "web", "-n", &story.namespace, "-p", &cure.to_string()];
    let start = Instant::now();
    story.world.kubectl.run(&patch)?;
    story.ready(&second)?;
    let cured = start.elapsed().as_secs_f64();
    story.must_reach_wire(&second, story.links[0])?;
    Ok(format!("waits with the cure in Events of pod and claim; with maxUnavailable 1 runs in {cured:.1} s"))
}
