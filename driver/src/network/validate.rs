//! What a network's fields may be, and what two networks may not both have.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use super::{
    blocks::BLOCK,
    join, mtu, names,
    spec::{AddressSource, NetworkSpec, Transport, UplinkTransport},
};
use crate::{
    claim::config::{self, FieldError},
    datapath::policy::PolicyError,
    device::{names::is_dns_label, rule::Rule},
    label,
};

/// Smallest IPv4 MTU that every path has to carry in one piece (RFC 791).
const MIN_MTU: u32 = 576;
/// Longest selector (`CELSelectorExpressionMaxLength` in `k8s.io/api/resource/v1`).
const MAX_SELECTOR: usize = 10 * 1024;
/// Largest VLAN id that is a VLAN (IEEE 802.1Q: 0 and 4095 are reserved).
const MAX_VLAN: u16 = 4094;
/// Longest prefix of a subnet that is given to nodes in blocks: four blocks. The rule in the object's definition is the same.
const MAX_BLOCKS_V4: u8 = 24;
/// The same for IPv6.
const MAX_BLOCKS_V6: u8 = 120;
/// Largest VXLAN network identifier: 24 bits (RFC 7348). 0 is kept free.
const MAX_VNI: u32 = (1 << 24) - 1;

/// Read `spec` as it stands in an object. Unknown fields are refused: a misspelt one would be as if it were not
/// there.
pub fn parse(spec: &Value) -> Result<NetworkSpec, FieldError> {
    if spec.is_null() {
        return Err(FieldError::missing("spec", "subnets and transport are required"));
    }
    let parsed = config::read("spec", spec)?;
    // The selector is Kubernetes' own type, which passes over what it does not know; a selector without its
    // conditions would let every namespace in.
    selector_fields(spec).map_or(Ok(parsed), Err)
}

fn selector_fields(spec: &Value) -> Option<FieldError> {
    let unknown = |value: &Value, field: &str, known: &[&str]| {
        let names = value.as_object()?.keys();
        let name = names.into_iter().find(|name| !known.contains(&name.as_str()))?;
        Some(FieldError::new(format!("{field}.{name}"), &value[name], known.join(", ")))
    };
    let selector = spec.get("namespaceSelector")?;
    let field = "spec.namespaceSelector";
    unknown(selector, field, &["matchLabels", "matchExpressions"]).or_else(|| {
        let mut entries = selector.get("matchExpressions")?.as_array()?.iter().enumerate();
        let known = ["key", "operator", "values"];
        entries.find_map(|(at, entry)| unknown(entry, &format!("{field}.matchExpressions[{at}]"), &known))
    })
}

/// Everything that is wrong with a network by itself.
#[must_use]
pub fn validate(name: &str, spec: &NetworkSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !is_dns_label(name) || name.len() > names::MAX_NAME {
        let allowed = format!("a DNS label (a-z, 0-9, '-') of at most {} characters", names::MAX_NAME);
        errors.push(FieldError::new("metadata.name", name, allowed));
    }
    subnets(&spec.subnets, &mut errors);
    gateways(spec, &mut errors);
    transport(&spec.transport, &mut errors);
    dhcp(spec, &mut errors);
    blocks(spec, &mut errors);
    link_mtu(spec, &mut errors);
    if let Some(selector) = &spec.namespace_selector {
        namespaces(selector, &mut errors);
    }
    if let Some(policy) = &spec.policy {
        let checked = policy.validate();
        errors.extend(checked.err().map(|error| match error {
            PolicyError::Invalid { field, value, allowed } => {
                FieldError::new(format!("spec.policy.{field}"), value, allowed)
            }
            too_large @ PolicyError::TooLarge { .. } => {
                FieldError::new("spec.policy", "too large", too_large.to_string())
            }
        }));
    }
    if let Some(Err(error)) = spec.limits.map(|limits| limits.validate()) {
        errors.push(FieldError::new(error.field, error.value, error.allowed).under("spec.limits"));
    }
    errors
}

fn subnets(subnets: &[IpNetwork], errors: &mut Vec<FieldError>) {
    if subnets.is_empty() || subnets.len() > 2 {
        let value = format!("{} subnets", subnets.len());
        errors.push(FieldError::new("spec.subnets", value, "one of each family at most, and one at least"));
    }
    for (at, subnet) in subnets.iter().enumerate() {
        let mut refuse =
            |allowed: &str| errors.push(FieldError::new(format!("spec.subnets[{at}]"), subnet, allowed));
        if subnet.ip() != subnet.network() {
            refuse("a prefix whose host bits are 0");
        }
        if subnets[..at].iter().any(|other| other.is_ipv4() == subnet.is_ipv4()) {
            refuse("at most one subnet of each family");
        }
        let most = if subnet.is_ipv4() { 30 } else { 126 };
        if subnet.prefix() > most {
            refuse("a prefix of at most 30 bits (IPv4) or 126 (IPv6): it needs room for addresses");
        } else if subnet.prefix() < 8 || !is_unicast(subnet.network()) {
            refuse("unicast addresses that are routed, in a prefix of 8 bits or more");
        }
    }
}

