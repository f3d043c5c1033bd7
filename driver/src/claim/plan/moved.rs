//! What keeps a link from being moved into a pod, as far as the node's inventory tells.

use k8s_openapi::api::resource::v1::DeviceRequestAllocationResult;

use super::{Place, PlanError, RESULTS, of_request};
use crate::{claim::config::InterfaceConfig, device::Device};

/// Refuse a link that has to stay on the host, and an MTU that it does not take. `index` is the place of the device among
/// the results.
pub(super) fn check(
    device: &Device,
    (index, result): (usize, &DeviceRequestAllocationResult),
    config: &InterfaceConfig,
    place: &Place<'_>,
    errors: &mut Vec<PlanError>,
) {
    const INSTEAD: &str = "a sub-interface (subInterface) or a network's port leaves it on the host";
    let field = || format!("{RESULTS}[{index}].device");
    if let Some(why) = device.not_movable {
        let allowed = format!("a link that can leave the host: {why}; {INSTEAD}");
        errors.push(PlanError::new(field(), &result.device, allowed));
    }
    if let Some(network) = place.uplinks.get(&device.name) {
        let allowed = format!("a link that is no network's uplink: network {network} uses it; {INSTEAD}");
        errors.push(PlanError::new(field(), &result.device, allowed));
    }
    let on_it =
        |(uplink, _): &(&String, &String)| place.inventory.below(uplink).contains(device.name.as_str());
    if let Some((uplink, network)) = place.uplinks.iter().find(on_it) {
        let allowed =
            format!("a link that no network's uplink stands on: network {network} uses {uplink}, which does");
        errors.push(PlanError::new(field(), &result.device, allowed));
    }
    let range = device.mtu_range;
    let fits = |mtu: u32| mtu >= range.least && (range.greatest == 0 || mtu <= range.greatest);
    if let Some(mtu) = config.mtu.filter(|mtu| !fits(*mtu)) {
        let upto = if range.greatest == 0 { String::new() } else { format!(" to {}", range.greatest) };
        let allowed = format!("{}{upto}, which link {} takes", range.least, device.ifname);
        errors.push(of_request(&result.request, PlanError::new("mtu", mtu, allowed)));
    }
}
