//! Who the peers with names in policies are, and policies that follow them.
//!
//! A policy in a checkpoint stays as it is written. What is in force for an endpoint is it with the addresses that its
//! names stand for: set at attach, and set again when they change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use netferry_common::Addr;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{NetworkId, follow::SharedTable, labels::PodLabels, members::MemberTable};
use crate::{
    claim::{Checkpoint, InterfaceKey, InterfacePlan, PodRef, Step, store::Store},
    cluster::watch::Watch,
    datapath::{
        Datapath, DatapathError, EndpointId,
        policy::{Action, Name, Peers, Policy, Resolved},
    },
    telemetry::chain,
};

/// Changes that come within this time are one.
const TOGETHER: Duration = Duration::from_millis(100);
/// How often the checkpoints are looked at without a reason.
const LOOK: Duration = Duration::from_secs(1);

/// Who a name stands for at an endpoint, for readers beside the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The name.
    pub name: Name,
    /// Its addresses; `None` if they are not known yet.
    pub addresses: Option<Vec<IpAddr>>,
}

/// What a daemon told at `file`; nothing if it told nothing.
#[must_use]
pub fn told(file: &Path) -> Vec<Told> {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Sets policies with names.
pub struct PolicyPeers {
    table: SharedTable,
    store: Arc<Store>,
    datapath: Arc<dyn Datapath>,
    /// Where [`Told`] is written.
    file: PathBuf,
    /// What was set last. Held while an endpoint is set, so that an older answer never follows a newer one.
    in_force: Mutex<BTreeMap<EndpointId, (Policy, Resolved)>>,
    /// What is at `file`.
    written: Mutex<Vec<u8>>,
    /// Somebody waits for names to be known.
    needed: Notify,
}

/// The table as one endpoint sees it, with what this node knows before the cluster does.
struct Seeing<'a> {
    table: &'a MemberTable,
    checkpoints: &'a [Checkpoint],
    /// The endpoint's own network, by name and number.
    network: Option<(&'a str, NetworkId)>,
}

impl Seeing<'_> {
    /// Whether this is the endpoint's own network.
    fn is_own(&self, name: &str) -> bool {
        self.network.is_some_and(|(own, _)| own == name)
    }

    /// The endpoint's own network, unless it was deleted and another has its name: whose members the table has, then.
    fn own(&self) -> Option<(&str, NetworkId)> {
        self.network.filter(|(name, id)| self.table.number(name).is_none_or(|number| number == *id))
    }

    fn here(&self, network: &str, is_one: impl Fn(&Checkpoint) -> bool) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for checkpoint in self.checkpoints.iter().filter(|checkpoint| is_one(checkpoint)) {
            let plans = checkpoint.interfaces.iter().map(|record| &record.plan);
            for plan in plans.filter(|plan| plan.port().is_some_and(|port| port.network.name == network)) {
                addresses.extend(plan.addresses.iter().map(ipnetwork::IpNetwork::ip));
                let link_local = plan.hardware_addr.map(|mac| IpAddr::from(Addr::link_local(mac.0)));
                addresses.extend(link_local.filter(|_| self.is_own(network)));
            }
        }
        addresses
    }
}

impl Peers for Seeing<'_> {
    fn network(&self, name: &str) -> Option<Vec<IpAddr>> {
        if self.is_own(name) {
            self.own()?;
        }
        let mut addresses = self.table.addresses(name, self.is_own(name))?;
        addresses.extend(self.here(name, |_| true));
        Some(addresses)
    }

    fn selected(&self, labels: &BTreeMap<String, String>, action: Action) -> Option<Vec<IpAddr>> {
        // Without a network nobody can be told, which a plan refuses.
        let (network, _) = self.own()?;
        let mut addresses = self.table.selected(network, labels, action)?;
        let is_one = |checkpoint: &Checkpoint| {
            let is_one = |pod: &PodRef| self.table.is_selected(network, &pod.to_string(), labels, action);
            // Several pods may name a claim, and one has its interfaces.
            let mut holders = checkpoint.holders().peekable();
            match holders.peek() {
                Some(_) => holders.any(|pod| is_one(pod) == Some(true)),
                None => checkpoint.pods.iter().any(|pod| is_one(pod) == Some(true)),
            }
        };
        addresses.extend(self.here(network, is_one));
        Some(addresses)
    }
}

