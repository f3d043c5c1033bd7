//! How a made link was made, so that it can be made anew: such a link dies with the namespace that it is in.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Home, Link, LinkError, MacAddr};

/// How a made link was made. Only of a link whose parent or peer is in its own namespace. Queues, offloads and queueing
/// disciplines are not in it: they are the kernel's defaults again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recipe {
    /// Its kind and what that kind needs.
    pub data: KindData,
    /// The link that it was made on; `None` for a kind that needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// What `IFLA_INFO_KIND` and `IFLA_INFO_DATA` say about a link. Modes and flags are the kernel's numbers (linux/if_link.h),
/// so that one that is not known here comes back, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KindData {
    /// A link to nowhere.
    Dummy,
    /// A VLAN of its parent.
    Vlan(VlanData),
    /// Another hardware address of its parent.
    Macvlan(MacvlanData),
    /// The same, with a character device for a virtual machine.
    Macvtap(MacvlanData),
    /// Other IP addresses of its parent's hardware address.
    Ipvlan(IpvlanData),
    /// One end of a pair.
    Veth(VethData),
}

impl KindData {
    /// The kernel's name of the kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Dummy => "dummy",
            Self::Vlan(_) => "vlan",
            Self::Macvlan(_) => "macvlan",
            Self::Macvtap(_) => "macvtap",
            Self::Ipvlan(_) => "ipvlan",
            Self::Veth(_) => "veth",
        }
    }
}

/// See [`KindData::Vlan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VlanData {
    /// VLAN id, 1 to 4094.
    pub id: u16,
    /// EtherType of the tag: 0x8100 is 802.1Q, 0x88a8 is 802.1ad.
    pub protocol: u16,
    /// `VLAN_FLAG_*` (linux/if_vlan.h).
    pub flags: u32,
    /// From the kernel's priority of a packet (`skb->priority`) to the tag's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_qos: Vec<(u32, u32)>,
    /// From the tag's priority to the kernel's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_qos: Vec<(u32, u32)>,
}

/// See [`KindData::Macvlan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MacvlanData {
    /// `MACVLAN_MODE_*`.
    pub mode: u32,
    /// `MACVLAN_FLAG_*`.
    pub flags: u16,
    /// Whose frames it takes, in the mode `source`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<MacAddr>,
    /// Length of the queue for broadcasts, in frames (Linux 5.12).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bc_queue_len: Option<u32>,
    /// From how many receivers on a multicast frame is queued (Linux 6.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bc_cutoff: Option<i32>,
}

/// See [`KindData::Ipvlan`]. The kernel keeps both for all ipvlan links of a parent in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpvlanData {
    /// `IPVLAN_MODE_*`.
    pub mode: u16,
    /// `IPVLAN_F_*`.
    pub flags: u16,
}

/// See [`KindData::Veth`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VethData {
    /// The other end, as it was when the record was made: it dies with this one.
    pub peer: Box<Home>,
    /// Name of the bridge, bond or VRF that the other end was a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_controller: Option<String>,
}

/// A link that another one was made on. It is found by its name, and must have the hardware address that it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// Its name.
    pub name: String,
    /// Hardware address that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Hardware address burnt in, where it has one: then this one is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permanent_mac: Option<MacAddr>,
}

impl Parent {
    /// What a link is known by. `None` for one without a hardware address, which a name alone would stand for.
    #[must_use]
    pub fn of(link: &Link) -> Option<Self> {
        let Link { name, mac, permanent_mac, .. } = link;
        mac.or(*permanent_mac)?;
        Some(Self { name: name.clone(), mac: *mac, permanent_mac: *permanent_mac })
    }

    /// Its index, if `found`, which has its name in the host's namespace now, is the same link. `child` is the link that
    /// is to be made, for the error.
    pub(super) fn index(&self, child: &str, found: Option<&Link>) -> Result<u32, LinkError> {
        let (link, parent) = (child.to_owned(), self.clone());
        let Some(found) = found else { return Err(LinkError::ParentGone { link, parent }) };
        let same = match (self.permanent_mac, found.permanent_mac) {
            (Some(then), Some(now)) => then == now,
            _ => self.mac.is_some() && self.mac == found.mac,
        };
        if same {
            return Ok(found.ifindex);
        }
        let found = Self::of(found).map_or_else(|| found.name.clone(), |found| found.to_string());
        Err(LinkError::ParentReplaced { link, parent, found })
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.permanent_mac.or(self.mac) {
            Some(mac) => write!(f, " ({mac})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::fake::FakeLink;

    #[test]
    fn a_parent_is_a_name_and_a_hardware_address() {
        let link = FakeLink::hardware("ens5", 5).home.link;
        let parent = Parent::of(&link).expect("it has an address");
        let renamed_mac = Link { ifindex: 9, mac: None, ..link.clone() };
        assert_eq!(parent.index("vlan5", Some(&renamed_mac)).expect("the same card"), 9);
        let gone = parent.index("vlan5", None).expect_err("gone").to_string();
        assert_eq!(gone, "link vlan5 was made on ens5 (02:00:00:00:00:05), which is gone");
        let other = FakeLink::hardware("ens5", 6).home.link;
        let other = parent.index("vlan5", Some(&other)).expect_err("another").to_string();
        assert_eq!(
            other,
            "link vlan5 was made on ens5 (02:00:00:00:00:05), whose name is that of another link now: \
             ens5 (02:00:00:00:00:06)"
        );
        let tunnel = Link { mac: None, permanent_mac: None, ..link };
        assert_eq!(Parent::of(&tunnel), None);
    }

    #[test]
    fn a_recipe_is_kept_as_it_is_and_an_older_record_has_none() {
        let vlan =
            VlanData { id: 5, protocol: 0x88a8, flags: 1, egress_qos: vec![(1, 2)], ingress_qos: vec![] };
        let mut home = FakeLink::hardware("vlan5", 5).of_kind("vlan").home;
        let older = serde_json::to_string(&home).expect("json");
        assert!(!older.contains("recipe"), "{older}");
        assert_eq!(serde_json::from_str::<Home>(&older).expect("json"), home);
        let parent = Parent::of(&FakeLink::hardware("ens5", 5).home.link);
        home.recipe = Some(Recipe { data: KindData::Vlan(vlan), parent });
        let text = serde_json::to_string(&home).expect("json");
        assert_eq!(serde_json::from_str::<Home>(&text).expect("json"), home);
        assert!(
            text.contains(
                r#""recipe":{"data":{"vlan":{"id":5,"protocol":34984,"flags":1,"egressQos":[[1,2]]}}"#
            ),
            "{text}"
        );
    }
}
