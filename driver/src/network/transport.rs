//! The ways of networks beyond this node: what they are to be ([`wanted`], pure), and who sees to it ([`task`]).
//!
//! Only networks that a pod of this node has a port on have one. It is set up when the claim is prepared, and taken
//! down when the last is unprepared: a node without ports carries nothing of a network, and takes nothing in.

mod converge;
mod headers;
mod promiscuous;
pub mod task;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use clap::ValueEnum;

use super::{
    Network, NetworkId, NetworkRef, mtu,
    spec::{NetworkSpec, UplinkTransport},
    uplink,
};
use crate::{
    datapath::{Transport, networks::overlay_mtu},
    device::{Device, Inventory},
    link::MacAddr,
};

pub use converge::Converger;
pub use headers::NodeLink;

/// Name of the device of all tunnels.
pub const TUNNEL: &str = "nf-vxlan";
/// Its hardware address, which says that it is this driver's: locally administered, and the letters `NFVXL`.
pub const TUNNEL_MAC: MacAddr = MacAddr([0x02, b'N', b'F', b'V', b'X', b'L']);
/// Hardware address of a gateway that a node is, the same on all nodes: locally administered, and the letters `NFGWY`.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x02, b'N', b'F', b'G', b'W', b'Y']);
/// UDP port of VXLAN (RFC 7348, section 5).
pub const VXLAN_PORT: u16 = 4789;

/// What is wrong with networks, each in one sentence.
pub type Problems = BTreeMap<NetworkRef, String>;

/// What keeps networks from going on beyond a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// The node.
    pub node: String,
    /// What it is.
    pub problems: Problems,
}

/// How tunnels are made on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSettings {
    /// UDP port, the same on all nodes.
    pub port: u16,
    /// Address of the node that other nodes send to, and expect it to send from.
    pub address: Option<IpAddr>,
    /// Who puts their headers on and takes them off.
    pub headers: Headers,
}

/// Who puts the tunnels' headers on and takes them off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Headers {
    /// The programs where they can, else the kernel: between nodes that speak IPv4, over the link that has the node's
    /// address, as long as the node has no IPsec policies. The node's firewall does not see these frames.
    #[default]
    Programs,
    /// The kernel's VXLAN device, and with it the node's firewall and IPsec.
    Kernel,
}

/// The device of all tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelDevice {
    /// UDP port.
    pub port: u16,
    /// The largest datagram that fits, in bytes.
    pub mtu: u32,
    /// The link between the nodes, where programs may put headers on and take them off; `None`: they may not.
    pub between: Option<NodeLink>,
}

/// The way of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through tunnels.
    Overlay {
        /// Its number in them.
        vni: u32,
    },
    /// Over a link.
    Uplink {
        /// Index of the link.
        ifindex: u32,
        /// Its name.
        ifname: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// As one Ethernet, or by the host's routes.
        how: Transport,
    },
}

impl Way {
    /// Index of the link that it bridges to.
    const fn bridges(&self) -> Option<u32> {
        match self {
            Self::Uplink { ifindex, how: Transport::Bridged { .. }, .. } => Some(*ifindex),
            _ => None,
        }
    }
}

/// What the kernel is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The device of all tunnels, if there are any.
    pub tunnel: Option<TunnelDevice>,
    /// The way of each network.
    pub ways: BTreeMap<NetworkId, (NetworkRef, Way)>,
    /// Networks that can have none, and what cannot be as it is to.
    pub problems: Problems,
    /// What works, but not as one would expect.
    pub remarks: Problems,
}

/// What networks are to have on a node with these links.
#[must_use]
pub fn wanted(
    networks: &[Arc<Network>],
    inventory: &Inventory,
    tunnels: TunnelSettings,
    driver: &str,
) -> Wanted {
    let mut wanted = Wanted::default();
    let mut owners = BTreeMap::new();
    let mut networks: Vec<&Arc<Network>> = networks.iter().collect();
    // The older one keeps what two cannot have: numbers are given in order.
    networks.sort_by_key(|network| network.id);
    for network in networks {
        let (reference, spec) = (&network.reference, &network.spec);
        let way = if let Some(overlay) = spec.transport.overlay {
            let device = *wanted.tunnel.get_or_insert_with(|| TunnelDevice {
                port: tunnels.port,
                mtu: tunnel_mtu(inventory, tunnels.address),
                between: node_link(inventory, tunnels),
            });
            if let Some(problem) = address_problem(inventory, tunnels.address) {
                wanted.problems.insert(reference.clone(), problem);
            }
            let ports = mtu::of_ports(spec, inventory, None);
            if ports > device.mtu {
                let remark = format!(
                    "its ports have an MTU of {ports}, and a tunnel from this node carries {} bytes; larger datagrams \
                     are answered with an error",
                    device.mtu
                );
                wanted.remarks.insert(reference.clone(), remark);
            }
            Way::Overlay { vni: overlay.vni }
        } else if let Some(on) = &spec.transport.uplink {
            match uplink::of(spec, inventory, driver) {
                Ok(link) => {
                    let how = how(on, spec);
                    if let Some(remark) = routes_remark(&how, link, inventory) {
                        wanted.remarks.insert(reference.clone(), remark);
                    }
                    Way::Uplink { ifindex: link.ifindex, ifname: link.ifname.clone(), mtu: link.mtu, how }
                }
                Err(problem) => {
                    wanted.problems.insert(reference.clone(), problem.to_string());
                    continue;
                }
            }
        } else {
            continue;
        };
        let wire = match &way {
            Way::Overlay { vni } => (0, *vni),
            Way::Uplink { ifindex, how, .. } => (*ifindex, vlan(how).into()),
        };
        match owners.entry(wire) {
            Entry::Vacant(free) => {
                free.insert(reference.name.clone());
                wanted.ways.insert(network.id, (reference.clone(), way));
            }
            Entry::Occupied(taken) => {
                let problem = format!("{} {}", says(&way), taken_by(taken.get(), &reference.name));
                wanted.problems.insert(reference.clone(), problem);
            }
        }
    }
    wanted
}