impl PolicyPeers {
    /// Over these parts. `file` is where it tells who the peers are.
    #[must_use]
    pub fn new(table: SharedTable, store: Arc<Store>, datapath: Arc<dyn Datapath>, file: PathBuf) -> Self {
        let in_force = Mutex::new(BTreeMap::new());
        Self { table, store, datapath, file, in_force, written: Mutex::default(), needed: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, MemberTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_force(&self) -> MutexGuard<'_, BTreeMap<EndpointId, (Policy, Resolved)>> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resolve(&self, policy: &Policy, network: Option<(&str, NetworkId)>) -> Resolved {
        if !policy.names_peers() {
            return Resolved::default();
        }
        let checkpoints = self.store.all();
        let table = self.table();
        policy.resolve(&Seeing { table: &table, checkpoints: &checkpoints, network })
    }

    /// Set the policy of an endpoint on `network`. What is not known yet is set later. Blocks.
    pub fn set(
        &self,
        id: EndpointId,
        policy: &Policy,
        network: Option<(&str, NetworkId)>,
    ) -> Result<(), DatapathError> {
        let mut in_force = self.in_force();
        let resolved = self.resolve(policy, network);
        self.datapath.set_policy_for(id, policy, &resolved)?;
        if policy.names_peers() {
            in_force.insert(id, (policy.clone(), resolved));
        } else {
            in_force.remove(&id);
        }
        drop(in_force);
        self.needed.notify_one();
        Ok(())
    }

    /// Set the policies again whose peers are others now. Returns how many were set. Blocks.
    pub fn refresh(&self) -> usize {
        let endpoints = self.endpoints();
        self.in_force().retain(|id, _| endpoints.iter().any(|(other, ..)| other == id));
        let mut set = 0;
        for (id, step, claim, key) in &endpoints {
            let mut in_force = self.in_force();
            // Its network may have changed the policy meanwhile: the newest one is asked for under the lock.
            let Some(plan) = self.plan(claim, key) else { continue };
            let Some(policy) = plan.policy.as_ref().filter(|policy| policy.names_peers()) else { continue };
            let now = self.resolve(policy, plan.port().map(|port| (port.network.name.as_str(), port.id)));
            match in_force.get(id) {
                Some((of, resolved)) if of == policy && *resolved == now => continue,
                // What an earlier process set is better than what is not known. An attach sets it itself.
                None if !now.is_known() || *step != Step::Attached => continue,
                _ => {}
            }
            match self.datapath.set_policy_for(*id, policy, &now) {
                Ok(()) => {
                    in_force.insert(*id, (policy.clone(), now));
                    set += 1;
                }
                Err(error) => {
                    // Who is no peer any more must not stay in: nobody is a peer, until it can be set.
                    let closed =
                        in_force.get(id).is_some_and(|(_, resolved)| *resolved == Resolved::default());
                    if closed {
                        continue;
                    }
                    warn!(
                        endpoint = id,
                        "cannot set the policy for its peers, so it is closed to them: {}",
                        chain(&error)
                    );
                    match self.datapath.set_policy(*id, policy) {
                        Ok(()) => drop(in_force.insert(*id, (policy.clone(), Resolved::default()))),
                        Err(error) => warn!(endpoint = id, "nor can it be closed: {}", chain(&error)),
                    }
                }
            }
        }
        if let Err(error) = self.tell() {
            warn!(file = %self.file.display(), %error, "cannot tell who the peers of policies are");
        }
        if set > 0 {
            info!(endpoints = set, "policies follow their peers");
        }
        set
    }

    /// Endpoints in pods whose policy has names, with their interfaces and the UIDs of their claims.
    fn endpoints(&self) -> Vec<(EndpointId, Step, String, InterfaceKey)> {
        let mut endpoints = Vec::new();
        for checkpoint in self.store.all() {
            for record in checkpoint.interfaces {
                let Some(attachment) = record.attachment.filter(|it| it.step != Step::Returning) else {
                    continue;
                };
                let named = record.plan.policy.as_ref().is_some_and(Policy::names_peers);
                if let Some(id) = attachment.endpoint.filter(|_| named) {
                    endpoints.push((id, attachment.step, checkpoint.claim.uid.clone(), record.plan.key()));
                }
            }
        }
        endpoints
    }

    fn plan(&self, claim_uid: &str, key: &InterfaceKey) -> Option<InterfacePlan> {
        Some(self.store.get(claim_uid)?.interface(key)?.plan.clone())
    }

    /// Networks that ports are on whose policy selects pods.
    fn selecting(&self) -> BTreeSet<String> {
        let checkpoints = self.store.all();
        let plans =
            checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces).map(|record| &record.plan);
        let selecting = plans.filter(|plan| plan.policy.as_ref().is_some_and(Policy::selects_pods));
        selecting.filter_map(|plan| Some(plan.port()?.network.name.clone())).collect()
    }

    fn tell(&self) -> io::Result<()> {
        let told: Vec<Told> = self
            .in_force()
            .iter()
            .flat_map(|(endpoint, (_, resolved))| {
                let told = |(name, addresses): (&Name, &Option<Vec<IpAddr>>)| Told {
                    endpoint: *endpoint,
                    name: name.clone(),
                    addresses: addresses.clone(),
                };
                resolved.0.iter().map(told).collect::<Vec<_>>()
            })
            .collect();
        let text = serde_json::to_vec(&told)?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written == text {
            return Ok(());
        }
        // Nothing depends on it: what a crash leaves is old or nothing.
        let beside = self.file.with_extension("new");
        fs::write(&beside, &text)?;
        fs::rename(&beside, &self.file)?;
        *written = text;
        Ok(())
    }

    /// Follow the table, and pods as soon as a policy selects them, until `stop`.
    pub async fn run(self: Arc<Self>, watch: Arc<dyn Watch>, stop: CancellationToken) {
        let mut changes = self.table().changes();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pods = PodLabels::new(watch);
        loop {
            let selecting = self.selecting();
            pods.adapt(selecting, &mut self.table());
            tokio::select! {
                () = stop.cancelled() => return,
                (scope, seen) = pods.next() => {
                    let mut table = self.table();
                    for seen in seen {
                        table.apply_pod_from(&scope, seen);
                    }
                    continue;
                }
                Ok(()) = changes.changed() => sleep(TOGETHER).await,
                () = self.needed.notified() => {}
                _ = look.tick() => {}
            }
            changes.mark_unchanged();
            let peers = Arc::clone(&self);
            if let Err(error) = spawn_blocking(move || peers.refresh()).await {
                warn!(%error, "policies could not follow their peers");
            }
        }
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
