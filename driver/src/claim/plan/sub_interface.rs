//! Who may have a host link: one claim that moves it, or several that have something made on it.

use super::{Place, PlanError, RESULTS, Source, Wanted, key, moved, of_request};
use crate::{
    claim::{ClaimRef, config::Holder, made},
    link::SubInterface,
};

/// Refuse what cannot be on a link beside what others have of it, and fill in what the link decides. Ports have no
/// link.
pub(super) fn complete(
    wanted: &mut Wanted<'_>,
    claim: &ClaimRef,
    place: &Place<'_>,
    errors: &mut Vec<PlanError>,
) {
    let (result, config) = (wanted.result, &mut wanted.config);
    let at = |name: &str| format!("{RESULTS}[{}].{name}", wanted.index);
    let Source::Link(device) = wanted.source else {
        if let Some(sub_interface) = config.sub_interface {
            let error = PlanError::new("subInterface", sub_interface, "none with the port of a network");
            errors.push(of_request(&result.request, error));
        }
        return;
    };
    let others = place.prepared.iter().filter(|checkpoint| checkpoint.claim.uid != claim.uid);
    let held = others
        .flat_map(|checkpoint| checkpoint.interfaces.iter().map(|record| (&checkpoint.claim, &record.plan)))
        .filter(|(_, plan)| plan.device == result.device && plan.port().is_none());
    let Some(sub_interface) = config.sub_interface else {
        if let Some(share) = &result.share_id {
            let allowed = "none: a link is not shared, only what is made on it (subInterface)";
            errors.push(PlanError::new(at("shareID"), share, allowed));
        }
        if let Some((holder, _)) = held.into_iter().next() {
            let allowed = format!("a device that no claim holds; claim {holder} holds this one");
            let error = PlanError::new(at("device"), &result.device, allowed);
            errors.push(error.held_by(Holder::Claim(holder.clone())));
        }
        moved::check(device, (wanted.index, result), config, place, errors);
        return;
    };
    if let (SubInterface::Macvlan(_), None) = (sub_interface, config.hardware_addr) {
        config.hardware_addr = Some(made::hardware_addr(claim, &key(result)));
    }
    for (holder, plan) in held {
        let refused = match plan.sub_interface() {
            None => {
                Some((at("device"), result.device.clone(), "a device that no claim has moved".to_owned()))
            }
            Some(theirs) if !sub_interface.goes_with(theirs) => {
                let field = format!("request {}: subInterface", result.request);
                Some((field, sub_interface.to_string(), format!("what goes with {theirs} on one link")))
            }
            Some(_) if plan.hardware_addr.is_some() && plan.hardware_addr == config.hardware_addr => {
                let field = format!("request {}: hardwareAddr", result.request);
                let mac = config.hardware_addr.map(|mac| mac.to_string()).unwrap_or_default();
                Some((field, mac, "an address of its own on the link".to_owned()))
            }
            Some(_) => None,
        };
        if let Some((field, value, allowed)) = refused {
            let error = PlanError::new(field, value, format!("{allowed}; claim {holder} has this one"));
            errors.push(error.held_by(Holder::Claim(holder.clone())));
            return;
        }
    }
    if let Some(mtu) = config.mtu.filter(|mtu| *mtu > device.mtu) {
        let allowed = format!("at most {}, the MTU of its parent {}", device.mtu, device.ifname);
        errors.push(of_request(&result.request, PlanError::new("mtu", mtu, allowed)));
    }
}

#[cfg(test)]
mod tests;
