//! DRA health: how each device of this driver is, of every pool that the node's claims have devices of. The kubelet shows it
//! in the pods' status (KEP-4680).
//!
//! A device that claims share has one health: if one of its interfaces is wrong, the message says whose. An address has
//! that of the port it was given to.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use netferry_proto::dra::health::{DeviceHealth, DeviceIdentifier, HealthStatus, NodeWatchResourcesResponse};
use tokio::sync::watch;

use crate::{
    claim::{Checkpoint, InterfaceRecord, Made, Step, store::Store},
    device::Inventory,
    findings::Findings,
    network::{Networks, names::port_device},
    sandbox::Registry,
};

/// Characters of a message; the kubelet cuts longer ones (dra-health/v1/api.proto).
const LONGEST_MESSAGE: usize = 1024;

/// Tells the health of the node's devices.
#[derive(Clone)]
pub struct Health {
    /// This node's pool.
    pub pool: String,
    /// The node's links.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// Which devices are in pods.
    pub store: Arc<Store>,
    /// Which pods wait for them.
    pub sandboxes: Arc<Registry>,
    /// What the supervisors found.
    pub findings: Arc<Findings>,
    /// The networks whose ports are published.
    pub networks: Arc<Networks>,
}

/// How a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    status: HealthStatus,
    message: String,
    /// When this was seen; `None` is now.
    seen: Option<SystemTime>,
}

impl Condition {
    const fn healthy() -> Self {
        Self { status: HealthStatus::Healthy, message: String::new(), seen: None }
    }

    const fn unknown(message: String) -> Self {
        Self { status: HealthStatus::Unknown, message, seen: None }
    }

    const fn unhealthy(message: String) -> Self {
        Self { status: HealthStatus::Unhealthy, message, seen: None }
    }

    /// The worse of two; of two that are wrong, both messages.
    fn and(self, other: Self) -> Self {
        let worth = |condition: &Self| match condition.status {
            HealthStatus::Healthy => 0,
            HealthStatus::Unknown => 1,
            HealthStatus::Unhealthy => 2,
        };
        let (worse, better) = if worth(&other) > worth(&self) { (other, self) } else { (self, other) };
        if worse.status != better.status || better.message.is_empty() || better.message == worse.message {
            return worse;
        }
        Self { message: format!("{}; {}", worse.message, better.message), ..worse }
    }
}

/// A device: its pool and its name.
type Identifier = (String, String);

impl Health {
    /// Every device now. One that a claim holds but the node has lost is among them.
    pub(super) fn report(&self) -> NodeWatchResourcesResponse {
        let mut devices: BTreeMap<Identifier, Condition> = BTreeMap::new();
        let mut add = |pool: &str, device: &str, condition: Condition| {
            let key = (pool.to_owned(), device.to_owned());
            let before = devices.remove(&key);
            devices.insert(key, before.map_or(condition.clone(), |before| before.and(condition)));
        };
        let inventory = Arc::clone(&self.inventory.borrow());
        let mut away = Vec::new();
        for checkpoint in self.store.all() {
            for record in &checkpoint.interfaces {
                let plan = &record.plan;
                let condition = self.interface(&checkpoint, record, &inventory);
                if let Some(port) = plan.port() {
                    for given in &port.given {
                        add(&given.pool, &given.device, condition.clone());
                    }
                }
                if plan.made.is_none() && record.attachment.is_some() {
                    away.push(plan.device.clone());
                }
                add(&plan.pool, &plan.device, condition);
            }
        }
        for device in inventory.devices.values().filter(|device| !away.contains(&device.name)) {
            add(&self.pool, &device.name, at_home(&device.ifname, &device.oper_state));
        }
        for network in self.networks.published().borrow().iter() {
            add(&self.pool, &port_device(network), Condition::healthy());
        }
        NodeWatchResourcesResponse { devices: devices.into_iter().map(on_wire).collect() }
    }

