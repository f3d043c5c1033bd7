//! Names of the devices that stand for a network's ports and addresses.

use std::net::{IpAddr, Ipv6Addr};

/// Characters of a network's name: with the prefix of a port, a device name (a DNS label) holds it.
pub const MAX_NAME: usize = 58;

/// Longest name of a pool (`PoolNameMaxLength` in `k8s.io/api/resource/v1`).
const MAX_POOL_NAME: usize = 253;

const PORT: &str = "port-";
const POOL: &str = "networks/";
const ADDRESS: &str = "ip-";

/// The device of a node's pool that ports of a network are allocated from.
#[must_use]
pub fn port_device(network: &str) -> String {
    format!("{PORT}{network}")
}

/// The network whose ports a device of a node's pool stands for.
#[must_use]
pub fn network_of_port(device: &str) -> Option<&str> {
    device.strip_prefix(PORT).filter(|name| !name.is_empty())
}

/// The pool of a network's addresses, on no node of its own.
#[must_use]
pub fn address_pool(network: &str) -> String {
    format!("{POOL}{network}")
}

/// The network whose pool of addresses this is.
#[must_use]
pub fn network_of_pool(pool: &str) -> Option<&str> {
    pool.strip_prefix(POOL).filter(|name| !name.is_empty() && !name.contains('/'))
}

/// The pool of a node's blocks of a network's addresses: DNS subdomains with slashes between them. `None` where it would be
/// longer than a pool's name may be.
#[must_use]
pub fn block_pool(network: &str, node: &str) -> Option<String> {
    Some(format!("{POOL}{network}/{node}")).filter(|name| name.len() <= MAX_POOL_NAME)
}

/// What a pool of addresses is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOf<'a> {
    /// The network.
    pub network: &'a str,
    /// The node whose blocks they are; `None` for the pool of the whole network.
    pub node: Option<&'a str>,
}

/// What a pool of addresses is of; `None` for one that has no addresses.
#[must_use]
pub fn pool_of(pool: &str) -> Option<PoolOf<'_>> {
    let rest = pool.strip_prefix(POOL)?;
    let (network, node) = match rest.split_once('/') {
        Some((network, node)) => (network, Some(node)),
        None => (rest, None),
    };
    let named = !network.is_empty() && node.is_none_or(|node| !node.is_empty() && !node.contains('/'));
    named.then_some(PoolOf { network, node })
}

/// The device that stands for an address: `ip-10-0-0-7`, `ip-fd00-0-0-0-0-0-0-7`.
#[must_use]
pub fn address_device(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            format!("{ADDRESS}{}", address.octets().map(|part| part.to_string()).join("-"))
        }
        IpAddr::V6(address) => {
            format!("{ADDRESS}{}", address.segments().map(|part| format!("{part:x}")).join("-"))
        }
    }
}

/// The address a device stands for.
#[must_use]
pub fn device_address(device: &str) -> Option<IpAddr> {
    let parts: Vec<&str> = device.strip_prefix(ADDRESS)?.split('-').collect();
    let address = match parts.len() {
        4 => parts.join(".").parse().ok()?,
        8 => IpAddr::V6(parts.join(":").parse::<Ipv6Addr>().ok()?),
        _ => return None,
    };
    // One name for one address.
    (address_device(address) == device).then_some(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_address_comes_back_from_its_device(address: IpAddr) {
            let device = address_device(address);
            prop_assert!(device.len() <= 63);
            prop_assert_eq!(device_address(&device), Some(address));
        }
    }

    #[test]
    fn other_names_are_no_addresses() {
        for name in ["eth0", "ip-", "ip-10-0-0", "ip-010-0-0-7", "ip-FD00-0-0-0-0-0-0-7", "ip-fd00--7"] {
            assert_eq!(device_address(name), None, "{name}");
        }
    }

    #[test]
    fn a_port_names_its_network() {
        assert_eq!(network_of_port(&port_device("blue")), Some("blue"));
        assert_eq!(network_of_port("port-"), None);
        assert_eq!(network_of_port("ens5"), None);
    }

    #[test]
    fn a_pool_names_its_network() {
        assert_eq!(network_of_pool(&address_pool("blue")), Some("blue"));
        assert_eq!(network_of_pool("networks/"), None);
        assert_eq!(network_of_pool("node-1"), None);
    }

    #[test]
    fn a_pool_of_blocks_names_its_network_and_its_node() {
        let pool = block_pool("blue", "n1.example").expect("a name");
        assert_eq!(pool, "networks/blue/n1.example");
        assert_eq!(pool_of(&pool), Some(PoolOf { network: "blue", node: Some("n1.example") }));
        assert_eq!(pool_of(&address_pool("blue")), Some(PoolOf { network: "blue", node: None }));
        assert_eq!(network_of_pool(&pool), None);
        for none in ["networks/", "networks//n1", "networks/blue/", "networks/blue/n1/x", "n1"] {
            assert_eq!(pool_of(none), None, "{none}");
        }
        let long = "n".repeat(MAX_POOL_NAME - "networks/blue/".len());
        assert_eq!(block_pool("blue", &long).map(|name| name.len()), Some(MAX_POOL_NAME));
        assert_eq!(block_pool("blue", &format!("{long}n")), None);
    }
}
