//! What an attached interface is against what its plan says: pure, so that every case is had without a kernel.

use std::{collections::BTreeMap, fmt};

use ipnetwork::IpNetwork;

use crate::{
    claim::InterfacePlan,
    datapath::state::MapPart,
    link::{Home, Link, MacAddr, Route},
};

/// Sysctl of the host's end of a port that keeps the host from speaking on it.
pub(super) const NO_IPV6: &str = "ipv6/disable_ipv6";

/// Something that is not as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// The host's end of a port has another name.
    HostName(String),
    /// The host's end of a port is down.
    HostDown,
    /// The host's end of a port has another MTU, in bytes.
    HostMtu(u32),
    /// The host's end of a port is one of a netkit pair that was closed again.
    HostBlackhole,
    /// IPv6 is on at the host's end of a port, so that the host speaks there.
    HostIpv6,
    /// A part of what the maps hold.
    Maps(MapPart),
    /// The pod may open sockets that send around the programs: which guard is not attached.
    Unguarded(String),
    /// An address of the plan is not on the interface.
    Address(IpNetwork),
    /// A route of the plan is not there.
    Route(Box<Route>),
    /// The interface is not in its pod's namespace.
    Missing,
    /// The interface has another name in the pod.
    Name(String),
    /// The interface is down in the pod.
    Down,
    /// The interface has another hardware address.
    Mac(Option<MacAddr>),
    /// The interface has another MTU, in bytes.
    Mtu(u32),
}

impl Deviation {
    /// What it is about, as the label `item` of the metric.
    #[must_use]
    pub const fn item(&self) -> &'static str {
        match self {
            Self::HostName(_) => "host_name",
            Self::HostDown => "host_state",
            Self::HostMtu(_) => "host_mtu",
            Self::HostBlackhole => "host_policy",
            Self::HostIpv6 => "host_ipv6",
            Self::Maps(MapPart::Record) => "endpoint",
            Self::Maps(MapPart::Gate) => "gate",
            Self::Maps(MapPart::Addresses) => "own_addresses",
            Self::Maps(MapPart::Members) => "membership",
            Self::Maps(MapPart::Limits) => "limits",
            Self::Maps(MapPart::Policy) => "policy",
            Self::Unguarded(_) => "cgroup_guard",
            Self::Address(_) => "address",
            Self::Route(_) => "route",
            Self::Missing => "interface",
            Self::Name(_) => "name",
            Self::Down => "state",
            Self::Mac(_) => "mac",
            Self::Mtu(_) => "mtu",
        }
    }

    /// Every value of [`Self::item`].
    pub const ITEMS: [&'static str; 19] = [
        "host_name",
        "host_state",
        "host_mtu",
        "host_policy",
        "host_ipv6",
        "endpoint",
        "gate",
        "own_addresses",
        "membership",
        "limits",
        "policy",
        "cgroup_guard",
        "address",
        "route",
        "interface",
        "name",
        "state",
        "mac",
        "mtu",
    ];

    /// Whether it is the pod's own affair: told, and left. A pod with NET_ADMIN may change the settings of its links, for
    /// a bond for example; what does not agree with its endpoint is dropped.
    #[must_use]
    pub const fn is_left(&self) -> bool {
        matches!(self, Self::Missing | Self::Name(_) | Self::Down | Self::Mac(_) | Self::Mtu(_))
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostName(name) => write!(f, "the host's end was named {name:?}"),
            Self::HostDown => f.write_str("the host's end was down"),
            Self::HostMtu(mtu) => write!(f, "the host's end had an MTU of {mtu}"),
            Self::HostBlackhole => f.write_str("the policy of its netkit pair was blackhole"),
            Self::HostIpv6 => f.write_str("the host's end had IPv6 on"),
            Self::Maps(part) => fmt::Display::fmt(part, f),
            Self::Unguarded(guard) => write!(f, "the guard {guard} of its pod was not attached"),
            Self::Address(address) => write!(f, "the address {address} was missing"),
            Self::Route(route) => {
                write!(f, "the route to {} in table {} was missing", route.destination, route.table)
            }
            Self::Missing => f.write_str("it is not in its pod's network namespace"),
            Self::Name(name) => write!(f, "it is named {name:?} in the pod"),
            Self::Down => f.write_str("it is down in the pod"),
            Self::Mac(Some(mac)) => write!(f, "its hardware address is {mac}"),
            Self::Mac(None) => f.write_str("it has no hardware address"),
            Self::Mtu(mtu) => write!(f, "its MTU is {mtu}"),
        }
    }
}