/// Neither loopback, link-local, multicast nor reserved, nor IPv4 in IPv6's clothes.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.octets()[0] == 0 || v4.octets()[0] >= 224)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

fn gateways(spec: &NetworkSpec, errors: &mut Vec<FieldError>) {
    for (at, gateway) in spec.gateways.iter().enumerate() {
        let mut refuse =
            |allowed: &str| errors.push(FieldError::new(format!("spec.gateways[{at}]"), gateway, allowed));
        if spec.gateways[..at].iter().any(|other| other.is_ipv4() == gateway.is_ipv4()) {
            refuse("at most one gateway of each family");
        }
        match spec.subnets.iter().find(|subnet| subnet.contains(*gateway)) {
            None => refuse("an address in one of the subnets"),
            Some(subnet) if subnet.network() == *gateway => {
                refuse("an address other than the subnet's first, which stands for the subnet");
            }
            Some(subnet) if subnet.is_ipv4() && subnet.broadcast() == *gateway => {
                refuse("an address other than the subnet's broadcast address");
            }
            Some(_) => {}
        }
    }
    if spec.transport.uplink.as_ref().is_some_and(UplinkTransport::is_routed)
        && let Some(without) =
            spec.subnets.iter().find(|subnet| !spec.gateways.iter().any(|gateway| subnet.contains(*gateway)))
    {
        let given: Vec<_> = spec.gateways.iter().map(ToString::to_string).collect();
        let allowed = format!("a gateway in {without}, too: the node answers for it where mode is routed");
        errors.push(FieldError::new("spec.gateways", format!("[{}]", given.join(", ")), allowed));
    }
}

fn transport(transport: &Transport, errors: &mut Vec<FieldError>) {
    let set = [transport.local.is_some(), transport.uplink.is_some(), transport.overlay.is_some()];
    let set = set.into_iter().filter(|set| *set).count();
    if set != 1 {
        let allowed = "exactly one of local, uplink and overlay";
        errors.push(FieldError::new("spec.transport", format!("{set} of its fields"), allowed));
    }
    if let Some(uplink) = &transport.uplink {
        let field = "spec.transport.uplink.selector";
        if uplink.selector.is_empty() || uplink.selector.len() > MAX_SELECTOR {
            let allowed = format!("a CEL expression of 1 to {MAX_SELECTOR} bytes");
            errors.push(FieldError::new(field, &uplink.selector, allowed));
        } else if let Err(error) = Rule::new(crate::DRIVER_NAME, &uplink.selector, true) {
            let allowed = format!("a CEL expression over a link's attributes ({})", error.place());
            errors.push(FieldError::new(field, &uplink.selector, allowed));
        }
        let field = "spec.transport.uplink.vlan";
        match uplink.vlan {
            Some(vlan) if uplink.is_routed() => {
                let allowed =
                    "none where mode is routed; to route over a VLAN, select a VLAN link as the uplink";
                errors.push(FieldError::new(field, vlan, allowed));
            }
            Some(vlan) if !(1..=MAX_VLAN).contains(&vlan) => {
                errors.push(FieldError::new(field, vlan, format!("1 to {MAX_VLAN}")));
            }
            _ => {}
        }
    }
    if let Some(overlay) = transport.overlay
        && !(1..=MAX_VNI).contains(&overlay.vni)
    {
        errors.push(FieldError::new("spec.transport.overlay.vni", overlay.vni, format!("1 to {MAX_VNI}")));
    }
}

fn dhcp(spec: &NetworkSpec, errors: &mut Vec<FieldError>) {
    if spec.addresses != AddressSource::Dhcp {
        return;
    }
    let refused = match &spec.transport.uplink {
        None => Some("allocated, or a transport.uplink, behind which a DHCP server is asked"),
        Some(uplink) if uplink.is_routed() => {
            Some("allocated where mode is routed: the network that the uplink is on is another one")
        }
        Some(_) => None,
    };
    if let Some(allowed) = refused {
        errors.push(FieldError::new("spec.addresses", "dhcp", allowed));
    }
    for (at, subnet) in spec.subnets.iter().enumerate().filter(|(_, subnet)| subnet.is_ipv6()) {
        let allowed = "an IPv4 subnet alone with addresses dhcp: there is no DHCPv6";
        errors.push(FieldError::new(format!("spec.subnets[{at}]"), subnet, allowed));
    }
}

/// A subnet has room for the blocks of a few nodes at least.
fn blocks(spec: &NetworkSpec, errors: &mut Vec<FieldError>) {
    if spec.addresses != AddressSource::Blocks {
        return;
    }
    for (at, subnet) in spec.subnets.iter().enumerate() {
        let most = if subnet.is_ipv4() { MAX_BLOCKS_V4 } else { MAX_BLOCKS_V6 };
        if subnet.prefix() > most {
            let allowed = format!(
                "a prefix of at most {MAX_BLOCKS_V4} bits (IPv4) or {MAX_BLOCKS_V6} (IPv6) with addresses blocks: \
                 each node has blocks of {BLOCK} addresses; smaller subnets are for addresses allocated"
            );
            errors.push(FieldError::new(format!("spec.subnets[{at}]"), subnet, allowed));
        }
    }
}

