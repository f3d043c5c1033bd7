//! The object `Network` of `netferry.dev/v1alpha1`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};

use crate::datapath::{limits::Limits, policy::Policy};

/// What a network is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its subnets: at most one of each family.
    pub subnets: Vec<IpNetwork>,
    /// Gateways, at most one of each family, inside the subnets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// MTU of its ports in bytes. Left out: what the transport can carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// How members on different nodes reach each other.
    pub transport: Transport,
    /// Namespaces whose claims may have a port. Left out: none may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Policy of every port, unless its class or claim is stricter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Rate limits of every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// How members on different nodes reach each other: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Local {}

/// Over a link of each node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UplinkTransport {
    /// CEL expression over a device's attributes, as in a DeviceClass, that is true for the uplink of a node.
    pub selector: String,
    /// VLAN id of its frames, 1 to 4094. Left out: untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// Through VXLAN tunnels between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Overlay {
    /// VXLAN network identifier, 1 to 16777215, of this network alone.
    pub vni: u32,
}