/// The host's end of a port. `mtu` is what both ends have, in bytes.
pub(super) fn host_end(plan: &InterfacePlan, mtu: u32, found: &Link) -> Vec<Deviation> {
    let mut deviations = Vec::new();
    if found.name != plan.host_link {
        deviations.push(Deviation::HostName(found.name.clone()));
    }
    // The kernel adds the link-local address when a link goes up: the MTU first.
    if found.mtu != mtu {
        deviations.push(Deviation::HostMtu(found.mtu));
    }
    if !found.up {
        deviations.push(Deviation::HostDown);
    }
    if found.blackhole {
        deviations.push(Deviation::HostBlackhole);
    }
    deviations
}

/// Whether the host keeps quiet on its end of a port. No sysctl: the kernel has no IPv6, or not on this link.
pub(super) fn host_silence(sysctls: &BTreeMap<String, String>) -> Vec<Deviation> {
    match sysctls.get(NO_IPV6).map(String::as_str) {
        None | Some("1") => Vec::new(),
        Some(_) => vec![Deviation::HostIpv6],
    }
}

/// An interface in its pod; `mac` and `mtu` are what it was given. What the pod has added is its own.
pub(super) fn in_pod(
    plan: &InterfacePlan,
    mac: Option<MacAddr>,
    mtu: Option<u32>,
    found: &Home,
) -> Vec<Deviation> {
    let mut deviations = Vec::new();
    let link = &found.link;
    if link.name != plan.name {
        deviations.push(Deviation::Name(link.name.clone()));
    }
    if mac.is_some() && link.mac != mac {
        deviations.push(Deviation::Mac(link.mac));
    }
    if mtu.is_some_and(|mtu| mtu != link.mtu) {
        deviations.push(Deviation::Mtu(link.mtu));
    }
    // The kernel takes routes and IPv6 addresses of a link that is down away.
    if !link.up {
        deviations.push(Deviation::Down);
        return deviations;
    }
    let has = |address: &IpNetwork| found.addresses.iter().any(|it| it.address == *address);
    let missing = plan.addresses.iter().filter(|address| !has(address));
    deviations.extend(missing.map(|address| Deviation::Address(*address)));
    let has = |route: &Route| {
        found.routes.iter().any(|it| {
            (it.destination, it.gateway, it.table) == (route.destination, route.gateway, route.table)
        })
    };
    let missing = plan.routes.iter().filter(|route| !has(route));
    deviations.extend(missing.map(|route| Deviation::Route(Box::new(route.clone()))));
    deviations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_listed() {
        let address = "192.0.2.1/24".parse().unwrap();
        let parts = [
            MapPart::Record,
            MapPart::Gate,
            MapPart::Addresses,
            MapPart::Members,
            MapPart::Limits,
            MapPart::Policy,
        ];
        let others = [
            Deviation::HostName(String::new()),
            Deviation::HostDown,
            Deviation::HostMtu(1),
            Deviation::HostBlackhole,
            Deviation::HostIpv6,
            Deviation::Unguarded(String::new()),
            Deviation::Address(address),
            Deviation::Missing,
            Deviation::Name(String::new()),
            Deviation::Down,
            Deviation::Mac(None),
            Deviation::Mtu(1),
        ];
        let found: Vec<_> =
            parts.into_iter().map(Deviation::Maps).chain(others).map(|found| found.item()).collect();
        assert!(found.iter().all(|item| Deviation::ITEMS.contains(item)), "{found:?}");
        // All but that of a route.
        assert_eq!(found.len() + 1, Deviation::ITEMS.len());
    }
}
