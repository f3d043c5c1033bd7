//! Networks → devices that ports are allocated from, without reading or writing anything.
//!
//! A network is one device of the node's pool, which the scheduler may allocate many times
//! (`allowMultipleAllocations`, feature gate DRAConsumableCapacity: alpha in Kubernetes 1.34, beta in 1.36). A server
//! without it drops the field, and the device can be allocated once: one port of the network on each node.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::resource::v1::{CapacityRequestPolicy, Device as ApiDevice, DeviceAttribute, DeviceCapacity},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    device::Inventory,
    network::{Network, mtu, names::port_device, uplink},
};

/// Attribute: the network's name. Its address devices have it too, so that a claim can ask for both of one network.
pub const NETWORK: &str = "network";
/// Attribute: what the device is, for devices that are no links. A link has none.
pub const TYPE: &str = "type";
/// Value of [`TYPE`] for a port.
pub const TYPE_PORT: &str = "port";
/// Capacity: ports that can be allocated.
pub const PORTS: &str = "ports";
/// Ports of one network on one node: more than pods fit on it (the kubelet's default is 110, its largest known use
/// is below 1000).
pub const PORTS_PER_NETWORK: u32 = 1000;

/// The device of each network that is possible on this node, and why others are not.
#[must_use]
pub fn ports(
    networks: &[Arc<Network>],
    inventory: &Inventory,
    driver: &str,
) -> (Vec<(String, ApiDevice)>, Vec<String>) {
    let (mut devices, mut problems) = (Vec::new(), Vec::new());
    for network in networks {
        let name = &network.reference.name;
        let device = port_device(name);
        let link = if network.spec.transport.uplink.is_some() {
            match uplink::of(&network.spec, inventory, driver) {
                Ok(link) => Some(link),
                // Most nodes may have none, and that is as it should be.
                Err(uplink::NoUplink::NotHere(_)) => continue,
                Err(error) => {
                    problems.push(format!("network {name}: {error}"));
                    continue;
                }
            }
        } else {
            None
        };
        if inventory.devices.contains_key(&device) {
            // Two devices of one name make the whole slice invalid.
            problems.push(format!("network {name}: a link of this node is called {device}; rename the link"));
            continue;
        }
        let mtu = mtu::of_ports(&network.spec, inventory, link);
        let text =
            |text: &str| DeviceAttribute { string: Some(text.to_owned()), ..DeviceAttribute::default() };
        let transport = &network.spec.transport;
        let kind = match (&transport.uplink, &transport.overlay) {
            (Some(_), _) => "uplink",
            (_, Some(_)) => "overlay",
            _ => "local",
        };
        let mut attributes = BTreeMap::from([
            (TYPE.to_owned(), text(TYPE_PORT)),
            (NETWORK.to_owned(), text(name)),
            ("transport".to_owned(), text(kind)),
            ("mtu".to_owned(), DeviceAttribute { int: Some(mtu.into()), ..DeviceAttribute::default() }),
        ]);
        if let Some(link) = link {
            attributes.insert("uplink".to_owned(), text(&link.name));
        }
        let one = || Quantity("1".to_owned());
        let capacity = DeviceCapacity {
            value: Quantity(canonical(PORTS_PER_NETWORK)),
            // A request is for one port, whatever it says.
            request_policy: Some(CapacityRequestPolicy {
                default: Some(one()),
                valid_values: Some(vec![one()]),
                valid_range: None,
            }),
        };
        let device = ApiDevice {
            name: device,
            attributes: Some(attributes),
            capacity: Some(BTreeMap::from([(PORTS.to_owned(), capacity)])),
            allow_multiple_allocations: Some(true),
            ..ApiDevice::default()
        };
        devices.push((name.clone(), device));
    }
    (devices, problems)
}

/// The devices that networks use as uplinks, each with the network's name. They stay at home: a pod that got one would
/// take the network from all the others.
pub fn uplink_users<'a>(
    networks: &'a [Arc<Network>],
    inventory: &'a Inventory,
    driver: &'a str,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    networks.iter().filter_map(move |network| {
        let device = uplink::of(&network.spec, inventory, driver).ok()?;
        Some((device.name.as_str(), network.reference.name.as_str()))
    })
}

/// In the form in which the API server stores it.
fn canonical(number: u32) -> String {
    if number.is_multiple_of(1000) && number > 0 { format!("{}k", number / 1000) } else { number.to_string() }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        DRIVER_NAME,
        device::Device,
        network::{NetworkRef, validate::parse},
    };

    fn network(name: &str, transport: serde_json::Value) -> Arc<Network> {
        let spec = parse(&json!({"subnets": ["10.1.0.0/16"], "transport": transport})).expect("a spec");
        let reference = NetworkRef { name: name.to_owned(), uid: name.to_owned() };
        Arc::new(Network { reference, id: 1, spec })
    }

    fn inventory(names: &[&str]) -> Inventory {
        let device = |name: &&str| {
            let name = (*name).to_owned();
            (name.clone(), Device { ifname: name.clone(), name, mtu: 9000, ..Device::default() })
        };
        Inventory { devices: names.iter().map(device).collect() }
    }

    #[test]
    fn a_port_says_what_it_is() {
        let inventory = inventory(&["eth1"]);
        let uplink = json!({"uplink": {"selector": "device.attributes['netferry.dev'].ifName == 'eth1'"}});
        let (devices, problems) = ports(&[network("blue", uplink)], &inventory, DRIVER_NAME);
        assert_eq!(problems, [""; 0]);
        let expected = json!({
            "name": "port-blue",
            "attributes": {
                "type": {"string": "port"}, "network": {"string": "blue"}, "transport": {"string": "uplink"},
                "uplink": {"string": "eth1"}, "mtu": {"int": 9000},
            },
            "capacity": {"ports": {
                "value": "1k", "requestPolicy": {"default": "1", "validValues": ["1"]},
            }},
            "allowMultipleAllocations": true,
        });
        assert_eq!(serde_json::to_value(&devices[0].1).expect("JSON"), expected);
    }

    #[test]
    fn an_uplink_network_is_where_its_uplink_is() {
        let selects = |name: &str| json!({"uplink": {"selector": format!("device.attributes['netferry.dev'].ifName.startsWith('{name}')")}});
        let networks = [
            network("here", selects("eth1")),
            network("local", json!({"local": {}})),
            network("many", selects("eth")),
            network("not-here", selects("eth7")),
            network("x", json!({"overlay": {"vni": 7}})),
        ];
        let inventory = inventory(&["eth1", "eth2", "port-x"]);
        let (devices, problems) = ports(&networks, &inventory, DRIVER_NAME);
        let names: Vec<_> = devices.iter().map(|(_, device)| device.name.as_str()).collect();
        assert_eq!(names, ["port-here", "port-local"]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].contains("eth1, eth2") && problems[1].contains("rename the link"),
            "{problems:?}"
        );
        assert_eq!(uplink_users(&networks, &inventory, DRIVER_NAME).collect::<Vec<_>>(), [("eth1", "here")]);
    }
}
