//! What each field of the configuration may be by itself.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use super::{
    FieldError, Isolation, MAX_ADDRESSES, MAX_ROUTES, MacAddr, PROTOCOL_STATIC, Route, Scope, TABLE_LOCAL,
    TABLE_MAIN, unknown_name,
};

/// Smallest IPv4 MTU (RFC 791).
const MIN_MTU: u32 = 68;
/// What the kernel's drivers can take at most; the link's own limit is met at attach.
pub(super) const MAX_MTU: u32 = 65535;
/// `IFNAMSIZ` is 16 with the closing zero (`linux/if.h`).
const MAX_NAME: usize = 15;

const AN_ADDRESS: &str = "an IPv4 or IPv6 address with prefix length, such as \"192.0.2.7/24\"";
const A_NETWORK: &str = "an IPv4 or IPv6 network, such as \"198.51.100.0/24\"";

type Read<T> = Result<T, Vec<FieldError>>;

fn refuse<T>(field: impl Into<String>, value: impl std::fmt::Display, allowed: &str) -> Read<T> {
    Err(vec![FieldError::new(field, value, allowed)])
}

fn string<'a>(field: &str, value: &'a Value, allowed: &str) -> Read<&'a str> {
    value.as_str().map_or_else(|| refuse(field, value, allowed), Ok)
}

fn array<'a>(field: &str, value: &'a Value, most: usize) -> Read<&'a [Value]> {
    match value.as_array() {
        Some(items) if items.len() <= most => Ok(items),
        Some(items) => refuse(field, format!("{} items", items.len()), &format!("at most {most}")),
        None => refuse(field, value, &format!("a list of at most {most}")),
    }
}

/// Check a name for an interface in a pod: the kernel's rules (`dev_valid_name`), and names that are taken.
pub fn interface_name(name: &str) -> Result<(), &'static str> {
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    // '%' makes the kernel count up a pattern such as "net%d" instead of taking the name.
    if name.is_empty() || name.len() > MAX_NAME || !printable || name.contains(['/', ':', '%']) {
        return Err("1 to 15 printable ASCII characters without '/', ':', '%' and blanks");
    }
    match name {
        "." | ".." => Err("a name other than \".\" and \"..\""),
        "lo" => Err("a name other than \"lo\", the pod's loopback"),
        "eth0" => Err("a name other than \"eth0\", which is the interface of the cluster's own network"),
        "all" | "default" => Err("a name other than \"all\" and \"default\", which are folders of sysctl"),
        _ => Ok(()),
    }
}

pub(super) fn name(value: &Value) -> Read<String> {
    let name = string("name", value, "a string")?;
    interface_name(name).or_else(|allowed| refuse("name", value, allowed))?;
    Ok(name.to_owned())
}

pub(super) fn mtu(value: &Value) -> Read<u32> {
    ranged("mtu", value, MIN_MTU..=MAX_MTU)
}

fn ranged(field: &str, value: &Value, range: std::ops::RangeInclusive<u32>) -> Read<u32> {
    match value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| range.contains(number))
    {
        Some(number) => Ok(number),
        None => refuse(field, value, &format!("{} to {}", range.start(), range.end())),
    }
}

pub(super) fn hardware_addr(value: &Value) -> Read<MacAddr> {
    const ALLOWED: &str = "a unicast address of six colon-separated bytes, such as \"02:00:00:00:00:01\"";
    let text = string("hardwareAddr", value, ALLOWED)?;
    match text.parse::<MacAddr>() {
        Ok(mac) if !mac.is_zero() && !mac.is_multicast() => Ok(mac),
        _ => refuse("hardwareAddr", value, ALLOWED),
    }
}

pub(super) fn isolation(value: &Value) -> Read<Isolation> {
    match value.as_str() {
        Some("strict") => Ok(Isolation::Strict),
        Some("best-effort") => Ok(Isolation::BestEffort),
        Some("off") => Ok(Isolation::Off),
        _ => refuse("isolation", value, "\"strict\", \"best-effort\" or \"off\""),
    }
}

pub(super) fn early_drop(value: &Value) -> Read<bool> {
    match value.as_str() {
        Some("on") => Ok(true),
        Some("off") => Ok(false),
        // YAML 1.1 reads an unquoted word as a boolean, which this names.
        _ => refuse("earlyDrop", value, "\"on\" or \"off\", in quotes"),
    }
}

/// `address/length` and nothing else: no bare address (is it /24 or /32?) and no dotted mask.
fn cidr(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let digits = !length.is_empty() && length.len() <= 3 && length.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return None;
    }
    IpNetwork::new(address.parse().ok()?, length.parse().ok()?).ok()
}

