//! The two ends of a flow event, and which of them decided about it.

use std::{collections::BTreeMap, net::IpAddr};

use netferry_common::Direction;

use super::Decision;
use crate::{
    claim::Checkpoint,
    datapath::{EndpointId, events::FlowEvent, policy::Policy},
    holdings::Holder,
};

/// What is known of an endpoint of this node.
#[derive(Clone, Debug)]
struct End {
    holder: Holder,
    /// Name of the network it has a port on; `None` on the wire of a link.
    network: Option<String>,
    addresses: Vec<IpAddr>,
    policy: Option<Policy>,
}

/// Asks whether the policy of an endpoint denies a flow: direction, peer, protocol and port as policy sees them. `None` if it
/// cannot be told.
pub(super) type Denies = Box<dyn Fn(EndpointId, Direction, IpAddr, u8, u16) -> Option<bool> + Send + Sync>;

/// The endpoints of this node.
#[derive(Debug, Default)]
pub(super) struct Ends(BTreeMap<EndpointId, End>);

impl Ends {
    /// Those of all checkpoints.
    pub(super) fn of(checkpoints: &[Checkpoint]) -> Self {
        let records = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
        let ends = records.filter_map(|record| {
            let attachment = record.attachment.as_ref()?;
            let (pod, plan) = (attachment.sandbox.pod.clone(), &record.plan);
            let end = End {
                holder: Holder { pod, interface: plan.name.clone() },
                network: plan.port().map(|port| port.network.name.clone()),
                addresses: plan.addresses.iter().map(ipnetwork::IpNetwork::ip).collect(),
                policy: plan.policy.clone(),
            };
            Some((attachment.endpoint?, end))
        });
        Self(ends.collect())
    }

    /// Whether the endpoint is known.
    pub(super) fn has(&self, id: EndpointId) -> bool {
        self.0.contains_key(&id)
    }

    /// Who holds it.
    pub(super) fn holder(&self, id: EndpointId) -> Option<Holder> {
        self.0.get(&id).map(|end| end.holder.clone())
    }

    /// The endpoint that has an address on the same network. On wires, addresses of other endpoints may be of another wire.
    fn beside(&self, id: EndpointId, address: IpAddr) -> Option<EndpointId> {
        let network = self.0.get(&id)?.network.as_ref()?;
        let has = |end: &End| end.network.as_ref() == Some(network) && end.addresses.contains(&address);
        self.0.iter().find(|(other, end)| **other != id && has(end)).map(|(other, _)| *other)
    }

    /// Source and destination of an event, as far as they are endpoints of this node.
    pub(super) fn both(&self, event: &FlowEvent) -> [Option<EndpointId>; 2] {
        let own = self.has(event.endpoint).then_some(event.endpoint);
        let other = |address: Option<IpAddr>| address.and_then(|it| self.beside(event.endpoint, it));
        if event.direction == Direction::FromPod.name() {
            [own, other(event.destination)]
        } else {
            [other(event.source), own]
        }
    }

    /// Who dropped the frame of an event, and by which rule.
    pub(super) fn decision(&self, event: &FlowEvent, denies: &Denies) -> Option<Decision> {
        let reason = event.reason?;
        let from_pod = event.direction == Direction::FromPod.name();
        let decision = |id: EndpointId, by: &str, rule: Option<String>| {
            let holder = self.holder(id);
            Some(Decision { by: by.to_owned(), holder, rule })
        };
        if !matches!(reason, "policy_denied" | "policy_default" | "not_member") {
            return decision(
                event.endpoint,
                if from_pod { "checks of the sender" } else { "checks of the receiver" },
                None,
            );
        }
        let [_, receiver] = self.both(event);
        // Between two endpoints of a node, the sender's program asks both policies, the sender's first.
        let receiver = receiver.filter(|_| from_pod && !sender_denies(event, denies));
        let (id, side) = match receiver {
            Some(receiver) => (receiver, "ingress"),
            None => (event.endpoint, if from_pod { "egress" } else { "ingress" }),
        };
        let policy = self.0.get(&id).and_then(|end| end.policy.as_ref());
        let rule = match event.rule {
            Some(rule) => policy.and_then(|policy| policy.rule_name(rule)),
            None => Some(format!("{side}.otherwise")),
        };
        let by = if reason == "not_member" { "membership" } else { "policy" };
        decision(id, &format!("{side} {by}"), rule)
    }
}

/// Whether the sender's own policy denies the flow. In doubt it does: it is the one that is asked first.
fn sender_denies(event: &FlowEvent, denies: &Denies) -> bool {
    let (Some(peer), Ok(protocol)) = (event.destination, u8::try_from(event.protocol)) else {
        return true;
    };
    // An event has no type of an ICMP message: what opens a flow is nearly always an echo request.
    let port = match protocol {
        1 => 8 << 8,
        58 => 128 << 8,
        _ => event.destination_port,
    };
    denies(event.endpoint, Direction::FromPod, peer, protocol, port).unwrap_or(true)
}

#[cfg(test)]
#[path = "ends_tests.rs"]
mod tests;
