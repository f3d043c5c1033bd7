//! The node's ResourceSlices, deleted by somebody else.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::e2e::{story::Story, wait::until};

/// How soon they are there again.
const BACK: f64 = 2.0;

/// Every slice of the node is deleted, and comes back with the same devices.
pub(crate) fn deleted(story: &Story<'_>) -> Result<String> {
    let world = story.world;
    let before = world.node.slices(&world.kubectl)?;
    let names: Vec<_> = before.iter().filter_map(|slice| slice["metadata"]["name"].as_str()).collect();
    if names.is_empty() {
        bail!("the node has no slices");
    }
    world.kubectl.run(&[&["delete", "resourceslices"], names.as_slice()].concat())?;
    let ((), seconds) = until("the slices are back", Duration::from_secs(90), || {
        world.node.publishes(&world.kubectl, &story.links)?;
        let devices = |slices: &[serde_json::Value]| -> usize {
            slices.iter().filter_map(|slice| slice["spec"]["devices"].as_array().map(Vec::len)).sum()
        };
        let (had, has) = (devices(&before), devices(&world.node.slices(&world.kubectl)?));
        if has >= had { Ok(()) } else { bail!("{has} of {had} devices") }
    })?;
    if seconds > BACK {
        bail!("{} slices back after {seconds:.1} s, {BACK} s are allowed", names.len());
    }
    Ok(format!("{} slices back in {seconds:.1} s", names.len()))
}