pub(super) fn addresses(value: &Value) -> Read<Vec<IpNetwork>> {
    let mut found: Vec<IpNetwork> = Vec::new();
    let mut errors = Vec::new();
    for (index, item) in array("addresses", value, MAX_ADDRESSES)?.iter().enumerate() {
        let field = format!("addresses[{index}]");
        let Some(address) = item.as_str().and_then(cidr) else {
            errors.push(FieldError::new(field, item, AN_ADDRESS));
            continue;
        };
        if let Err(allowed) = host_address(address) {
            errors.push(FieldError::new(field, item, allowed));
        } else if found.iter().any(|earlier| earlier.ip() == address.ip()) {
            errors.push(FieldError::new(field, item, "each address once"));
        } else {
            found.push(address);
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

/// An address that a host can have on a link.
fn host_address(address: IpNetwork) -> Result<(), &'static str> {
    unicast(address.ip())?;
    // Its connected route would be a default route.
    if address.prefix() == 0 {
        return Err("a prefix length above 0");
    }
    if let IpNetwork::V4(address) = address
        && address.prefix() < 31
    {
        if address.ip() == address.network() {
            return Err("an address of a host, not the network's own");
        }
        if address.ip() == address.broadcast() {
            return Err("an address of a host, not the broadcast address of its network");
        }
    }
    Ok(())
}

fn unicast(address: IpAddr) -> Result<(), &'static str> {
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err("a unicast address, neither unspecified nor loopback");
    }
    match address {
        IpAddr::V4(address) if address.is_broadcast() || address.octets()[0] == 0 => {
            Err("a unicast address outside 0.0.0.0/8 that is not the broadcast address")
        }
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Err("an address that is not an IPv4 address mapped to IPv6")
        }
        _ => Ok(()),
    }
}

pub(super) fn routes(value: &Value) -> Read<Vec<Route>> {
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for (index, item) in array("routes", value, MAX_ROUTES)?.iter().enumerate() {
        match item.as_object() {
            Some(object) => match route(object) {
                Ok(route) => found.push(route),
                Err(wrong) => {
                    errors.extend(wrong.into_iter().map(|error| error.under(&format!("routes[{index}]"))));
                }
            },
            None => errors.push(FieldError::new(format!("routes[{index}]"), item, "an object")),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

fn route(object: &Map<String, Value>) -> Read<Route> {
    let (mut destination, mut gateway, mut source, mut scope, mut table) =
        (None, None, None, None, TABLE_MAIN);
    let mut errors = Vec::new();
    for (name, value) in object {
        let read = match name.as_str() {
            "destination" => network(value).map(|network| destination = Some(network)),
            "gateway" => host("gateway", value).map(|address| gateway = Some(address)),
            "source" => host("source", value).map(|address| source = Some(address)),
            "scope" => route_scope(value).map(|found| scope = Some(found)),
            "table" => route_table(value).map(|number| table = number),
            unknown => {
                refuse(unknown_name(unknown), "this field", "destination, gateway, source, scope, table")
            }
        };
        errors.extend(read.err().into_iter().flatten());
    }
    let Some(destination) = destination else {
        if !object.contains_key("destination") {
            errors.push(FieldError::missing("destination", A_NETWORK));
        }
        return Err(errors);
    };
    if destination.prefix() == 0 && table == TABLE_MAIN {
        let allowed =
            "default routes in tables other than main (254): main's belongs to the cluster's network";
        errors.push(FieldError::new("destination", destination, allowed));
    }
    for (name, address) in [("gateway", gateway), ("source", source)] {
        if let Some(address) = address.filter(|address: &IpAddr| address.is_ipv4() != destination.is_ipv4()) {
            errors.push(FieldError::new(name, address, "an address of the destination's family"));
        }
    }
    // The kernel: a next hop with a gateway must be of a wider scope than the link (`fib_check_nh`).
    if gateway.is_some() && scope == Some(Scope::Link) {
        errors.push(FieldError::new("scope", "\"link\"", "\"universe\" or \"site\" with a gateway"));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let usual = if gateway.is_some() { Scope::Universe } else { Scope::Link };
    Ok(Route {
        destination,
        gateway,
        source,
        scope: scope.unwrap_or(usual),
        table,
        protocol: PROTOCOL_STATIC,
        metric: 0,
        onlink: false,
    })
}

fn network(value: &Value) -> Read<IpNetwork> {
    let Some(network) = value.as_str().and_then(cidr) else {
        return refuse("destination", value, A_NETWORK);
    };
    if network.ip() != network.network() {
        let allowed = format!("a network without host bits: {}/{}", network.network(), network.prefix());
        return refuse("destination", value, &allowed);
    }
    Ok(network)
}

fn host(field: &str, value: &Value) -> Read<IpAddr> {
    let Some(address) = value.as_str().and_then(|text| text.parse::<IpAddr>().ok()) else {
        return refuse(field, value, "an IPv4 or IPv6 address without prefix length");
    };
    unicast(address).or_else(|allowed| refuse(field, value, allowed))?;
    Ok(address)
}

fn route_scope(value: &Value) -> Read<Scope> {
    match value.as_str() {
        Some("universe") => Ok(Scope::Universe),
        Some("site") => Ok(Scope::Site),
        Some("link") => Ok(Scope::Link),
        _ => refuse("scope", value, "\"universe\", \"site\" or \"link\""),
    }
}

fn route_table(value: &Value) -> Read<u32> {
    match ranged("table", value, 1..=u32::MAX)? {
        TABLE_LOCAL => refuse("table", value, "a table other than local (255), which is the kernel's"),
        table => Ok(table),
    }
}
