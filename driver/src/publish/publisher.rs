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

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    ports::{ports, uplinks},
    slices::slices_of,
    writer::PoolWriter,
};
use crate::{
    cluster::{Cluster, ClusterError, Event, EventType, NodeRef, Subject},
    device::{
        Device, Inventory,
        attributes::api_device,
        rule::{Rule, decide},
    },
    network::{Networks, names::pool_of},
};

/// How the publisher paces itself.
#[derive(Clone, Debug)]
pub struct PublishOptions {
    /// Compares with the cluster this often without a change at home: finds slices that somebody deleted or
    /// edited, and a Node object made anew. A tenth is added or taken at random.
    pub resync: Duration,
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
            resync: Duration::from_mins(1),
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
    /// Last round that succeeded, in seconds since the epoch; 0 before the first: not ready yet.
    pub last_success: AtomicU64,
}

/// Publish until `shutdown`. The slices stay: a driver that restarts must not take devices away from a
/// scheduler that is just about to use them. [`cleanup`] takes them away.
pub async fn run(
    cluster: Arc<dyn Cluster>,
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
                        () = sleep(jittered(options.resync, 0.9, 1.1)) => {}
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
        let networks = Arc::default();
        Self { cluster, rule, writer, stats, networks, foreign, reported: None, said: Vec::new() }
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

    /// Bring the cluster's slices up to `inventory`. After an error some writes may have been made; the next
    /// round reads what is there and goes on from that.
    pub async fn sync(&mut self, inventory: &Inventory) -> Result<(), ClusterError> {
        let node = self.cluster.node().await?;
        let decisions = decide(inventory, &self.rule);
        let networks = self.networks.list();
        let (ports, problems) = ports(&networks, inventory, self.rule.driver());
        self.say(problems);
        let kept_home: BTreeSet<&str> = uplinks(&networks, inventory, self.rule.driver()).collect();
        let links = decisions
            .into_iter()
            .filter(|(device, decision)| decision.is_ok() && !kept_home.contains(device.name.as_str()))
            .map(|(device, _)| device)
            .collect();
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
        self.networks.set_published(names);
        self.reported = None;
        let stats = &self.stats;
        stats.devices.store(devices as u64, Ordering::Relaxed);
        stats.slices.store(desired.len() as u64, Ordering::Relaxed);
        stats.generation.store(generation, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        stats.last_success.store(now.as_secs(), Ordering::Relaxed);
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