fn link_mtu(spec: &NetworkSpec, errors: &mut Vec<FieldError>) {
    let Some(given) = spec.mtu else { return };
    let six = spec.subnets.iter().any(IpNetwork::is_ipv6);
    let least = if six { mtu::IPV6_MIN } else { MIN_MTU };
    let overhead = if spec.transport.overlay.is_some() { mtu::OVERHEAD_V6 } else { 0 };
    let most = mtu::MAX - overhead;
    if !(least..=most).contains(&given) {
        let why = match (six, overhead) {
            (true, 0) => " (IPv6 needs 1280)",
            (true, _) => " (IPv6 needs 1280, and the tunnel's headers 70)",
            (false, 0) => "",
            (false, _) => " (the tunnel's headers need 70)",
        };
        errors.push(FieldError::new("spec.mtu", given, format!("{least} to {most}{why}")));
    }
}

fn namespaces(selector: &LabelSelector, errors: &mut Vec<FieldError>) {
    for (key, value) in selector.match_labels.iter().flatten() {
        let field = format!("spec.namespaceSelector.matchLabels[{key:?}]");
        if let Err(allowed) = label::key(key) {
            errors.push(FieldError::new(field.clone(), format!("{key:?}"), allowed));
        }
        if let Err(allowed) = label::value(value) {
            errors.push(FieldError::new(field, format!("{value:?}"), allowed));
        }
    }
    for (at, entry) in selector.match_expressions.iter().flatten().enumerate() {
        let field = |name: &str| format!("spec.namespaceSelector.matchExpressions[{at}].{name}");
        let values = entry.values.as_deref().unwrap_or_default();
        if let Err(allowed) = label::key(&entry.key) {
            errors.push(FieldError::new(field("key"), format!("{:?}", entry.key), allowed));
        }
        for (nth, value) in values.iter().enumerate() {
            if let Err(allowed) = label::value(value) {
                errors.push(FieldError::new(field(&format!("values[{nth}]")), format!("{value:?}"), allowed));
            }
        }
        match entry.operator.as_str() {
            join::IN | join::NOT_IN if values.is_empty() => {
                errors.push(FieldError::new(field("values"), "[]", "one value or more with In and NotIn"));
            }
            join::EXISTS | join::DOES_NOT_EXIST if !values.is_empty() => {
                let allowed = "no values with Exists and DoesNotExist";
                errors.push(FieldError::new(field("values"), values.join(", "), allowed));
            }
            join::IN | join::NOT_IN | join::EXISTS | join::DOES_NOT_EXIST => {}
            other => {
                errors.push(FieldError::new(field("operator"), other, "In, NotIn, Exists or DoesNotExist"));
            }
        }
    }
}

/// What `spec` may not have beside the `older` one: the field, its value, what is allowed.
#[must_use]
pub fn conflict(spec: &NetworkSpec, older_name: &str, older: &NetworkSpec) -> Option<FieldError> {
    let (ours, theirs) = (&spec.transport, &older.transport);
    if let (Some(ours), Some(theirs)) = (ours.overlay, theirs.overlay)
        && ours.vni == theirs.vni
    {
        let allowed = format!("a VNI of its own; the older network {older_name:?} has it");
        return Some(FieldError::new("spec.transport.overlay.vni", ours.vni, allowed));
    }
    if let (Some(ours), Some(theirs)) = (&ours.uplink, &theirs.uplink)
        && (&ours.selector, ours.vlan) == (&theirs.selector, theirs.vlan)
    {
        if ours.is_routed() {
            let allowed = format!(
                "an uplink of its own (a VLAN link is one); the untagged frames of this one are those of the older network \
                 {older_name:?}"
            );
            return Some(FieldError::new("spec.transport.uplink.selector", &ours.selector, allowed));
        }
        let value = ours.vlan.map_or_else(|| "untagged".to_owned(), |vlan| vlan.to_string());
        let allowed = format!(
            "a VLAN of its own on these uplinks; the older network {older_name:?} has it with the same selector"
        );
        return Some(FieldError::new("spec.transport.uplink.vlan", value, allowed));
    }
    None
}

/// What cannot change while the object lives, and has changed since `former`.
#[must_use]
pub fn changed(spec: &NetworkSpec, former: &NetworkSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if spec.subnets != former.subnets {
        errors.push(fixed("spec.subnets", &spec.subnets, &former.subnets));
    }
    if spec.transport != former.transport {
        errors.push(fixed("spec.transport", &spec.transport, &former.transport));
    }
    if spec.addresses != former.addresses {
        errors.push(fixed("spec.addresses", &spec.addresses, &former.addresses));
    }
    errors
}

fn fixed<T: serde::Serialize>(field: &str, now: &T, former: &T) -> FieldError {
    let show = |value: &T| serde_json::to_string(value).unwrap_or_default();
    let allowed = format!("what it was, {}; to have another, make another network", show(former));
    FieldError::new(field, show(now), allowed)
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
