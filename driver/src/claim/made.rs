//! Interfaces that are made for a claim, and deleted after it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{ClaimRef, InterfaceKey};
use crate::{
    datapath::{limits::Limits, policy::Policy},
    link::{MacAddr, Route, SubInterface},
    network::{NetworkId, NetworkRef},
};

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Made {
    /// A veth pair: one end in the pod, the other with the programs on the host.
    Port(Port),
    /// A link on a host link, which stays where it is.
    SubInterface(Upper),
}

/// A link on a host link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upper {
    /// What it is.
    pub sub_interface: SubInterface,
    /// Its name on the host, until it is in the pod.
    pub host_name: String,
}

/// A port of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Of which network.
    pub network: NetworkRef,
    /// The network's number in this node's maps. It stays what it is while a port has it.
    pub id: NetworkId,
    /// The allocated devices whose addresses the port has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<Given>,
    /// What class and claim ask for. The plan has it together with what the network says, which may change. `None` in a
    /// checkpoint that does not tell them apart: such a port follows no change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Box<Asked>>,
    /// Whether the plan was changed while the interface is in a pod, and the pod may not have it so yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unapplied: bool,
}

impl Port {
    /// A port that was not given any addresses, and whose class and claim ask for nothing.
    #[must_use]
    pub fn new(network: NetworkRef, id: NetworkId) -> Self {
        Self { network, id, given: Vec::new(), asked: Some(Box::default()), unapplied: false }
    }
}

/// What class and claim ask for of a port, without what its network says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    /// Their policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Whether the policy is the class's, which may have allow rules.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub policy_of_class: bool,
    /// Their limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Their routes: one that leaves the subnets and names no gateway goes through the network's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

/// An address device of a network, allocated to the claim of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Given {
    /// Request of the claim.
    pub request: String,
    /// The network's pool of addresses.
    pub pool: String,
    /// The allocated device.
    pub device: String,
    /// The address it stands for.
    pub address: IpAddr,
}

/// Bytes that are the same for an interface whenever they are asked for, and differ from those of every other.
fn digest(claim: &ClaimRef, key: &InterfaceKey) -> [u8; 32] {
    let mut hash = Sha256::new();
    let share = key.share_id.as_deref().unwrap_or_default();
    // The API allows no zero byte in any of them.
    for part in [claim.uid.as_str(), &key.request, &key.device, share] {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().into()
}

/// Name of the link on the host that is made for an interface: `nf` and 13 hexadecimal digits, so that the next start
/// finds it again after a crash.
#[must_use]
pub fn host_name(claim: &ClaimRef, key: &InterfaceKey) -> String {
    let digits = digest(claim, key).iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)) >> 12;
    format!("nf{digits:013x}")
}

/// Whether a link on the host has the name of one that is made for an interface.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.strip_prefix("nf").is_some_and(|digits| digits.len() == 13 && digits.bytes().all(digit))
}

/// A hardware address that is locally administered and unicast (IEEE 802-2014, section 8.2.2), and stays the same
/// through every sandbox of the claim's pod.
#[must_use]
pub fn hardware_addr(claim: &ClaimRef, key: &InterfaceKey) -> MacAddr {
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest(claim, key)[26..]);
    mac[0] = mac[0] & 0xfc | 0x02;
    MacAddr(mac)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn key(request: &str, share_id: Option<&str>) -> InterfaceKey {
        InterfaceKey {
            request: request.into(),
            device: "port-blue".into(),
            share_id: share_id.map(str::to_owned),
        }
    }

    #[test]
    fn each_interface_has_its_own_name_and_address() {
        let claim =
            |uid: &str| ClaimRef { namespace: "default".into(), name: "fast".into(), uid: uid.into() };
        let keys = [key("a", None), key("b", None), key("a", Some("x")), key("ax", None)];
        let mut names = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for uid in ["u1", "u2"] {
            for key in &keys {
                let (name, mac) = (host_name(&claim(uid), key), hardware_addr(&claim(uid), key));
                assert!(is_host_name(&name), "{name}");
                assert_eq!(mac.0[0] & 3, 2, "{mac}");
                assert_eq!((&name, mac), (&host_name(&claim(uid), key), hardware_addr(&claim(uid), key)));
                names.insert(name);
                addresses.insert(mac);
            }
        }
        assert_eq!((names.len(), addresses.len()), (8, 8));
        for other in ["nf-ens5", "nf0123456789ab", "nf0123456789abC", "nf0123456789abcd", "ens5"] {
            assert!(!is_host_name(other), "{other}");
        }
    }
}
