//! Joins what rtnetlink and sysfs know to an inventory.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Device, Inventory,
    management::{Management, not_movable, with_lower},
    names::device_name,
    netlink::{self, DumpError, Facts, LinkFacts},
    sysfs::{Sysfs, SysfsFacts},
};
use crate::claim::made::is_host_name;

/// Read everything about the links of the calling thread's network namespace.
pub async fn discover(sysfs: &Sysfs) -> Result<Inventory, DumpError> {
    let facts = netlink::dump(&BTreeSet::new()).await?;
    Ok(join(&facts, &Management::default(), |ifname| sysfs.facts(ifname)))
}

/// The inventory that `facts` and each link's sysfs facts make. The node is reached by the addresses of `management`.
pub fn join(facts: &Facts, management: &Management, sysfs: impl Fn(&str) -> SysfsFacts) -> Inventory {
    let stacked = stacked(facts);
    let default_routes = facts.default_routes.iter().map(|route| route.ifindex).collect();
    let node_uplinks = with_lower(default_routes, &stacked);
    let not_movable = not_movable(facts, management, &stacked);
    let name_of = |index: &u32| facts.links.get(index).map(|link| link.name.clone());
    let devices = facts
        .links
        .values()
        .filter(|link| !is_made(link))
        .map(|link| {
            let below = sysfs(&link.name);
            let device = Device {
                name: device_name(&link.name),
                ifname: link.name.clone(),
                ifindex: link.ifindex,
                kind: link.kind.clone(),
                driver: below.driver,
                mac: link.mac,
                mtu: link.mtu,
                mtu_range: link.mtu_range,
                oper_state: link.oper_state.clone(),
                addresses: facts.addresses.get(&link.ifindex).cloned().unwrap_or_default(),
                speed_mbps: below.speed_mbps,
                pci_address: below.pci_address,
                pcie_root: below.pcie_root,
                numa_node: below.numa_node,
                sriov: below.sriov,
                rdma_device: below.rdma_device,
                is_virtual: below.is_virtual,
                alias: link.alias.clone(),
                default_route: node_uplinks.contains(&link.ifindex),
                gateways: facts
                    .default_routes
                    .iter()
                    .filter(|route| route.ifindex == link.ifindex)
                    .filter_map(|route| route.gateway)
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect(),
                loopback: link.loopback,
                master: link.master.as_ref().and_then(name_of),
                parent: is_stacked_kind(link.kind.as_deref())
                    .then_some(link.lower.as_ref())
                    .flatten()
                    .and_then(name_of),
                upper_links: stacked
                    .get(&link.ifindex)
                    .map_or(0, |uppers| u32::try_from(uppers.len()).unwrap_or(u32::MAX)),
                not_movable: not_movable.get(&link.ifindex).copied(),
                foreign_programs: false,
                shared: false,
            };
            (device.name.clone(), device)
        })
        .collect();
    Inventory { devices }
}

/// The host's end of a port, or a sub-interface on its way into a pod, is no device, whatever a rule selects.
fn is_made(link: &LinkFacts) -> bool {
    link.kind.is_some() && is_host_name(&link.name)
}

/// `IFLA_LINK` is the link below, but for a pair it is the other end, and nothing depends on that.
fn is_stacked_kind(kind: Option<&str>) -> bool {
    !matches!(kind, Some("veth" | "netkit" | "vxcan"))
}

