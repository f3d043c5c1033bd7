//! The addresses of a network as devices that the scheduler allocates, one address a device.
//!
//! The scheduler gives a device to one claim at a time, over the whole cluster: that makes addresses unique without a
//! daemon of our own. The pool belongs to no node; the slices of it are published by one elected node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use jiff::{Timestamp, Unit};
use k8s_openapi::{
    api::resource::v1::{Device, DeviceAttribute, ResourcePool, ResourceSlice, ResourceSliceSpec},
    apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time},
};

use super::{
    Network,
    names::{address_device, address_pool, device_address},
    spec::NetworkSpec,
    window::{self, InUse, Subnet, Window},
};
use crate::publish::slices::MAX_DEVICES;

/// Devices in one network's pool, over both families: 128 slices. With a link-local address each, as many members
/// fill half of a node's map of members.
pub const MAX_POOL: usize = 16_384;

/// Attribute of an address: its network's name.
pub const NETWORK: &str = "network";
/// Attribute of an address: itself, with the length of the subnet's prefix (`10.0.0.7/24`).
pub const ADDRESS: &str = "address";
/// Attribute of an address: `IPv4` or `IPv6`.
pub const FAMILY: &str = "family";
/// Attribute of a device: what it is.
pub const TYPE: &str = "type";
/// [`TYPE`] of an address.
pub const TYPE_ADDRESS: &str = "address";

/// Condition of a Network: its pool has free addresses of every family.
pub const ADDRESSES_AVAILABLE: &str = "AddressesAvailable";

/// The pool of a network as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressPool {
    /// Its slices. The generation is the publisher's.
    pub slices: Vec<ResourceSliceSpec>,
    /// The windows over its subnets.
    pub windows: Vec<(IpNetwork, Window)>,
}

/// The subnets of a network, without what no pod can have.
#[must_use]
pub fn subnets(spec: &NetworkSpec) -> Vec<Subnet> {
    let excluded: BTreeSet<IpAddr> = spec.gateways.iter().copied().collect();
    spec.subnets.iter().map(|network| Subnet { network: *network, excluded: excluded.clone() }).collect()
}

/// The pool that follows `published`, see [`window::next`].
#[must_use]
pub fn pool(network: &Network, in_use: &InUse, published: &BTreeSet<IpAddr>, driver: &str) -> AddressPool {
    let subnets = subnets(&network.spec);
    let room = MAX_POOL / subnets.len().max(1);
    let windows: Vec<(IpNetwork, Window)> = subnets
        .iter()
        .map(|subnet| (subnet.network, window::next(subnet, in_use, published, room)))
        .collect();
    let name = &network.reference.name;
    let devices: Vec<Device> = windows
        .iter()
        .flat_map(|(subnet, window)| window.addresses.iter().map(|address| device(name, *subnet, *address)))
        .collect();
    AddressPool { slices: slices(&devices, name, driver), windows }
}

/// Slices for every node, at least one: an empty pool says that all addresses are taken.
fn slices(devices: &[Device], network: &str, driver: &str) -> Vec<ResourceSliceSpec> {
    let mut chunks: Vec<&[Device]> = devices.chunks(MAX_DEVICES).collect();
    if chunks.is_empty() {
        chunks.push(&[]);
    }
    let count = i64::try_from(chunks.len()).unwrap_or(i64::MAX);
    let pool = ResourcePool { name: address_pool(network), generation: 0, resource_slice_count: count };
    let slice = |devices: &[Device]| ResourceSliceSpec {
        driver: driver.to_owned(),
        all_nodes: Some(true),
        pool: pool.clone(),
        devices: Some(devices.to_vec()),
        ..ResourceSliceSpec::default()
    };
    chunks.into_iter().map(slice).collect()
}

pub(super) fn device(network: &str, subnet: IpNetwork, address: IpAddr) -> Device {
    let string = |name: &str, text: String| {
        (name.to_owned(), DeviceAttribute { string: Some(text), ..DeviceAttribute::default() })
    };
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    Device {
        name: address_device(address),
        attributes: Some(BTreeMap::from([
            string(NETWORK, network.to_owned()),
            string(ADDRESS, format!("{address}/{}", subnet.prefix())),
            string(FAMILY, family.to_owned()),
            string(TYPE, TYPE_ADDRESS.to_owned()),
        ])),
        ..Device::default()
    }
}

/// The addresses that slices publish.
#[must_use]
pub fn published<'a>(slices: impl IntoIterator<Item = &'a ResourceSlice>) -> BTreeSet<IpAddr> {
    let devices = slices.into_iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    devices.filter_map(|device| device_address(&device.name)).collect()
}

/// The network owns its pool: it is collected with it. `None` where it has no UID to be owned by.
#[must_use]
pub fn owner(network: &Network) -> Option<OwnerReference> {
    (!network.reference.uid.is_empty()).then(|| OwnerReference {
        api_version: "netferry.dev/v1alpha1".to_owned(),
        kind: "Network".to_owned(),
        name: network.reference.name.clone(),
        uid: network.reference.uid.clone(),
        controller: Some(true),
        ..OwnerReference::default()
    })
}

