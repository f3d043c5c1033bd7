//! What the node has: host links and the facts about them.
//!
//! [`netlink`] and [`sysfs`] read the facts, [`discover`] joins them to an [`Inventory`], [`watch`] keeps it
//! current, [`keep`] holds on to devices that are away in a pod, [`names`] and [`attributes`] say how a device
//! looks in the API, and [`rule`] which devices are published.

pub mod attributes;
pub mod discover;
pub mod keep;
pub mod management;
pub mod names;
pub mod netlink;
mod nexthops;
pub mod rule;
pub mod sysfs;
pub mod watch;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use self::management::NotMovable;
use crate::link::MacAddr;

/// Everything discovery knows of the node's links at one moment, by device name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Device name (a DNS label, see [`Device::name`]) to device.
    pub devices: BTreeMap<String, Device>,
}

impl Inventory {
    /// Names of the devices that a device stands on, directly or by others: ports of a bond or bridge, the parent of a VLAN.
    #[must_use]
    pub fn below(&self, name: &str) -> BTreeSet<&str> {
        let mut below = BTreeSet::new();
        let mut uppers: Vec<&Device> = self.devices.get(name).into_iter().collect();
        while let Some(upper) = uppers.pop() {
            for lower in self.devices.values() {
                let stands_on = upper.parent.as_ref() == Some(&lower.ifname)
                    || lower.master.as_ref() == Some(&upper.ifname);
                if stands_on && lower.name != name && below.insert(lower.name.as_str()) {
                    uppers.push(lower);
                }
            }
        }
        below
    }
}

/// One host link and the facts a claim can select on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each by itself")]
pub struct Device {
    /// Name in the ResourceSlice: a DNS label derived from the interface name, whatever that contains.
    pub name: String,
    /// Interface name at home.
    pub ifname: String,
    /// Interface index in the host's network namespace.
    pub ifindex: u32,
    /// Kernel link kind (`veth`, `vlan`, `macvlan`, …); `None` for a link of a hardware driver.
    pub kind: Option<String>,
    /// Kernel driver bound to the device under the link (sysfs `device/driver`).
    pub driver: Option<String>,
    /// Current hardware address.
    pub mac: Option<MacAddr>,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// MTUs that the link takes.
    #[serde(default)]
    pub mtu_range: MtuRange,
    /// Operational state as the kernel names it (`up`, `down`, `unknown`, …).
    pub oper_state: String,
    /// Addresses with prefix, link-local ones left out.
    pub addresses: Vec<IpNetwork>,
    /// Speed in Mbit/s, where the driver tells.
    pub speed_mbps: Option<u32>,
    /// PCI address `dddd:bb:dd.f` of the device under the link.
    pub pci_address: Option<String>,
    /// PCIe root complex `pciDDDD:BB` the device hangs under.
    pub pcie_root: Option<String>,
    /// NUMA node; `None` where the platform has none (sysfs says -1).
    pub numa_node: Option<u32>,
    /// Role in SR-IOV.
    pub sriov: Option<Sriov>,
    /// Name of the RDMA device that shares the PCI function.
    pub rdma_device: Option<String>,
    /// No device under the link (sysfs path below `devices/virtual`).
    pub is_virtual: bool,
    /// Administrator's alias (`ip link set … alias`).
    pub alias: Option<String>,
    /// A default route leaves through this link, or through one that is stacked on it (a VLAN, a bridge, a
    /// bond): publishing it could cut the node off.
    pub default_route: bool,
    /// Gateways of the default routes through this link.
    pub gateways: Vec<IpAddr>,
    /// The loopback link.
    #[serde(default)]
    pub loopback: bool,
    /// Name of the bridge, bond, team or VRF this link is enslaved to.
    #[serde(default)]
    pub master: Option<String>,
    /// Name of the link under this one (of a VLAN, macvlan, …), where it is in the host's namespace too.
    #[serde(default)]
    pub parent: Option<String>,
    /// Links in the host's namespace that are stacked on this one. The kernel deletes or strands them when
    /// this link changes namespace.
    #[serde(default)]
    pub upper_links: u32,
    /// Why it is never moved into a pod, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_movable: Option<NotMovable>,
    /// Programs of others are on it: tcx or XDP programs, or filters of a clsact qdisc. Found out with its publication.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign_programs: bool,
    /// Whether it may be allocated several times, for sub-interfaces. Decided with its publication.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// Least and greatest MTU, in bytes. A greatest of 0 is one that the kernel does not report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtuRange {
    /// Least.
    pub least: u32,
    /// Greatest.
    pub greatest: u32,
}

/// A link's role in SR-IOV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sriov {
    /// Physical function with this many virtual functions enabled.
    Physical {
        /// Virtual functions enabled now.
        vfs: u32,
        /// Virtual functions the function supports.
        max_vfs: u32,
    },
    /// Virtual function of the named physical function.
    Virtual {
        /// Interface name of the physical function; empty where the host cannot see it.
        pf: String,
        /// Index among the physical function's virtual functions.
        index: u32,
    },
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.ifname)
    }
}
