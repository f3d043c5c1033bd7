//! Policy: what an endpoint may talk to, as people write it.
//!
//! Rules have no order. For each direction: a deny rule that matches wins; else an allow rule that matches
//! lets the flow pass; else [`Otherwise`] decides. A flow is judged by its first packet, in its direction;
//! answers belong to the flow.

mod compile;
mod flat;
mod install;
mod peers;
mod ports;
mod prefix;

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use netferry_common::Direction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::label;

pub use compile::{Compiled, Room, RuleEntry, compile};
pub use flat::{Decision, FlatRule, Peers, evaluate, flatten};
pub use install::CompiledPolicy;
pub(in crate::datapath) use install::PolicyTables;
pub use peers::{Name, Resolved};
pub use prefix::Prefix;

/// Rules for both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Flows that others open to the endpoint.
    #[serde(default)]
    pub ingress: Rules,
    /// Flows that the endpoint opens.
    #[serde(default)]
    pub egress: Rules,
}

/// Rules for one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rules {
    /// What happens to a flow that no rule matches. Left out: `deny` if there is an allow rule, `network` if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Otherwise>,
    /// The rules, in any order.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub rules: Vec<Rule>,
}

/// The decision about a flow that no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// As without any policy: members of the endpoint's network may talk, others may not. On the wire of a
    /// moved link, everybody may.
    Network,
    /// Dropped.
    Deny,
}

/// One rule: an action for the flows between the endpoint and some peers, on some ports.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// What is done with a flow that matches.
    pub action: Action,
    /// Any of these; left out, every peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub peers: Option<Vec<Peer>>,
    /// Any of these; left out, every protocol and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub ports: Option<Vec<Port>>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Lets the flow pass, unless a deny rule matches too.
    Allow,
    /// Drops it.
    Deny,
}

/// Who is at the other end: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct Peer {
    /// Addresses in a prefix. Host bits must be 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 43))]
    pub cidr: Option<IpNetwork>,
    /// Every member of a network, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Every endpoint on the same network whose pod has all of these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<BTreeMap<String, String>>,
}

/// A protocol, with a port or a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port, or the first of a range. Left out, every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The last port of the range that `port` begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub end_port: Option<u16>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
pub enum Protocol {
    /// Protocol 6.
    #[serde(rename = "TCP")]
    Tcp,
    /// Protocol 17.
    #[serde(rename = "UDP")]
    Udp,
    /// Protocol 132.
    #[serde(rename = "SCTP")]
    Sctp,
    /// ICMP with IPv4 (protocol 1), ICMPv6 with IPv6 (protocol 58).
    #[serde(rename = "ICMP")]
    Icmp,
    /// Every protocol.
    #[serde(rename = "any")]
    Any,
}

impl Protocol {
    /// IP protocol numbers; `None` for every one.
    #[must_use]
    pub const fn numbers(self) -> Option<&'static [u8]> {
        match self {
            Self::Tcp => Some(&[6]),
            Self::Udp => Some(&[17]),
            Self::Sctp => Some(&[132]),
            Self::Icmp => Some(&[1, 58]),
            Self::Any => None,
        }
    }

    const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }
}

/// A policy that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A field has a value it cannot have.
    #[error("{field}: {value} is not allowed; {allowed}")]
    Invalid {
        /// Path of the field, for example `egress.rules[2].ports[0].endPort`.
        field: String,
        /// What was given.
        value: String,
        /// What may be given.
        allowed: &'static str,
    },
    /// It needs more map entries than there are.
    #[error("the policy needs {needed} {what}, and {free} are free; nothing was changed")]
    TooLarge {
        /// `peer entries` or `verdict entries`.
        what: &'static str,
        /// How many it needs.
        needed: usize,
        /// How many there are.
        free: usize,
    },
}

impl Policy {
    /// The rules for flows in a direction, as seen from the pod.
    #[must_use]
    pub fn side(&self, direction: Direction) -> &Rules {
        match direction {
            Direction::FromPod => &self.egress,
            Direction::ToPod => &self.ingress,
        }
    }

    /// Number of the first rule of a direction. Rules are numbered from 1 through both: a number alone names one.
    fn first_number(&self, direction: Direction) -> u32 {
        match direction {
            Direction::ToPod => 1,
            Direction::FromPod => 1 + u32::try_from(self.ingress.rules.len()).unwrap_or(u32::MAX),
        }
    }