/// Lower link to the links that stand on it: those with it as parent, and for a slave its master.
fn stacked(facts: &Facts) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut stacked: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for link in facts.links.values() {
        if let Some(lower) = link.lower.filter(|_| is_stacked_kind(link.kind.as_deref())) {
            stacked.entry(lower).or_default().insert(link.ifindex);
        }
        if let Some(master) = link.master {
            stacked.entry(link.ifindex).or_default().insert(master);
        }
    }
    stacked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::netlink::DefaultRoute;

    fn link(
        ifindex: u32,
        name: &str,
        kind: Option<&str>,
        lower: Option<u32>,
        master: Option<u32>,
    ) -> LinkFacts {
        LinkFacts {
            ifindex,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            lower,
            master,
            ..LinkFacts::default()
        }
    }

    #[test]
    fn default_route_marks_every_link_below() {
        let links = [
            link(1, "eth0", None, None, Some(3)),
            link(2, "eth1", None, None, Some(3)),
            link(3, "bond0", Some("bond"), None, None),
            link(4, "bond0.7", Some("vlan"), Some(3), None),
            link(5, "eth2", None, None, None),
            link(6, "veth0", Some("veth"), Some(7), None),
            link(7, "veth1", Some("veth"), Some(6), None),
            link(8, "nf0123456789abc", Some("veth"), Some(2), None),
        ];
        let gateway = "192.0.2.1".parse().ok();
        let facts = Facts {
            links: links.into_iter().map(|link| (link.ifindex, link)).collect(),
            default_routes: [
                DefaultRoute { ifindex: 4, gateway },
                DefaultRoute { ifindex: 6, gateway: None },
            ]
            .into(),
            ..Facts::default()
        };
        let inventory = join(&facts, &Management::default(), |_| SysfsFacts::default());
        let marked: Vec<_> =
            inventory.devices.values().filter(|d| d.default_route).map(|d| &*d.ifname).collect();
        assert_eq!(marked, ["bond0", "bond0.7", "eth0", "eth1", "veth0"]);
        let device = |name: &str| &inventory.devices[name];
        assert_eq!(device("bond0").upper_links, 1);
        assert_eq!(device("eth0").upper_links, 1);
        assert_eq!(device("eth0").master.as_deref(), Some("bond0"));
        assert_eq!(device(&device_name("bond0.7")).parent.as_deref(), Some("bond0"));
        assert_eq!(device(&device_name("bond0.7")).gateways, [gateway.expect("an address")]);
        assert_eq!(device("veth0").parent, None);
        assert_eq!(device("veth1").upper_links, 0);
        assert!(!inventory.devices.contains_key("nf0123456789abc"), "the end of a port");
    }

    #[test]
    fn links_by_which_the_node_is_reached_are_not_movable_nor_what_is_below_them() {
        let links = [
            link(1, "eth0", None, None, Some(3)),
            link(2, "eth1", None, None, None),
            link(3, "bond0", Some("bond"), None, None),
            link(4, "bond0.7", Some("vlan"), Some(3), None),
            link(5, "bond0.8", Some("vlan"), Some(3), None),
            link(6, "eth2", None, None, None),
            link(7, "eth2.9", Some("vlan"), Some(6), None),
            link(8, "eth3", None, None, None),
            LinkFacts { netns_immutable: Some(true), ..link(9, "sw0p1", None, None, None) },
            LinkFacts { netns_immutable: Some(false), ..link(10, "br0", Some("bridge"), None, None) },
            link(11, "br1", Some("bridge"), None, None),
            LinkFacts { loopback: true, ..link(12, "lo", None, None, None) },
        ];
        let network = |text: &str| text.parse::<ipnetwork::IpNetwork>().expect("an address");
        let facts = Facts {
            links: links.into_iter().map(|link| (link.ifindex, link)).collect(),
            addresses: [
                (4, vec![network("192.0.2.7/24"), network("2001:db8::7/64")]),
                (5, vec![network("198.51.100.7/24")]),
                (7, vec![network("203.0.113.7/24")]),
            ]
            .into(),
            ways: [2].into(),
            ..Facts::default()
        };
        let stays = |management: &Management| -> Vec<(String, &'static str)> {
            let inventory = join(&facts, management, |_| SysfsFacts::default());
            let devices = inventory.devices.into_values();
            devices.filter_map(|it| Some((it.ifname, it.not_movable?.as_str()))).collect()
        };
        let all = [
            ("bond0", "node-address"),
            ("bond0.7", "node-address"),
            ("br1", "namespace-local"),
            ("eth0", "node-address"),
            ("eth1", "api-server"),
            ("eth2", "underlay"),
            ("eth2.9", "underlay"),
            ("lo", "namespace-local"),
            ("sw0p1", "namespace-local"),
        ];
        for node in ["192.0.2.7", "2001:db8::7"] {
            let ip = |text: &str| [text.parse().expect("an IP address")].into();
            let management =
                Management { node: ip(node), underlay: ip("203.0.113.7"), ..Management::default() };
            let mut found = stays(&management);
            found.sort();
            assert_eq!(found, all.map(|(name, why)| (name.to_owned(), why)), "{node}");
        }
    }
}
