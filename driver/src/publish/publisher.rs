//! Writes the slices: reads what is there, writes the difference, retries.

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    own::OwnSlices,
    slices::slices_of,
    view::{View, view},
    writer::PoolWriter,
};
use crate::{
    cluster::{Cluster, ClusterError, Event, EventType, NodeRef, Subject, watch::SliceVersion},
    device::{Device, Inventory, attributes::api_device, rule::Rule},
    network::{Networks, facts::Seen, names::pool_of},
    telemetry::chain,
};

/// How the publisher paces itself.
#[derive(Clone, Debug)]
pub struct PublishOptions {
    /// Slices that somebody else changed or deleted are written again after this time, in which the other's writes are
    /// gathered. Doubled each time as long as the other goes on …
    pub gather: Duration,
    /// … up to this.
    pub longest_gather: Duration,
    /// Wait after the first failure, doubled with each further one …
    pub first_retry: Duration,
    /// … up to this. Half of each wait is random, so that the nodes of a cluster do not come in step.
    pub longest_retry: Duration,
    /// One round of reading and writing may take this long.
    pub round: Duration,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(100),
            longest_gather: Duration::from_secs(10),
            first_retry: Duration::from_millis(500),
            longest_retry: Duration::from_mins(1),
            round: Duration::from_secs(30),
        }
    }
}

/// Counters and gauges for `/metrics` and readiness.
#[derive(Debug, Default)]
pub struct PublishStats {
    /// Slices created.
    pub creates: AtomicU64,
    /// Slices replaced.
    pub updates: AtomicU64,
    /// Slices deleted.
    pub deletes: AtomicU64,
    /// Rounds that met a newer object than the one they had read.
    pub conflicts: AtomicU64,
    /// Rounds that failed otherwise.
    pub failures: AtomicU64,
    /// Devices in the slices now.
    pub devices: AtomicU64,
    /// Slices of the pool now.
    pub slices: AtomicU64,
    /// The pool's generation now.
    pub generation: AtomicI64,
    /// Last round that succeeded, in seconds since the epoch; 0 before the first.
    pub last_success: AtomicU64,
    /// Whether the slices are as they should be.
    pub standing: watch::Sender<Standing>,
}

/// Whether the node's slices are as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// They were not written yet.
    #[default]
    NotYet,
    /// They are.
    InPlace,
    /// They are not, or nobody knows; why.
    Other(String),
}

/// What is seen of the node's slices in the cluster.
pub type SliceNews = BoxStream<'static, Seen<SliceVersion, String>>;

/// Publish until `shutdown`. `news` tells of the node's slices, so that what others do with them is put right at once: the
/// kubelet deletes all of them when it starts. The slices stay: a driver that restarts must not take devices away from a
/// scheduler that is just about to use them. [`cleanup`] takes them away.
#[expect(clippy::too_many_arguments, reason = "what it lives on")]
pub async fn run(
    cluster: Arc<dyn Cluster>,
    mut news: SliceNews,
    mut inventory: watch::Receiver<Arc<Inventory>>,
    networks: Arc<Networks>,
    rule: Arc<Rule>,
    foreign: Arc<HasForeign>,
    options: PublishOptions,
    stats: Arc<PublishStats>,
    shutdown: CancellationToken,
) {
    let mut changes = networks.changes();
    let mut publisher =
        Publisher::new(cluster, rule, stats).with_networks(networks).with_foreign_programs(foreign);
    let mut failed_rounds = 0;
    let mut others = Others { since: None, times: 0 };
    let publish = async {
        loop {
            let current = Arc::clone(&inventory.borrow_and_update());
            changes.mark_seen();
            match publisher.round(&current, options.round).await {
                Ok(()) => {
                    failed_rounds = 0;
                    tokio::select! {
                        () = changed(&mut inventory) => {}
                        () = changes.next() => {}
                        () = publisher.changed_by_others(&mut news) => sleep(others.pause(&options)).await,
                    }
                }
                Err(error) => {
                    let wait = publisher.failed(&error, failed_rounds, &options).await;
                    failed_rounds += 1;
                    // What the server refuses, another inventory may cure; what it cannot do now, none can.
                    let curable = matches!(error, ClusterError::Refused { .. });
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = changed(&mut inventory), if curable => {}
                        () = changes.next(), if curable => {}
                    }
                }
            }
        }
    };
    tokio::select! {
        () = publish => {}
        () = shutdown.cancelled() => {}
    }
}

