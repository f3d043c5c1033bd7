//! What the daemon opens before any part of it runs: checkpoints, programs and maps, counters, numbers of networks.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing::error;

use super::upgrade::upgrade;
use crate::{
    claim::store::Store,
    cluster::WholeCluster,
    config::RunConfig,
    counted::network_drops,
    datapath::AyaDatapath,
    holdings::holdings,
    metrics::{Metrics, Sources},
    network::{Networks, follow::FollowStats, identity::Identities},
    publish::publisher::PublishStats,
    readiness::Readiness,
    sandbox,
};

/// What must be there before anything is served.
pub(super) struct Parts {
    pub(super) cluster: Arc<dyn WholeCluster>,
    pub(super) store: Arc<Store>,
    pub(super) datapath: Arc<AyaDatapath>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) published: Arc<PublishStats>,
    pub(super) followed: Arc<FollowStats>,
    pub(super) networks: Arc<Networks>,
    pub(super) identities: Identities,
    pub(super) registry: Arc<sandbox::Registry>,
}

impl Parts {
    pub(super) fn open(config: &RunConfig, cluster: Arc<dyn WholeCluster>) -> Result<Self> {
        let claims = config.state.claims_dir();
        let (store, problems) = Store::open(&claims).context("cannot read the checkpoints")?;
        for problem in problems {
            error!(path = %problem.path.display(), "checkpoint set aside: {}", problem.problem);
        }
        let store = Arc::new(store);
        let datapath =
            Arc::new(AyaDatapath::open(&config.state.pin_root()).context("cannot set up the datapath")?);
        upgrade(&datapath)?;
        let readiness = Arc::new(Readiness::new());
        let published = Arc::new(PublishStats::default());
        let followed = Arc::new(FollowStats::default());
        let networks = Arc::new(Networks::default());
        let registry = Arc::new(sandbox::Registry::default());
        let sources = Sources {
            followed: Arc::clone(&followed),
            network_drops: network_drops(&networks, &datapath),
            readiness: Arc::clone(&readiness),
            publisher: Arc::clone(&published),
            pods_waiting: {
                let registry = Arc::clone(&registry);
                Box::new(move || registry.held_count())
            },
            namespaces_held: {
                let folder = config.state.netns_dir();
                Box::new(move || std::fs::read_dir(&folder).map_or(0, Iterator::count))
            },
            holdings: {
                let (store, datapath) = (Arc::clone(&store), Arc::clone(&datapath));
                Box::new(move || holdings(&store.all(), &*datapath))
            },
        };
        let metrics = Arc::new(Metrics::new(sources));
        let identities =
            Identities::open(&config.state.networks_file()).context("cannot read the numbers of networks")?;
        let known = identities.list();
        networks.replace_all(known.networks, known.retired);
        Ok(Self {
            cluster,
            store,
            datapath,
            readiness,
            metrics,
            published,
            followed,
            networks,
            identities,
            registry,
        })
    }
}
