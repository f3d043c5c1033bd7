//! What `netferry run --cleanup` takes away on a node: slices, the namespaces that are held, and on the last node what
//! belongs to none.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tracing::{info, warn};

use crate::{
    attach::Attacher,
    claim::store::Store,
    cluster::{Cluster, WholeCluster},
    config::StateArgs,
    datapath::AyaDatapath,
    link::kernel::KernelLinks,
    netns::{KernelNamespaces, Namespaces as _},
    network,
    publish::publisher,
    telemetry::chain,
};

pub(super) async fn run(cluster: &Arc<dyn WholeCluster>, state: &StateArgs) -> Result<()> {
    let own: Arc<dyn Cluster> = Arc::clone(cluster) as _;
    let slices = publisher::cleanup(&*own).await.context("cannot delete the slices")?;
    info!(slices, "this node's slices are deleted");
    let of_networks = network::cleanup::run(&**cluster, Timestamp::now())
        .await
        .context("cannot take away what belongs to no node")?;
    let network::cleanup::Cleaned { slices, networks, others } = of_networks;
    if others.is_empty() || slices > 0 || networks > 0 {
        info!(slices, networks, "networks' addresses are not published and networks not kept any more");
    } else {
        let (nodes, one) = (others.len(), others.first());
        info!(nodes, ?one, "other nodes publish devices: what belongs to no node goes with the last of them");
    }
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
