//! Links that are made on another link, which stays where it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::MacAddr;

/// A kind of link on another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SubInterface {
    /// A hardware address of its own on the parent's wire.
    Macvlan(Macvlan),
    /// The parent's hardware address, told apart by IP address.
    Ipvlan(Ipvlan),
    /// A VLAN (IEEE 802.1Q) of the parent's wire.
    Vlan(Vlan),
}

/// See [`SubInterface::Macvlan`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Macvlan {
    /// How it talks to the parent's other macvlan links.
    #[serde(default)]
    pub mode: MacvlanMode,
}

/// How macvlan links of one parent talk to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacvlanMode {
    /// Directly.
    Bridge,
    /// Not at all.
    #[default]
    Private,
    /// Through a switch outside that sends frames back.
    Vepa,
}

/// See [`SubInterface::Ipvlan`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ipvlan {
    /// Where frames are switched. One for all ipvlan links of a parent.
    #[serde(default)]
    pub mode: IpvlanMode,
    /// How it talks to the parent's other ipvlan links. One for all of them.
    #[serde(default)]
    pub flag: IpvlanFlag,
}

/// What an ipvlan parent does (`Documentation/networking/ipvlan.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanMode {
    /// Switches, with ARP and multicast.
    #[default]
    L2,
    /// Routes; neither ARP nor multicast reach the links.
    L3,
    /// Routes, through the host's netfilter.
    L3s,
}

/// How ipvlan links of one parent talk to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanFlag {
    /// Directly.
    Bridge,
    /// Not at all.
    #[default]
    Private,
    /// Through a switch outside that sends frames back.
    Vepa,
}

/// See [`SubInterface::Vlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vlan {
    /// VLAN id, 1 to 4094.
    pub id: u16,
}

impl SubInterface {
    /// The kernel's name of the kind.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Macvlan(_) => "macvlan",
            Self::Ipvlan(_) => "ipvlan",
            Self::Vlan(_) => "vlan",
        }
    }

    /// Whether both can be on one parent at a time; what the kernel would say in the middle of an attach, or do:
    /// a macvlan and an ipvlan each want all frames, the mode of one ipvlan link is the mode of all, and a VLAN is
    /// there once.
    #[must_use]
    pub fn goes_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::Macvlan(_), Self::Ipvlan(_)) | (Self::Ipvlan(_), Self::Macvlan(_)) => false,
            (Self::Ipvlan(one), Self::Ipvlan(other)) => one == other,
            (Self::Vlan(one), Self::Vlan(other)) => one.id != other.id,
            _ => true,
        }
    }
}

impl fmt::Display for SubInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Macvlan(Macvlan { mode }) => write!(f, "macvlan {}", format!("{mode:?}").to_lowercase()),
            Self::Ipvlan(Ipvlan { mode, flag }) => {
                write!(
                    f,
                    "ipvlan {} {}",
                    format!("{mode:?}").to_lowercase(),
                    format!("{flag:?}").to_lowercase()
                )
            }
            Self::Vlan(Vlan { id }) => write!(f, "vlan {id}"),
        }
    }
}

/// A link to make on another one, in the host's namespace. It is down at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Index of the parent.
    pub parent: u32,
    /// Name of the new link.
    pub name: String,
    /// Its hardware address; `None` leaves it to the kernel.
    pub mac: Option<MacAddr>,
    /// What it is.
    pub sub_interface: SubInterface,
}
