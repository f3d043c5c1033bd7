//! What the kubelet asks for a claim, done: planned and checkpointed at prepare, returned and forgotten at
//! unprepare.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::ResourceClaim;
use tokio::{
    sync::{Mutex, watch},
    task::spawn_blocking,
    time::timeout,
};
use tracing::{info, warn};

use super::{
    Checkpoint, ClaimRef, InterfaceKey, InterfacePlan, InterfaceRecord, Plan, PodRef, on_host_network,
    plan::{Place, plan},
    store::{Store, StoreError},
    wait::Refusal,
};
use crate::{
    cluster::Cluster,
    device::Inventory,
    dhcp::{Ask, Lease, Leases},
    dra::plugin::{Caller, ClaimService, PreparedDevice},
    network::{access::Access, names, offer::Offer},
    telemetry::chain,
};

/// Longest wait for the claim; the kubelet gives up a call after 45 s (`pkg/kubelet/cm/dra/plugin`).
pub(super) const CLAIM_TIMEOUT: Duration = Duration::from_secs(30);

/// Brings links home.
#[async_trait]
pub trait Release: Send + Sync {
    /// Return every link of the claim that is still out. Succeeds if none is.
    async fn release(&self, claim_uid: &str) -> Result<(), String>;
    /// Why an interface planned like this can never be attached on this node, if so: then its claim is refused.
    fn unattachable(&self, plan: &InterfacePlan) -> Option<String>;
    /// Why the link of this plan cannot be moved as it is now, or be the parent of a sub-interface, if so: then its claim is
    /// refused, too.
    async fn not_movable_now(&self, plan: &InterfacePlan) -> Option<String>;
}

/// Hears what became of claims, to tell the cluster afterwards. Must not block.
pub trait Reporter: Send + Sync {
    /// The claim's checkpoint was made, changed or removed.
    fn claim_changed(&self, claim: &ClaimRef);
    /// The claim could not be prepared; the kubelet will ask again.
    fn prepare_failed(&self, claim: &ClaimRef, why: &str);
}

/// The driver's [`ClaimService`]: over the cluster, the store and the node's devices.
pub struct Claims {
    /// This driver's name.
    pub driver: String,
    /// This node's pool.
    pub pool: String,
    /// Where claims are read.
    pub cluster: Arc<dyn Cluster>,
    /// What was prepared.
    pub store: Arc<Store>,
    /// The node's devices.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// The networks that claims may have ports on.
    pub networks: Arc<dyn Access>,
    /// Where ports have their addresses from that come by DHCP.
    pub leases: Arc<dyn Leases>,
    /// Brings home what is still out at unprepare.
    pub release: Arc<dyn Release>,
    /// Is told of every change.
    pub reporter: Arc<dyn Reporter>,
    /// Held from plan to checkpoint: two claims of one pod must not choose one name. Start with
    /// `Arc::default()`.
    pub planning: Arc<Mutex<()>>,
    /// Longest wait for what other claims are about to give back: [`LONGEST`](super::wait::LONGEST).
    pub wait: Duration,
}

#[async_trait]
impl ClaimService for Claims {
    async fn prepare(&self, claim: &ClaimRef, caller: &mut Caller) -> Result<Vec<PreparedDevice>, String> {
        if let Some(checkpoint) = self.store.get(&claim.uid) {
            return Ok(prepared(&checkpoint));
        }
        match self.prepare_in_time(claim, caller).await {
            Ok(checkpoint) => {
                info!(%claim, uid = claim.uid, interfaces = checkpoint.interfaces.len(), "prepared");
                self.reporter.claim_changed(claim);
                Ok(prepared(&checkpoint))
            }
            Err(why) => {
                warn!(%claim, uid = claim.uid, why, "cannot prepare");
                self.reporter.prepare_failed(claim, &why);
                Err(why)
            }
        }
    }

    async fn unprepare(&self, claim: &ClaimRef) -> Result<(), String> {
        let uid = claim.uid.clone();
        // A prepare that was cut off has leases and no checkpoint.
        if self.store.get(&uid).is_none() {
            return self.leases.give_back(claim).await;
        }
        // Programs are put on a link right after it was prepared: they may come between the look and the removal.
        for last in [false, false, true] {
            let Some(checkpoint) = self.store.get(&uid) else { break };
            let engaged = |it: &InterfaceRecord| {
                it.attachment.is_some() || it.reserved.is_some() || it.removing.is_some()
            };
            if checkpoint.interfaces.iter().any(engaged) {
                self.release.release(&uid).await?;
            }
            // Nobody uses the addresses any more, and the checkpoint has it asked again if this is cut off.
            self.leases.give_back(claim).await?;
            let (store, key) = (Arc::clone(&self.store), uid.clone());
            match spawn_blocking(move || store.remove(&key)).await.map_err(|error| chain(&error))? {
                Ok(()) => break,
                Err(StoreError::StillProtected { .. } | StoreError::StillOut { .. }) if !last => {}
                Err(error) => return Err(chain(&error)),
            }
        }
        info!(%claim, uid = claim.uid, "unprepared");
        self.reporter.claim_changed(claim);
        Ok(())
    }
}