    /// How an interface of a claim is.
    fn interface(&self, of: &Checkpoint, record: &InterfaceRecord, inventory: &Inventory) -> Condition {
        let plan = &record.plan;
        let name = &plan.name;
        let claim = &of.claim;
        if plan.lacks_address() {
            return Condition::unhealthy(format!(
                "interface {name} of claim {claim}: its address was lost, and it is closed"
            ));
        }
        let Some(attachment) = &record.attachment else {
            let waiting = of.pods.iter().find_map(|pod| Some((pod, self.sandboxes.lacks(&pod.uid)?)));
            return match waiting {
                Some((pod, why)) => {
                    Condition::unhealthy(format!("pod {pod} runs or waits without interface {name}: {why}"))
                }
                // At home it is as its link is; what is made is made when it is wanted.
                None if plan.port().is_some() || inventory.devices.contains_key(&plan.device) => {
                    Condition::healthy()
                }
                None => Condition::unhealthy(format!("link {} is gone from the node", plan.host_link)),
            };
        };
        let pod = &attachment.sandbox.pod;
        if let Some(why) = &attachment.lost {
            return Condition::unhealthy(format!("pod {pod} has lost interface {name}: {why}"));
        }
        if let Some(found) = self.findings.of(claim, name, attachment) {
            return Condition::unhealthy(format!("pod {pod}: {found}"));
        }
        if matches!(plan.made, Some(Made::SubInterface(_))) && !inventory.devices.contains_key(&plan.device) {
            return Condition::unhealthy(format!("pod {pod}: link {} is gone from the node", plan.host_link));
        }
        let seen = self.findings.last_look();
        match (attachment.step, seen) {
            (Step::Attached, Some(_)) => Condition { seen, ..Condition::healthy() },
            (Step::Attached, None) => {
                Condition::unknown("it was not looked at since the daemon started".to_owned())
            }
            (Step::Attaching, _) => Condition::unknown(format!("it is on its way into pod {pod}")),
            (Step::Returning, _) => Condition::unknown(format!("it is on its way home from pod {pod}")),
        }
    }

    /// Who tells of changes.
    pub(super) fn news(&self) -> News {
        News {
            inventory: self.inventory.clone(),
            store: self.store.changes(),
            sandboxes: self.sandboxes.changes(),
            findings: self.findings.changes(),
            published: self.networks.published(),
        }
    }
}

/// What a report may change with.
pub(super) struct News {
    inventory: watch::Receiver<Arc<Inventory>>,
    store: watch::Receiver<()>,
    sandboxes: watch::Receiver<()>,
    findings: watch::Receiver<()>,
    published: watch::Receiver<Arc<std::collections::BTreeSet<String>>>,
}

impl News {
    /// Wait for the next; never, once discovery has ended.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            Ok(()) = self.inventory.changed() => {}
            Ok(()) = self.store.changed() => {}
            Ok(()) = self.sandboxes.changed() => {}
            Ok(()) = self.findings.changed() => {}
            Ok(()) = self.published.changed() => {}
            else => std::future::pending().await,
        }
    }

    /// Take what there is as seen.
    pub(super) fn mark_seen(&mut self) {
        self.inventory.mark_unchanged();
        self.store.mark_unchanged();
        self.sandboxes.mark_unchanged();
        self.findings.mark_unchanged();
        self.published.mark_unchanged();
    }
}

/// A link at home goes by its operational state (RFC 2863 as in the kernel's
/// `Documentation/networking/operstates.rst`): `unknown` is that of drivers that do not tell and counts as up there; `down`
/// is also that of a link which nobody has put up yet.
fn at_home(ifname: &str, oper_state: &str) -> Condition {
    match oper_state {
        "up" | "unknown" => Condition::healthy(),
        "lowerlayerdown" | "notpresent" => Condition::unhealthy(format!("link {ifname} is {oper_state}")),
        other => Condition::unknown(format!("link {ifname} is {other}")),
    }
}

fn on_wire(((pool_name, device_name), condition): (Identifier, Condition)) -> DeviceHealth {
    let seen = condition.seen.unwrap_or_else(SystemTime::now);
    let seconds = seen.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    DeviceHealth {
        device: Some(DeviceIdentifier { pool_name, device_name }),
        health: condition.status.into(),
        last_updated_time: i64::try_from(seconds).unwrap_or(i64::MAX),
        message: shortened(&condition.message),
        ..DeviceHealth::default()
    }
}

fn shortened(message: &str) -> String {
    match message.char_indices().nth(LONGEST_MESSAGE - 1) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_at_home_goes_by_its_state() {
        for (state, expected) in [
            ("up", HealthStatus::Healthy),
            ("unknown", HealthStatus::Healthy),
            ("down", HealthStatus::Unknown),
            ("lowerlayerdown", HealthStatus::Unhealthy),
            ("notpresent", HealthStatus::Unhealthy),
        ] {
            let condition = at_home("ens5", state);
            assert_eq!(condition.status, expected, "{state}");
            assert_eq!(condition.message.is_empty(), expected == HealthStatus::Healthy, "{state}");
        }
    }

    #[test]
    fn a_shared_device_is_as_its_worst_interface() {
        let unhealthy = |text: &str| Condition::unhealthy(text.to_owned());
        assert_eq!(Condition::healthy().and(unhealthy("a")), unhealthy("a"));
        assert_eq!(unhealthy("a").and(Condition::unknown("b".to_owned())), unhealthy("a"));
        assert_eq!(unhealthy("a").and(unhealthy("b")), unhealthy("a; b"));
        assert_eq!(unhealthy("a").and(unhealthy("a")), unhealthy("a"));
        assert!(shortened(&"x".repeat(5000)).chars().count() == LONGEST_MESSAGE);
    }
}
