//! A network's policy and limits, and those of a class or claim: what passes must pass both.

use super::PlanError;
use crate::datapath::{
    limits::{Limits, RateLimit},
    policy::{Action, Otherwise, Policy, Rules},
};

const DENY_ONLY: &str =
    "deny rules only: what may leave the network is said by the network or the device class";
const ONE_LIST: &str = "deny rules only, because the network's policy has allow rules of its own";

/// Both policies in one. An allow rule also opens a network to who is no member of it, so a claim has none.
pub(super) fn policy(
    network: Option<&Policy>,
    own: Option<Policy>,
    of_class: bool,
) -> Result<Option<Policy>, PlanError> {
    let Some(own) = own else { return Ok(network.cloned()) };
    let base = network.cloned().unwrap_or_default();
    let side = |name: &str, base: &Rules, own: &Rules| {
        if !of_class && let Some(index) = first_allow(own) {
            let field = format!("policy.{name}.rules[{index}].action");
            return Err(PlanError::new(field, "\"allow\"", DENY_ONLY));
        }
        both(base, own).ok_or_else(|| PlanError::new(format!("policy.{name}"), "this policy", ONE_LIST))
    };
    Ok(Some(Policy {
        ingress: side("ingress", &base.ingress, &own.ingress)?,
        egress: side("egress", &base.egress, &own.egress)?,
    }))
}

/// As [`policy`], for a port that is in use, where nothing can be refused any more: a direction in which rules cannot say
/// what passes both sides is closed. Says why, if it is.
pub(super) fn policy_or_closed(
    network: Option<&Policy>,
    own: Option<&Policy>,
    of_class: bool,
) -> (Option<Policy>, Option<PlanError>) {
    let error = match policy(network, own.cloned(), of_class) {
        Ok(policy) => return (policy, None),
        Err(error) => error,
    };
    let (base, own) = (network.cloned().unwrap_or_default(), own.cloned().unwrap_or_default());
    let side = |base: &Rules, own: &Rules| both(base, own).unwrap_or_else(closed_rules);
    let policy =
        Policy { ingress: side(&base.ingress, &own.ingress), egress: side(&base.egress, &own.egress) };
    (Some(policy), Some(error))
}

const fn closed_rules() -> Rules {
    Rules { otherwise: Some(Otherwise::Deny), rules: Vec::new() }
}

fn first_allow(rules: &Rules) -> Option<usize> {
    rules.rules.iter().position(|rule| rule.action == Action::Allow)
}

/// Rules that let through what both do. `None` where rules cannot say that: an allow rule of each side would have
/// to match.
fn both(one: &Rules, other: &Rules) -> Option<Rules> {
    // Where members pass anyway, an allow rule adds only others, whom the other side does not let in.
    let open = |rules: &Rules| rules.otherwise() == Otherwise::Network && first_allow(rules).is_none();
    let closed = |rules: &Rules| rules.otherwise() == Otherwise::Deny && first_allow(rules).is_none();
    let with_denies_of = |base: &Rules, other: &Rules| {
        let denies = other.rules.iter().filter(|rule| rule.action == Action::Deny);
        Rules { otherwise: Some(base.otherwise()), rules: base.rules.iter().chain(denies).cloned().collect() }
    };
    if closed(one) || closed(other) {
        return Some(closed_rules());
    }
    if open(other) {
        return Some(with_denies_of(one, other));
    }
    open(one).then(|| with_denies_of(other, one))
}

/// The lower one of each limit.
pub(super) fn limits(network: Option<Limits>, own: Option<Limits>) -> Option<Limits> {
    let (network, own) = match (network, own) {
        (Some(network), Some(own)) => (network, own),
        (one, other) => return one.or(other),
    };
    let least = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
    let side = |network: Option<RateLimit>, own: Option<RateLimit>| match (network, own) {
        (Some(network), Some(own)) => Some(lower(network, own)),
        (one, other) => one.or(other),
    };
    Some(Limits {
        ingress: side(network.ingress, own.ingress),
        egress: side(network.egress, own.egress),
        open_flows: least(network.open_flows, own.open_flows),
    })
}

fn lower(one: RateLimit, other: RateLimit) -> RateLimit {
    let least = |one: Option<u64>, other: Option<u64>| match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    RateLimit {
        bits_per_second: least(one.bits_per_second, other.bits_per_second),
        // Left out, it follows from the rate.
        burst_bytes: least(one.burst_bytes, other.burst_bytes),
        packets_per_second: least(one.packets_per_second, other.packets_per_second),
        new_flows_per_second: least(one.new_flows_per_second, other.new_flows_per_second),
    }
}

#[cfg(test)]
mod tests;
