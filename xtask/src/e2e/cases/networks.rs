//! Networks with one subnet, and a network that is deleted under its pods.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::e2e::{
    objects::{self, INTERFACE, Source},
    story::Story,
    wait::{sleep, until},
};

/// How long the pods of a deleted network are watched.
const WATCHED: Duration = Duration::from_secs(10);

/// Members reach their own network's pods alone, whatever addresses the others have.
pub(crate) fn one_subnet(story: &Story<'_>) -> Result<String> {
    let red = story.network("red", "198.19.0.0/24", None)?;
    let blue = story.network("blue", "198.19.0.0/24", None)?;
    let labels = json!({});
    let pods = [
        ("red1", &red, "198.19.0.11/24"),
        ("red2", &red, "198.19.0.12/24"),
        // The address of red1, once more.
        ("blue1", &blue, "198.19.0.11/24"),
        ("blue2", &blue, "198.19.0.13/24"),
    ];
    let start = Instant::now();
    for (name, network, address) in pods {
        story.port_pod(name, network, address, &labels)?;
    }
    for (name, ..) in pods {
        story.ready(name)?;
    }
    let ready = start.elapsed().as_secs_f64();
    story.must_reach("red1", "198.19.0.12")?;
    story.must_reach("blue1", "198.19.0.13")?;
    story.must_reach("red2", "198.19.0.11")?;
    story.must_reach("blue2", "198.19.0.11")?;
    for (pod, address) in
        [("red1", "198.19.0.13"), ("red2", "198.19.0.13"), ("blue1", "198.19.0.12"), ("blue2", "198.19.0.12")]
    {
        story.must_not_reach(pod, address)?;
    }
    Ok(format!("4 ways open, 4 ways closed; all ready in {ready:.1} s"))
}

/// The scheduler gives pods addresses of the block that their node has.
pub(crate) fn blocks(story: &Story<'_>) -> Result<String> {
    let fields = json!({"addresses": "blocks"});
    let network = story.network_with("net", "198.19.128.0/22", &fields)?;
    story.apply(objects::template("port", &objects::port(&network, None)))?;
    let start = Instant::now();
    for pod in ["one", "two"] {
        story.pod(pod, &[Source::Template("port")])?;
    }
    story.ready("one")?;
    story.ready("two")?;
    let ready = start.elapsed().as_secs_f64();
    let found = story.exec("two", &format!("ip -o -4 addr show dev {INTERFACE}"))?;
    let address = found.split_once("inet ").and_then(|(_, rest)| rest.split('/').next());
    story.must_reach("one", address.context("pod two has no address")?)?;
    Ok(format!("both ready in {ready:.1} s, and reach each other"))
}

/// What is in force stays until the last pod is gone, named peers included; then the network goes.
pub(crate) fn deleted(story: &Story<'_>) -> Result<String> {
    let policy = json!({"ingress": {"rules": [{"action": "allow", "peers": [super::policy::selector("role", "front")]}]}});
    let network = story.network("net", "198.19.1.0/24", Some(policy))?;
    story.port_pod("server", &network, "198.19.1.10/24", &json!({"role": "server"}))?;
    story.port_pod("front", &network, "198.19.1.11/24", &json!({"role": "front"}))?;
    story.ready("server")?;
    story.ready("front")?;
    story.keep_pinging("front", "198.19.1.10")?;
    story.world.kubectl.run(&["delete", "networks.netferry.dev", &network, "--wait=false"])?;
    sleep(WATCHED)?;
    let answers = story.nothing_lost("front").context("after the network was deleted")?;
    // A flow that begins now, too.
    story.must_reach("front", "198.19.1.10").context("after the network was deleted")?;
    story.delete("pod", "server")?;
    story.delete("pod", "front")?;
    let start = Instant::now();
    until("the network is gone", story.world.limit, || {
        let name = story.world.kubectl.run(&[
            "get",
            "networks.netferry.dev",
            &network,
            "-o",
            "name",
            "--ignore-not-found",
        ])?;
        if name.trim().is_empty() { Ok(()) } else { bail!("it is there") }
    })?;
    let gone = start.elapsed().as_secs_f64();
    Ok(format!("{answers} answers, none lost; the network gone {gone:.1} s after its last pod"))
}
