//! Publishes the addresses of all networks, as long as this node is the elected one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::ResourceSlice;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Network, Networks,
    addresses::{self, AddressPool},
    conditions::Told,
    facts::Seen,
    follow::SharedTable,
    names::network_of_pool,
    spec::AddressSource,
    window::InUse,
};
use crate::{
    cluster::{
        Cluster, ClusterError,
        pools::Pools,
        watch::{SlicesOf, Watch},
    },
    publish::{
        own::OwnSlices,
        publisher::{PublishStats, SliceNews, jittered},
        writer::PoolWriter,
    },
};

/// Before slices that somebody else changed are written again, the other's writes are gathered for this long.
const GATHER: Duration = Duration::from_millis(500);

/// How it is paced.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Looks at what is in use this often. As long as the windows stay as they are, nothing is written.
    pub look: Duration,
    /// Longest wait after failures.
    pub longest_retry: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { look: Duration::from_secs(1), longest_retry: Duration::from_mins(1) }
    }
}

/// Writes the pools.
pub struct AddressPools {
    cluster: Arc<dyn Cluster>,
    pools: Arc<dyn Pools>,
    driver: String,
    writers: BTreeMap<String, PoolWriter>,
    own: OwnSlices,
    stats: Arc<PublishStats>,
}

impl AddressPools {
    /// Pools that are written through `cluster`, and listed by `pools`.
    #[must_use]
    pub fn new(
        cluster: Arc<dyn Cluster>,
        pools: Arc<dyn Pools>,
        driver: &str,
        stats: Arc<PublishStats>,
    ) -> Self {
        let (driver, writers, own) = (driver.to_owned(), BTreeMap::new(), OwnSlices::default());
        Self { cluster, pools, driver, writers, own, stats }
    }

    /// Bring the pools of `networks` up to what is `in_use`, and take away those of networks that were there at an
    /// earlier call. (A network that is deleted while nobody leads takes its slices with it: it owns them.) Nothing
    /// more is written once `leads` says no. A pool that fails does not keep the others from being written.
    pub async fn sync(
        &mut self,
        networks: &[Arc<Network>],
        in_use: &BTreeMap<String, InUse>,
        leads: impl Fn() -> bool,
    ) -> Result<BTreeMap<String, AddressPool>, ClusterError> {
        let mut current: BTreeMap<String, Vec<ResourceSlice>> = BTreeMap::new();
        for slice in self.pools.pool_slices().await? {
            // Whatever a server answers: never touch what is not ours.
            let ours = slice.spec.driver == self.driver && slice.spec.node_name.is_none();
            if let Some(network) = network_of_pool(&slice.spec.pool.name).filter(|_| ours) {
                current.entry(network.to_owned()).or_default().push(slice);
            }
        }
        let (mut written, mut failed) = (BTreeMap::new(), None);
        let mut own = BTreeMap::new();
        let nothing = InUse::default();
        for network in networks {
            let name = &network.reference.name;
            let current = current.remove(name).unwrap_or_default();
            let in_use = in_use.get(name).unwrap_or(&nothing);
            let pool = addresses::pool(network, in_use, &addresses::published(&current), &self.driver);
            let owner = addresses::owner(network);
            if !leads() {
                break;
            }
            match self.writer(name).write(&current, &pool.slices, owner.as_ref()).await {
                Ok(outcome) => {
                    if outcome.changed {
                        let (slices, generation) = (pool.slices.len(), outcome.generation);
                        info!(network = name, slices, generation, "published a network's addresses");
                    }
                    own.extend(outcome.slices);
                    written.insert(name.clone(), pool);
                }
                Err(error) => failed = Some(error),
            }
        }
        let named: BTreeSet<&str> = networks.iter().map(|network| network.reference.name.as_str()).collect();
        let gone: Vec<String> =
            self.writers.keys().filter(|name| !named.contains(name.as_str())).cloned().collect();
        for name in gone {
            if !leads() {
                break;
            }
            match self.writer(&name).write(&current.remove(&name).unwrap_or_default(), &[], None).await {
                Ok(_) => drop(self.writers.remove(&name)),
                Err(error) => failed = Some(error),
            }
        }
        self.own.set(own);
        failed.map_or(Ok(written), Err)
    }

