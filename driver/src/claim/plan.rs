//! From an allocated claim to what is to be done for it: pure, and everything that can be refused is refused
//! here, before the sandbox exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use k8s_openapi::api::resource::v1::{
    DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult, ResourceClaim,
};

use self::results::{Allocated, Source, our_results};
use super::{
    Asked, Checkpoint, ClaimRef, Given, InterfaceKey, InterfacePlan, Made, Plan, PodRef, Port, Upper,
    config::{FieldError, InterfaceConfig, interface_name},
    made,
};
use crate::{
    datapath::policy::Policy,
    device::Inventory,
    dhcp::Lease,
    link::{MacAddr, Route, SubInterface},
    network::{access::Members, offer::Offer},
};

pub mod follow;
mod moved;
mod narrow;
mod port;
mod results;
mod sub_interface;

#[cfg(test)]
mod tests;

/// Why a claim cannot be served; the field is a path in the claim.
pub type PlanError = FieldError;

/// What a plan is made against.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// This driver's name.
    pub driver: &'a str,
    /// This node's pool, which is the node's name.
    pub pool: &'a str,
    /// The node's devices, those in pods among them.
    pub inventory: &'a Inventory,
    /// Every claim prepared so far.
    pub prepared: &'a [Checkpoint],
    /// The networks whose ports or addresses the claim has, by name: those that this node knows.
    pub networks: &'a BTreeMap<String, Offer>,
    /// Device names of the links that networks use as uplinks here, each with the name of such a network.
    pub uplinks: &'a BTreeMap<String, String>,
    /// Who has the networks' addresses.
    pub members: &'a dyn Members,
    /// What DHCP servers have given to the claim's ports. A port that is to have its address from one, and is not in here,
    /// is planned without ([`InterfacePlan::lacks_address`]).
    pub leases: &'a BTreeMap<InterfaceKey, Lease>,
}

/// An interface to plan, and what is asked for it.
struct Wanted<'a> {
    /// Place of the device among the results.
    index: usize,
    result: &'a DeviceRequestAllocationResult,
    source: Source<'a>,
    config: InterfaceConfig,
    /// Whether the policy is the class's.
    policy_of_class: bool,
    /// Allocated devices whose addresses it has.
    given: Vec<Given>,
    /// Of a port: what class and claim ask for, before the network's part is added to `config`.
    asked: Asked,
}

const RESULTS: &str = "status.allocation.devices.results";
const CONFIG: &str = "status.allocation.devices.config";

/// Decide what to do for `claim`, which the kubelet asked for as `asked`.
pub fn plan(claim: &ResourceClaim, asked: &ClaimRef, place: &Place<'_>) -> Result<Plan, Vec<PlanError>> {
    // Of another claim nothing else is worth a word.
    match claim.metadata.uid.as_deref() {
        Some(uid) if uid == asked.uid => {}
        Some(uid) => {
            let allowed = format!("{}, for which the kubelet asks: the claim was made again", asked.uid);
            return Err(vec![PlanError::new("metadata.uid", uid, allowed)]);
        }
        None => return Err(vec![PlanError::missing("metadata.uid", asked.uid.clone())]),
    }
    let status = claim.status.clone().unwrap_or_default();
    let Some(allocation) = status.allocation else {
        return Err(vec![PlanError::missing("status.allocation", "the claim must be allocated first")]);
    };
    let allocation = allocation.devices.unwrap_or_default();
    let mut errors = Vec::new();
    let pods = reserved_pods(&status.reserved_for.unwrap_or_default(), asked, &mut errors);
    let results = our_results(&allocation, place, &mut errors);
    let configs = our_configs(&allocation, place.driver);
    let mut wanted = Vec::new();
    let mut addresses = Vec::new();
    for Allocated { index, result, source } in results {
        if let Source::Address(network, address) = source {
            addresses.push((result, network, address));
            continue;
        }
        match merged_config(&configs, result) {
            Ok((config, policy_of_class)) => {
                let (given, asked) = (Vec::new(), Asked::default());
                wanted.push(Wanted { index, result, source, config, policy_of_class, given, asked });
            }
            Err(wrong) => errors.extend(wrong),
        }
    }
    if errors.is_empty() {
        port::give(&addresses, &mut wanted, &mut errors);
        for interface in &mut wanted {
            port::complete(interface, asked, place, &mut errors);
            sub_interface::complete(interface, asked, place, &mut errors);
            let request = &interface.result.request;
            let selects = interface.config.policy.as_ref().is_some_and(Policy::selects_pods);
            if selects && !matches!(interface.source, Source::Port(_)) {
                let allowed =
                    "cidr and network: it selects endpoints on the network of a port, and this is none";
                errors.push(of_request(request, PlanError::new("policy", "podSelector", allowed)));
            }
            errors.extend(interface.config.check().into_iter().map(|error| of_request(request, error)));
        }
    }
    // Errors of a configuration that serves several devices are the same ones.
    let mut seen = BTreeSet::new();
    errors.retain(|error: &PlanError| seen.insert(error.to_string()));
    if !errors.is_empty() {
        return Err(errors);
    }
    let names = interface_names(&wanted, &pods, asked, place, &mut errors);
    errors.extend(doubles(wanted.iter().map(|wanted| (wanted.result.request.as_str(), &wanted.config))));
    if !errors.is_empty() {
        return Err(errors);
    }
    let interfaces =
        wanted.into_iter().zip(names).filter_map(|(wanted, name)| interface(wanted, name, asked));
    let shareable = is_shareable(claim);
    Ok(Plan { claim: asked.clone(), pods, shareable, interfaces: interfaces.collect() })
}

