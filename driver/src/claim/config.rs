//! The opaque configuration of a claim or device class: apiVersion `netferry.dev/v1alpha1`, kind
//! `InterfaceConfig`.
//!
//! Two passes. [`InterfaceConfig::parse`] looks at each field by itself; [`InterfaceConfig::check`] looks at
//! the fields together, once class and claim are merged: an address may come from one and its route from the
//! other.

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use super::ClaimRef;
use crate::{
    datapath::{Isolation, limits::Limits, policy::Policy},
    link::{Ipvlan, IpvlanMode, MacAddr, Route, Scope, SubInterface},
    network::NetworkRef,
};

mod field;
mod restriction;
#[cfg(test)]
mod tests;

pub use field::interface_name;
pub use restriction::read;

/// The configuration API this build reads.
pub const API_VERSION: &str = "netferry.dev/v1alpha1";
/// Its only kind.
pub const KIND: &str = "InterfaceConfig";
/// Bytes of JSON; the API server's own limit (`OpaqueDeviceConfiguration.parameters`, 10 Ki).
pub const MAX_BYTES: usize = 10 * 1024;
/// Addresses of one interface.
pub const MAX_ADDRESSES: usize = 64;
/// Routes of one interface.
pub const MAX_ROUTES: usize = 256;
/// Routing table `main` (`rtnetlink(7)`), where the pod's own network keeps its default route.
pub const TABLE_MAIN: u32 = 254;
/// Routing table `local`, which is the kernel's.
const TABLE_LOCAL: u32 = 255;
/// `RTPROT_STATIC`: a route an administrator asked for.
const PROTOCOL_STATIC: u8 = 4;
/// Smallest MTU of a link that speaks IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// Who has a device or an address that another claim wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A claim that is prepared on this node.
    Claim(ClaimRef),
    /// A member of a network on another node, as far as it is known here.
    Member {
        /// The network.
        network: NetworkRef,
        /// The address that the member has.
        address: IpAddr,
    },
}

/// A field that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, for example `routes[0].gateway`.
    pub field: String,
    /// What it has, shortened; `None` if it is missing.
    pub value: Option<String>,
    /// What is allowed.
    pub allowed: String,
    /// Who has what was asked for, where that is all that is wrong: it may be given back.
    pub holder: Option<Box<Holder>>,
}

impl FieldError {
    /// The field has a value that is not allowed.
    pub fn new(field: impl Into<String>, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            value: Some(shorten(&value.to_string())),
            allowed: allowed.into(),
            holder: None,
        }
    }

    /// The field is not there.
    pub fn missing(field: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { field: field.into(), value: None, allowed: allowed.into(), holder: None }
    }

    /// The same error, of a value that only this holder keeps from being taken.
    #[must_use]
    pub fn held_by(mut self, holder: Holder) -> Self {
        self.holder = Some(Box::new(holder));
        self
    }

    /// The same error seen from the object that holds this one under `parent`.
    #[must_use]
    pub fn under(mut self, parent: &str) -> Self {
        self.field =
            if self.field.is_empty() { parent.to_owned() } else { format!("{parent}.{}", self.field) };
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, value, allowed, holder: _ } = self;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        match value {
            Some(value) => write!(f, "{value} is not allowed; {allowed}"),
            None => write!(f, "is missing; {allowed}"),
        }
    }
}

impl std::error::Error for FieldError {}

/// An error goes to the kubelet, a log line and an Event: a long value is cut.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What is asked for an interface. `None` leaves a field to an earlier configuration or the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Name in the pod.
    pub name: Option<String>,
    /// Addresses with prefix.
    pub addresses: Option<Vec<IpNetwork>>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub hardware_addr: Option<MacAddr>,
    /// Routes.
    pub routes: Option<Vec<Route>>,
    /// Protection.
    pub isolation: Option<Isolation>,
    /// Whether its link gets the early drop (XDP), where that can be had.
    pub early_drop: Option<bool>,
    /// What it may talk to.
    pub policy: Option<Policy>,
    /// How much it may send and be sent.
    pub limits: Option<Limits>,
    /// What is made on the allocated link, which then stays where it is.
    pub sub_interface: Option<SubInterface>,
}

