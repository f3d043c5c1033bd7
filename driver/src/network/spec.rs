//! The object `Network` of `netferry.dev/v1alpha1`.
//!
//! The CustomResourceDefinition in `manifests/` is generated from these types. What it can express (ranges, one of
//! several fields, what cannot change) is refused by the API server; everything is checked again by
//! [`super::validate`], which is also all there is in standalone mode.

#![allow(unreachable_pub, reason = "the derived schemas are made of structs inside functions")]

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector},
};
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::datapath::{limits::Limits, policy::Policy};

/// API group of the object.
pub const GROUP: &str = "netferry.dev";
/// `apiVersion` of the object.
pub const API_VERSION: &str = "netferry.dev/v1alpha1";
/// `kind` of the object.
pub const KIND: &str = "Network";

/// What a network is to be.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "netferry.dev",
    version = "v1alpha1",
    kind = "Network",
    root = "NetworkObject",
    plural = "networks",
    status = "NetworkStatus",
    derive = "PartialEq",
    doc = "A network: what a platform team declares once, and pods claim ports on.",
    validation = Rule::new("size(self.metadata.name) <= 58 && !self.metadata.name.contains('.')")
        .message("a network's name is a DNS label of at most 58 characters: it becomes part of a device's name"),
    printcolumn(name = "Subnets", type_ = "string", json_path = ".spec.subnets"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Members", type_ = "integer", json_path = ".status.members"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "!has(self.gateways) || self.gateways.all(gateway, self.subnets.exists(subnet, \
         isCIDR(subnet) && isIP(gateway) && cidr(subnet).containsIP(gateway)))"
    )
    .message("each gateway must be an address in one of the subnets")
    .field_path(".gateways"),
    validation = Rule::new(
        "!has(self.mtu) || self.mtu >= 1280 || !self.subnets.exists(subnet, \
         isCIDR(subnet) && cidr(subnet).ip().family() == 6)"
    )
    .message("IPv6 needs an MTU of at least 1280 (RFC 8200, section 5)")
    .field_path(".mtu"),
    validation = Rule::new(
        "!has(self.transport.uplink) || !has(self.transport.uplink.mode) || \
         self.transport.uplink.mode != 'routed' || \
         (has(self.gateways) && size(self.gateways) == size(self.subnets))"
    )
    .message("a routed network needs a gateway in each of its subnets: the node answers for it")
    .field_path(".gateways"),
    validation = Rule::new("!has(self.addresses) || self.addresses != 'dhcp' || has(self.transport.uplink)")
        .message("dhcp asks the network behind an uplink: transport.uplink must be set")
        .field_path(".addresses"),
    validation = Rule::new(
        "!has(self.addresses) || self.addresses != 'dhcp' || self.subnets.all(subnet, \
         !isCIDR(subnet) || cidr(subnet).ip().family() == 4)"
    )
    .message("dhcp is for an IPv4 subnet alone: there is no DHCPv6")
    .field_path(".subnets"),
    validation = Rule::new(
        "(has(self.addresses) ? self.addresses : 'allocated') == \
         (has(oldSelf.addresses) ? oldSelf.addresses : 'allocated')"
    )
    .message("where addresses come from cannot be changed; make another network")
    .field_path(".addresses"),
    validation = Rule::new(
        "!has(self.addresses) || self.addresses != 'dhcp' || !has(self.transport.uplink) || \
         !has(self.transport.uplink.mode) || self.transport.uplink.mode != 'routed'"
    )
    .message("dhcp asks the network that the uplink is on, and a routed network is another one")
    .field_path(".addresses"),
    validation = Rule::new(
        "!has(self.addresses) || self.addresses != 'blocks' || self.subnets.all(subnet, \
         !isCIDR(subnet) || cidr(subnet).prefixLength() <= (cidr(subnet).ip().family() == 4 ? 24 : 120))"
    )
    .message("with addresses blocks, a subnet has at most 24 bits (IPv4) or 120 (IPv6): each node has blocks of 64 addresses")
    .field_path(".subnets")
)]
pub struct NetworkSpec {
    /// Its subnets: at most one of each family. They cannot be changed.
    #[schemars(with = "Vec<String>", length(min = 1, max = 2), inner(length(max = 43)))]
    #[x_kube(
        validation = Rule::new("self.all(subnet, isCIDR(subnet) && cidr(subnet) == cidr(subnet).masked())")
            .message("each subnet must be a prefix whose host bits are 0, such as 10.1.0.0/16 or fd00:1::/64"),
        validation = Rule::new(
            "size(self) < 2 || !isCIDR(self[0]) || !isCIDR(self[1]) || \
             cidr(self[0]).ip().family() != cidr(self[1]).ip().family()"
        )
        .message("at most one subnet of each family"),
        validation = Rule::new("self == oldSelf").message("subnets cannot be changed; make another network")
    )]
    pub subnets: Vec<IpNetwork>,
    /// Gateways, at most one of each family, inside the subnets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 2), inner(length(max = 39)))]
    #[x_kube(
        validation = Rule::new("self.all(gateway, isIP(gateway))").message("each gateway must be an IP address"),
        validation = Rule::new(
            "size(self) < 2 || !isIP(self[0]) || !isIP(self[1]) || ip(self[0]).family() != ip(self[1]).family()"
        )
        .message("at most one gateway of each family")
    )]
    pub gateways: Vec<IpAddr>,
    /// Where the addresses of its ports come from. It cannot be changed.
    #[serde(default, skip_serializing_if = "AddressSource::is_default")]
    pub addresses: AddressSource,
    /// MTU of its ports in bytes. Left out: what the transport can carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 576, max = 65535))]
    pub mtu: Option<u32>,
    /// How members on different nodes reach each other. It cannot be changed.
    #[x_kube(
        validation = Rule::new("[has(self.local), has(self.uplink), has(self.overlay)].filter(set, set).size() == 1")
            .message("exactly one of local, uplink and overlay must be set"),
        validation = Rule::new("self == oldSelf").message("the transport cannot be changed; make another network")
    )]
    pub transport: Transport,
    /// Namespaces whose claims may have a port. Left out: none may. `{}`: all may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Policy of every port, unless its class or claim is stricter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Rate limits of every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// Where the addresses of ports come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AddressSource {
    /// Allocated from the network's pool, or fixed in the claim.
    #[default]
    Allocated,
    /// From a DHCP server on the network behind the uplink, asked by the port's node.
    Dhcp,
    /// Allocated from blocks of the subnets, of which each node with ports has its own, or fixed in the claim.
    Blocks,
}