/// How often somebody else has changed the slices of late.
struct Others {
    since: Option<Instant>,
    times: u32,
}

impl Others {
    /// How long to wait before what was changed is put right.
    fn pause(&mut self, options: &PublishOptions) -> Duration {
        let quiet = options.longest_gather * 2;
        let goes_on = self.since.is_some_and(|since| since.elapsed() < quiet);
        self.times = if goes_on { self.times.saturating_add(1) } else { 0 };
        self.since = Some(Instant::now());
        options.gather.saturating_mul(2_u32.saturating_pow(self.times)).min(options.longest_gather)
    }
}

/// Delete every slice of this driver on this node. Returns how many there were.
pub async fn cleanup(cluster: &dyn Cluster) -> Result<usize, ClusterError> {
    let slices = cluster.slices().await?;
    for slice in &slices {
        if let Some(name) = &slice.metadata.name {
            cluster.delete_slice(name).await?;
        }
    }
    Ok(slices.len())
}

/// The next inventory; never, once discovery has ended.
async fn changed(inventory: &mut watch::Receiver<Arc<Inventory>>) {
    if inventory.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether programs of others are on a link. It may take some milliseconds.
pub type HasForeign = dyn Fn(&Device) -> bool + Send + Sync;

/// One round at a time; [`run`] drives it.
pub struct Publisher {
    cluster: Arc<dyn Cluster>,
    rule: Arc<Rule>,
    writer: PoolWriter,
    stats: Arc<PublishStats>,
    networks: Arc<Networks>,
    foreign: Arc<HasForeign>,
    own: OwnSlices,
    /// Refusal that an Event has told of.
    reported: Option<String>,
    /// What was said of networks that cannot be published.
    said: Vec<String>,
}

impl Publisher {
    /// A publisher that has not written anything yet.
    #[must_use]
    pub fn new(cluster: Arc<dyn Cluster>, rule: Arc<Rule>, stats: Arc<PublishStats>) -> Self {
        let writer = PoolWriter::new(Arc::clone(&cluster), Arc::clone(&stats));
        let foreign: Arc<HasForeign> = Arc::new(|_| false);
        let (networks, own) = (Arc::default(), OwnSlices::default());
        Self { cluster, rule, writer, stats, networks, foreign, own, reported: None, said: Vec::new() }
    }

    /// Publish which links have programs of others.
    #[must_use]
    pub fn with_foreign_programs(mut self, foreign: Arc<HasForeign>) -> Self {
        self.foreign = foreign;
        self
    }

    /// Publish ports of these networks too.
    #[must_use]
    pub fn with_networks(mut self, networks: Arc<Networks>) -> Self {
        self.networks = networks;
        self
    }

    async fn round(&mut self, inventory: &Inventory, limit: Duration) -> Result<(), ClusterError> {
        timeout(limit, self.sync(inventory)).await.unwrap_or_else(|elapsed| {
            Err(ClusterError::Unavailable {
                action: format!("publish the node's devices within {} s", limit.as_secs()),
                source: elapsed.into(),
            })
        })
    }

    /// Wait until somebody else has changed, deleted or made a slice of the node's pool.
    async fn changed_by_others(&mut self, news: &mut SliceNews) {
        while let Some(seen) = news.next().await {
            // The elected node writes blocks of addresses.
            let ours = !matches!(&seen, Seen::Is(slice) if pool_of(&slice.pool).is_some());
            if ours && self.own.is_news(seen) {
                let why = "somebody else changed or deleted the node's slices; they are written again";
                info!("{why}");
                self.stats.standing.send_replace(Standing::Other(why.to_owned()));
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Bring the cluster's slices up to `inventory`. After an error some writes may have been made; the next
    /// round reads what is there and goes on from that.
    pub async fn sync(&mut self, inventory: &Inventory) -> Result<(), ClusterError> {
        let node = self.cluster.node().await?;
        let View { links, ports, problems } = view(inventory, &self.networks.list(), &self.rule);
        self.say(problems);
        let links =
            links.into_iter().filter(|(_, decision)| decision.is_ok()).map(|(device, _)| device).collect();
        let links = self.with_programs(links).await;
        let (names, ports): (BTreeSet<String>, Vec<_>) = ports.into_iter().unzip();
        let published: Vec<_> = links.iter().map(api_device).chain(ports).collect();
        let devices = published.len();
        let desired = slices_of(published, &node.name, self.rule.driver());
        let current: Vec<_> = self
            .cluster
            .slices()
            .await?
            .into_iter()
            // Whatever a server answers: never touch what is not ours. The elected node writes blocks of addresses.
            .filter(|slice| {
                slice.spec.driver == self.rule.driver()
                    && slice.spec.node_name.as_deref() == Some(node.name.as_str())
                    && pool_of(&slice.spec.pool.name).is_none()
            })
            .collect();
        let written = self.writer.write(&current, &desired, owner(&node).as_ref()).await?;
        let generation = written.generation;
        self.own.set(written.slices);
        self.networks.set_published(names);
        self.reported = None;
        let stats = &self.stats;
        stats.devices.store(devices as u64, Ordering::Relaxed);
        stats.slices.store(desired.len() as u64, Ordering::Relaxed);
        stats.generation.store(generation, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        stats.last_success.store(now.as_secs(), Ordering::Relaxed);
        stats
            .standing
            .send_if_modified(|before| std::mem::replace(before, Standing::InPlace) != Standing::InPlace);
        if written.changed {
            info!(devices, slices = desired.len(), generation, "published the node's devices");
        } else {
            debug!(devices, "slices are as they should be");
        }
        Ok(())
    }

    /// The links, each with what is known of programs of others on it.
    async fn with_programs(&self, mut links: Vec<Device>) -> Vec<Device> {
        let foreign = Arc::clone(&self.foreign);
        let look = move || {
            for link in &mut links {
                link.foreign_programs = foreign(link);
            }
            links
        };
        match spawn_blocking(look).await {
            Ok(links) => links,
            // Not cancelled: nothing aborts it. A panic goes on where it would have gone.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Log what is new of `problems`.
    fn say(&mut self, problems: Vec<String>) {
        for problem in problems.iter().filter(|problem| !self.said.contains(problem)) {
            warn!("not published: {problem}");
        }
        self.said = problems;
    }

    /// Count and tell a failure; returns how long to wait.
    async fn failed(
        &mut self,
        error: &ClusterError,
        failed_rounds: u32,
        options: &PublishOptions,
    ) -> Duration {
        let wait =
            options.first_retry.saturating_mul(2u32.saturating_pow(failed_rounds)).min(options.longest_retry);
        let wait = jittered(wait, 0.5, 1.0);
        match error {
            // An update of a slice that was deleted meanwhile is a conflict as well; a missing Node is not, it
            // comes when the kubelet registers.
            ClusterError::Conflict { .. } | ClusterError::NotFound { kind: "ResourceSlice", .. } => {
                self.stats.conflicts.fetch_add(1, Ordering::Relaxed);
                debug!(%error, "reading the slices again");
                if failed_rounds == 0 { Duration::ZERO } else { wait }
            }
            _ => {
                self.stats.failures.fetch_add(1, Ordering::Relaxed);
                self.stats.standing.send_replace(Standing::Other(chain(error)));
                warn!(error = error as &dyn std::error::Error, ?wait, "cannot publish; trying again");
                if let ClusterError::Refused { .. } = error {
                    self.report(error.to_string()).await;
                }
                wait
            }
        }
    }

    /// Tell of a refusal once, on the node.
    async fn report(&mut self, note: String) {
        if self.reported.as_ref() == Some(&note) {
            return;
        }
        let event = Event {
            subject: Subject::Node,
            event_type: EventType::Warning,
            reason: "PublishFailed",
            action: "Publish",
            note: note.clone(),
        };
        match self.cluster.event(&event).await {
            Ok(()) => self.reported = Some(note),
            Err(error) => debug!(%error, "cannot record an Event"),
        }
    }
}

/// The node owns its slices: they are collected with it.
fn owner(node: &NodeRef) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.name.clone(),
        uid: node.uid.clone()?,
        controller: Some(true),
        ..OwnerReference::default()
    })
}

/// `time` times a random factor between `low` and `high`.
pub(crate) fn jittered(time: Duration, low: f64, high: f64) -> Duration {
    // The standard library seeds each hasher at random, which is random enough to spread nodes.
    let random = RandomState::new().build_hasher().finish();
    let unit = f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX);
    time.mul_f64(low + (high - low) * unit)
}