impl InterfaceConfig {
    /// Read a configuration, each field by itself. Every error is reported, not only the first.
    pub fn parse(value: &Value) -> Result<Self, Vec<FieldError>> {
        let Some(object) = value.as_object() else {
            return Err(vec![FieldError::new("", value, "an object")]);
        };
        let bytes = value.to_string().len();
        if bytes > MAX_BYTES {
            let size = format!("{bytes} bytes of JSON");
            return Err(vec![FieldError::new("", size, format!("at most {MAX_BYTES}"))]);
        }
        // Another version or kind has other fields: complaints about them would mislead.
        for (name, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            match object.get(name) {
                Some(Value::String(found)) if found == wanted => {}
                Some(found) => return Err(vec![FieldError::new(name, found, format!("{wanted:?}"))]),
                None => return Err(vec![FieldError::missing(name, format!("{wanted:?}"))]),
            }
        }
        let mut config = Self::default();
        let mut errors = Vec::new();
        for (name, value) in object {
            let read = match name.as_str() {
                "apiVersion" | "kind" => Ok(()),
                "name" => field::name(value).map(|name| config.name = Some(name)),
                "addresses" => field::addresses(value).map(|found| config.addresses = Some(found)),
                "mtu" => field::mtu(value).map(|mtu| config.mtu = Some(mtu)),
                "hardwareAddr" => field::hardware_addr(value).map(|mac| config.hardware_addr = Some(mac)),
                "routes" => field::routes(value).map(|routes| config.routes = Some(routes)),
                "isolation" => field::isolation(value).map(|found| config.isolation = Some(found)),
                "earlyDrop" => field::early_drop(value).map(|found| config.early_drop = Some(found)),
                "policy" => restriction::policy(value).map(|policy| config.policy = Some(policy)),
                "limits" => restriction::limits(value).map(|limits| config.limits = Some(limits)),
                "subInterface" => {
                    restriction::sub_interface(value).map(|made| config.sub_interface = Some(made))
                }
                unknown => Err(vec![FieldError::new(
                    unknown_name(unknown),
                    "this field",
                    "apiVersion, kind, name, addresses, mtu, hardwareAddr, routes, isolation, earlyDrop, policy, \
                     limits, subInterface",
                )]),
            };
            errors.extend(read.err().into_iter().flatten());
        }
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    /// Lay a later configuration over this one: a field it has replaces the earlier one whole, lists too.
    pub fn merge(&mut self, later: Self) {
        let Self {
            name,
            addresses,
            mtu,
            hardware_addr,
            routes,
            isolation,
            early_drop,
            policy,
            limits,
            sub_interface,
        } = later;
        self.name = name.or(self.name.take());
        self.addresses = addresses.or(self.addresses.take());
        self.mtu = mtu.or(self.mtu);
        self.hardware_addr = hardware_addr.or(self.hardware_addr);
        self.routes = routes.or(self.routes.take());
        self.isolation = isolation.or(self.isolation);
        self.early_drop = early_drop.or(self.early_drop);
        self.policy = policy.or(self.policy.take());
        self.limits = limits.or(self.limits);
        self.sub_interface = sub_interface.or(self.sub_interface);
    }

    /// What the fields of a merged configuration must be to each other.
    #[must_use]
    pub fn check(&self) -> Vec<FieldError> {
        let addresses = self.addresses.as_deref().unwrap_or_default();
        let routes = self.routes.as_deref().unwrap_or_default();
        let mut errors = Vec::new();
        let speaks_ipv6 = addresses.iter().any(IpNetwork::is_ipv6)
            || routes.iter().any(|route| route.destination.is_ipv6());
        if let Some(mtu) = self.mtu.filter(|mtu| speaks_ipv6 && *mtu < IPV6_MIN_MTU) {
            let allowed = format!("{IPV6_MIN_MTU} to {} where IPv6 is configured", field::MAX_MTU);
            errors.push(FieldError::new("mtu", mtu, allowed));
        }
        for (index, route) in routes.iter().enumerate() {
            check_route(index, route, addresses, routes, &mut errors);
        }
        self.check_sub_interface(&mut errors);
        if self.isolation == Some(Isolation::Off) {
            let set = [
                ("earlyDrop", self.early_drop == Some(true)),
                ("policy", self.policy.is_some()),
                ("limits", self.limits.is_some()),
            ];
            for (field, _) in set.into_iter().filter(|(_, set)| *set) {
                let allowed = "it with isolation \"strict\" or \"best-effort\" only: without programs nothing would enforce it";
                errors.push(FieldError::new(field, "this field", allowed));
            }
        }
        errors
    }

    fn check_sub_interface(&self, errors: &mut Vec<FieldError>) {
        let Some(SubInterface::Ipvlan(Ipvlan { mode, .. })) = self.sub_interface else { return };
        if let Some(mac) = self.hardware_addr {
            let allowed = "none with ipvlan, which has the hardware address of its parent";
            errors.push(FieldError::new("hardwareAddr", mac, allowed));
        }
        // Its frames are given to it above the hook of the programs (`ipvlan_l3_rcv`, drivers/net/ipvlan).
        if mode == IpvlanMode::L3s && self.isolation != Some(Isolation::Off) {
            let allowed =
                "\"l2\" or \"l3\" with isolation \"strict\": what an l3s link receives passes no program";
            errors.push(FieldError::new("subInterface.ipvlan.mode", "\"l3s\"", allowed));
        }
    }

    /// The configuration as the object it is read from.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut object = Map::new();
        object.insert("apiVersion".into(), API_VERSION.into());
        object.insert("kind".into(), KIND.into());
        if let Some(name) = &self.name {
            object.insert("name".into(), name.as_str().into());
        }
        if let Some(addresses) = &self.addresses {
            object.insert("addresses".into(), addresses.iter().map(ToString::to_string).collect());
        }
        if let Some(mtu) = self.mtu {
            object.insert("mtu".into(), mtu.into());
        }
        if let Some(mac) = self.hardware_addr {
            object.insert("hardwareAddr".into(), mac.to_string().into());
        }
        if let Some(routes) = &self.routes {
            object.insert("routes".into(), routes.iter().map(route_value).collect());
        }
        if let Some(isolation) = self.isolation {
            object.insert("isolation".into(), json!(isolation));
        }
        if let Some(early_drop) = self.early_drop {
            object.insert("earlyDrop".into(), if early_drop { "on" } else { "off" }.into());
        }
        if let Some(policy) = &self.policy {
            object.insert("policy".into(), json!(policy));
        }
        if let Some(limits) = &self.limits {
            object.insert("limits".into(), json!(limits));
        }
        if let Some(sub_interface) = &self.sub_interface {
            object.insert("subInterface".into(), json!(sub_interface));
        }
        Value::Object(object)
    }
}

