//! How a device looks to a claim: attributes and capacities.
//!
//! The selection rule and the ResourceSlices both read them from here, so that an expression means the same in
//! `--publish` and in a DeviceClass.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::resource::v1::{Device as ApiDevice, DeviceAttribute, DeviceCapacity},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Device, Sriov, management::NotMovable};

/// Longest string value, in bytes (`DeviceAttributeMaxValueLength` in `k8s.io/api/resource/v1`).
pub const MAX_VALUE: usize = 64;

/// Attributes and capacities a device may have together
/// (`ResourceSliceMaxAttributesAndCapacitiesPerDevice`).
pub const MAX_PER_DEVICE: usize = 32;

/// Domain of the attributes that Kubernetes itself defines.
pub const STANDARD_DOMAIN: &str = "resource.kubernetes.io";

/// Name of the one capacity: bits per second.
pub const BANDWIDTH: &str = "bandwidth";

/// A link as a device.
#[must_use]
pub fn api_device(device: &Device) -> ApiDevice {
    let capacities = capacities(device);
    ApiDevice {
        name: device.name.clone(),
        attributes: Some(attributes(device)),
        // What the whole link can carry says nothing of a share of it.
        capacity: (!capacities.is_empty() && !device.shared).then_some(capacities),
        allow_multiple_allocations: device.shared.then_some(true),
        ..ApiDevice::default()
    }
}

/// Attributes by name: unqualified for the driver's own domain, `resource.kubernetes.io/…` for the standard
/// ones. Facts that are not known have no attribute.
fn attributes(device: &Device) -> BTreeMap<String, DeviceAttribute> {
    let mut attributes = BTreeMap::new();
    let mut string = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let value =
                DeviceAttribute { string: Some(clip(value).to_owned()), ..DeviceAttribute::default() };
            attributes.insert(name.to_owned(), value);
        }
    };
    string("ifName", Some(&device.ifname));
    string("kind", Some(kind(device)));
    string("driver", device.driver.as_deref());
    string("mac", device.mac.map(|mac| mac.to_string()).as_deref());
    string("state", Some(&device.oper_state));
    // Lists are behind a feature gate in the API: the first address of each family has to do.
    let first = |v4: bool| device.addresses.iter().find(|a| a.is_ipv4() == v4).map(ToString::to_string);
    string("ipv4", first(true).as_deref());
    string("ipv6", first(false).as_deref());
    string("alias", device.alias.as_deref());
    string("master", device.master.as_deref());
    string("parent", device.parent.as_deref());
    string("notMovable", device.not_movable.map(NotMovable::as_str));
    string("rdmaDevice", device.rdma_device.as_deref());
    string(&format!("{STANDARD_DOMAIN}/pciBusID"), device.pci_address.as_deref());
    string(&format!("{STANDARD_DOMAIN}/pcieRoot"), device.pcie_root.as_deref());
    match &device.sriov {
        Some(Sriov::Physical { .. }) => string("sriov", Some("physical")),
        Some(Sriov::Virtual { pf, .. }) => {
            string("sriov", Some("virtual"));
            string("sriovPF", Some(pf));
        }
        None => {}
    }
    let mut int = |name: &str, value: Option<u32>| {
        if let Some(value) = value {
            let value = DeviceAttribute { int: Some(value.into()), ..DeviceAttribute::default() };
            attributes.insert(name.to_owned(), value);
        }
    };
    int("mtu", Some(device.mtu));
    int("speedMbps", device.speed_mbps);
    int("numaNode", device.numa_node);
    int("upperLinks", Some(device.upper_links));
    match device.sriov {
        Some(Sriov::Physical { vfs, max_vfs }) => {
            int("sriovVFs", Some(vfs));
            int("sriovMaxVFs", Some(max_vfs));
        }
        Some(Sriov::Virtual { index, .. }) => int("sriovVFIndex", Some(index)),
        None => {}
    }
    for (name, value) in [
        ("virtual", device.is_virtual),
        ("rdma", device.rdma_device.is_some()),
        ("defaultRoute", device.default_route),
    ] {
        let value = DeviceAttribute { bool: Some(value), ..DeviceAttribute::default() };
        attributes.insert(name.to_owned(), value);
    }
    // A selector that asks for an attribute which is not there stops the scheduler: it is asked for with `in`, also of
    // devices that an earlier release has published.
    if device.foreign_programs {
        let value = DeviceAttribute { bool: Some(true), ..DeviceAttribute::default() };
        attributes.insert("foreignPrograms".to_owned(), value);
    }
    attributes
}

