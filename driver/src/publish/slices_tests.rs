use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use k8s_openapi::{api::resource::v1::DeviceTaint, apimachinery::pkg::api::resource::Quantity};
use proptest::{option, prelude::*};

use super::*;
use crate::{
    DRIVER_NAME,
    device::{
        MtuRange, Sriov,
        attributes::{MAX_PER_DEVICE, MAX_VALUE, quantity},
        management::NotMovable,
        names::{device_name, is_dns_label},
    },
    link::MacAddr,
};

fn sriov() -> impl Strategy<Value = Sriov> {
    prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(vfs, max_vfs)| Sriov::Physical { vfs, max_vfs }),
        (".{0,15}", any::<u32>()).prop_map(|(pf, index)| Sriov::Virtual { pf, index }),
    ]
}

fn address() -> impl Strategy<Value = IpNetwork> {
    (any::<std::net::IpAddr>(), 0u8..=32)
        .prop_map(|(ip, prefix)| IpNetwork::new(ip, prefix).expect("a prefix"))
}

/// A device with any facts at all.
fn device() -> impl Strategy<Value = Device> {
    let text = || option::of(".{0,300}");
    let first = (
        ".{1,15}".prop_filter("the kernel's limit", |name| name.len() <= 15),
        text(),
        text(),
        any::<Option<[u8; 6]>>(),
        any::<u32>(),
        ".{0,80}",
    );
    let second = (proptest::collection::vec(address(), 0..6), any::<Option<u32>>(), text(), text());
    let third =
        (any::<Option<u32>>(), option::of(sriov()), text(), text(), text(), text(), any::<[bool; 5]>());
    (first, second, third).prop_map(|(first, second, third)| Device {
        name: device_name(&first.0),
        ifname: first.0,
        ifindex: 1,
        kind: first.1,
        driver: first.2,
        mac: first.3.map(MacAddr),
        mtu: first.4,
        oper_state: first.5,
        addresses: second.0,
        speed_mbps: second.1,
        pci_address: second.2,
        pcie_root: second.3,
        numa_node: third.0,
        sriov: third.1,
        rdma_device: third.2,
        alias: third.3,
        master: third.4,
        parent: third.5,
        is_virtual: third.6[0],
        default_route: third.6[1],
        loopback: third.6[2],
        gateways: Vec::new(),
        upper_links: 0,
        mtu_range: MtuRange::default(),
        not_movable: third.6[3].then_some(NotMovable::NamespaceLocal),
        foreign_programs: third.6[4],
        shared: false,
    })
}