    /// Wait until somebody else has changed, deleted or made a slice of one of the pools.
    async fn changed_by_others(&mut self, news: &mut SliceNews) {
        while let Some(seen) = news.next().await {
            let ours = match &seen {
                Seen::Is(slice) => {
                    network_of_pool(&slice.pool).is_some_and(|network| self.writers.contains_key(network))
                }
                _ => true,
            };
            if ours && self.own.is_news(seen) {
                info!(
                    "somebody else changed or deleted slices of networks' addresses; they are written again"
                );
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    fn writer(&mut self, network: &str) -> &mut PoolWriter {
        let Self { cluster, stats, writers, .. } = self;
        writers
            .entry(network.to_owned())
            .or_insert_with(|| PoolWriter::new(Arc::clone(cluster), Arc::clone(stats)))
    }

    /// Publish until `stop`, while `leading`. The pools stay: another node goes on from them. `conditions` is told
    /// what the networks' status is to say; it is empty on a node that does not lead.
    #[expect(clippy::too_many_arguments, reason = "what it lives on")]
    pub async fn run(
        mut self,
        networks: Arc<Networks>,
        watch: Arc<dyn Watch>,
        table: SharedTable,
        mut leading: watch::Receiver<bool>,
        mut conditions: Told,
        options: PoolOptions,
        stop: CancellationToken,
    ) {
        let publish = async {
            loop {
                if leading.wait_for(|leading| *leading).await.is_err() {
                    std::future::pending::<()>().await;
                }
                self.lead(&networks, &watch, &table, &leading, &mut conditions, options).await;
                conditions.clear();
            }
        };
        tokio::select! {
            () = publish => {}
            () = stop.cancelled() => {}
        }
    }

    async fn lead(
        &mut self,
        networks: &Networks,
        watch: &Arc<dyn Watch>,
        table: &SharedTable,
        leading: &watch::Receiver<bool>,
        conditions: &mut Told,
        options: PoolOptions,
    ) {
        let mut last = None;
        let mut failures = 0_u32;
        let mut news: Option<SliceNews> = None;
        let of_no_node = || Arc::clone(watch).slice_versions(SlicesOf::NoNode);
        while *leading.borrow() {
            let seen = {
                let table = table.lock().unwrap_or_else(PoisonError::into_inner);
                // What is in use must be known before anything is called free.
                table.has_claims().then(|| {
                    let now = allocated(networks);
                    let in_use = table.in_use(now.iter().map(|network| network.reference.name.as_str()));
                    (now, in_use)
                })
            };
            let Some(seen) = seen else {
                sleep(options.look).await;
                continue;
            };
            if last.as_ref() == Some(&seen) {
                // Watched only while there is a pool.
                let watched = (!seen.0.is_empty()).then(|| news.get_or_insert_with(of_no_node));
                let others = async {
                    match watched {
                        Some(news) => self.changed_by_others(news).await,
                        None => std::future::pending().await,
                    }
                };
                if timeout(options.look, others).await.is_ok() {
                    last = None;
                    sleep(GATHER).await;
                }
                continue;
            }
            match self.sync(&seen.0, &seen.1, || *leading.borrow()).await {
                Ok(pools) => {
                    tell(conditions, &pools);
                    failures = 0;
                    last = Some(seen);
                }
                Err(error) => {
                    let wait = options.look.saturating_mul(2_u32.saturating_pow(failures));
                    let wait = jittered(wait.min(options.longest_retry), 0.5, 1.0);
                    failures += 1;
                    warn!(
                        error = &error as &dyn std::error::Error,
                        ?wait,
                        "cannot publish addresses; trying again"
                    );
                    sleep(wait).await;
                }
            }
        }
    }
}

/// The networks whose addresses the scheduler allocates.
fn allocated(networks: &Networks) -> Vec<Arc<Network>> {
    let mut all = networks.list();
    all.retain(|network| network.spec.addresses == AddressSource::Allocated);
    all
}

/// Say what has become of the pools.
fn tell(conditions: &mut Told, pools: &BTreeMap<String, AddressPool>) {
    let now = Timestamp::now();
    conditions.tell(|before| {
        let of = |(name, pool): (&String, &AddressPool)| {
            (name.clone(), addresses::condition(pool, before.get(name), now))
        };
        pools.iter().map(of).collect()
    });
}