impl Claims {
    /// Prepare a claim as things are now.
    pub(super) async fn prepare_first(&self, asked: &ClaimRef) -> Result<Checkpoint, Refusal> {
        let claim = timeout(CLAIM_TIMEOUT, self.cluster.claim(&asked.namespace, &asked.name))
            .await
            .map_err(|_| format!("no answer about claim {asked} within {} s", CLAIM_TIMEOUT.as_secs()))?
            .map_err(|error| chain(&error))?;
        if let Some(pod) = self.pod_on_host_network(&claim, asked).await {
            return Err(on_host_network(&pod).into());
        }
        let networks = Arc::new(self.networks_of(&claim, &asked.namespace).await);
        if let Err(why) = self.check_links(&claim, asked, &networks).await {
            return self.after_refusal(asked, why.into()).await;
        }
        let claim = Arc::new(claim);
        let draft = self.checkpoint(&claim, asked, &networks, BTreeMap::new()).await;
        let lacking = match draft {
            Ok(Planned::Done(checkpoint)) => return Ok(checkpoint),
            Ok(Planned::Lacking(asks)) => asks,
            // What an earlier prepare leased is of no use any more.
            Err(why) => return self.after_refusal(asked, why).await,
        };
        let leases = self.leases.obtain(asked, &lacking).await?;
        match self.checkpoint(&claim, asked, &networks, leases).await {
            Ok(Planned::Done(checkpoint)) => Ok(checkpoint),
            Ok(Planned::Lacking(asks)) => {
                let requests: Vec<_> = asks.iter().map(|ask| ask.key.request.as_str()).collect();
                let why = format!("requests {} have no address of a DHCP server", requests.join(", "));
                self.after_refusal(asked, why.into()).await
            }
            Err(why) => self.after_refusal(asked, why).await,
        }
    }

    /// A pod of the claim that uses the host's network, which has no place for an interface. Where that cannot be learnt, the
    /// pod is held back when its containers are made.
    async fn pod_on_host_network(&self, claim: &ResourceClaim, asked: &ClaimRef) -> Option<PodRef> {
        let reserved = claim.status.as_ref()?.reserved_for.iter().flatten();
        for consumer in reserved.filter(|consumer| consumer.resource == "pods") {
            let (namespace, name, uid) =
                (asked.namespace.clone(), consumer.name.clone(), consumer.uid.clone());
            let pod = PodRef { namespace, name, uid };
            match timeout(CLAIM_TIMEOUT, self.cluster.uses_host_network(&pod)).await {
                Ok(Ok(true)) => return Some(pod),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => info!(%pod, "cannot be read ahead of its sandbox: {}", chain(&error)),
                Err(_) => info!(%pod, "cannot be read ahead of its sandbox: no answer"),
            }
        }
        None
    }

    /// Check the links that the claim moves, and the parents of its sub-interfaces, as the kernel has them now. A claim that is
    /// refused for another reason is left to the plan that is written down.
    async fn check_links(
        &self,
        claim: &ResourceClaim,
        asked: &ClaimRef,
        networks: &BTreeMap<String, Offer>,
    ) -> Result<(), String> {
        let interfaces = {
            let (prepared, inventory) = (self.store.all(), Arc::clone(&self.inventory.borrow()));
            let place = Place {
                driver: &self.driver,
                pool: &self.pool,
                inventory: &inventory,
                prepared: &prepared,
                networks,
                uplinks: &self.networks.uplinks(),
                members: &*self.networks,
                leases: &BTreeMap::new(),
            };
            plan(claim, asked, &place).map(|plan| plan.interfaces).unwrap_or_default()
        };
        for interface in &interfaces {
            if let Some(why) = self.release.not_movable_now(interface).await {
                let InterfacePlan { request, device, .. } = interface;
                return Err(format!("request {request}: device {device}: {why}"));
            }
        }
        Ok(())
    }

    /// A claim that is refused keeps no addresses.
    async fn after_refusal<T>(&self, claim: &ClaimRef, refusal: Refusal) -> Result<T, Refusal> {
        match self.leases.give_back(claim).await {
            Ok(()) => Err(refusal),
            Err(kept) => Err(format!("{}; its leases could not be given back: {kept}", refusal.why).into()),
        }
    }