    /// The rule of a number in events and map entries, as a path into the policy: `egress.rules[2]`.
    #[must_use]
    pub fn rule_name(&self, number: u32) -> Option<String> {
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        let ingress = self.ingress.rules.len();
        match at.checked_sub(ingress) {
            None => Some(format!("ingress.rules[{at}]")),
            Some(at) if at < self.egress.rules.len() => Some(format!("egress.rules[{at}]")),
            Some(_) => None,
        }
    }

    /// The rule of a number.
    #[must_use]
    pub fn rule(&self, number: u32) -> Option<&Rule> {
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        self.ingress.rules.iter().chain(&self.egress.rules).nth(at)
    }

    /// Checks what the types do not.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for (name, rules) in [("ingress", &self.ingress), ("egress", &self.egress)] {
            for (at, rule) in rules.rules.iter().enumerate() {
                rule.validate(&format!("{name}.rules[{at}]"))?;
            }
        }
        Ok(())
    }
}

impl Rules {
    /// What happens to a flow that no rule matches.
    #[must_use]
    pub fn otherwise(&self) -> Otherwise {
        let allows = || self.rules.iter().any(|rule| rule.action == Action::Allow);
        self.otherwise.unwrap_or_else(|| if allows() { Otherwise::Deny } else { Otherwise::Network })
    }
}

impl Rule {
    fn validate(&self, field: &str) -> Result<(), PolicyError> {
        if self.peers.as_ref().is_some_and(Vec::is_empty) {
            return Err(invalid(
                format!("{field}.peers"),
                "[]",
                "name peers, or leave it out for every peer",
            ));
        }
        if self.ports.as_ref().is_some_and(Vec::is_empty) {
            return Err(invalid(
                format!("{field}.ports"),
                "[]",
                "name ports, or leave it out for every port",
            ));
        }
        for (at, peer) in self.peers.iter().flatten().enumerate() {
            peer.validate(&format!("{field}.peers[{at}]"))?;
        }
        for (at, port) in self.ports.iter().flatten().enumerate() {
            port.validate(&format!("{field}.ports[{at}]"))?;
        }
        Ok(())
    }
}

impl Peer {
    fn validate(&self, field: &str) -> Result<(), PolicyError> {
        let given = [self.cidr.is_some(), self.network.is_some(), self.pod_selector.is_some()];
        let count = given.into_iter().filter(|given| *given).count();
        if count != 1 {
            let allowed = "exactly one of cidr, network and podSelector";
            return Err(invalid(field, &format!("{count} of its fields"), allowed));
        }
        if let Some(cidr) = self.cidr {
            let field = format!("{field}.cidr");
            if cidr.ip() != cidr.network() {
                return Err(invalid(field, &cidr, "a prefix whose host bits are 0"));
            }
            if let IpNetwork::V6(v6) = cidr
                && v6.prefix() >= 96
                && v6.ip().to_ipv4_mapped().is_some()
            {
                return Err(invalid(field, &cidr, "an IPv4 prefix is written as IPv4"));
            }
        }
        if self.network.as_ref().is_some_and(String::is_empty) {
            return Err(invalid(format!("{field}.network"), "\"\"", "the name of a network"));
        }
        if self.pod_selector.as_ref().is_some_and(BTreeMap::is_empty) {
            let allowed = "one label or more; every member is `network`";
            return Err(invalid(format!("{field}.podSelector"), "{}", allowed));
        }
        for (key, value) in self.pod_selector.iter().flatten() {
            let field = format!("{field}.podSelector[{key:?}]");
            label::key(key).map_err(|allowed| invalid(&*field, &format!("{key:?}"), allowed))?;
            label::value(value).map_err(|allowed| invalid(field, &format!("{value:?}"), allowed))?;
        }
        Ok(())
    }
}

impl Port {
    fn validate(&self, field: &str) -> Result<(), PolicyError> {
        if let Some(port) = self.port {
            if !self.protocol.has_ports() {
                let allowed = "a port goes with TCP, UDP or SCTP only";
                return Err(invalid(format!("{field}.port"), &port, allowed));
            }
            if port == 0 {
                return Err(invalid(format!("{field}.port"), &port, "1 to 65535"));
            }
        }
        match (self.port, self.end_port) {
            (None, Some(end)) => Err(invalid(format!("{field}.endPort"), &end, "it goes with port only")),
            (Some(port), Some(end)) if end < port => {
                Err(invalid(format!("{field}.endPort"), &end, "port to 65535"))
            }
            _ => Ok(()),
        }
    }
}

fn invalid(field: impl Into<String>, value: &(impl ToString + ?Sized), allowed: &'static str) -> PolicyError {
    PolicyError::Invalid { field: field.into(), value: value.to_string(), allowed }
}

#[cfg(test)]
mod tests;