/// The pods the claim is reserved for. Which of them has its interfaces is decided by their sandboxes.
fn reserved_pods(
    reserved: &[k8s_openapi::api::resource::v1::ResourceClaimConsumerReference],
    asked: &ClaimRef,
    errors: &mut Vec<PlanError>,
) -> Vec<PodRef> {
    const FIELD: &str = "status.reservedFor";
    if reserved.is_empty() {
        errors.push(PlanError::missing(FIELD, "the claim must be reserved for a pod"));
    }
    let mut pods = Vec::new();
    for consumer in reserved {
        if consumer.resource == "pods" && consumer.api_group.as_deref().unwrap_or_default().is_empty() {
            let (name, uid) = (consumer.name.clone(), consumer.uid.clone());
            pods.push(PodRef { namespace: asked.namespace.clone(), name, uid });
        } else {
            errors.push(PlanError::new(FIELD, &consumer.resource, "pods"));
        }
    }
    pods
}

/// A claim that was made from a template belongs to its pod (`resourceclaim.IsForPod` in
/// k8s.io/dynamic-resource-allocation). Any other may be named by several.
fn is_shareable(claim: &ResourceClaim) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    !owners
        .into_iter()
        .any(|owner| owner.controller == Some(true) && owner.kind == "Pod" && owner.api_version == "v1")
}

/// One configuration of ours, and where it stands in the claim.
struct Configuration<'a> {
    index: usize,
    from_class: bool,
    entry: &'a DeviceAllocationConfiguration,
}

/// Configurations for our driver, those of classes first: the API's order
/// (`DeviceAllocationConfiguration.source`), made sure of.
fn our_configs<'a>(allocation: &'a DeviceAllocationResult, driver: &str) -> Vec<Configuration<'a>> {
    let mut ours: Vec<_> = allocation
        .config
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, entry)| entry.opaque.as_ref().is_some_and(|opaque| opaque.driver == driver))
        .map(|(index, entry)| Configuration { index, from_class: entry.source == "FromClass", entry })
        .collect();
    ours.sort_by_key(|config| !config.from_class);
    ours
}

/// Whether a configuration is for the request of a result.
fn applies(config: &DeviceAllocationConfiguration, request: &str) -> bool {
    is_for(config.requests.as_deref().unwrap_or_default(), request)
}

/// Whether what names these requests is for `request`: all if it names none; `main` is also for `main/sub`.
#[must_use]
pub fn is_for(requests: &[String], request: &str) -> bool {
    let main = request.split_once('/').map_or(request, |(main, _)| main);
    requests.is_empty() || requests.iter().any(|name| name == request || name == main)
}