    /// Plan with these leases, and write the plan down, unless some port lacks its address still.
    async fn checkpoint(
        &self,
        claim: &Arc<ResourceClaim>,
        asked: &ClaimRef,
        networks: &Arc<BTreeMap<String, Offer>>,
        leases: BTreeMap<InterfaceKey, Lease>,
    ) -> Result<Planned, Refusal> {
        let (asked, driver, pool) = (asked.clone(), self.driver.clone(), self.pool.clone());
        let (claim, networks) = (Arc::clone(claim), Arc::clone(networks));
        let members = Arc::clone(&self.networks);
        let uplinks = members.uplinks();
        let (store, inventory) = (Arc::clone(&self.store), Arc::clone(&self.inventory.borrow()));
        let release = Arc::clone(&self.release);
        // The lock goes along: a write that was begun ends under it even if nobody waits for it any more.
        let planning = Arc::clone(&self.planning).lock_owned().await;
        spawn_blocking(move || {
            let _planning = planning;
            let prepared = store.all();
            let place = Place {
                driver: &driver,
                pool: &pool,
                inventory: &inventory,
                prepared: &prepared,
                networks: &networks,
                uplinks: &uplinks,
                members: &*members,
                leases: &leases,
            };
            checkpoint(&claim, &asked, &place, &*release, &store)
        })
        .await
        .map_err(|error| Refusal::from(chain(&error)))?
    }

    /// The networks whose ports or addresses are allocated to a claim, as far as this node knows them.
    async fn networks_of(&self, claim: &ResourceClaim, namespace: &str) -> BTreeMap<String, Offer> {
        let allocation =
            claim.status.as_ref().and_then(|status| status.allocation.as_ref()?.devices.as_ref());
        let results = allocation.and_then(|allocation| allocation.results.as_ref()).into_iter().flatten();
        let names = results.filter(|result| result.driver == self.driver).filter_map(|result| {
            names::pool_of(&result.pool)
                .map(|pool| pool.network)
                .or_else(|| names::network_of_port(&result.device))
        });
        let names: BTreeSet<&str> = names.collect();
        let mut known = BTreeMap::new();
        for name in names {
            if let Some(asked) = self.networks.ask(name, namespace).await {
                known.insert(name.to_owned(), asked);
            }
        }
        known
    }
}

/// What planning came to.
enum Planned {
    /// It is written down.
    Done(Checkpoint),
    /// These ports lack their addresses; nothing is written down.
    Lacking(Vec<Ask>),
}

/// Plan, and write the plan down. The kubelet is answered only after this.
fn checkpoint(
    claim: &ResourceClaim,
    asked: &ClaimRef,
    place: &Place<'_>,
    release: &dyn Release,
    store: &Store,
) -> Result<Planned, Refusal> {
    let plan = plan(claim, asked, place)?;
    let refused = |plan: &InterfacePlan| {
        release.unattachable(plan).map(|why| format!("request {}: {why}", plan.request))
    };
    if let Some(why) = plan.interfaces.iter().find_map(refused) {
        return Err(why.into());
    }
    let lacking: Vec<Ask> = plan.interfaces.iter().filter_map(lacking).collect();
    if !lacking.is_empty() {
        return Ok(Planned::Lacking(lacking));
    }
    let interfaces = plan.interfaces.into_iter().map(InterfaceRecord::planned).collect();
    let Plan { claim, pods, shareable, .. } = plan;
    let since = Some(Timestamp::now());
    let checkpoint = Checkpoint { claim, pods, shareable, since, interfaces };
    store.put(checkpoint.clone()).map_err(|error| chain(&error))?;
    Ok(Planned::Done(checkpoint))
}

/// The address that a port has to ask for.
fn lacking(plan: &InterfacePlan) -> Option<Ask> {
    let port = plan.port().filter(|_| plan.lacks_address())?;
    Some(Ask { key: plan.key(), network: port.network.clone(), mac: plan.hardware_addr? })
}

fn prepared(checkpoint: &Checkpoint) -> Vec<PreparedDevice> {
    let device = |interface: &InterfaceRecord| PreparedDevice {
        requests: vec![interface.plan.request.clone()],
        pool: interface.plan.pool.clone(),
        device: interface.plan.device.clone(),
        cdi_ids: Vec::new(),
    };
    let given = |interface: &InterfaceRecord| {
        let given = interface.plan.port().map(|port| port.given.clone()).unwrap_or_default();
        given.into_iter().map(|given| PreparedDevice {
            requests: vec![given.request],
            pool: given.pool,
            device: given.device,
            cdi_ids: Vec::new(),
        })
    };
    let interfaces = checkpoint.interfaces.iter();
    interfaces.clone().map(device).chain(interfaces.flat_map(given)).collect()
}
