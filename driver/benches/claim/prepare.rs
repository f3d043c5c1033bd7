//! A node on which claims are prepared: the service and its checkpoints, with a cluster that answers at once.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, ResourceClaim, ResourceSlice};
use netferry::{
    claim::{
        ClaimRef, InterfacePlan, PodRef,
        config::API_VERSION,
        service::{Claims, Release, Reporter},
        store::Store,
    },
    cluster::{Cluster, ClusterError, Event, NodeRef},
    device::{Device, Inventory},
    dhcp::NoLeases,
    dra::plugin::{Caller, ClaimService as _},
    network::access::NoNetworks,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::timed;

const DRIVER: &str = "netferry.dev";
/// Prepared claims of other pods, as on a busy node.
const OTHERS: usize = 30;

pub(crate) struct Node {
    claims: Claims,
    _disk: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        let device = |number: usize| Device {
            name: format!("eth{number}"),
            ifname: format!("eth{number}"),
            mtu: 1500,
            ..Device::default()
        };
        let devices = (0..=OTHERS).map(|number| (format!("eth{number}"), device(number))).collect();
        let (_, inventory) = watch::channel(Arc::new(Inventory { devices }));
        let claims = Claims {
            driver: DRIVER.into(),
            pool: "node".into(),
            cluster: Arc::new(Answers),
            store: Arc::new(Store::open(disk.path()).expect("store").0),
            inventory,
            networks: Arc::new(NoNetworks),
            leases: Arc::new(NoLeases),
            release: Arc::new(Nothing),
            reporter: Arc::new(Nothing),
            planning: Arc::default(),
            wait: Duration::ZERO,
        };
        Self { claims, _disk: disk }
    }

    /// Prepare a new claim so many times; it is unprepared in between, outside the time.
    pub(crate) async fn pass(&self, times: u64) -> Vec<Duration> {
        for number in 1..=OTHERS {
            self.claims.prepare(&claim(number), &mut Caller::patient()).await.expect("prepare");
        }
        let mut took = Vec::new();
        for _ in 0..times {
            let (time, prepared) = timed(self.claims.prepare(&claim(0), &mut Caller::patient())).await;
            assert_eq!(prepared.expect("prepare").len(), 1);
            self.claims.unprepare(&claim(0)).await.expect("unprepare");
            took.push(time);
        }
        took
    }
}

fn claim(number: usize) -> ClaimRef {
    let name = format!("c{number}");
    ClaimRef { namespace: "default".into(), name: name.clone(), uid: name }
}

/// The API server without its time: claim `c<n>` has device `eth<n>`.
struct Answers;

#[async_trait]
impl Cluster for Answers {
    async fn claim(&self, namespace: &str, name: &str) -> Result<ResourceClaim, ClusterError> {
        let number = &name[1..];
        let parameters = json!({
            "apiVersion": API_VERSION,
            "kind": "InterfaceConfig",
            "name": "net1",
            "mtu": 1400,
            "addresses": ["198.51.100.7/24", "2001:db8:7::7/64"],
            "routes": [{"destination": "10.7.0.0/16", "gateway": "198.51.100.1"}],
        });
        let claim = json!({
            "metadata": {"namespace": namespace, "name": name, "uid": name},
            "spec": {},
            "status": {
                "allocation": {"devices": {
                    "results": [{
                        "request": "nic", "driver": DRIVER, "pool": "node", "device": format!("eth{number}"),
                    }],
                    "config": [{
                        "source": "FromClaim", "requests": [],
                        "opaque": {"driver": DRIVER, "parameters": parameters},
                    }],
                }},
                "reservedFor": [{"resource": "pods", "name": format!("p{number}"), "uid": format!("p{number}")}],
            },
        });
        serde_json::from_value(claim).map_err(|error| ClusterError::Unavailable {
            action: "make the claim".into(),
            source: error.into(),
        })
    }
    async fn node(&self) -> Result<NodeRef, ClusterError> {
        not_asked()
    }
    async fn uses_host_network(&self, _: &PodRef) -> Result<bool, ClusterError> {
        Ok(false)
    }
    async fn is_leaving(&self, _: &PodRef) -> Result<bool, ClusterError> {
        Ok(false)
    }
    async fn slices(&self) -> Result<Vec<ResourceSlice>, ClusterError> {
        not_asked()
    }
    async fn create_slice(&self, _: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        not_asked()
    }
    async fn update_slice(&self, _: &ResourceSlice) -> Result<ResourceSlice, ClusterError> {
        not_asked()
    }
    async fn delete_slice(&self, _: &str) -> Result<(), ClusterError> {
        not_asked()
    }
    async fn apply_device_status(
        &self,
        _: &ClaimRef,
        _: &[AllocatedDeviceStatus],
    ) -> Result<(), ClusterError> {
        not_asked()
    }
    async fn event(&self, _: &Event) -> Result<(), ClusterError> {
        not_asked()
    }
}

fn not_asked<T>() -> Result<T, ClusterError> {
    Err(ClusterError::Unavailable { action: "answer".into(), source: "a prepare reads claims only".into() })
}

/// Nobody to tell, and nothing is out.
struct Nothing;

#[async_trait]
impl Release for Nothing {
    async fn release(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn unattachable(&self, _: &InterfacePlan) -> Option<String> {
        None
    }

    async fn not_movable_now(&self, _: &InterfacePlan) -> Option<String> {
        None
    }
}

impl Reporter for Nothing {
    fn claim_changed(&self, _: &ClaimRef) {}
    fn prepare_failed(&self, _: &ClaimRef, _: &str) {}
}
