//! A cluster in memory: slices and Leases that can fail at every call, claims, and a scheduler.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use ipnetwork::IpNetwork;
use k8s_openapi::api::{
    coordination::v1::Lease,
    resource::v1::{AllocatedDeviceStatus, Device, ResourceClaim, ResourceSlice},
};
use netferry::{
    claim::{ClaimRef, PodRef},
    cluster::{Cluster, ClusterError, Event, NodeRef, lease::Leases, pools::Pools},
    network::facts::ClaimFacts,
};

/// What the next write does instead of succeeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It works.
    None,
    /// Not done, worth a retry.
    Unavailable,
    /// Done, but the answer is lost.
    Lost,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) slices: BTreeMap<String, ResourceSlice>,
    pub(crate) leases: BTreeMap<String, Lease>,
    version: u64,
    pub(crate) faults: VecDeque<Fault>,
    /// Claims by number; with the device the scheduler gave it.
    pub(crate) claims: BTreeMap<u32, Option<(String, IpAddr)>>,
    /// Addresses that claims fix, by claim.
    pub(crate) fixed: BTreeMap<u32, IpAddr>,
    /// Whether who writes now knows every claim as it is.
    pub(crate) fresh: bool,
    /// What went wrong in the scheduler's eyes.
    pub(crate) wrong: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Memory(Mutex<State>);

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }
}

fn unavailable() -> ClusterError {
    ClusterError::Unavailable { action: "reach the server".to_owned(), source: "injected".into() }
}

fn conflict(kind: &'static str, name: &str) -> ClusterError {
    ClusterError::Conflict { kind, name: name.to_owned(), message: "stale".to_owned() }
}

/// What the attribute says.
fn address(device: &Device) -> IpAddr {
    let attributes = device.attributes.as_ref().expect("attributes");
    let text = attributes["address"].string.as_ref().expect("a string");
    text.parse::<IpNetwork>().expect("a prefix").ip()
}

impl State {
    /// The network's devices as the scheduler sees them: `None` while the pool is incomplete.
    pub(crate) fn pool(&self) -> Option<BTreeMap<String, IpAddr>> {
        let slices = || self.slices.values().filter(|slice| slice.spec.pool.name == "networks/blue");
        let newest = slices().map(|slice| slice.spec.pool.generation).max()?;
        let newest: Vec<_> = slices().filter(|slice| slice.spec.pool.generation == newest).collect();
        let count = newest[0].spec.pool.resource_slice_count;
        if usize::try_from(count) != Ok(newest.len()) {
            return None;
        }
        let devices = newest.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
        let mut pool = BTreeMap::new();
        for device in devices {
            // The scheduler takes a pool with a device twice as invalid.
            if pool.insert(device.name.clone(), address(device)).is_some() {
                return None;
            }
        }
        Some(pool)
    }

    /// Allocate what can be: to each waiting claim the first free device.
    pub(crate) fn schedule(&mut self) {
        let Some(pool) = self.pool() else { return };
        let mut taken: BTreeSet<String> =
            self.claims.values().flatten().map(|(device, _)| device.clone()).collect();
        for given in self.claims.values_mut().filter(|given| given.is_none()) {
            let Some((device, address)) = pool.iter().find(|(device, _)| !taken.contains(*device)) else {
                return;
            };
            taken.insert(device.clone());
            *given = Some((device.clone(), *address));
        }
    }

    pub(crate) fn allocated(&self) -> Vec<IpAddr> {
        self.claims.values().flatten().map(|(_, address)| *address).collect()
    }

    pub(crate) fn facts(&self) -> Vec<ClaimFacts> {
        let facts = |number: &u32, addresses: Vec<IpAddr>, ports| ClaimFacts {
            pod: None,
            uid: format!("00000000-0000-4000-8000-{number:012x}"),
            name: format!("a/c{number}"),
            version: 0,
            since: 0,
            block_node: None,
            ports,
            addresses: addresses.into_iter().map(|address| ("blue".to_owned(), address)).collect(),
        };
        let given = self.claims.iter().filter_map(|(number, given)| {
            given.as_ref().map(|(_, address)| facts(number, vec![*address], vec![]))
        });
        let fixed = self.fixed.iter().map(|(number, address)| {
            let port = netferry::network::facts::PortFacts {
                network: "blue".to_owned(),
                node: "n9".to_owned(),
                told: Some((netferry::link::MacAddr([2, 0, 0, 0, 0, 1]), vec![*address])),
            };
            facts(&(number + 1_000_000), vec![], vec![port])
        });
        given.chain(fixed).collect()
    }

