//! What a node keeps of other nodes' objects: of a claim its ports and addresses, of a node where it is reached.
//!
//! A claim's status is written by many. Only this is believed: what the scheduler allocated, and of what is told about
//! devices, the entries of devices that the claim was allocated from this driver.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use k8s_openapi::{
    api::{
        core::v1::NodeStatus,
        resource::v1::{AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaimStatus},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::names::{device_address, pool_of, port_device};
use crate::link::MacAddr;

/// What a watch over objects sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T, K> {
    /// The list begins anew: what does not come before [`Seen::Listed`] is gone.
    Listing,
    /// An object as it is now.
    Is(T),
    /// An object is gone.
    Gone(K),
    /// Every object has come once.
    Listed,
}

/// A claim with devices of this driver's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimFacts {
    /// The pod it is reserved for, as `namespace/name`; `None` unless it is exactly one.
    pub pod: Option<String>,
    /// Its UID.
    pub uid: String,
    /// `namespace/name`.
    pub name: String,
    /// Its resource version; 0 where there is none. Of one object a larger one is newer, which the scheduler's cache
    /// of claims goes by, too (`pkg/scheduler/util/assumecache`).
    pub version: u64,
    /// When it was allocated, or, where the cluster does not tell, made: seconds since the epoch.
    pub since: i64,
    /// Its ports.
    pub ports: Vec<PortFacts>,
    /// Addresses the scheduler allocated to it, with their networks.
    pub addresses: Vec<(String, IpAddr)>,
    /// The node whose blocks they are from, where they are from blocks.
    pub block_node: Option<String>,
}

impl ClaimFacts {
    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.name.split_once('/').map_or("", |(namespace, _)| namespace)
    }
}

/// A port of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFacts {
    /// The network.
    pub network: String,
    /// The node it was allocated on.
    pub node: String,
    /// Hardware address and addresses, once its node has told them.
    pub told: Option<(MacAddr, Vec<IpAddr>)>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its `InternalIP`, the first where it has several.
    pub address: Option<IpAddr>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The label that every pod has for a `podSelector`: its namespace. The runtime's name for it.
pub const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// `namespace/name`.
    pub name: String,
    /// Its labels, and [`NAMESPACE_LABEL`].
    pub labels: BTreeMap<String, String>,
}

impl PodFacts {
    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.name.split_once('/').map_or("", |(namespace, _)| namespace)
    }
}

/// What a claim has of this driver's networks. A claim that has no allocation has nothing.
#[must_use]
pub fn claim(metadata: &ObjectMeta, status: Option<&ResourceClaimStatus>, driver: &str) -> ClaimFacts {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let name = metadata.name.as_deref().unwrap_or_default();
    let allocation = status.and_then(|status| status.allocation.as_ref());
    let told: &[AllocatedDeviceStatus] =
        status.and_then(|status| status.devices.as_deref()).unwrap_or_default();
    let mut facts = ClaimFacts {
        pod: reserved_pod(namespace, status),
        uid: metadata.uid.clone().unwrap_or_default(),
        name: format!("{namespace}/{name}"),
        version: metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0),
        since: allocation
            .and_then(|allocation| allocation.allocation_timestamp.as_ref())
            .or(metadata.creation_timestamp.as_ref())
            .map_or(0, |time| time.0.as_second()),
        ports: Vec::new(),
        addresses: Vec::new(),
        block_node: None,
    };
    let results = allocation.and_then(|allocation| allocation.devices.as_ref()?.results.as_ref());
    for result in results.into_iter().flatten() {
        // A monitor's access to a device gives it neither port nor address.
        if result.driver != driver || result.admin_access == Some(true) {
            continue;
        }
        if let Some(pool) = pool_of(&result.pool) {
            let address = device_address(&result.device);
            facts.addresses.extend(address.map(|address| (pool.network.to_owned(), address)));
            facts.block_node = facts.block_node.take().or_else(|| pool.node.map(str::to_owned));
        } else if let Some(network) = port_network(&result.device) {
            facts.ports.push(PortFacts {
                network: network.to_owned(),
                node: result.pool.clone(),
                told: told.iter().find(|told| is_of(told, result)).and_then(network_data),
            });
        }
    }
    facts
}

/// What a node tells of itself.
#[must_use]
pub fn node(metadata: &ObjectMeta, status: Option<&NodeStatus>) -> NodeFacts {
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let internal = |address: &&k8s_openapi::api::core::v1::NodeAddress| address.type_ == "InternalIP";
    NodeFacts {
        name: metadata.name.clone().unwrap_or_default(),
        address: addresses
            .into_iter()
            .flatten()
            .filter(internal)
            .find_map(|address| address.address.parse().ok()),
    }
}

/// What is kept of a namespace.
#[must_use]
pub fn namespace(metadata: &ObjectMeta) -> NamespaceFacts {
    NamespaceFacts {
        name: metadata.name.clone().unwrap_or_default(),
        labels: metadata.labels.clone().unwrap_or_default(),
    }
}

