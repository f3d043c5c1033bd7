//! The names that a selector can ask for: those of a device, and the attributes and capacities that this driver publishes.

use super::kind::Kind;

/// Fields of `device`.
pub(super) const FIELDS: [&str; 4] = ["driver", "attributes", "capacity", "allowMultipleAllocations"];

/// Domain of the attributes that Kubernetes itself defines.
pub(super) const STANDARD_DOMAIN: &str = "resource.kubernetes.io";

/// The type of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// A string.
    String,
    /// A 64-bit integer.
    Int,
    /// True or false.
    Bool,
}

impl From<ValueKind> for Kind {
    fn from(kind: ValueKind) -> Self {
        match kind {
            ValueKind::String => Self::String,
            ValueKind::Int => Self::Int,
            ValueKind::Bool => Self::Bool,
        }
    }
}

/// Attributes of links in the driver's own domain.
pub const LINK_ATTRIBUTES: &[(&str, ValueKind)] = &[
    ("alias", ValueKind::String),
    ("defaultRoute", ValueKind::Bool),
    ("driver", ValueKind::String),
    ("foreignPrograms", ValueKind::Bool),
    ("ifName", ValueKind::String),
    ("ipv4", ValueKind::String),
    ("ipv6", ValueKind::String),
    ("kind", ValueKind::String),
    ("mac", ValueKind::String),
    ("master", ValueKind::String),
    ("mtu", ValueKind::Int),
    ("notMovable", ValueKind::String),
    ("numaNode", ValueKind::Int),
    ("parent", ValueKind::String),
    ("rdma", ValueKind::Bool),
    ("rdmaDevice", ValueKind::String),
    ("speedMbps", ValueKind::Int),
    ("sriov", ValueKind::String),
    ("sriovMaxVFs", ValueKind::Int),
    ("sriovPF", ValueKind::String),
    ("sriovVFIndex", ValueKind::Int),
    ("sriovVFs", ValueKind::Int),
    ("state", ValueKind::String),
    ("upperLinks", ValueKind::Int),
    ("virtual", ValueKind::Bool),
];

/// Attributes of the ports and addresses of networks in the driver's own domain, beside those of links.
pub const NETWORK_ATTRIBUTES: &[(&str, ValueKind)] = &[
    ("address", ValueKind::String),
    ("family", ValueKind::String),
    ("mtu", ValueKind::Int),
    ("network", ValueKind::String),
    ("transport", ValueKind::String),
    ("type", ValueKind::String),
    ("uplink", ValueKind::String),
];

/// Standard attributes whose type is known. There may be others.
pub const STANDARD_ATTRIBUTES: &[(&str, ValueKind)] =
    &[("pciBusID", ValueKind::String), ("pcieRoot", ValueKind::String)];

/// Capacities of links in the driver's own domain.
pub const LINK_CAPACITIES: &[&str] = &["bandwidth"];

/// Capacities of ports in the driver's own domain.
pub const PORT_CAPACITIES: &[&str] = &["ports"];

/// Of `known`, the name that was probably meant by `name`: at most two letters are different, or only their case.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let least = name.len().min(6) / 3;
    let distance = |known: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase());
    let near = known.into_iter().map(|known| (distance(known), known));
    near.filter(|(distance, _)| *distance <= least).min().map(|(_, known)| known)
}

/// ` (did you mean "…"?)`, or nothing.
pub(super) fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map(|known| format!(" (did you mean {known:?}?)")).unwrap_or_default()
}
