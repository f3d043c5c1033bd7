//! The elected node's loop: what the cluster tells is taken in, and blocks are looked at when something has changed.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use jiff::Timestamp;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{AllUses, BlockPools};
use crate::{
    cluster::watch::Watch,
    network::{
        Network, Networks, addresses,
        blocks::{
            Uses,
            condition::{self, Outcome},
        },
        conditions::Told,
        follow::SharedTable,
        members::MemberTable,
        pools::PoolOptions,
        published::PublishedSlices,
        spec::AddressSource,
        window::Subnet,
    },
    publish::publisher::jittered,
};

/// Times are looked at this often, if nothing else has changed.
const IDLE: Duration = Duration::from_secs(5);
/// Events that are taken in at once.
const BATCH: usize = 1024;

impl BlockPools {
    /// Give blocks until `stop`, while `leading`. The pools stay: another node goes on from them.
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
                self.reset();
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
        let mut events = None;
        let mut seen = PublishedSlices::default();
        let (mut last, mut failures) = (None, 0_u32);
        let mut wait = options.look;
        while *leading.borrow() {
            let now = with_blocks(networks);
            if now.is_empty() && self.networks.is_empty() {
                (events, seen, last) = (None, PublishedSlices::default(), None);
                conditions.clear();
                sleep(options.look).await;
                continue;
            }
            let stream = events.get_or_insert_with(|| Arc::clone(watch).slices().ready_chunks(BATCH));
            let next = sleep(wait);
            tokio::pin!(next);
            loop {
                tokio::select! {
                    () = &mut next => break,
                    Some(batch) = stream.next() => batch.into_iter().for_each(|event| seen.apply(event)),
                }
            }
            wait = options.look;
            let uses = {
                let table = table.lock().unwrap_or_else(PoisonError::into_inner);
                // What is in use must be known before anything is called free.
                if !table.has_claims() || !seen.is_listed() {
                    continue;
                }
                uses(&table, &now)
            };
            let state = (now, uses, seen.version());
            let idle = |(before, at): &(_, Instant)| *before == state && at.elapsed() < IDLE;
            if last.as_ref().is_some_and(idle) {
                continue;
            }
            let leads = || *leading.borrow();
            let round = self.round(&state.0, &seen, &state.1, Instant::now(), &leads).await;
            let (pace, at) = (self.pace, Timestamp::now());
            conditions.tell(|before| {
                let of = |(name, outcome): (&String, &Outcome)| {
                    (name.clone(), condition::condition(outcome, pace.quarantine, before.get(name), at))
                };
                round.outcomes.iter().map(of).collect()
            });
            last = Some((state, Instant::now()));
            failures = if let Some(error) = round.failed {
                last = None;
                let longest = options.look.saturating_mul(2_u32.saturating_pow(failures));
                wait = jittered(longest.min(options.longest_retry), 0.5, 1.0);
                let error = &error as &dyn std::error::Error;
                warn!(error, ?wait, "cannot publish blocks of addresses; trying again");
                failures + 1
            } else {
                0
            };
        }
    }
}

/// The networks whose subnets are given to nodes in blocks.
fn with_blocks(networks: &Networks) -> Vec<Arc<Network>> {
    let mut all = networks.list();
    all.retain(|network| network.spec.addresses == AddressSource::Blocks);
    all
}

/// What claims have of these networks.
#[must_use]
pub fn uses(table: &MemberTable, networks: &[Arc<Network>]) -> AllUses {
    let subnets: BTreeMap<&str, Vec<Subnet>> = networks
        .iter()
        .map(|network| (network.reference.name.as_str(), addresses::subnets(&network.spec)))
        .collect();
    let mut all = AllUses::new();
    table.each_address(|network, address, node, allocated| {
        let Some(subnets) = subnets.get(network) else { return };
        if !all.contains_key(network) {
            all.insert(network.to_owned(), Uses::default());
        }
        if let Some(uses) = all.get_mut(network) {
            if allocated {
                uses.allocate(subnets, address, node);
            } else {
                uses.fix(subnets, address);
            }
        }
    });
    all
}