/// The configuration of a result, and whether its policy is the class's.
fn merged_config(
    configs: &[Configuration<'_>],
    result: &DeviceRequestAllocationResult,
) -> Result<(InterfaceConfig, bool), Vec<PlanError>> {
    let mut merged = InterfaceConfig::default();
    let mut of_class = InterfaceConfig::default();
    let mut errors = Vec::new();
    for Configuration { index, from_class, entry } in configs {
        let Some(opaque) = entry.opaque.as_ref().filter(|_| applies(entry, &result.request)) else {
            continue;
        };
        let parameters = format!("{CONFIG}[{index}].opaque.parameters");
        if !matches!(entry.source.as_str(), "FromClass" | "FromClaim") {
            let field = format!("{CONFIG}[{index}].source");
            errors.push(PlanError::new(field, &entry.source, "FromClass or FromClaim"));
        }
        match InterfaceConfig::parse(&opaque.parameters.0) {
            Ok(config) => {
                if *from_class {
                    of_class.merge(config.clone());
                } else {
                    let weaker = weaker(&of_class, &config);
                    errors.extend(weaker.into_iter().map(|error| error.under(&parameters)));
                }
                merged.merge(config);
            }
            Err(wrong) => errors.extend(wrong.into_iter().map(|error| error.under(&parameters))),
        }
    }
    if errors.is_empty() { Ok((merged, of_class.policy.is_some())) } else { Err(errors) }
}

/// What a claim's configuration takes off its class's. Classes are written by administrators, claims by users:
/// protection that a class asks for in so many words is not for a user to take off. Whether one policy lets more
/// through than another is more than a reader should have to work out, so the class's stands alone.
#[must_use]
pub fn weaker(of_class: &InterfaceConfig, claim: &InterfaceConfig) -> Vec<PlanError> {
    let mut errors = Vec::new();
    if let (Some(class), Some(own)) = (of_class.isolation, claim.isolation)
        && own.strength() < class.strength()
    {
        let allowed = format!("\"{class}\", which the device class sets, or what is stricter");
        errors.push(PlanError::new("isolation", format!("\"{own}\""), allowed));
    }
    if let Some(SubInterface::Vlan(vlan)) = claim.sub_interface {
        let allowed = "a VLAN in the device class only: on which one a pod is, is not for its claim to say";
        errors.push(PlanError::new("subInterface.vlan.id", vlan.id, allowed));
    }
    let class_has = [
        ("policy", of_class.policy.is_some() && claim.policy.is_some()),
        ("limits", of_class.limits.is_some() && claim.limits.is_some()),
        ("earlyDrop", of_class.early_drop.is_some() && claim.early_drop.is_some()),
        ("subInterface", of_class.sub_interface.is_some() && claim.sub_interface.is_some()),
    ];
    for (field, _) in class_has.into_iter().filter(|(_, both)| *both) {
        errors.push(PlanError::new(field, "this field", "it in the device class only, which sets it"));
    }
    errors
}

/// An error of what several configurations make together, which has no single path.
fn of_request(request: &str, mut error: PlanError) -> PlanError {
    error.field = format!("request {request}: {}", error.field);
    error
}

/// A name for each interface, free in the pod over all its claims: the one asked for, else that of the host
/// link or network, else `net1`, `net2`, ….
fn interface_names(
    wanted: &[Wanted<'_>],
    pods: &[PodRef],
    asked: &ClaimRef,
    place: &Place<'_>,
    errors: &mut Vec<PlanError>,
) -> Vec<String> {
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for checkpoint in place.prepared.iter().filter(|checkpoint| checkpoint.claim.uid != asked.uid) {
        if checkpoint.pods.iter().any(|pod| pods.contains(pod)) {
            for interface in &checkpoint.interfaces {
                taken.insert(interface.plan.name.clone(), format!("claim {}", checkpoint.claim));
            }
        }
    }
    for Wanted { result, config, .. } in wanted {
        let Some(name) = &config.name else { continue };
        if let Some(owner) = taken.insert(name.clone(), format!("device {}", result.device)) {
            let allowed = format!("a name that is free in the pod; {owner} has this one");
            errors.push(of_request(&result.request, PlanError::new("name", name, allowed)));
        }
    }
    let mut names = Vec::new();
    // One more than can be taken.
    let enough = taken.len() + wanted.len() + 1;
    for Wanted { result, source, config, .. } in wanted {
        let name = config.name.clone().unwrap_or_else(|| {
            source
                .name()
                .into_iter()
                .chain((1..=enough).map(|number| format!("net{number}")))
                .find(|name| interface_name(name).is_ok() && !taken.contains_key(name))
                .unwrap_or_default()
        });
        taken.entry(name.clone()).or_insert_with(|| format!("device {}", result.device));
        names.push(name);
    }
    names
}

/// One configuration can serve several devices (`count`, or no `requests`); what must be unique in a pod is
/// refused then, instead of by the kernel in the middle of the attach.
pub fn doubles<'a>(wanted: impl Iterator<Item = (&'a str, &'a InterfaceConfig)>) -> Vec<PlanError> {
    let mut errors = Vec::new();
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    let mut hardware: BTreeSet<MacAddr> = BTreeSet::new();
    let mut routes: BTreeSet<(IpNetwork, u32)> = BTreeSet::new();
    let mut refuse = |request: &str, field: &str, value: String| {
        let error = PlanError::new(field, value, "on one interface of the claim only");
        errors.push(of_request(request, error));
    };
    for (request, config) in wanted {
        for address in config.addresses.iter().flatten() {
            if !addresses.insert(address.ip()) {
                refuse(request, "addresses", address.to_string());
            }
        }
        for route in config.routes.iter().flatten() {
            if !routes.insert((route.destination, route.table)) {
                let value = format!("{} in table {}", route.destination, route.table);
                refuse(request, "routes", value);
            }
        }
        if let Some(mac) = config.hardware_addr.filter(|mac| !hardware.insert(*mac)) {
            refuse(request, "hardwareAddr", mac.to_string());
        }
    }
    errors
}

/// `None` for an address, which has no interface of its own.
fn interface(wanted: Wanted<'_>, name: String, claim: &ClaimRef) -> Option<InterfacePlan> {
    let Wanted { result, source, config, given, asked: own, .. } = wanted;
    let routes = in_order(config.routes.unwrap_or_default());
    let (host_link, made) = match source {
        Source::Link(device) => {
            let made = config.sub_interface.map(|sub_interface| {
                Made::SubInterface(Upper { sub_interface, host_name: made::host_name(claim, &key(result)) })
            });
            (device.ifname.clone(), made)
        }
        Source::Port(asked) => {
            let (network, id) = (asked.network.reference.clone(), asked.network.id);
            let port = Port { given, asked: Some(Box::new(own)), ..Port::new(network, id) };
            (made::host_name(claim, &key(result)), Some(Made::Port(port)))
        }
        Source::Address(..) => return None,
    };
    Some(InterfacePlan {
        request: result.request.clone(),
        pool: result.pool.clone(),
        device: result.device.clone(),
        share_id: result.share_id.clone(),
        host_link,
        name,
        hardware_addr: config.hardware_addr,
        mtu: config.mtu,
        addresses: config.addresses.unwrap_or_default(),
        routes,
        isolation: config.isolation.unwrap_or_default(),
        early_drop: config.early_drop.unwrap_or(true),
        policy: config.policy,
        limits: config.limits,
        made,
    })
}

/// The kernel takes a route only once its gateway can be reached: routes on the link go first.
fn in_order(routes: Vec<Route>) -> Vec<Route> {
    let (via_gateway, mut routes): (Vec<Route>, Vec<Route>) =
        routes.into_iter().partition(|route| route.gateway.is_some());
    routes.extend(via_gateway);
    routes
}

fn key(result: &DeviceRequestAllocationResult) -> InterfaceKey {
    InterfaceKey {
        request: result.request.clone(),
        device: result.device.clone(),
        share_id: result.share_id.clone(),
    }
}
