//! What the port of a network is to be: what its claim asks for, inside what its network allows.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use k8s_openapi::api::resource::v1::DeviceRequestAllocationResult;

use super::{Place, PlanError, Source, Wanted, key, narrow, of_request};
use crate::{
    claim::{Asked, ClaimRef, Given, config::Holder, made},
    datapath::Isolation,
    dhcp::Lease,
    link::{Route, Scope},
    network::{
        Network, NetworkRef, names,
        offer::Offer,
        spec::{AddressSource, NetworkSpec},
    },
};

/// Addresses of one port: as many as a claim's status can name (`NetworkDeviceData.ips`), from where other nodes
/// learn them.
const MOST_ADDRESSES: usize = 16;

/// What every IPv4 host takes in one piece (RFC 791): less is a mistake of the server's.
const LEAST_MTU: u32 = 576;

/// An allocated address and the request it is for.
type Address<'a> = (&'a DeviceRequestAllocationResult, &'a Offer, IpAddr);

/// Give allocated addresses to the ports of the same network in the claim: of each family one to each port, or none
/// at all, in the order of the allocation.
pub(super) fn give(addresses: &[Address<'_>], wanted: &mut [Wanted<'_>], errors: &mut Vec<PlanError>) {
    let mut families: BTreeMap<(&str, bool), Vec<&Address<'_>>> = BTreeMap::new();
    for address in addresses {
        let key = (address.1.network.reference.name.as_str(), address.2.is_ipv6());
        families.entry(key).or_default().push(address);
    }
    for ((network, is_v6), addresses) in families {
        let of_network = |wanted: &&mut Wanted<'_>| matches!(wanted.source, Source::Port(asked) if asked.network.reference.name == network);
        let ports: Vec<_> = wanted.iter_mut().filter(of_network).collect();
        if ports.len() != addresses.len() {
            let family = if is_v6 { "IPv6" } else { "IPv4" };
            for (result, ..) in &addresses {
                let allowed = format!(
                    "one {family} address for each port of network {network} in the claim: it has {} for {}",
                    addresses.len(),
                    ports.len()
                );
                errors.push(of_request(&result.request, PlanError::new("device", &result.device, allowed)));
            }
            continue;
        }
        for (port, (result, _, address)) in ports.into_iter().zip(addresses) {
            port.given.push(Given {
                request: result.request.clone(),
                pool: result.pool.clone(),
                device: result.device.clone(),
                address: *address,
            });
        }
    }
}

