//! What `netferry run --cleanup` takes away on a node: slices, and the namespaces that are held.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use crate::{
    attach::Attacher,
    claim::store::Store,
    cluster::Cluster,
    config::StateArgs,
    datapath::AyaDatapath,
    link::kernel::KernelLinks,
    netns::{KernelNamespaces, Namespaces as _},
    publish::publisher,
    telemetry::chain,
};

pub(super) async fn run(cluster: &dyn Cluster, state: &StateArgs) -> Result<()> {
    let slices = publisher::cleanup(cluster).await.context("cannot delete the slices")?;
    info!(slices, "this node's slices are deleted");
    let namespaces = KernelNamespaces::new(state.netns_dir());
    let held = namespaces.held().await.context("cannot list the network namespaces that are held")?;
    if held.is_empty() {
        return Ok(());
    }
    // Links of pods that have ended come home first; those of living pods stay with them.
    let (store, _) = Store::open(&state.claims_dir()).context("cannot read the checkpoints")?;
    let datapath = AyaDatapath::open(&state.pin_root()).context("cannot open the datapath")?;
    let attacher = Attacher::new(
        Arc::new(KernelLinks::new()),
        Arc::new(namespaces.clone()),
        Arc::new(datapath),
        Arc::new(store),
    );
    let mut problems = attacher.sweep().await.problems;
    problems.extend(attacher.clear_unused_holds().await);
    for problem in problems {
        warn!(reason = %problem.reason, "{}", problem.note);
    }
    for hold in namespaces.held().await? {
        if let Err(error) = namespaces.release(&hold).await {
            warn!("{}", chain(&error));
        }
    }
    info!(namespaces = held.len(), "network namespaces are held no more");
    Ok(())
}