fn says(way: &Way) -> String {
    match way {
        Way::Overlay { vni } => format!("VNI {vni}"),
        Way::Uplink { ifname, how, .. } => match vlan(how) {
            0 => format!("the untagged wire of link {ifname}"),
            vlan => format!("VLAN {vlan} of link {ifname}"),
        },
    }
}

/// What an uplink is to the network.
fn how(uplink: &UplinkTransport, spec: &NetworkSpec) -> Transport {
    if !uplink.is_routed() {
        return Transport::Bridged { vlan: uplink.vlan.unwrap_or(0) };
    }
    let (mut v4, mut v6) = (None, None);
    for gateway in &spec.gateways {
        match gateway {
            IpAddr::V4(gateway) => v4 = Some(*gateway),
            IpAddr::V6(gateway) => v6 = Some(*gateway),
        }
    }
    Transport::Routed { mac: GATEWAY_MAC, v4, v6 }
}

/// The kernel takes the best route of all for IPv6, whatever link it is over, and looks for its next hop on the uplink.
fn routes_remark(how: &Transport, link: &Device, inventory: &Inventory) -> Option<String> {
    let Transport::Routed { v6: Some(_), .. } = how else { return None };
    let leads_away =
        |other: &&Device| other.ifindex != link.ifindex && other.gateways.iter().any(IpAddr::is_ipv6);
    let other = inventory.devices.values().find(leads_away)?;
    Some(format!(
        "the node has an IPv6 default route over {}; what leaves the network by it and not by a route over {} is lost, unless \
         a rule (ip -6 rule add from SUBNET) gives the network a table of its own",
        other.ifname, link.ifname
    ))
}

/// VLAN id of the frames on an uplink, 0 for untagged.
const fn vlan(how: &Transport) -> u16 {
    match how {
        Transport::Bridged { vlan } => *vlan,
        Transport::Routed { .. } | Transport::Overlay { .. } => 0,
    }
}

fn taken_by(owner: &str, network: &str) -> String {
    if owner == network {
        "is still that of the network of the same name that was deleted, which pods of this node have ports on".to_owned()
    } else {
        format!("is that of network {owner} on this node; allowed: one network")
    }
}

/// The largest datagram that fits a tunnel: by the link that has the node's address, or, where none or the loopback link
/// has it, by the links of the default routes, as the MTU of ports.
fn tunnel_mtu(inventory: &Inventory, address: Option<IpAddr>) -> u32 {
    let link = address.and_then(|address| Some((holder(inventory, address)?, address.is_ipv6())));
    match link {
        Some((link, over_ipv6)) if !link.loopback => overlay_mtu(link.mtu, over_ipv6).max(mtu::IPV4_MIN),
        _ => mtu::of_tunnels(inventory),
    }
}

/// The link that has the node's IPv4 address. Where only the loopback link or a dummy has it, as on a node that tells routers
/// of its address itself, other nodes are reached over no certain link.
fn node_link(inventory: &Inventory, tunnels: TunnelSettings) -> Option<NodeLink> {
    let (Headers::Programs, Some(IpAddr::V4(address))) = (tunnels.headers, tunnels.address) else {
        return None;
    };
    let link = holder(inventory, address.into())?;
    let leads_out = !link.loopback && link.kind.as_deref() != Some("dummy");
    leads_out.then_some(NodeLink { ifindex: link.ifindex, address })
}

fn holder(inventory: &Inventory, address: IpAddr) -> Option<&Device> {
    let has = |device: &&Device| device.addresses.iter().any(|network| network.ip() == address);
    inventory.devices.values().find(has)
}

fn address_problem(inventory: &Inventory, address: Option<IpAddr>) -> Option<String> {
    match address {
        None => Some(
            "the address of this node is not known; needed: an InternalIP in its Node object, or --overlay-address"
                .to_owned(),
        ),
        Some(address) if holder(inventory, address).is_none() => Some(format!(
            "no link of this node has {address}, which other nodes expect its tunnels to come from"
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
