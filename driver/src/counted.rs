//! What is counted of networks: nodes and members for their status, drops for the metrics.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::debug;

use crate::{
    claim::store::Store,
    daemon::ports_on,
    datapath::AyaDatapath,
    metrics::NetworkDrops,
    network::{Networks, follow::SharedTable, share, watch::Counts},
    telemetry::chain,
};

/// A folder has one node, which counts for all. In a cluster the elected node does, by what all nodes have told.
pub(crate) fn counts(
    alone: bool,
    store: &Arc<Store>,
    table: &SharedTable,
    leading: watch::Receiver<bool>,
) -> Counts {
    if !alone {
        return share::counts(Arc::clone(table), leading);
    }
    let store = Arc::clone(store);
    Box::new(move |network| {
        let checkpoints = store.all();
        let ports: usize = checkpoints.iter().map(|checkpoint| ports_on(checkpoint, network)).sum();
        Some((u32::from(ports > 0), u32::try_from(ports).unwrap_or(u32::MAX)))
    })
}

/// Drops on the way in that are nobody's, by network and reason. The empty name stands for what belongs to none.
pub(crate) fn network_drops(networks: &Arc<Networks>, datapath: &Arc<AyaDatapath>) -> NetworkDrops {
    let (networks, datapath) = (Arc::clone(networks), Arc::clone(datapath));
    Box::new(move || {
        let mut all = vec![(String::new(), 0)];
        all.extend(networks.list().iter().map(|network| (network.reference.name.clone(), network.id)));
        let mut drops = Vec::new();
        for (name, id) in all {
            match datapath.network_drops(id) {
                Ok(of) => drops.push((name, of)),
                Err(error) => debug!("{}", chain(&error)),
            }
        }
        drops
    })
}
