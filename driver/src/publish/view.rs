//! Which links and networks of the node are published now, and why the others are not: what the publisher writes, and
//! what `netferry devices` shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::resource::v1::Device as ApiDevice;

use super::ports::{ports, uplink_users};
use crate::{
    device::{
        Device, Inventory,
        management::NotMovable,
        rule::{Rule, decide},
    },
    network::Network,
};

/// The decision on everything that could be published.
#[derive(Debug)]
pub struct View {
    /// Every link, and why it is left out if it is.
    pub links: Vec<(Device, Result<(), String>)>,
    /// The port device of each network that is possible on this node, by the network's name.
    pub ports: Vec<(String, ApiDevice)>,
    /// Networks that are not possible on this node though they should be, and why.
    pub problems: Vec<String>,
}

/// Decide.
#[must_use]
pub fn view(inventory: &Inventory, networks: &[Arc<Network>], rule: &Rule) -> View {
    let (ports, problems) = ports(networks, inventory, rule.driver());
    let mut users: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (link, network) in uplink_users(networks, inventory, rule.driver()) {
        users.entry(link).or_default().push(network);
    }
    let below: BTreeSet<&str> = users.keys().flat_map(|uplink| inventory.below(uplink)).collect();
    let links = decide(inventory, rule).into_iter().map(|(mut device, decision)| {
        if below.contains(device.name.as_str()) {
            device.not_movable.get_or_insert(NotMovable::Uplink);
        }
        let decision = decision.map_err(|reason| reason.to_string()).and_then(|()| {
            match users.get(device.name.as_str()) {
                None => Ok(()),
                Some(networks) => Err(format!("it is the uplink of network {}", networks.join(", "))),
            }
        });
        (device, decision)
    });
    View { links: links.collect(), ports, problems }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        DRIVER_NAME,
        network::{NetworkRef, validate::parse},
    };

    #[test]
    fn an_uplink_is_left_out_and_says_whose_it_is() {
        let device = |name: &str, kind: &str| Device {
            name: name.to_owned(),
            ifname: name.to_owned(),
            kind: Some(kind.to_owned()),
            mtu: 9000,
            ..Device::default()
        };
        let devices = [device("eth1", "dummy"), device("eth2", "dummy"), device("veth0", "veth")];
        let inventory =
            Inventory { devices: devices.into_iter().map(|device| (device.name.clone(), device)).collect() };
        let selector = "device.attributes['netferry.dev'].ifName == 'eth1'";
        let spec =
            parse(&json!({"subnets": ["10.1.0.0/16"], "transport": {"uplink": {"selector": selector}}}));
        let reference = NetworkRef { name: "blue".to_owned(), uid: "blue".to_owned() };
        let network = Arc::new(Network { reference, id: 1, spec: spec.unwrap() });
        let rule = Rule::standard(DRIVER_NAME, false).unwrap();
        let view = view(&inventory, &[network], &rule);
        let reasons: Vec<_> =
            view.links.iter().map(|(link, decision)| (link.name.as_str(), decision)).collect();
        assert_eq!(reasons[0], ("eth1", &Err("it is the uplink of network blue".to_owned())));
        assert_eq!(reasons[1], ("eth2", &Ok(())));
        assert!(reasons[2].1.as_ref().is_err_and(|reason| reason.contains("default rule")), "{reasons:?}");
        assert_eq!(view.ports[0].1.name, "port-blue");
    }

    #[test]
    fn what_is_below_an_uplink_is_published_as_not_movable() {
        let device = |name: &str, master: Option<&str>, parent: Option<&str>| Device {
            name: name.to_owned(),
            ifname: name.to_owned(),
            mtu: 9000,
            master: master.map(str::to_owned),
            parent: parent.map(str::to_owned),
            ..Device::default()
        };
        let devices = [
            device("bond0", None, None),
            device("eth1", Some("bond0"), None),
            device("eth2", None, None),
            device("vlan7", None, Some("bond0")),
        ];
        let inventory =
            Inventory { devices: devices.into_iter().map(|device| (device.name.clone(), device)).collect() };
        let selector = "device.attributes['netferry.dev'].ifName == 'vlan7'";
        let spec =
            parse(&json!({"subnets": ["10.1.0.0/16"], "transport": {"uplink": {"selector": selector}}}));
        let reference = NetworkRef { name: "blue".to_owned(), uid: "blue".to_owned() };
        let network = Arc::new(Network { reference, id: 1, spec: spec.unwrap() });
        let view = view(&inventory, &[network], &Rule::new(DRIVER_NAME, "true", true).unwrap());
        let published = view.links.iter().filter(|(_, decision)| decision.is_ok());
        let published: Vec<_> = published.map(|(link, _)| (link.name.as_str(), link.not_movable)).collect();
        let uplink = Some(NotMovable::Uplink);
        assert_eq!(published, [("bond0", uplink), ("eth1", uplink), ("eth2", None)]);
    }
}
