//! Leases of claims: obtained when a claim is prepared, given back when it is unprepared.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    sync::{Arc, PoisonError, Weak},
};

use async_trait::async_trait;
use tokio::{
    sync::{Mutex, OwnedMutexGuard, watch},
    task::spawn_blocking,
};
use tracing::{info, warn};

use super::{
    book::{Book, Entry, Record},
    client::{Client, Pace, Wire},
    lease::Lease,
};
use crate::{
    claim::{ClaimRef, InterfaceKey},
    config::RunConfig,
    device::Inventory,
    link::MacAddr,
    metrics::{DhcpOutcome, Metrics},
    network::{Network, NetworkRef, Networks, uplink},
    telemetry::chain,
};

/// A port that needs an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Which interface of the claim.
    pub key: InterfaceKey,
    /// The network.
    pub network: NetworkRef,
    /// Its hardware address.
    pub mac: MacAddr,
}

/// Where the ports of a claim get their addresses.
#[async_trait]
pub trait Leases: Send + Sync {
    /// An address for each port, or none at all and why. What is asked for is on disk before it is asked for. Asking again
    /// is harmless.
    async fn obtain(&self, claim: &ClaimRef, asks: &[Ask]) -> Result<BTreeMap<InterfaceKey, Lease>, String>;

    /// Give back what there is of a claim. A server that does not hear of it keeps the address until the lease ends.
    async fn give_back(&self, claim: &ClaimRef) -> Result<(), String>;
}

/// A node without networks has no leases.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLeases;

#[async_trait]
impl Leases for NoLeases {
    async fn obtain(&self, _: &ClaimRef, _: &[Ask]) -> Result<BTreeMap<InterfaceKey, Lease>, String> {
        Err("this node has no DHCP client".to_owned())
    }

    async fn give_back(&self, _: &ClaimRef) -> Result<(), String> {
        Ok(())
    }
}

/// Leases over the uplinks of this node.
pub struct DhcpLeases {
    /// What was asked for and granted.
    pub(super) book: Arc<Book>,
    /// The networks.
    pub(super) networks: Arc<Networks>,
    /// The node's links.
    inventory: watch::Receiver<Arc<Inventory>>,
    /// The driver, whose attributes selectors name.
    driver: String,
    /// How long servers are waited for.
    pace: Pace,
    /// Numbers.
    pub(super) metrics: Arc<Metrics>,
    /// See [`Turns`].
    pub(super) turns: Turns,
}

/// One at a time for each claim: an address that is given back is not renewed meanwhile.
#[derive(Debug, Default)]
pub struct Turns(std::sync::Mutex<HashMap<String, Weak<Mutex<()>>>>);

impl Turns {
    /// Wait for the turn of a claim.
    pub async fn take(&self, uid: &str) -> OwnedMutexGuard<()> {
        self.of(uid).lock_owned().await
    }

    /// The turn of a claim, if nobody has it.
    pub fn try_take(&self, uid: &str) -> Option<OwnedMutexGuard<()>> {
        self.of(uid).try_lock_owned().ok()
    }

    fn of(&self, uid: &str) -> Arc<Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let there = turns.get(uid).and_then(Weak::upgrade);
        there.unwrap_or_else(|| {
            let fresh = Arc::new(Mutex::new(()));
            turns.insert(uid.to_owned(), Arc::downgrade(&fresh));
            fresh
        })
    }
}

impl fmt::Debug for DhcpLeases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DhcpLeases").field("book", &self.book).finish_non_exhaustive()
    }
}