fn route_value(route: &Route) -> Value {
    let mut object = Map::new();
    object.insert("destination".into(), route.destination.to_string().into());
    for (name, address) in [("gateway", route.gateway), ("source", route.source)] {
        if let Some(address) = address {
            object.insert(name.into(), address.to_string().into());
        }
    }
    object.insert("scope".into(), json!(route.scope));
    object.insert("table".into(), route.table.into());
    Value::Object(object)
}

/// A field name of the input, made fit for an error path.
fn unknown_name(name: &str) -> String {
    shorten(&name.escape_default().to_string())
}

fn check_route(
    index: usize,
    route: &Route,
    addresses: &[IpNetwork],
    routes: &[Route],
    errors: &mut Vec<FieldError>,
) {
    let at = |name: &str| format!("routes[{index}].{name}");
    let same = |other: &&Route| other.destination == route.destination && other.table == route.table;
    if routes[..index].iter().any(|other| same(&other)) {
        let allowed = format!("each destination once in table {}", route.table);
        errors.push(FieldError::new(at("destination"), route.destination, allowed));
    }
    let whole = if route.destination.is_ipv4() { 32 } else { 128 };
    let connected = |address: &&IpNetwork| {
        address.prefix() < whole
            && address.network() == route.destination.ip()
            && address.prefix() == route.destination.prefix()
    };
    if route.table == TABLE_MAIN
        && let Some(address) = addresses.iter().find(connected)
    {
        let allowed =
            format!("a network other than that of address {address}, which the kernel routes itself");
        errors.push(FieldError::new(at("destination"), route.destination, allowed));
    }
    if let Some(source) = route.source
        && !addresses.iter().any(|address| address.ip() == source)
    {
        errors.push(FieldError::new(at("source"), source, "one of the interface's addresses"));
    }
    if let Some(gateway) = route.gateway {
        if addresses.iter().any(|address| address.ip() == gateway) {
            errors.push(FieldError::new(at("gateway"), gateway, "an address other than the interface's own"));
        } else if !on_link(gateway, route.table, addresses, routes) {
            errors.push(FieldError::new(
                at("gateway"),
                gateway,
                "an address in the network of one of the interface's addresses, or in the destination of a \
                 route without gateway in the same table or in main",
            ));
        }
    }
}

/// The kernel refuses a next hop it cannot reach on the link (`fib_check_nh`, `ip6_route_check_nh`).
fn on_link(gateway: IpAddr, table: u32, addresses: &[IpNetwork], routes: &[Route]) -> bool {
    let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
    link_local
        || addresses.iter().any(|address| address.contains(gateway))
        || routes.iter().any(|route| {
            route.gateway.is_none()
                && (route.table == table || route.table == TABLE_MAIN)
                && route.destination.contains(gateway)
        })
}
