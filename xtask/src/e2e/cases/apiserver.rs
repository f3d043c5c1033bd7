//! The API server is away while one pod starts and another stops.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{
    Skip,
    restarts::{running, undisturbed},
};
use crate::e2e::{objects::Source, story::Story, wait::until, world::local};

/// How long it is away.
const AWAY: u64 = 15;

/// What runs goes on; the pod that starts and the one that stops are done when the API server is back.
pub(crate) fn down(story: &Story<'_>) -> Result<String> {
    let world = story.world;
    let (stop, start) = (&world.commands.stop_apiserver, &world.commands.start_apiserver);
    if let Some(file) = stop.strip_prefix("mv ").and_then(|rest| rest.split(' ').next())
        && world.node.run(&format!("test -e {file}")).is_err()
    {
        return Err(
            Skip("the API server is no static pod of the node; --stop-apiserver says how".into()).into()
        );
    }
    running(story)?;
    let (stopping, starting) = (story.links[1], story.links[2]);
    let template = story.link_template(stopping)?;
    story.pod("stopping", &[Source::Template(&template)])?;
    story.ready("stopping")?;
    let template = story.link_template(starting)?;
    story.pod("starting", &[Source::Template(&template)])?;
    until("pod starting is placed", world.limit, || {
        let pod = world.kubectl.get(&["pod", "starting", "-n", &story.namespace])?;
        if pod["spec"]["nodeName"].is_string() { Ok(()) } else { bail!("it is not") }
    })?;
    world.kubectl.run(&["delete", "pod", "stopping", "-n", &story.namespace, "--wait=false"])?;
    match (stop.strip_prefix("local:"), start.strip_prefix("local:")) {
        (Some(stop), Some(start)) => local(&format!("{stop}; sleep {AWAY}; {start}"))?,
        (None, None) => world.node.start_apart(&format!("{stop} && sleep {AWAY}; {start}"))?,
        _ => bail!("--stop-apiserver and --start-apiserver are both `local:`, or neither is"),
    }
    let ask = || world.kubectl.run(&["get", "--raw", "/readyz"]).map(drop);
    if !stop.starts_with("local:") {
        crate::e2e::wait::sleep(Duration::from_secs(AWAY))?;
    }
    until("the API server is back", world.limit, ask)?;
    let back = Instant::now();
    story.ready("starting")?;
    story.must_reach_wire("starting", starting)?;
    let started = back.elapsed().as_secs_f64();
    story.home(stopping)?;
    let home = back.elapsed().as_secs_f64();
    let answers = undisturbed(story)?;
    Ok(format!(
        "{answers} answers, none lost; once it was back the pod that started was ready after {started:.1} s, \
         the link of the one that stopped home after {home:.1} s"
    ))
}
