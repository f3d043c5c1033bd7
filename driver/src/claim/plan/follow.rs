//! What the port of a claim comes to when its network says something else: pure.
//!
//! The checkpoint has what class and claim ask for ([`Asked`]) beside the plan, which has it together with what the network
//! said when it was last resolved.

use super::{
    in_order, narrow,
    port::{gateway_of, goes_through_network, send_through},
};
use crate::{
    claim::{Asked, InterfacePlan, Made},
    datapath::{limits::Limits, policy::Policy},
    link::Route,
    network::spec::NetworkSpec,
};

/// What a network and a claim say together of a port that is in use. Its addresses, hardware address and MTU stay what they
/// were when it was prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// What it may talk to.
    pub policy: Option<Policy>,
    /// How much.
    pub limits: Option<Limits>,
    /// Its routes, those through the network's gateways among them.
    pub routes: Vec<Route>,
    /// Why its policy is closed in a direction, if it is: both sides have rules that cannot be in force together.
    pub closed: Option<String>,
}

/// What the plan of a port is to say now that its network is as in `spec`. `None` of an interface that is no port, or whose
/// checkpoint does not tell what was asked for.
#[must_use]
pub fn terms(spec: &NetworkSpec, plan: &InterfacePlan) -> Option<Terms> {
    let Asked { policy, policy_of_class, limits, routes } = plan.port()?.asked.as_deref()?;
    let (policy, closed) = narrow::policy_or_closed(spec.policy.as_ref(), policy.as_ref(), *policy_of_class);
    Some(Terms {
        policy,
        limits: narrow::limits(spec.limits, *limits),
        routes: followed(spec, routes, &plan.routes),
        closed: closed.map(|error| error.to_string()),
    })
}

/// A route that has no gateway of its own goes through the network's. Where the network has none of its family, it stays as
/// it is: a lease had one, or the network had.
fn followed(spec: &NetworkSpec, asked: &[Route], now: &[Route]) -> Vec<Route> {
    let follow = |route: &Route| {
        let mut route = route.clone();
        if goes_through_network(spec, &route) {
            let same = |other: &&Route| (other.destination, other.table) == (route.destination, route.table);
            let as_it_is = now.iter().find(same).and_then(|route| route.gateway);
            if let Some(gateway) = gateway_of(&spec.gateways, &route).or(as_it_is) {
                send_through(&mut route, gateway);
            }
        }
        route
    };
    in_order(asked.iter().map(follow).collect())
}

impl Terms {
    /// Whether a plan says the same.
    #[must_use]
    pub fn are_those_of(&self, plan: &InterfacePlan) -> bool {
        self.policy == plan.policy && self.limits == plan.limits && self.routes == plan.routes
    }

    /// Have a plan say this. `in_use` is whether a pod has the interface, so that it has to be applied there.
    pub fn write(self, plan: &mut InterfacePlan, in_use: bool) {
        (plan.policy, plan.limits, plan.routes) = (self.policy, self.limits, self.routes);
        if let Some(Made::Port(port)) = &mut plan.made {
            port.unapplied |= in_use;
        }
    }
}

#[cfg(test)]
mod tests;
