//! The cluster that the daemon is given.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing::warn;

use crate::{
    cluster::{WholeCluster, kube::KubeCluster, standalone::Standalone},
    config::RunConfig,
};

/// An API server, or a folder of YAML objects.
pub(super) async fn cluster(config: &RunConfig, node: &str) -> Result<Arc<dyn WholeCluster>> {
    if let Some(folder) = &config.standalone {
        let cluster = Standalone::open(folder, &config.driver_name, node).context("--standalone")?;
        for problem in cluster.problems() {
            warn!("{problem}");
        }
        return Ok(Arc::new(cluster));
    }
    let cluster = KubeCluster::connect(config.kubeconfig.as_deref(), &config.driver_name, node);
    Ok(Arc::new(cluster.await.context("cannot set up the connection to the API server")?))
}
