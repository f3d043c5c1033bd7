//! The allocated devices of a claim that are ours, and what each of them is.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::resource::v1::{DeviceAllocationResult, DeviceRequestAllocationResult};

use super::{Place, PlanError, RESULTS};
use crate::{
    device::Device,
    network::{names, offer::Offer, spec::AddressSource},
};

/// What an allocated device stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// A link of the host, which is moved.
    Link(&'a Device),
    /// A port of a network, which is made.
    Port(&'a Offer),
    /// An address of a network, for a port of the same claim.
    Address(&'a Offer, IpAddr),
}

impl Source<'_> {
    /// The interface's name in the pod, unless another one is asked for.
    pub(super) fn name(self) -> Option<String> {
        match self {
            Self::Link(device) => Some(device.ifname.clone()),
            Self::Port(asked) => Some(asked.network.reference.name.clone()),
            Self::Address(..) => None,
        }
    }
}

/// An allocated device of ours.
pub(super) struct Allocated<'a> {
    /// Its place among the results.
    pub(super) index: usize,
    pub(super) result: &'a DeviceRequestAllocationResult,
    pub(super) source: Source<'a>,
}

pub(super) fn our_results<'a>(
    allocation: &'a DeviceAllocationResult,
    place: &Place<'a>,
    errors: &mut Vec<PlanError>,
) -> Vec<Allocated<'a>> {
    let mut seen = BTreeSet::new();
    let mut any = false;
    let mut ours = Vec::new();
    for (index, result) in allocation.results.iter().flatten().enumerate() {
        if result.driver != place.driver {
            continue;
        }
        any = true;
        let at = |name: &str| format!("{RESULTS}[{index}].{name}");
        if result.admin_access == Some(true) {
            errors.push(PlanError::new(
                at("adminAccess"),
                true,
                "false: a link that another pod may use cannot be handed out a second time",
            ));
        }
        let source = match source(result, place) {
            Ok(source) => source,
            Err((field, value, allowed)) => {
                errors.push(PlanError::new(at(field), value, allowed));
                continue;
            }
        };
        if let (Source::Address(..), Some(share)) = (&source, &result.share_id) {
            errors.push(PlanError::new(at("shareID"), share, "none: addresses are not shared"));
        }
        // Ports of one network differ by their share, and without one by their request.
        let request = matches!(source, Source::Port(_)).then_some(&result.request);
        if !seen.insert((&result.pool, &result.device, &result.share_id, request)) {
            errors.push(PlanError::new(at("device"), &result.device, "each device once"));
        }
        ours.push(Allocated { index, result, source });
    }
    if !any {
        errors.push(PlanError::missing(RESULTS, format!("at least one device of driver {}", place.driver)));
    }
    ours
}

/// A field of a result, its value, and what is allowed.
type Refused<'a> = (&'static str, &'a str, String);

fn source<'a>(
    result: &'a DeviceRequestAllocationResult,
    place: &Place<'a>,
) -> Result<Source<'a>, Refused<'a>> {
    let (pool, device) = (result.pool.as_str(), result.device.as_str());
    if let Some(of) = names::pool_of(pool) {
        let network = of.network;
        let asked = may_join(network, "pool", pool, place)?;
        let (expected, what) = match asked.network.spec.addresses {
            AddressSource::Blocks => (names::block_pool(network, place.pool), "this node's blocks"),
            AddressSource::Allocated | AddressSource::Dhcp => {
                (Some(names::address_pool(network)), "addresses")
            }
        };
        if expected.as_deref() != Some(pool) {
            let expected = expected.unwrap_or_else(|| "none".to_owned());
            return Err(("pool", pool, format!("{expected}, the pool of {what} of network {network}")));
        }
        let address = names::device_address(device)
            .filter(|address| asked.network.spec.subnets.iter().any(|subnet| subnet.contains(*address)));
        let address = address.ok_or_else(|| {
            ("device", device, format!("a device that stands for an address of network {network}"))
        })?;
        return Ok(Source::Address(asked, address));
    }
    if pool != place.pool {
        return Err(("pool", pool, format!("{}, this node's pool", place.pool)));
    }
    if let Some(device) = place.inventory.devices.get(device) {
        return Ok(Source::Link(device));
    }
    match names::network_of_port(device) {
        Some(network) => may_join(network, "device", device, place).map(Source::Port),
        None => Err(("device", device, "a device that this node has now".to_owned())),
    }
}

fn may_join<'a>(
    network: &str,
    field: &'static str,
    value: &'a str,
    place: &Place<'a>,
) -> Result<&'a Offer, Refused<'a>> {
    let Some(asked) = place.networks.get(network) else {
        return Err((field, value, format!("one of a network that this node knows; {network} is none")));
    };
    match &asked.refused {
        None => Ok(asked),
        Some(why) => Err((field, value, format!("a network that the claim's namespace may join: {why}"))),
    }
}