impl AddressSource {
    /// Whether it is what a network has that says nothing.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How members on different nodes reach each other: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Transport {
    /// They do not: the network ends at its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
    /// Over a link of each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<UplinkTransport>,
    /// Through VXLAN tunnels between the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
}

/// A network that ends at its node.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Local {}

/// Over a link of each node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.vlan) || !has(self.mode) || self.mode != 'routed'")
        .message("a routed network has no VLAN of its own; select a VLAN link as the uplink")
        .field_path(".vlan")
)]
pub struct UplinkTransport {
    /// CEL expression over a device's attributes, as in a DeviceClass, that is true for the uplink of a node.
    #[schemars(length(min = 1, max = 10240))]
    pub selector: String,
    /// VLAN id of its frames, 1 to 4094. Left out: untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 4094))]
    pub vlan: Option<u16>,
    /// What the node is to the network. Left out: `bridged`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<UplinkMode>,
}

impl UplinkTransport {
    /// Whether the node routes.
    #[must_use]
    pub fn is_routed(&self) -> bool {
        self.mode == Some(UplinkMode::Routed)
    }
}

/// What a node is to a network that goes on over its uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkMode {
    /// A bridge: the network is one Ethernet with what is on the uplink's wire.
    Bridged,
    /// A router: it is the network's gateway, and sends on by the host's own routes over the uplink. What is outside has to
    /// route the addresses of ports to their nodes.
    Routed,
}

/// Through VXLAN tunnels between the nodes.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Overlay {
    /// VXLAN network identifier, 1 to 16777215, of this network alone.
    #[schemars(with = "i32", range(min = 1, max = 16_777_215))]
    pub vni: u32,
}

/// What is known of a network.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// `metadata.generation` that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes with ports of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0))]
    pub nodes: Option<u32>,
    /// Ports that pods have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0))]
    pub members: Option<u32>,
    /// On which nodes what counts of it is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForceStatus>,
    /// `Accepted`: the object is valid and in conflict with no older one. `Ready`: a node publishes ports of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// On which nodes with ports of a network a generation of it is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForceStatus {
    /// `metadata.generation` that was last accepted.
    pub generation: i64,
    /// Nodes on all of whose ports it is in force.
    #[schemars(with = "i32", range(min = 0))]
    pub nodes: u32,
    /// Nodes that have not reported so.
    #[schemars(with = "i32", range(min = 0))]
    pub nodes_behind: u32,
    /// Names of the first of these nodes.
    #[serde(default)]
    #[schemars(length(max = 10))]
    pub behind: Vec<String>,
}

/// The CustomResourceDefinition.
pub fn definition() -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut definition = serde_json::to_value(NetworkObject::crd())?;
    if let Some(schema) = definition.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        as_servers_want(schema);
    }
    serde_json::from_value(definition)
}

/// `additionalProperties: false` is not allowed in the schema of a definition (unknown fields are pruned), and a field
/// that is `null` is better refused than taken for one that is set.
fn as_servers_want(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, value| match name.as_str() {
                "additionalProperties" => *value != Value::Bool(false),
                "nullable" => !value.is_boolean(),
                // Formats of unsigned integers are Rust's; servers warn of what they do not know, and 0 is the least.
                "format" => !value.as_str().is_some_and(|format| format.starts_with("uint")),
                _ => true,
            });
            fields.values_mut().for_each(as_servers_want);
        }
        Value::Array(items) => items.iter_mut().for_each(as_servers_want),
        _ => {}
    }
}
