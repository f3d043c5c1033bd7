//! A cluster of claims that are reserved for pods, and may be away.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, ResourceClaim, ResourceSlice};
use serde_json::json;

use crate::{
    claim::{ClaimRef, PodRef},
    cluster::{Cluster, ClusterError, Event, NodeRef},
};

/// See the module.
#[derive(Default)]
pub(super) struct Claims {
    /// Consumers of each claim, by its name, which is its UID too.
    pub(super) reserved: Mutex<BTreeMap<String, Vec<PodRef>>>,
    pub(super) away: AtomicBool,
    /// How often a claim was asked for.
    pub(super) asked: AtomicU32,
    pub(super) events: Mutex<Vec<Event>>,
}

impl Claims {
    fn available(&self) -> Result<(), ClusterError> {
        if self.away.load(Ordering::Relaxed) {
            let source = "the API server is away".into();
            return Err(ClusterError::Unavailable { action: "read the claim".into(), source });
        }
        Ok(())
    }

    pub(super) fn reserve(&self, claim: &str, pods: Vec<PodRef>) {
        self.reserved.lock().unwrap().insert(claim.to_owned(), pods);
    }
}

#[async_trait]
impl Cluster for Claims {
    async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, ClusterError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.available()?;
        let reserved = self.reserved.lock().unwrap();
        let Some(pods) = reserved.get(name) else {
            return Err(ClusterError::NotFound { kind: "ResourceClaim", name: name.to_owned() });
        };
        let pods: Vec<_> =
            pods.iter().map(|pod| json!({"resource": "pods", "name": pod.name, "uid": pod.uid})).collect();
        let claim = json!({
            "metadata": {"namespace": namespace, "name": name, "uid": name}, "spec": {},
            "status": {"reservedFor": pods},
        });
        Ok(serde_json::from_value(claim).unwrap())
    }
    async fn event(&self, event: &Event) -> Result<(), ClusterError> {
        self.available()?;
        self.events.lock().unwrap().push(event.clone());
        Ok(())
    }
    async fn apply_device_status(
        &self,
        _: &ClaimRef,
        _: &[AllocatedDeviceStatus],
    ) -> Result<(), ClusterError> {
        self.available()
    }
    async fn node(&self) -> Result<NodeRef, ClusterError> {
        unreachable!("sandboxes do not ask for the node")
    }
    async fn uses_host_network(&self, _: &PodRef) -> Result<bool, ClusterError> {
        unreachable!("asked at prepare")
    }

    async fn is_leaving(&self, _: &PodRef) -> Result<bool, ClusterError> {
        unreachable!("asked at prepare")
    }
    async fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        unreachable!("sandboxes have no slices")
    }
    async fn create_slice(&self, _: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        unreachable!("sandboxes have no slices")
    }
    async fn update_slice(&self, _: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        unreachable!("sandboxes have no slices")
    }
    async fn delete_slice(&self, _: &str) -> Result<(), ClusterError> {
        unreachable!("sandboxes have no slices")
    }
}
