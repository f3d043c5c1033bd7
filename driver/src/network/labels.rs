//! The watches over labels of pods: of the namespaces that may join the networks on which policies select pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future::pending, stream::BoxStream};
use tokio_stream::StreamMap;
use tracing::debug;

use super::{
    facts::{PodFacts, Seen},
    members::MemberTable,
    scope::Scope,
};
use crate::cluster::watch::Watch;

/// Events of pods that are taken in at once.
const BATCH: usize = 1024;
/// A network's pods are watched for so long after its last policy that selects some: pods that come and go, one after
/// the other, do not have them listed each time.
const LINGER: Duration = Duration::from_mins(5);

type Batch = Vec<Seen<PodFacts, String>>;

/// See the module.
pub(super) struct PodLabels {
    watch: Arc<dyn Watch>,
    streams: StreamMap<Scope, BoxStream<'static, Batch>>,
    /// When policies on a network last selected pods.
    selected: BTreeMap<String, Instant>,
}

impl PodLabels {
    /// Nothing is watched yet.
    pub(super) fn new(watch: Arc<dyn Watch>) -> Self {
        Self { watch, streams: StreamMap::new(), selected: BTreeMap::new() }
    }

    /// Watch what policies need that select pods on these networks now.
    pub(super) fn adapt(&mut self, networks: BTreeSet<String>, table: &mut MemberTable) {
        let now = Instant::now();
        self.selected.extend(networks.into_iter().map(|network| (network, now)));
        self.selected.retain(|_, last| now.saturating_duration_since(*last) < LINGER);
        let wanted = table.select_pods(&self.selected.keys().cloned().collect());
        let over: Vec<Scope> = self.streams.keys().filter(|scope| !wanted.contains(scope)).cloned().collect();
        for scope in &over {
            self.streams.remove(scope);
        }
        for scope in wanted {
            if !self.streams.contains_key(&scope) {
                debug!(?scope, "policies select pods: watching their labels");
                let stream = Arc::clone(&self.watch).pods(&scope).ready_chunks(BATCH).boxed();
                self.streams.insert(scope, stream);
            }
        }
    }

    /// Wait for what a watch says. Nothing is lost if nobody waits any more.
    pub(super) async fn next(&mut self) -> (Scope, Batch) {
        match self.streams.next().await {
            Some(news) => news,
            None => pending().await,
        }
    }
}
