//! What the node has: host links and the facts about them.
//!
//! [`netlink`] and [`sysfs`] read the facts, [`discover`] joins them to an [`Inventory`], [`watch`] keeps it
//! current, [`keep`] holds on to devices that are away in a pod, [`names`] and [`attributes`] say how a device
//! looks in the API, and [`rule`] which devices are published.

pub mod attributes;
pub mod discover;
pub mod keep;
pub mod names;
pub mod netlink;
pub mod rule;
pub mod sysfs;
pub mod watch;

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::link::MacAddr;

/// Everything discovery knows of the node's links at one moment, by device name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Device name (a DNS label, see [`Device::name`]) to device.
    pub devices: BTreeMap<String, Device>,
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
    /// Whether it may be allocated several times, for sub-interfaces. Decided with its publication.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
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