/// `validateQualifiedName` of the API: an optional DNS subdomain, and a C identifier of at most 32 bytes.
fn is_attribute_name(name: &str) -> bool {
    let (domain, id) = name.split_once('/').map_or((None, name), |(domain, id)| (Some(domain), id));
    domain.is_none_or(|domain| domain.len() <= 63 && domain.split('.').all(is_dns_label))
        && id.len() <= 32
        && !id.starts_with(|c: char| c.is_ascii_digit())
        && !id.is_empty()
        && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn check(spec: &ResourceSliceSpec) -> Result<(), TestCaseError> {
    for device in spec.devices.iter().flatten() {
        prop_assert!(is_dns_label(&device.name), "{:?}", device.name);
        let attributes = device.attributes.clone().unwrap_or_default();
        let capacity = device.capacity.clone().unwrap_or_default();
        prop_assert!(attributes.len() + capacity.len() <= MAX_PER_DEVICE);
        for name in attributes.keys().chain(capacity.keys()) {
            prop_assert!(is_attribute_name(name), "{name}");
        }
        for (name, value) in attributes {
            let set =
                [value.string.is_some(), value.int.is_some(), value.bool.is_some(), value.version.is_some()];
            prop_assert_eq!(set.iter().filter(|set| **set).count(), 1, "{} {:?}", name, value);
            prop_assert!(
                value.string.is_none_or(|text| !text.is_empty() && text.len() <= MAX_VALUE),
                "{name}"
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_device_gives_a_valid_slice(devices in proptest::collection::vec(device(), 0..40)) {
        let specs = slices(&devices, "node-1", DRIVER_NAME);
        for spec in &specs {
            check(spec)?;
        }
        // Order of discovery does not matter.
        let names: BTreeSet<_> = devices.iter().map(|device| &device.name).collect();
        prop_assume!(names.len() == devices.len());
        let reversed: Vec<_> = devices.iter().rev().cloned().collect();
        prop_assert_eq!(slices(&reversed, "node-1", DRIVER_NAME), specs);
    }

    #[test]
    fn every_device_is_in_exactly_one_slice(count in 0usize..600) {
        let devices: Vec<_> = (0..count).map(plain).collect();
        let specs = slices(&devices, "node-1", DRIVER_NAME);
        prop_assert_eq!(specs.len(), count.div_ceil(MAX_DEVICES).max(1));
        let mut names = Vec::new();
        for spec in &specs {
            prop_assert_eq!(spec.pool.resource_slice_count, i64::try_from(specs.len()).expect("few"));
            prop_assert_eq!(&spec.pool.name, "node-1");
            prop_assert_eq!(spec.node_name.as_deref(), Some("node-1"));
            let devices = spec.devices.as_deref().unwrap_or_default();
            prop_assert!(devices.len() <= MAX_DEVICES);
            names.extend(devices.iter().map(|device| device.name.clone()));
        }
        let expected: BTreeSet<_> = devices.into_iter().map(|device| device.name).collect();
        prop_assert_eq!(names, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn quantities_are_canonical_and_exact(value in any::<u64>(), zeros in 0u32..19) {
        let value = value.saturating_mul(10u64.saturating_pow(zeros));
        let Quantity(text) = quantity(value);
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let exponent = match &text[digits.len()..] {
            "" => 0, "k" => 3, "M" => 6, "G" => 9, "T" => 12, "P" => 15, "E" => 18,
            unit => return Err(TestCaseError::fail(format!("unit {unit}"))),
        };
        let number: u64 = digits.parse().expect("digits");
        prop_assert_eq!(number * 10u64.pow(exponent), value);
        prop_assert!(value == 0 || exponent == 18 || !number.is_multiple_of(1000));
    }
}

fn plain(index: usize) -> Device {
    let ifname = format!("nf{index}");
    Device { name: device_name(&ifname), ifname, ..Device::default() }
}

#[test]
fn three_hundred_links_take_three_slices() {
    let devices: Vec<_> = (0..300).map(plain).collect();
    let sizes: Vec<_> = slices(&devices, "node-1", DRIVER_NAME)
        .iter()
        .map(|spec| spec.devices.as_ref().map_or(0, Vec::len))
        .collect();
    assert_eq!(sizes, [128, 128, 44]);
}

#[test]
fn taints_halve_the_slice() {
    let mut devices = vec![ApiDevice::default(); 3];
    assert_eq!(devices_per_slice(&devices), MAX_DEVICES);
    devices[1].taints = Some(vec![DeviceTaint::default()]);
    assert_eq!(devices_per_slice(&devices), MAX_DEVICES_WITH_TAINTS);
}

#[test]
fn attributes_of_a_virtual_function() {
    let device = Device {
        name: "ens1f0v3".to_owned(),
        ifname: "ens1f0v3".to_owned(),
        driver: Some("mlx5_core".to_owned()),
        mac: Some(MacAddr([2, 0, 0, 0, 0, 7])),
        mtu: 9000,
        oper_state: "up".to_owned(),
        addresses: ["192.0.2.7/24", "192.0.2.8/24", "2001:db8::7/64"]
            .map(|text| text.parse().expect("an address"))
            .to_vec(),
        speed_mbps: Some(25_000),
        pci_address: Some("0000:3b:00.5".to_owned()),
        pcie_root: Some("pci0000:3a".to_owned()),
        numa_node: Some(1),
        sriov: Some(Sriov::Virtual { pf: "ens1f0".to_owned(), index: 3 }),
        rdma_device: Some("mlx5_3".to_owned()),
        alias: Some("ä".repeat(40)),
        ..Device::default()
    };
    let specs = slices([&device], "node-1", DRIVER_NAME);
    let devices = specs[0].devices.as_deref().unwrap_or_default();
    let json = serde_json::to_value(&devices[0]).expect("JSON");
    let expected = serde_json::json!({
        "name": "ens1f0v3",
        "attributes": {
            "alias": {"string": "ä".repeat(32)},
            "defaultRoute": {"bool": false},
            "driver": {"string": "mlx5_core"},
            "ifName": {"string": "ens1f0v3"},
            "ipv4": {"string": "192.0.2.7/24"},
            "ipv6": {"string": "2001:db8::7/64"},
            "kind": {"string": "physical"},
            "mac": {"string": "02:00:00:00:00:07"},
            "mtu": {"int": 9000},
            "numaNode": {"int": 1},
            "rdma": {"bool": true},
            "rdmaDevice": {"string": "mlx5_3"},
            "resource.kubernetes.io/pciBusID": {"string": "0000:3b:00.5"},
            "resource.kubernetes.io/pcieRoot": {"string": "pci0000:3a"},
            "speedMbps": {"int": 25000},
            "sriov": {"string": "virtual"},
            "sriovPF": {"string": "ens1f0"},
            "sriovVFIndex": {"int": 3},
            "state": {"string": "up"},
            "upperLinks": {"int": 0},
            "virtual": {"bool": false},
        },
        "capacity": {"bandwidth": {"value": "25G"}},
    });
    assert_eq!(json, expected);

    // A share has no part of the bandwidth of its own: a capacity without a policy would go to the first one whole.
    let specs = slices([&Device { shared: true, ..device }], "node-1", DRIVER_NAME);
    let devices = specs[0].devices.as_deref().unwrap_or_default();
    assert_eq!((devices[0].allow_multiple_allocations, &devices[0].capacity), (Some(true), &None));
}