/// Fill in what the network decides, and refuse what it does not allow. Other interfaces are left as they are.
pub(super) fn complete(
    wanted: &mut Wanted<'_>,
    claim: &ClaimRef,
    place: &Place<'_>,
    errors: &mut Vec<PlanError>,
) {
    let Source::Port(asked) = wanted.source else { return };
    let network = &*asked.network;
    let request = wanted.result.request.clone();
    let mut refuse = |error: PlanError| errors.push(of_request(&request, error));
    let config = &mut wanted.config;

    if config.isolation == Some(Isolation::Off) {
        let allowed = "\"strict\": the programs are what keeps a port inside its network";
        refuse(PlanError::new("isolation", "\"off\"", allowed));
    }
    let dhcp = network.spec.addresses == AddressSource::Dhcp;
    let lease = place.leases.get(&key(wanted.result)).filter(|_| dhcp);
    let mut addresses = config.addresses.take().unwrap_or_default();
    if dhcp {
        let given = wanted.given.iter().map(|given| given.address.to_string());
        for address in addresses.iter().map(ToString::to_string).chain(given) {
            refuse(PlanError::new("addresses", address, by_dhcp(network)));
        }
        addresses = lease.and_then(|lease| leased(network, lease)).into_iter().collect();
    }
    for given in wanted.given.iter().filter(|_| !dhcp) {
        match with_prefix(network, given.address) {
            Some(address) if addresses.iter().all(|fixed| fixed.ip() != given.address) => {
                addresses.push(address);
            }
            _ => refuse(PlanError::new("addresses", given.address, "an address that is allocated only")),
        }
    }
    for address in &addresses {
        let held = || match holder(&network.reference, address.ip(), claim, place) {
            None => Ok(()),
            Some((holder, who)) => {
                let name = &network.reference.name;
                Err((format!("an address that is free in network {name}; {who} has this one"), Some(holder)))
            }
        };
        if let Err((allowed, holder)) =
            usable(network, *address).map_err(|why| (why, None)).and_then(|()| held())
        {
            let allowed = lease.map_or(allowed.clone(), |lease| of_server(lease, &allowed));
            refuse(PlanError {
                holder: holder.map(Box::new),
                ..PlanError::new("addresses", address, allowed)
            });
        }
    }
    match addresses.len() {
        0 if dhcp => {}
        0 => refuse(PlanError::missing(
            "addresses",
            format!(
                "a port needs an address: allocated from pool {:?}, or fixed in the claim",
                pool_of_addresses(network, place.pool)
            ),
        )),
        1..=MOST_ADDRESSES => {}
        more => {
            let value = format!("{more} addresses");
            refuse(PlanError::new("addresses", value, format!("at most {MOST_ADDRESSES} of a port")));
        }
    }
    config.addresses = Some(addresses);

    let mtu = config.mtu.unwrap_or_else(|| lease.map_or(asked.mtu, |lease| mtu_of(lease, asked.mtu)));
    if mtu > asked.mtu {
        let allowed = format!("at most {}, the MTU of network {}", asked.mtu, network.reference.name);
        refuse(PlanError::new("mtu", mtu, allowed));
    }
    config.mtu = Some(mtu);

    let mac = config.hardware_addr.unwrap_or_else(|| made::hardware_addr(claim, &key(wanted.result)));
    let same_mac = |plan: &&crate::claim::InterfacePlan| plan.hardware_addr == Some(mac);
    if let Some((holder, _)) = ports_of(&network.reference, claim, place).find(|(_, plan)| same_mac(plan)) {
        let allowed = format!("an address of its own in the network; claim {holder} has this one");
        refuse(PlanError::new("hardwareAddr", mac, allowed).held_by(Holder::Claim(holder.clone())));
    }
    config.hardware_addr = Some(mac);

    wanted.asked = Asked {
        policy: config.policy.clone(),
        policy_of_class: wanted.policy_of_class,
        limits: config.limits,
        routes: config.routes.clone().unwrap_or_default(),
    };
    for error in route(network, lease, config.routes.iter_mut().flatten()) {
        refuse(error);
    }
    match narrow::policy(network.spec.policy.as_ref(), config.policy.take(), wanted.policy_of_class) {
        Ok(policy) => config.policy = policy,
        Err(error) => refuse(error),
    }
    config.limits = narrow::limits(network.spec.limits, config.limits);
}

/// The pool that ports on a node have their addresses from.
fn pool_of_addresses(network: &Network, node: &str) -> String {
    let name = &network.reference.name;
    let blocks = network.spec.addresses == AddressSource::Blocks;
    blocks.then(|| names::block_pool(name, node)).flatten().unwrap_or_else(|| names::address_pool(name))
}

fn by_dhcp(network: &Network) -> String {
    format!("none: the ports of network {} have their addresses by DHCP", network.reference.name)
}

/// The address of a lease; in no subnet of the network if that is so.
fn leased(network: &Network, lease: &Lease) -> Option<IpNetwork> {
    let address = IpAddr::V4(lease.address);
    let subnet = network.spec.subnets.iter().find(|subnet| subnet.contains(address));
    lease.network(subnet.map_or(32, IpNetwork::prefix))
}

fn of_server(lease: &Lease, allowed: &str) -> String {
    format!("{allowed}; the DHCP server {} gave this one", lease.server)
}

/// What the server says, unless it is more than the network carries or less than IPv4 needs everywhere.
fn mtu_of(lease: &Lease, network: u32) -> u32 {
    lease.mtu.map(u32::from).filter(|mtu| (LEAST_MTU..network).contains(mtu)).unwrap_or(network)
}

/// An address with the prefix length of the network's subnet it is in.
fn with_prefix(network: &Network, address: IpAddr) -> Option<IpNetwork> {
    let subnet = network.spec.subnets.iter().find(|subnet| subnet.contains(address))?;
    IpNetwork::new(address, subnet.prefix()).ok()
}

