//! DRA health: a stream of all devices and how they are. The kubelet shows it in the pods' status
//! (KEP-4680).

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{Stream, StreamExt as _, stream};
use netferry_proto::dra::health::{
    DeviceHealth, DeviceIdentifier, HealthStatus, NodeWatchResourcesRequest, NodeWatchResourcesResponse,
    dra_resource_health_server::DraResourceHealth,
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    claim::{Made, Step, store::Store},
    device::{Device, Inventory},
    sandbox::Registry,
};

/// The kubelet forgets what it has not heard for 30 s (`pkg/kubelet/cm/dra/healthinfo.go`).
const REPEAT: Duration = Duration::from_secs(10);
/// Changes are gathered for this long.
const GATHER: Duration = Duration::from_millis(100);

/// Tells the health of the node's devices.
#[derive(Clone)]
pub struct Health {
    /// This node's pool.
    pub pool: String,
    /// The node's devices.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// Which of them are in pods.
    pub store: Arc<Store>,
    /// Which pods wait for them.
    pub sandboxes: Arc<Registry>,
}

/// [`Health`] that ends its streams when the daemon stops, which would wait for them otherwise.
pub(super) struct StoppableHealth {
    health: Health,
    stop: CancellationToken,
}

impl Health {
    pub(super) fn until(self, stop: CancellationToken) -> StoppableHealth {
        StoppableHealth { health: self, stop }
    }

    /// Every device now. One that a claim holds but the node has lost is among them, unhealthy.
    fn report(&self) -> NodeWatchResourcesResponse {
        let (mut attached, mut made, mut lost) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        for checkpoint in self.store.all() {
            for interface in checkpoint.interfaces {
                match interface.plan.made {
                    // Made when it is wanted: there is no link whose carrier could be lost.
                    Some(Made::Port(_)) => {
                        made.insert(interface.plan.device);
                    }
                    // Its parent is at home, and is as it is.
                    Some(Made::SubInterface(_)) => {
                        attached.insert(interface.plan.device, None);
                    }
                    None => {
                        let lacking = match &interface.attachment {
                            Some(attachment) => attachment.lost.is_some(),
                            None => checkpoint.pods.iter().any(|pod| self.sandboxes.held(&pod.uid).is_some()),
                        };
                        if lacking {
                            lost.insert(interface.plan.device.clone());
                        }
                        let step = interface.attachment.map(|attachment| attachment.step);
                        attached.insert(interface.plan.device, step);
                    }
                }
            }
        }
        let inventory = Arc::clone(&self.inventory.borrow());
        let mut devices: BTreeMap<&str, HealthStatus> = inventory
            .devices
            .values()
            .map(|device| {
                let step = attached.get(&device.name).copied().flatten();
                (device.name.as_str(), status(device, step))
            })
            .collect();
        for name in attached.keys() {
            devices.entry(name).or_insert(HealthStatus::Unhealthy);
        }
        devices.extend(made.iter().map(|name| (name.as_str(), HealthStatus::Healthy)));
        // A living pod lacks it.
        devices.extend(lost.iter().map(|name| (name.as_str(), HealthStatus::Unhealthy)));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let health = |(name, status): (&str, HealthStatus)| DeviceHealth {
            device: Some(DeviceIdentifier { pool_name: self.pool.clone(), device_name: name.to_owned() }),
            health: status.into(),
            last_updated_time: i64::try_from(now).unwrap_or(i64::MAX),
        };
        NodeWatchResourcesResponse { devices: devices.into_iter().map(health).collect() }
    }
}

/// A link in a pod was put up, protected, by us; its carrier cannot be seen from here. A link at home goes by
/// its operational state (RFC 2863 as in the kernel's `Documentation/networking/operstates.rst`): `unknown`
/// is that of drivers that do not tell and counts as up there; `down` is also that of a link which nobody has
/// put up yet.
fn status(device: &Device, step: Option<Step>) -> HealthStatus {
    match (step, device.oper_state.as_str()) {
        (Some(Step::Attached), _) | (None, "up" | "unknown") => HealthStatus::Healthy,
        (None, "lowerlayerdown" | "notpresent") => HealthStatus::Unhealthy,
        _ => HealthStatus::Unknown,
    }
}

#[tonic::async_trait]
impl DraResourceHealth for StoppableHealth {
    type NodeWatchResourcesStream =
        Pin<Box<dyn Stream<Item = Result<NodeWatchResourcesResponse, Status>> + Send>>;

    async fn node_watch_resources(
        &self,
        _: Request<NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let mut health = self.health.clone();
        let first = health.report();
        health.inventory.mark_unchanged();
        let news = (health.store.changes(), health.sandboxes.changes());
        let later = stream::unfold((health, news), |(mut health, (mut store, mut sandboxes))| async move {
            tokio::select! {
                changed = health.inventory.changed() => changed.ok()?,
                Ok(()) = store.changed() => {}
                Ok(()) = sandboxes.changed() => {}
                () = time::sleep(REPEAT) => {}
            }
            // One event changes many records.
            time::sleep(GATHER).await;
            store.mark_unchanged();
            sandboxes.mark_unchanged();
            Some((health.report(), (health, (store, sandboxes))))
        });
        let reports = stream::once(async { first }).chain(later).map(Ok);
        Ok(Response::new(Box::pin(reports.take_until(self.stop.clone().cancelled_owned()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(oper_state: &str) -> Device {
        serde_json::from_value(serde_json::json!({
            "name": "ens5", "ifname": "ens5", "ifindex": 2, "mtu": 1500, "oper_state": oper_state,
            "addresses": [], "is_virtual": false, "default_route": false, "gateways": [],
        }))
        .unwrap()
    }

    #[test]
    fn status_follows_the_link() {
        let cases = [
            ("up", None, HealthStatus::Healthy),
            ("unknown", None, HealthStatus::Healthy),
            ("down", None, HealthStatus::Unknown),
            ("lowerlayerdown", None, HealthStatus::Unhealthy),
            ("notpresent", None, HealthStatus::Unhealthy),
            ("down", Some(Step::Attached), HealthStatus::Healthy),
            ("up", Some(Step::Attaching), HealthStatus::Unknown),
            ("up", Some(Step::Returning), HealthStatus::Unknown),
        ];
        for (oper_state, step, expected) in cases {
            assert_eq!(status(&device(oper_state), step), expected, "{oper_state} {step:?}");
        }
    }
}