impl DhcpLeases {
    /// Those that are written down in the folder `leases` of the daemon's state.
    pub fn open(
        config: &RunConfig,
        networks: &Arc<Networks>,
        inventory: &watch::Receiver<Arc<Inventory>>,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            book: Arc::new(Book::open(&config.state.state_dir.join("leases"))?),
            networks: Arc::clone(networks),
            inventory: inventory.clone(),
            driver: config.driver_name.clone(),
            pace: Pace::default(),
            metrics: Arc::clone(metrics),
            turns: Turns::default(),
        }))
    }

    /// The wire of a network on this node.
    fn wire(&self, network: &Network) -> Result<Wire, String> {
        let spec = &network.spec;
        let inventory = Arc::clone(&self.inventory.borrow());
        let link = uplink::of(spec, &inventory, &self.driver).map_err(|error| chain(&error))?;
        let vlan = spec.transport.uplink.as_ref().and_then(|uplink| uplink.vlan).unwrap_or(0);
        Ok(Wire { link: link.ifname.clone(), vlan })
    }

    /// Where an address is renewed and given back: the link may have another name than when it was leased.
    pub(super) fn wire_of(&self, entry: &Entry) -> Wire {
        let network = self.networks.of_uid(&entry.network.uid);
        network.and_then(|network| self.wire(&network).ok()).unwrap_or_else(|| entry.wire())
    }

    /// Write down away from the threads that serve sockets.
    pub(super) async fn write(
        &self,
        write: impl FnOnce(&Book) -> io::Result<()> + Send + 'static,
    ) -> Result<(), String> {
        let book = Arc::clone(&self.book);
        let written = spawn_blocking(move || write(&book)).await.map_err(|error| chain(&error))?;
        written.map_err(|error| format!("cannot write down the leases: {}", chain(&error)))
    }

    /// The record to begin with: what an earlier prepare came to is asked for again.
    fn planned(&self, claim: &ClaimRef, asks: &[Ask]) -> Result<Record, String> {
        let former = self.book.get(&claim.uid);
        let mut entries = Vec::new();
        for Ask { key, network, mac } in asks {
            let of = |why: String| format!("request {}: network {}: {why}", key.request, network.name);
            let known = self.networks.of_uid(&network.uid);
            let known = known.ok_or_else(|| of("this node does not know it any more".to_owned()))?;
            let wire = self.wire(&known).map_err(of)?;
            let former = former.iter().flat_map(|record| &record.entries);
            let mut former = former.filter(|entry| entry.key() == *key && entry.mac == *mac);
            entries.push(Entry {
                request: key.request.clone(),
                device: key.device.clone(),
                share_id: key.share_id.clone(),
                network: network.clone(),
                link: wire.link,
                vlan: wire.vlan,
                mac: *mac,
                lease: former.next().and_then(|entry| entry.lease.clone()),
                lost: None,
            });
        }
        Ok(Record { claim: claim.clone(), entries })
    }

    async fn acquire(
        &self,
        claim: &ClaimRef,
        record: &Record,
    ) -> Result<BTreeMap<InterfaceKey, Lease>, String> {
        let mut leases = BTreeMap::new();
        for entry in &record.entries {
            let wanted = entry.lease.as_ref().map(|lease| lease.address);
            let wire = entry.wire();
            let acquired = match Client::new(&wire, entry.mac) {
                Ok(client) => client.acquire(wanted, &self.pace).await,
                Err(error) => Err(error),
            };
            self.metrics.dhcp(if acquired.is_ok() { DhcpOutcome::Leased } else { DhcpOutcome::Failed });
            let lease = acquired.map_err(|error| {
                format!("request {}: network {}: {}", entry.request, entry.network.name, chain(&error))
            })?;
            let (key, kept, uid) = (entry.key(), lease.clone(), claim.uid.clone());
            self.write(move |book| book.update(&uid, &key, |entry| entry.lease = Some(kept))).await?;
            let (network, address, server) = (&entry.network.name, lease.address, lease.server);
            info!(%claim, network, %address, %server, wire = %wire, "leased an address");
            leases.insert(entry.key(), lease);
        }
        Ok(leases)
    }

    async fn release(&self, claim: &ClaimRef) -> Result<(), String> {
        let Some(record) = self.book.get(&claim.uid) else { return Ok(()) };
        for entry in record.entries.iter().filter(|entry| entry.lost.is_none()) {
            let Some(lease) = &entry.lease else { continue };
            let wire = self.wire_of(entry);
            let released = match Client::new(&wire, entry.mac) {
                Ok(client) => client.release(lease).await,
                Err(error) => Err(error),
            };
            let (network, address) = (&entry.network.name, lease.address);
            match released {
                Ok(()) => {
                    self.metrics.dhcp(DhcpOutcome::Released);
                    info!(%claim, network, %address, "gave an address back");
                }
                Err(error) => {
                    self.metrics.dhcp(DhcpOutcome::Failed);
                    warn!(%claim, network, %address, "cannot give an address back, which is free when its lease ends: {}", chain(&error));
                }
            }
        }
        let uid = claim.uid.clone();
        self.write(move |book| book.remove(&uid)).await
    }
}

#[async_trait]
impl Leases for DhcpLeases {
    async fn obtain(&self, claim: &ClaimRef, asks: &[Ask]) -> Result<BTreeMap<InterfaceKey, Lease>, String> {
        let _turn = self.turns.take(&claim.uid).await;
        let record = self.planned(claim, asks)?;
        let written = record.clone();
        self.write(move |book| book.put(written)).await?;
        match self.acquire(claim, &record).await {
            Ok(leases) => Ok(leases),
            Err(why) => {
                self.release(claim).await?;
                Err(why)
            }
        }
    }

    async fn give_back(&self, claim: &ClaimRef) -> Result<(), String> {
        let _turn = self.turns.take(&claim.uid).await;
        self.release(claim).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_is_one_at_a_time_for_each_claim() {
        let turns = Turns::default();
        let first = turns.take("u1").await;
        assert!(turns.try_take("u1").is_none());
        let other = turns.try_take("u2");
        assert!(other.is_some());
        drop(first);
        assert!(turns.try_take("u1").is_some());
        drop(other);
        drop(turns.take("u3").await);
        assert!(turns.try_take("u4").is_some());
        assert_eq!(turns.0.lock().expect("a map").len(), 1, "those that nobody has are forgotten");
    }
}
