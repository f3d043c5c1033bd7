//! A stateful cluster in memory that can fail at every call.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, ResourceClaim, ResourceSlice};
use netferry::{
    claim::{ClaimRef, PodRef},
    cluster::{Cluster, ClusterError, Event, NodeRef},
};

use crate::NODE;

/// What the next call does instead of succeeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The call works.
    None,
    /// Not done, worth a retry.
    Unavailable,
    /// Done, but the answer is lost.
    Lost,
    /// Somebody else writes the object first.
    Conflict,
    /// Invalid.
    Refused,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) slices: BTreeMap<String, ResourceSlice>,
    version: u64,
    pub(crate) faults: VecDeque<Fault>,
    pub(crate) writes: Vec<String>,
    pub(crate) events: Vec<Event>,
    pub(crate) uid: Option<String>,
    pub(crate) drops_capacity: bool,
    /// Every complete pool that a scheduler could have seen.
    pub(crate) complete: Vec<Vec<(String, i64)>>,
}

#[derive(Default)]
pub(crate) struct Fake(Mutex<State>);

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        let fake = Self::default();
        fake.state().uid = Some("uid-1".to_owned());
        Arc::new(fake)
    }

    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }

    pub(crate) fn slices(&self) -> Vec<ResourceSlice> {
        self.state().slices.values().cloned().collect()
    }

    pub(crate) fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().writes)
    }

    pub(crate) fn complete_pool(&self) -> Option<Vec<(String, i64)>> {
        self.state().complete_pool()
    }
}

pub(crate) fn facts(device: &k8s_openapi::api::resource::v1::Device) -> (String, i64) {
    let attributes = device.attributes.as_ref().expect("attributes");
    (device.name.clone(), attributes["mtu"].int.expect("an integer"))
}

fn conflict(name: &str) -> ClusterError {
    ClusterError::Conflict { kind: "ResourceSlice", name: name.to_owned(), message: "stale".to_owned() }
}

fn unavailable() -> ClusterError {
    ClusterError::Unavailable { action: "reach the server".to_owned(), source: "injected".into() }
}

impl State {
    /// Devices of the pool as the scheduler sees it: `None` while it is incomplete.
    pub(crate) fn complete_pool(&self) -> Option<Vec<(String, i64)>> {
        let slices = self.slices.values();
        let newest = slices.clone().map(|slice| slice.spec.pool.generation).max()?;
        let newest: Vec<_> = slices.filter(|slice| slice.spec.pool.generation == newest).collect();
        let count = i64::try_from(newest.len()).expect("few");
        newest
            .iter()
            .all(|slice| slice.spec.pool.resource_slice_count == count)
            .then(|| newest.iter().flat_map(|slice| slice.spec.devices.iter().flatten()).map(facts).collect())
    }

    /// Takes the next fault; `Ok(true)` means: do it, but lose the answer.
    fn fault(&mut self, name: &str) -> Result<bool, ClusterError> {
        match self.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => Ok(false),
            Fault::Lost => Ok(true),
            Fault::Unavailable => Err(unavailable()),
            Fault::Conflict => {
                self.version += 1;
                let version = self.version.to_string();
                if let Some(slice) = self.slices.get_mut(name) {
                    slice.metadata.resource_version = Some(version);
                }
                Err(conflict(name))
            }
            Fault::Refused => Err(ClusterError::Refused {
                kind: "ResourceSlice",
                name: name.to_owned(),
                code: 422,
                message: "injected".to_owned(),
            }),
        }
    }

    pub(crate) fn store(&mut self, verb: &str, mut slice: ResourceSlice) -> ResourceSlice {
        self.version += 1;
        slice.metadata.resource_version = Some(self.version.to_string());
        if self.drops_capacity {
            for device in slice.spec.devices.iter_mut().flatten() {
                device.capacity = None;
            }
        }
        // As the API does: an empty list is not stored.
        slice.spec.devices = slice.spec.devices.filter(|devices| !devices.is_empty());
        let name = slice.metadata.name.clone().expect("a name");
        self.writes.push(format!("{verb} {}", &name[..5]));
        self.slices.insert(name, slice.clone());
        self.complete.extend(self.complete_pool());
        slice
    }
}

#[async_trait]
impl Cluster for Fake {
    async fn node(&self) -> Result<NodeRef, ClusterError> {
        Ok(NodeRef { name: NODE.to_owned(), uid: self.state().uid.clone() })
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
        let mut state = self.state();
        if state.fault("")? {
            return Err(unavailable());
        }
        Ok(state.slices.values().cloned().collect())
    }

    async fn create_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let mut state = self.state();
        assert_eq!(slice.metadata.name, None);
        let prefix = slice.metadata.generate_name.clone().expect("generateName");
        let lost = state.fault(&prefix)?;
        let mut slice = slice.clone();
        slice.metadata.name = Some(format!("{prefix}{:05}", state.version));
        let stored = state.store("create", slice);
        if lost { Err(unavailable()) } else { Ok(stored) }
    }

    async fn update_slice(&self, slice: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        let mut state = self.state();
        let name = slice.metadata.name.clone().expect("a name");
        let lost = state.fault(&name)?;
        let Some(stored) = state.slices.get(&name) else {
            return Err(ClusterError::NotFound { kind: "ResourceSlice", name });
        };
        assert!(slice.metadata.resource_version.is_some());
        if stored.metadata.resource_version != slice.metadata.resource_version {
            return Err(conflict(&name));
        }
        assert_eq!(stored.spec.driver, slice.spec.driver, "immutable");
        assert_eq!(stored.spec.node_name, slice.spec.node_name, "immutable");
        assert_eq!(stored.spec.pool.name, slice.spec.pool.name, "immutable");
        let stored = state.store("update", slice.clone());
        if lost { Err(unavailable()) } else { Ok(stored) }
    }

    async fn delete_slice(&self, name: &str) -> Result<(), ClusterError> {
        let mut state = self.state();
        let lost = state.fault(name)?;
        state.slices.remove(name);
        let complete = state.complete_pool();
        state.complete.extend(complete);
        state.writes.push(format!("delete {}", name.get(..5).unwrap_or(name)));
        if lost { Err(unavailable()) } else { Ok(()) }
    }

    async fn apply_device_status(
        &self,
        _: &ClaimRef,
        _: &[AllocatedDeviceStatus],
    ) -> Result<(), ClusterError> {
        Err(unavailable())
    }

    async fn event(&self, event: &Event) -> Result<(), ClusterError> {
        self.state().events.push(event.clone());
        Ok(())
    }
}
