//! The MTU of a network's ports on this node.

use super::spec::NetworkSpec;
use crate::device::{Device, Inventory};

/// Largest MTU of a link: an IP packet has no more bytes.
pub const MAX: u32 = 65535;
/// Smallest MTU of a link that speaks IPv4 (RFC 791, section 3.2).
pub const IPV4_MIN: u32 = 68;
/// Smallest MTU of a link that speaks IPv6 (RFC 8200, section 5).
pub const IPV6_MIN: u32 = 1280;
/// Ethernet's, for what no link limits.
pub const DEFAULT: u32 = 1500;
/// Bytes around a frame in VXLAN over IPv4: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348).
pub const OVERHEAD_V4: u32 = 50;
/// The same over IPv6, whose header has 40 bytes.
pub const OVERHEAD_V6: u32 = 70;

/// MTU of the ports: what the network says, or what its transport can carry from this node. `uplink` is the link
/// of the node that an uplink network uses.
#[must_use]
pub fn of_ports(spec: &NetworkSpec, inventory: &Inventory, uplink: Option<&Device>) -> u32 {
    if let Some(mtu) = spec.mtu {
        return mtu;
    }
    let carried = if spec.transport.overlay.is_some() {
        of_tunnels(inventory)
    } else {
        // A VLAN tag is no part of the MTU.
        uplink.map_or(DEFAULT, |device| device.mtu)
    };
    carried.clamp(IPV4_MIN, MAX)
}

/// What a tunnel carries that leaves through the node's default route. Which of several is not known beforehand: the
/// least of them fits all.
#[must_use]
pub fn of_tunnels(inventory: &Inventory) -> u32 {
    let least = inventory.devices.values().filter(|device| device.default_route);
    least
        .map(|device| {
            let four = device.addresses.iter().any(ipnetwork::IpNetwork::is_ipv4);
            device.mtu.saturating_sub(if four { OVERHEAD_V4 } else { OVERHEAD_V6 })
        })
        .min()
        .unwrap_or(DEFAULT - OVERHEAD_V6)
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!() in a call reads better without a borrow")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::network::validate::parse;

    #[test]
    fn the_transport_decides_unless_the_network_does() {
        let spec = |transport: serde_json::Value, mtu: Option<u32>| {
            let mut spec =
                parse(&json!({"subnets": ["10.1.0.0/16"], "transport": transport})).expect("a spec");
            spec.mtu = mtu;
            spec
        };
        let link = |mtu, address: &str| Device {
            mtu,
            default_route: true,
            addresses: vec![address.parse().expect("an address")],
            ..Device::default()
        };
        let mut inventory = Inventory::default();
        let overlay = || json!({"overlay": {"vni": 7}});
        assert_eq!(of_ports(&spec(json!({"local": {}}), None), &inventory, None), 1500);
        assert_eq!(of_ports(&spec(json!({"local": {}}), Some(9000)), &inventory, None), 9000);
        assert_eq!(of_ports(&spec(overlay(), None), &inventory, None), 1430);
        inventory.devices.insert("a".to_owned(), link(1500, "192.0.2.7/24"));
        assert_eq!(of_ports(&spec(overlay(), None), &inventory, None), 1450);
        inventory.devices.insert("b".to_owned(), link(1510, "2001:db8::7/64"));
        assert_eq!(of_ports(&spec(overlay(), None), &inventory, None), 1440);
        let uplink = link(9000, "192.0.2.7/24");
        let on_uplink = spec(json!({"uplink": {"selector": "true", "vlan": 7}}), None);
        assert_eq!(of_ports(&on_uplink, &inventory, Some(&uplink)), 9000);
    }
}
