//! The watches that are open now, and what they say.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use futures::{
    StreamExt as _,
    future::pending,
    stream::{BoxStream, Stream},
};
use tokio::sync::mpsc;
use tokio_stream::StreamMap;
use tracing::{debug, info};

use super::{
    changeover::{Pace, Steps, Watches},
    facts::{ClaimFacts, NamespaceFacts, NodeFacts, Seen},
    members::{MemberTable, Outcome},
    nodes::NodeNeed,
    scope::{Namespaces, Plan, Scope, Situation, plan},
};
use crate::cluster::watch::Watch;

/// Events that are taken in at once. The table is locked for that long.
const BATCH: usize = 1024;

type Batches<T> = BoxStream<'static, Vec<Seen<T, String>>>;

/// What a watch says.
pub(super) enum News {
    /// One over claims.
    Claims(Scope, Vec<Seen<ClaimFacts, String>>),
    /// Who tells of nodes.
    Nodes(Vec<Seen<NodeFacts, String>>),
    /// The one over namespaces: it is taken in.
    Namespaces,
}

/// See the module.
pub(super) struct Streams {
    watch: Arc<dyn Watch>,
    claims: StreamMap<Scope, Batches<ClaimFacts>>,
    /// With who tells it which nodes matter.
    nodes: Option<(Batches<NodeFacts>, mpsc::UnboundedSender<NodeNeed>)>,
    namespaces: Option<(Batches<NamespaceFacts>, Labels)>,
    watches: Watches,
    planned: Option<(Situation, Plan)>,
}

impl Streams {
    /// None yet, unless everything is watched in any case.
    pub(super) fn new(watch: Arc<dyn Watch>, table: &mut MemberTable) -> Self {
        let mut streams = Self {
            watch,
            claims: StreamMap::new(),
            nodes: None,
            namespaces: None,
            watches: Watches::default(),
            planned: None,
        };
        if !streams.watch.narrows() {
            streams.open(&Scope::Cluster, table);
            streams.open_nodes(Vec::new());
        }
        streams
    }

    /// Wait for the next news. Nothing is lost if nobody waits any more.
    pub(super) async fn next(&mut self) -> News {
        let claims = async {
            match self.claims.next().await {
                Some(news) => news,
                None => pending().await,
            }
        };
        let nodes = async {
            match &mut self.nodes {
                Some((nodes, _)) => nodes.next().await,
                None => pending().await,
            }
        };
        let namespaces = async {
            match &mut self.namespaces {
                Some((stream, labels)) => stream.next().await.map(|seen| (seen, labels)),
                None => pending().await,
            }
        };
        tokio::select! {
            (scope, seen) = claims => News::Claims(scope, seen),
            Some(seen) = nodes => News::Nodes(seen),
            Some((seen, labels)) = namespaces => {
                labels.take_in(seen);
                News::Namespaces
            }
            else => pending().await,
        }
    }

    /// Namespaces, once they are known.
    pub(super) fn namespaces(&self) -> Option<Arc<Namespaces>> {
        let (_, labels) = self.namespaces.as_ref()?;
        labels.listed.then(|| Arc::clone(&labels.known))
    }

    /// Watch what a situation asks for.
    pub(super) fn adapt(
        &mut self,
        situation: Situation,
        table: &mut MemberTable,
        pace: Pace,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if self.planned.as_ref().is_none_or(|(before, _)| *before != situation) {
            let plan = plan(&situation);
            outcomes.push(table.set_needs(&plan.needs));
            if plan.namespaces && self.namespaces.is_none() {
                let stream = batches(Arc::clone(&self.watch).namespaces());
                self.namespaces = Some((stream, Labels::default()));
            } else if !plan.namespaces {
                self.namespaces = None;
            }
            if plan.needs.is_empty() && self.nodes.take().is_some() {
                outcomes.push(table.close_nodes());
            } else if !plan.needs.is_empty() && self.nodes.is_none() {
                self.open_nodes(table.need_nodes());
            }
            self.planned = Some((situation, plan));
        }
        let wanted = self.planned.iter().flat_map(|(_, plan)| plan.claims.iter().cloned()).collect();
        let steps = self.watches.step(&wanted, |scope| table.is_listed(scope), Instant::now(), pace);
        for scope in &steps.open {
            self.open(scope, table);
        }
        for scope in &steps.close {
            self.claims.remove(scope);
            outcomes.push(table.close(scope));
        }
        if steps.open.contains(&Scope::Cluster) {
            info!("watching the claims of all namespaces");
        } else if steps.close.contains(&Scope::Cluster) {
            info!(
                namespaces = self.claims.len(),
                "watching the claims of the namespaces that matter on this node"
            );
        }
        if steps != Steps::default() {
            debug!(?steps, "other claims are watched");
        }
        outcomes
    }

    /// Tell which nodes matter now.
    pub(super) fn need(&self, needs: Vec<NodeNeed>) {
        let Some((_, teller)) = &self.nodes else { return };
        for need in needs {
            // Who tells of all nodes does not listen.
            let _ = teller.send(need);
        }
    }

    fn open_nodes(&mut self, needs: Vec<NodeNeed>) {
        let (teller, needed) = mpsc::unbounded_channel();
        self.nodes = Some((batches(Arc::clone(&self.watch).nodes(needed)), teller));
        self.need(needs);
    }

    fn open(&mut self, scope: &Scope, table: &mut MemberTable) {
        table.open(scope);
        self.claims.insert(scope.clone(), batches(Arc::clone(&self.watch).claims(scope)));
    }
}

fn batches<T: Send + 'static>(stream: impl Stream<Item = Seen<T, String>> + Send + 'static) -> Batches<T> {
    stream.ready_chunks(BATCH).boxed()
}

/// Labels of namespaces, one event at a time.
#[derive(Debug, Default)]
struct Labels {
    known: Arc<Namespaces>,
    /// Whether all have come once: what was known then is not forgotten while they come again.
    listed: bool,
    /// Those that came since the list began.
    seen: Option<BTreeSet<String>>,
}

impl Labels {
    fn take_in(&mut self, events: Vec<Seen<NamespaceFacts, String>>) {
        for event in events {
            match event {
                Seen::Listing => self.seen = Some(BTreeSet::new()),
                Seen::Is(facts) => {
                    if let Some(seen) = &mut self.seen {
                        seen.insert(facts.name.clone());
                    }
                    if self.known.get(&facts.name) != Some(&facts.labels) {
                        Arc::make_mut(&mut self.known).insert(facts.name, facts.labels);
                    }
                }
                Seen::Gone(name) => {
                    if self.known.contains_key(&name) {
                        Arc::make_mut(&mut self.known).remove(&name);
                    }
                }
                Seen::Listed => {
                    self.listed = true;
                    let Some(seen) = self.seen.take() else { continue };
                    if self.known.keys().any(|name| !seen.contains(name)) {
                        Arc::make_mut(&mut self.known).retain(|name, _| seen.contains(name));
                    }
                }
            }
        }
    }
}
