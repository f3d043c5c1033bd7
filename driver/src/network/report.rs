//! Which generation of a network is in force on which node: each node with ports says so in a Lease of its own, and the elected
//! one sums it up in the status of the networks.
//!
//! A Lease, since nobody but the elected node reads it: an attribute of the node's devices would have every scheduler take in a
//! slice of every node for each change of a policy. It is written when what it says changes, and not renewed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Networks, known::AllInForce, spec::InForceStatus};
use crate::{
    cluster::{Cluster, ClusterError, lease::Leases},
    publish::publisher::jittered,
};

/// Label of the Leases.
pub const LABEL: &str = "netferry.dev/report";
/// Its value.
pub const IN_FORCE: &str = "in-force";
/// Annotation: generations in force on all of a node's ports, by UID of the network, as a JSON object.
pub const GENERATIONS: &str = "netferry.dev/in-force";

/// Nodes whose names a status has.
pub const MOST_NAMES: usize = 10;

/// Nodes write within this time of a change, not all at once.
const SPREAD: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(10);

/// What a node reports, by UID of the network.
pub type Generations = BTreeMap<String, i64>;

/// Reports what is in force on this node until `stop`.
pub async fn run(
    cluster: &dyn Cluster,
    leases: &dyn Leases,
    networks: Arc<Networks>,
    stop: CancellationToken,
) {
    let mut in_force = networks.in_force();
    let mut written: Option<Generations> = None;
    let mut pause = SPREAD;
    loop {
        let now = of(&in_force.borrow_and_update());
        let known = written.as_ref().map_or(now.is_empty(), |written| *written == now);
        if !known {
            tokio::select! {
                () = sleep(jittered(pause, 0.0, 1.0)) => {}
                () = stop.cancelled() => return,
            }
            let now = of(&in_force.borrow_and_update());
            match write(cluster, leases, &now).await {
                Ok(()) => (written, pause) = (Some(now), SPREAD),
                Err(error) => {
                    debug!(%error, "cannot report what of networks is in force");
                    pause = AGAIN;
                }
            }
            continue;
        }
        tokio::select! {
            Ok(()) = in_force.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}

fn of(in_force: &AllInForce) -> Generations {
    let known = |(network, of): (&super::NetworkRef, &super::known::InForce)| {
        Some((network.uid.clone(), of.generation?))
    };
    in_force.iter().filter_map(known).collect()
}

async fn write(
    cluster: &dyn Cluster,
    leases: &dyn Leases,
    generations: &Generations,
) -> Result<(), ClusterError> {
    let node = cluster.node().await?;
    let before = leases.lease(&node.name).await?;
    let text = serde_json::to_string(generations).unwrap_or_default();
    let mut metadata = before.map_or_else(ObjectMeta::default, |lease| lease.metadata);
    metadata.name = Some(node.name.clone());
    metadata.labels.get_or_insert_default().insert(LABEL.to_owned(), IN_FORCE.to_owned());
    metadata.annotations.get_or_insert_default().insert(GENERATIONS.to_owned(), text);
    // It goes when the node goes.
    metadata.owner_references = node.uid.map(|uid| {
        let (api_version, kind) = ("v1".to_owned(), "Node".to_owned());
        vec![OwnerReference { api_version, kind, name: node.name.clone(), uid, ..OwnerReference::default() }]
    });
    let spec = LeaseSpec { holder_identity: Some(node.name), ..LeaseSpec::default() };
    leases.write_lease(&Lease { metadata, spec: Some(spec) }).await.map(drop)
}

/// What nodes have reported, by name.
#[must_use]
pub fn read(leases: &[Lease]) -> BTreeMap<String, Generations> {
    let one = |lease: &Lease| {
        let text = lease.metadata.annotations.as_ref()?.get(GENERATIONS)?;
        Some((lease.metadata.name.clone()?, serde_json::from_str(text).ok()?))
    };
    leases.iter().filter_map(one).collect()
}

/// The sum for a network with ports on `nodes`, of which `generation` counts.
#[must_use]
pub fn sum(
    uid: &str,
    generation: i64,
    nodes: &BTreeSet<String>,
    reports: &BTreeMap<String, Generations>,
) -> InForceStatus {
    let has = |node: &&String| {
        let reported = reports.get(*node).and_then(|report| report.get(uid));
        reported.is_some_and(|reported| *reported >= generation)
    };
    let (done, behind): (Vec<&String>, Vec<&String>) = nodes.iter().partition(has);
    InForceStatus {
        generation,
        nodes: u32::try_from(done.len()).unwrap_or(u32::MAX),
        nodes_behind: u32::try_from(behind.len()).unwrap_or(u32::MAX),
        behind: behind.into_iter().take(MOST_NAMES).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_bounded_and_counts_who_has_reported() {
        let nodes: BTreeSet<String> = (0..5000).map(|nth| format!("node-{nth:04}")).collect();
        let report = |generation| Generations::from([("u".to_owned(), generation)]);
        let mut reports: BTreeMap<String, Generations> =
            nodes.iter().map(|node| (node.clone(), report(4))).collect();
        let all = sum("u", 4, &nodes, &reports);
        assert_eq!((all.nodes, all.nodes_behind, all.behind.len()), (5000, 0, 0));
        assert_eq!(sum("u", 3, &nodes, &reports).nodes, 5000, "a newer one is not behind");
        let none = sum("another", 4, &nodes, &reports);
        assert_eq!((none.nodes, none.nodes_behind, none.behind.len()), (0, 5000, MOST_NAMES));
        reports.insert("node-0007".to_owned(), report(3));
        reports.remove("node-0009");
        let two = sum("u", 4, &nodes, &reports);
        assert_eq!((two.nodes, two.behind), (4998, vec!["node-0007".to_owned(), "node-0009".to_owned()]));
    }
}