/// Whether a port of the network may have the address, whoever else has it.
fn usable(network: &Network, address: IpNetwork) -> Result<(), String> {
    let (name, ip) = (&network.reference.name, address.ip());
    let Some(subnet) = network.spec.subnets.iter().find(|subnet| subnet.contains(ip)) else {
        let subnets: Vec<_> = network.spec.subnets.iter().map(ToString::to_string).collect();
        return Err(format!("an address in a subnet of network {name} ({})", subnets.join(", ")));
    };
    if address.prefix() != subnet.prefix() {
        return Err(format!("prefix length {}, that of the network's subnet {subnet}", subnet.prefix()));
    }
    if network.spec.gateways.contains(&ip) {
        return Err(format!("an address other than the gateway of network {name}"));
    }
    // In IPv6 the first address is every router's (RFC 4291, section 2.6.1). Two addresses, or one, are all hosts'
    // (RFC 3021, RFC 6164).
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    if subnet.prefix() < whole - 1 {
        if ip == subnet.network() {
            return Err(format!(
                "an address other than the first one of subnet {subnet}, which is the subnet's"
            ));
        }
        if ip.is_ipv4() && ip == subnet.broadcast() {
            return Err(format!("an address other than the broadcast address of subnet {subnet}"));
        }
    }
    Ok(())
}

/// Who else has the address, as far as this node knows, and in words.
fn holder(
    network: &NetworkRef,
    address: IpAddr,
    claim: &ClaimRef,
    place: &Place<'_>,
) -> Option<(Holder, String)> {
    let here = ports_of(network, claim, place)
        .find(|(_, plan)| plan.addresses.iter().any(|theirs| theirs.ip() == address))
        .map(|(holder, _)| (Holder::Claim(holder.clone()), format!("claim {holder}")));
    let member = || {
        let who = place.members.holder(network, address, claim)?;
        Some((Holder::Member { network: network.clone(), address }, who))
    };
    here.or_else(member)
}

/// Ports of the network that other claims of this node have.
fn ports_of<'a>(
    network: &'a NetworkRef,
    claim: &'a ClaimRef,
    place: &Place<'a>,
) -> impl Iterator<Item = (&'a ClaimRef, &'a crate::claim::InterfacePlan)> {
    let others = place.prepared.iter().filter(|checkpoint| checkpoint.claim.uid != claim.uid);
    others
        .flat_map(|checkpoint| checkpoint.interfaces.iter().map(|record| (&checkpoint.claim, &record.plan)))
        .filter(|(_, plan)| plan.port().is_some_and(|port| port.network == *network))
}

/// A network has nothing behind it but its gateways: a route that leaves the subnets goes through the gateway of its
/// family, also if it does not say so. Without a gateway in the network, that is the router of the lease.
fn route<'a>(
    network: &Network,
    lease: Option<&Lease>,
    routes: impl Iterator<Item = &'a mut Route>,
) -> Vec<PlanError> {
    let inside = |address: &IpAddr| network.spec.subnets.iter().any(|subnet| subnet.contains(*address));
    let of_lease = lease.and_then(|lease| lease.router).map(IpAddr::V4).filter(inside);
    // In a draft nobody knows the router yet.
    let drafted = network.spec.addresses == AddressSource::Dhcp && lease.is_none();
    let gateways: Vec<IpAddr> = network.spec.gateways.iter().copied().chain(of_lease).collect();
    let mut errors = Vec::new();
    for (index, route) in routes.enumerate() {
        if drafted || !goes_through_network(&network.spec, route) {
            continue;
        }
        match gateway_of(&gateways, route) {
            Some(gateway) => send_through(route, gateway),
            None => errors.push(PlanError::missing(
                format!("routes[{index}].gateway"),
                format!("network {} has no gateway of this family", network.reference.name),
            )),
        }
    }
    errors
}

/// Whether a route leaves the network's subnets and names no gateway.
pub(super) fn goes_through_network(spec: &NetworkSpec, route: &Route) -> bool {
    let inside = |subnet: &IpNetwork| {
        subnet.contains(route.destination.ip()) && subnet.prefix() <= route.destination.prefix()
    };
    route.gateway.is_none() && !spec.subnets.iter().any(inside)
}

/// The gateway of the route's family.
pub(super) fn gateway_of(gateways: &[IpAddr], route: &Route) -> Option<IpAddr> {
    gateways.iter().copied().find(|gateway| gateway.is_ipv4() == route.destination.is_ipv4())
}

pub(super) const fn send_through(route: &mut Route, gateway: IpAddr) {
    route.gateway = Some(gateway);
    route.scope = Scope::Universe;
}

#[cfg(test)]
mod tests;