/// What a Network's status says about its addresses. `previous` keeps its time as long as the status is the same.
#[must_use]
pub fn condition(pool: &AddressPool, previous: Option<&Condition>, now: Timestamp) -> Condition {
    let full: Vec<_> = pool.windows.iter().filter(|(_, window)| window.free == 0).collect();
    let list = |windows: &[&(IpNetwork, Window)]| {
        let one = |(subnet, window): &&(IpNetwork, Window)| {
            format!(
                "{subnet}: {} in use, {} free in the pool",
                window.addresses.len() - window.free,
                window.free
            )
        };
        windows.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    let (status, reason, message) = if full.is_empty() {
        let all: Vec<_> = pool.windows.iter().collect();
        ("True", "Available", list(&all))
    } else if full.iter().any(|(_, window)| !window.more) {
        ("False", "SubnetExhausted", format!("no address is left; {}", list(&full)))
    } else {
        let message = format!("a network's pool holds at most {MAX_POOL} addresses; {}", list(&full));
        ("False", "PoolExhausted", message)
    };
    told(status, reason, message, previous, now)
}

/// The condition of these words. `previous` keeps its time as long as the status is the same.
pub(super) fn told(
    status: &str,
    reason: &str,
    message: String,
    previous: Option<&Condition>,
    now: Timestamp,
) -> Condition {
    let before = previous.filter(|previous| previous.status == status);
    let now = Time(now.round(Unit::Second).unwrap_or(now));
    Condition {
        type_: ADDRESSES_AVAILABLE.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: before.map_or(now, |previous| previous.last_transition_time.clone()),
        observed_generation: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{
        NetworkRef,
        spec::{AddressSource, Transport},
    };

    fn network(subnets: &[&str], gateways: &[&str]) -> Network {
        Network {
            reference: NetworkRef { name: "blue".to_owned(), uid: "u-1".to_owned() },
            id: 1,
            spec: NetworkSpec {
                subnets: subnets.iter().map(|subnet| subnet.parse().expect("a prefix")).collect(),
                gateways: gateways.iter().map(|gateway| gateway.parse().expect("an address")).collect(),
                mtu: None,
                addresses: AddressSource::Allocated,
                transport: Transport::default(),
                namespace_selector: None,
                policy: None,
                limits: None,
            },
        }
    }

    #[test]
    fn an_address_is_a_device_of_every_node() {
        let network = network(&["10.0.0.0/24", "fd00::/64"], &["10.0.0.1", "fd00::1"]);
        let pool = pool(&network, &InUse::default(), &BTreeSet::new(), "netferry.dev");
        assert_eq!(pool.slices.len(), 2);
        for slice in &pool.slices {
            assert_eq!((slice.node_name.as_deref(), slice.all_nodes), (None, Some(true)));
            assert_eq!((slice.pool.name.as_str(), slice.pool.resource_slice_count), ("networks/blue", 2));
            assert_eq!(slice.devices.as_ref().map(Vec::len), Some(MAX_DEVICES));
        }
        let first = &pool.slices[0].devices.as_ref().expect("devices")[0];
        let attributes = first.attributes.as_ref().expect("attributes");
        let text = |name: &str| attributes[name].string.clone().expect("a string");
        assert_eq!(first.name, "ip-10-0-0-2");
        assert_eq!(
            [NETWORK, ADDRESS, FAMILY, TYPE].map(text),
            ["blue", "10.0.0.2/24", "IPv4", "address"].map(str::to_owned)
        );
        let last = pool.slices[1].devices.as_ref().and_then(|devices| devices.last()).expect("a device");
        assert_eq!(last.name, "ip-fd00-0-0-0-0-0-0-81");
    }

    #[test]
    fn an_exhausted_subnet_is_told_and_a_released_address_heals_it() {
        let network = network(&["10.0.0.0/29"], &["10.0.0.1"]);
        let all: BTreeSet<IpAddr> = (2..7).map(|host| IpAddr::from([10, 0, 0, host])).collect();
        let mut in_use = InUse { allocated: all.clone(), fixed: BTreeSet::new() };
        let at = |second| Timestamp::from_second(second).expect("a time");
        let full = condition(&pool(&network, &in_use, &all, "netferry.dev"), None, at(10));
        assert_eq!((full.status.as_str(), full.reason.as_str()), ("False", "SubnetExhausted"));
        assert!(full.message.contains("10.0.0.0/29: 5 in use, 0 free"), "{}", full.message);
        let still = condition(&pool(&network, &in_use, &all, "netferry.dev"), Some(&full), at(20));
        assert_eq!(still.last_transition_time, full.last_transition_time);
        in_use.allocated.pop_first();
        let after = pool(&network, &in_use, &all, "netferry.dev");
        assert_eq!(after.windows[0].1.addresses, all, "it never left the pool");
        let healed = condition(&after, Some(&full), at(30));
        assert_eq!((healed.status.as_str(), healed.last_transition_time.0), ("True", at(30)));
    }

    #[test]
    fn the_pool_s_own_limit_has_its_own_reason() {
        let network = network(&["10.0.0.0/8"], &[]);
        let all: BTreeSet<IpAddr> =
            (1..=16_384_u32).map(|host| IpAddr::from((0x0a00_0000 | host).to_be_bytes())).collect();
        let in_use = InUse { allocated: all.clone(), fixed: BTreeSet::new() };
        let pool = pool(&network, &in_use, &all, "netferry.dev");
        assert_eq!(pool.slices.len(), 128);
        let told = condition(&pool, None, Timestamp::UNIX_EPOCH);
        assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", "PoolExhausted"));
    }
}