/// Capacities by name: `bandwidth` in bits per second, where the speed is known.
fn capacities(device: &Device) -> BTreeMap<String, DeviceCapacity> {
    let bandwidth = |mbps: u32| {
        let value = quantity(u64::from(mbps) * 1_000_000);
        (BANDWIDTH.to_owned(), DeviceCapacity { value, ..DeviceCapacity::default() })
    };
    device.speed_mbps.filter(|mbps| *mbps > 0).map(bandwidth).into_iter().collect()
}

/// The `kind` attribute: the kernel's, or what a link without one is.
#[must_use]
pub fn kind(device: &Device) -> &str {
    match device.kind.as_deref() {
        Some(kind) => kind,
        None if device.loopback => "loopback",
        None if device.is_virtual => "virtual",
        None => "physical",
    }
}

/// `value` cut to [`MAX_VALUE`] bytes at a character boundary.
fn clip(value: &str) -> &str {
    &value[..value.floor_char_boundary(MAX_VALUE)]
}

/// In the form the API server stores (the largest decimal unit without a fraction), so that what comes back
/// equals what was written.
pub(crate) fn quantity(mut value: u64) -> Quantity {
    for unit in ["", "k", "M", "G", "T", "P"] {
        if value == 0 || !value.is_multiple_of(1000) {
            return Quantity(format!("{value}{unit}"));
        }
        value /= 1000;
    }
    Quantity(format!("{value}E"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::known::{LINK_ATTRIBUTES, LINK_CAPACITIES, STANDARD_ATTRIBUTES, ValueKind};

    /// A selector may ask for what is published, and for nothing else.
    #[test]
    fn what_selectors_know_is_what_is_published() {
        let text = || Some("x".to_owned());
        let whole = |sriov| Device {
            ifname: "eth1".to_owned(),
            driver: text(),
            mac: Some("02:00:00:00:00:01".parse().expect("an address")),
            oper_state: "up".to_owned(),
            addresses: vec!["10.0.0.1/8".parse().expect("v4"), "fd00::1/64".parse().expect("v6")],
            alias: text(),
            master: text(),
            parent: text(),
            rdma_device: text(),
            pci_address: text(),
            pcie_root: text(),
            speed_mbps: Some(1000),
            numa_node: Some(0),
            foreign_programs: true,
            not_movable: Some(NotMovable::NodeAddress),
            sriov: Some(sriov),
            ..Device::default()
        };
        let devices = [
            whole(Sriov::Physical { vfs: 1, max_vfs: 2 }),
            whole(Sriov::Virtual { pf: "eth0".to_owned(), index: 1 }),
        ];
        let mut published = BTreeMap::new();
        for (name, value) in devices.iter().flat_map(attributes) {
            let kind = match value {
                DeviceAttribute { string: Some(_), .. } => ValueKind::String,
                DeviceAttribute { int: Some(_), .. } => ValueKind::Int,
                _ => ValueKind::Bool,
            };
            let name = name.strip_prefix("resource.kubernetes.io/").unwrap_or(&name).to_owned();
            published.insert(name, kind);
        }
        let known = LINK_ATTRIBUTES.iter().chain(STANDARD_ATTRIBUTES);
        let known: BTreeMap<_, _> = known.map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
        assert_eq!(published, known);
        assert!(capacities(&devices[0]).keys().eq(LINK_CAPACITIES));
    }
}
