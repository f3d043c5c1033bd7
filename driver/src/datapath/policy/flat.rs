//! Rules without names: every peer a prefix, every port a range. And the evaluator that says what they mean.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use netferry_common::Direction;

use super::prefix::Prefix;
use super::{Action, Otherwise, Peer, Policy, PolicyError, Port, Rule};

/// Who is behind the names in a policy, now. `None` is not known yet: then a rule that allows is for nobody, and one
/// that denies is for everybody.
pub trait Peers {
    /// Addresses of the members of a network.
    fn network(&self, name: &str) -> Option<Vec<IpAddr>>;
    /// Addresses of the endpoints on the policy's own network whose pods have these labels. Those of which it is not
    /// known count if the rule denies.
    fn selected(&self, labels: &BTreeMap<String, String>, action: Action) -> Option<Vec<IpAddr>>;
}

/// One rule for one prefix and one range of ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlatRule {
    /// Number of the rule it comes from, see [`Policy::rule_name`].
    pub rule: u32,
    /// What it does.
    pub action: Action,
    /// Peers it is for; `None` is every peer.
    pub peer: Option<Prefix>,
    /// IP protocol; `None` is every one.
    pub protocol: Option<u8>,
    /// Destination ports; all of them where the protocol has none.
    pub ports: RangeInclusive<u16>,
}

/// What decides about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decision {
    /// A rule, by number.
    Rule(Action, u32),
    /// No rule.
    Otherwise(Otherwise),
}

/// Resolves names and takes rules apart. The policy must be valid.
pub fn flatten(
    policy: &Policy,
    direction: Direction,
    peers: &dyn Peers,
) -> Result<(Vec<FlatRule>, Otherwise), PolicyError> {
    policy.validate()?;
    let rules = policy.side(direction);
    let mut flat = Vec::new();
    for (number, rule) in (policy.first_number(direction)..).zip(&rules.rules) {
        let from: Vec<Option<Prefix>> = match &rule.peers {
            None => vec![None],
            Some(named) => named.iter().flat_map(|peer| prefixes(peer, rule.action, peers)).collect(),
        };
        for (protocol, ports) in port_ranges(rule) {
            flat.extend(from.iter().map(|peer| FlatRule {
                rule: number,
                action: rule.action,
                peer: *peer,
                protocol,
                ports: ports.clone(),
            }));
        }
    }
    flat.sort_unstable_by_key(|rule| (rule.peer, rule.protocol, *rule.ports.start(), rule.rule));
    flat.dedup();
    Ok((flat, rules.otherwise()))
}

/// The prefixes of a peer; `None` among them is every peer.
fn prefixes(peer: &Peer, action: Action, peers: &dyn Peers) -> Vec<Option<Prefix>> {
    let mut found: Vec<Option<Prefix>> = peer.cidr.into_iter().map(|cidr| Some(cidr.into())).collect();
    let members = peer.network.as_deref().map(|name| peers.network(name));
    let selected = peer.pod_selector.as_ref().map(|labels| peers.selected(labels, action));
    for named in [members, selected].into_iter().flatten() {
        match (named, action) {
            (Some(addresses), _) => found.extend(addresses.into_iter().map(|it| Some(Prefix::host(it)))),
            (None, Action::Deny) => found.push(None),
            (None, Action::Allow) => {}
        }
    }
    found
}

fn port_ranges(rule: &Rule) -> Vec<(Option<u8>, RangeInclusive<u16>)> {
    let Some(ports) = &rule.ports else { return vec![(None, 0..=u16::MAX)] };
    let mut ranges = Vec::new();
    for Port { protocol, port, end_port } in ports {
        let range = port.map_or(0..=u16::MAX, |first| first..=end_port.unwrap_or(first));
        match protocol.numbers() {
            None => ranges.push((None, range)),
            Some(numbers) => ranges.extend(numbers.iter().map(|number| (Some(*number), range.clone()))),
        }
    }
    ranges
}

impl FlatRule {
    /// Whether a flow is one of its.
    #[must_use]
    pub fn matches(&self, peer: IpAddr, protocol: u8, port: u16) -> bool {
        self.peer.is_none_or(|prefix| prefix.contains(peer))
            && self.protocol.is_none_or(|own| own == protocol)
            && self.ports.contains(&port)
    }
}

/// What a set of flat rules says about a flow, rule by rule: the meaning that compiled entries must have. Of
/// several rules that decide alike, the lowest number is named.
#[must_use]
pub fn evaluate(rules: &[FlatRule], otherwise: Otherwise, peer: IpAddr, protocol: u8, port: u16) -> Decision {
    let first = |action| {
        rules
            .iter()
            .filter(|rule| rule.action == action && rule.matches(peer, protocol, port))
            .map(|rule| rule.rule)
            .min()
    };
    if let Some(rule) = first(Action::Deny) {
        return Decision::Rule(Action::Deny, rule);
    }
    first(Action::Allow).map_or(Decision::Otherwise(otherwise), |rule| Decision::Rule(Action::Allow, rule))
}