/// The pod that a claim is reserved for.
fn reserved_pod(namespace: &str, status: Option<&ResourceClaimStatus>) -> Option<String> {
    match status?.reserved_for.as_deref()? {
        [one] if one.resource == "pods" && one.api_group.as_deref().unwrap_or_default().is_empty() => {
            Some(format!("{namespace}/{}", one.name))
        }
        _ => None,
    }
}

/// The facts of a pod.
#[must_use]
pub fn pod(metadata: &ObjectMeta) -> PodFacts {
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    let mut labels = metadata.labels.clone().unwrap_or_default();
    // Last: a label that the pod gives itself does not take its place.
    labels.insert(NAMESPACE_LABEL.to_owned(), namespace.to_owned());
    PodFacts { name: format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default()), labels }
}

fn port_network(device: &str) -> Option<&str> {
    device.strip_prefix(&port_device("")).filter(|network| !network.is_empty())
}

fn is_of(told: &AllocatedDeviceStatus, result: &DeviceRequestAllocationResult) -> bool {
    told.driver == result.driver
        && told.pool == result.pool
        && told.device == result.device
        && told.share_id == result.share_id
}

fn network_data(told: &AllocatedDeviceStatus) -> Option<(MacAddr, Vec<IpAddr>)> {
    let data = told.network_data.as_ref()?;
    let mac: MacAddr = data.hardware_address.as_ref()?.parse().ok()?;
    let usable = !mac.is_multicast() && !mac.is_zero();
    let address = |text: &String| Some(text.parse::<IpNetwork>().ok()?.ip());
    usable.then(|| (mac, data.ips.iter().flatten().filter_map(address).collect()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::resource::v1::ResourceClaim;
    use serde_json::json;

    use super::*;

    fn facts(status: &serde_json::Value) -> ClaimFacts {
        let claim: ResourceClaim = serde_json::from_value(json!({
            "metadata": {"namespace": "a", "name": "c", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {}, "status": status,
        }))
        .expect("a claim");
        super::claim(&claim.metadata, claim.status.as_ref(), "netferry.dev")
    }

    #[test]
    fn only_what_was_allocated_is_believed() {
        let result = |driver: &str, pool: &str, device: &str| json!({"request": "r", "driver": driver, "pool": pool, "device": device, "shareID": null});
        let told = |driver: &str, pool: &str, device: &str, mac: &str| {
            json!({"driver": driver, "pool": pool, "device": device,
                "networkData": {"ips": ["10.0.0.7/24", "nonsense"], "hardwareAddress": mac}})
        };
        let status = json!({
            "allocation": {"devices": {"results": [
                result("netferry.dev", "n1", "port-blue"),
                result("netferry.dev", "n1", "port-red"),
                result("netferry.dev", "n1", "eth1"),
                result("netferry.dev", "networks/blue", "ip-10-0-0-7"),
                result("netferry.dev", "networks/grey/n1", "ip-10-0-0-8"),
                result("gpu.example.com", "n1", "port-green"),
            ]}},
            "devices": [
                told("netferry.dev", "n1", "port-blue", "02:00:00:00:00:07"),
                // Group addresses are nobody's.
                told("netferry.dev", "n1", "port-red", "03:00:00:00:00:07"),
                // Not allocated: another pool, another device.
                told("netferry.dev", "n2", "port-blue", "02:00:00:00:00:08"),
                told("netferry.dev", "n1", "port-grey", "02:00:00:00:00:09"),
            ],
        });
        let facts = facts(&status);
        let told = Some((MacAddr([2, 0, 0, 0, 0, 7]), vec!["10.0.0.7".parse().expect("an address")]));
        let port =
            |network: &str, told| PortFacts { network: network.to_owned(), node: "n1".to_owned(), told };
        assert_eq!(facts.ports, [port("blue", told), port("red", None)]);
        let address = |network: &str, text: &str| (network.to_owned(), text.parse().expect("an address"));
        assert_eq!(facts.addresses, [address("blue", "10.0.0.7"), address("grey", "10.0.0.8")]);
        assert_eq!(facts.block_node.as_deref(), Some("n1"));
        assert_eq!((facts.name.as_str(), facts.since), ("a/c", 1_767_225_600));
    }

    #[test]
    fn a_deallocated_claim_has_nothing() {
        let facts =
            facts(&json!({"devices": [{"driver": "netferry.dev", "pool": "n1", "device": "port-blue",
            "networkData": {"ips": ["10.0.0.7/24"], "hardwareAddress": "02:00:00:00:00:07"}}]}));
        assert_eq!((facts.ports.len(), facts.addresses.len()), (0, 0));
    }

    #[test]
    fn a_node_is_reached_at_its_first_internal_address() {
        let status = serde_json::from_value(json!({"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"}]}))
        .expect("a status");
        let metadata = ObjectMeta { name: Some("n1".to_owned()), ..ObjectMeta::default() };
        let facts = node(&metadata, Some(&status));
        assert_eq!(facts.address, Some("192.0.2.1".parse().expect("an address")));
    }
}