    fn fault(&mut self) -> Result<bool, ClusterError> {
        match self.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => Ok(false),
            Fault::Unavailable => Err(unavailable()),
            Fault::Lost => Ok(true),
        }
    }

    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    /// After each write: what is in use must be there, in every pool that is whole.
    fn check(&mut self) {
        let Some(pool) = self.pool().filter(|_| self.fresh) else { return };
        let there: BTreeSet<IpAddr> = pool.into_values().collect();
        for address in self.allocated() {
            if !there.contains(&address) {
                self.wrong.push(format!("{address} is in use and was withdrawn"));
            }
        }
    }
}

#[async_trait]
impl Cluster for Memory {
    async fn node(&self) -> Result<NodeRef, ClusterError> {
        Err(unavailable())
    }

    async fn claim(&self, _: &str, _: &str) -> Result<ResourceClaim, ClusterError> {
        Err(unavailable())
    }

    async fn uses_host_network(&self, _: &PodRef) -> Result<bool, ClusterError> {
        Ok(false)
    }

    async fn is_leaving(&self, _: &PodRef) -> Result<bool, ClusterError> {
        Ok(false)
    }
    async fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        Err(unavailable())
    }

    async fn create_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let mut state = self.state();
        let lost = state.fault()?;
        let mut slice = slice.clone();
        let prefix = slice.metadata.generate_name.clone().expect("generateName");
        slice.metadata.resource_version = Some(state.next_version());
        let name = format!("{prefix}{:05}", state.version);
        slice.metadata.name = Some(name.clone());
        state.slices.insert(name, slice.clone());
        state.check();
        if lost { Err(unavailable()) } else { Ok(slice) }
    }

    async fn update_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let mut state = self.state();
        let lost = state.fault()?;
        let name = slice.metadata.name.clone().expect("a name");
        let stored = state.slices.get(&name).ok_or_else(|| conflict("ResourceSlice", &name))?;
        if stored.metadata.resource_version != slice.metadata.resource_version {
            return Err(conflict("ResourceSlice", &name));
        }
        let mut slice = slice.clone();
        slice.metadata.resource_version = Some(state.next_version());
        state.slices.insert(name, slice.clone());
        state.check();
        if lost { Err(unavailable()) } else { Ok(slice) }
    }

    async fn delete_slice(&self, name: &str) -> Result<(), ClusterError> {
        let mut state = self.state();
        let lost = state.fault()?;
        state.slices.remove(name);
        state.check();
        if lost { Err(unavailable()) } else { Ok(()) }
    }

    async fn apply_device_status(
        &self,
        _: &ClaimRef,
        _: &[AllocatedDeviceStatus],
    ) -> Result<(), ClusterError> {
        Err(unavailable())
    }

    async fn event(&self, _: &Event) -> Result<(), ClusterError> {
        Ok(())
    }
}

#[async_trait]
impl Pools for Memory {
    async fn pool_slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        let state = self.state();
        let all = state.slices.values().filter(|slice| slice.spec.node_name.is_none());
        Ok(all.cloned().collect())
    }

    async fn slices_of_node(&self, node: &str) -> Result<Vec<ResourceSlice>, ClusterError> {
        let state = self.state();
        let all = state.slices.values().filter(|slice| slice.spec.node_name.as_deref() == Some(node));
        Ok(all.cloned().collect())
    }
}

#[async_trait]
impl Leases for Memory {
    async fn lease(&self, name: &str) -> Result<Option<Lease>, ClusterError> {
        Ok(self.state().leases.get(name).cloned())
    }

    async fn write_lease(&self, lease: &Lease) -> Result<Lease, ClusterError> {
        let mut state = self.state();
        let lost = state.fault()?;
        let name = lease.metadata.name.clone().expect("a name");
        let stored = state.leases.get(&name).and_then(|lease| lease.metadata.resource_version.clone());
        if stored != lease.metadata.resource_version {
            return Err(conflict("Lease", &name));
        }
        let mut lease = lease.clone();
        lease.metadata.resource_version = Some(state.next_version());
        state.leases.insert(name, lease.clone());
        if lost { Err(unavailable()) } else { Ok(lease) }
    }
}
