//! What sysfs knows of the device under a link.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Sriov;

/// Facts of one link from sysfs. What the kernel does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SysfsFacts {
    /// Name of the driver bound to the device.
    pub driver: Option<String>,
    /// PCI address `dddd:bb:dd.f`.
    pub pci_address: Option<String>,
    /// PCIe root `pciDDDD:BB`.
    pub pcie_root: Option<String>,
    /// NUMA node; sysfs's -1 is `None`.
    pub numa_node: Option<u32>,
    /// Mbit/s.
    pub speed_mbps: Option<u32>,
    /// Role in SR-IOV.
    pub sriov: Option<Sriov>,
    /// RDMA device of the same function.
    pub rdma_device: Option<String>,
    /// Below `devices/virtual`.
    pub is_virtual: bool,
}

/// A sysfs tree: `/sys`, which must have been mounted in the host's network namespace (each mount shows the
/// links of the namespace it was made in), or a tree that a test has built.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// The tree at `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Facts of the link called `ifname`. A link that went away meanwhile has none.
    #[must_use]
    pub fn facts(&self, ifname: &str) -> SysfsFacts {
        let link = self.root.join("class/net").join(ifname);
        let is_virtual = fs::canonicalize(&link)
            .ok()
            .zip(fs::canonicalize(&self.root).ok())
            .is_some_and(|(link, root)| link.starts_with(root.join("devices/virtual")));
        let mut facts = SysfsFacts {
            // A link that is down answers EINVAL, or -1.
            speed_mbps: number(&link.join("speed")).filter(|speed| *speed > 0),
            is_virtual,
            ..SysfsFacts::default()
        };
        let Ok(device) = fs::canonicalize(link.join("device")) else { return facts };
        facts.driver = target_name(&device.join("driver"));
        facts.numa_node = number(&device.join("numa_node"));
        // The link's parent may be a virtio device, one below the PCI function.
        let Some(address) = device.components().rev().find_map(|part| {
            part.as_os_str().to_str().filter(|part| is_pci_address(part)).map(str::to_owned)
        }) else {
            facts.rdma_device = first_entry(&device.join("infiniband"));
            return facts;
        };
        let function = self.root.join("bus/pci/devices").join(&address);
        facts.numa_node = facts.numa_node.or_else(|| number(&function.join("numa_node")));
        facts.pcie_root = self.pcie_root(&function, &address);
        facts.sriov = self.sriov(&function, &address);
        facts.rdma_device = first_entry(&function.join("infiniband"));
        facts.pci_address = Some(address);
        facts
    }

    /// The PCIe root as Kubernetes' own `deviceattribute` library computes it: the first part of the function's
    /// path below `devices`, which has to begin with `pci`
    /// (`k8s.io/dynamic-resource-allocation/deviceattribute/pci_linux.go`). Drivers of other vendors use the
    /// same value, so that a claim can ask for a GPU and a NIC below one root.
    fn pcie_root(&self, function: &Path, address: &str) -> Option<String> {
        let path = fs::canonicalize(function).ok()?;
        let devices = fs::canonicalize(self.root.join("devices")).ok()?;
        if path.file_name()? != address {
            return None;
        }
        let root = path.strip_prefix(devices).ok()?.components().next()?.as_os_str().to_str()?;
        root.starts_with("pci").then(|| root.to_owned())
    }

    fn sriov(&self, function: &Path, address: &str) -> Option<Sriov> {
        if let Ok(physical) = fs::canonicalize(function.join("physfn")) {
            let index = fs::read_dir(&physical).ok()?.find_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let index = name.strip_prefix("virtfn")?.parse().ok()?;
                (target_name(&physical.join(&name))? == address).then_some(index)
            })?;
            return Some(Sriov::Virtual { pf: self.interface_of(&physical).unwrap_or_default(), index });
        }
        let max_vfs = number(&function.join("sriov_totalvfs")).filter(|max| *max > 0)?;
        Some(Sriov::Physical { vfs: number(&function.join("sriov_numvfs")).unwrap_or(0), max_vfs })
    }

    /// Interface of a PCI function that this namespace sees: `net` also lists those that have moved away on
    /// kernels that do not filter it.
    fn interface_of(&self, function: &Path) -> Option<String> {
        let mut names: Vec<_> = fs::read_dir(function.join("net"))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| self.root.join("class/net").join(name).exists())
            .collect();
        names.sort();
        names.into_iter().next()
    }
}

fn number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn target_name(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

fn first_entry(directory: &Path) -> Option<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().next()
}

/// `dddd:bb:dd.f` in lower-case hexadecimal.
fn is_pci_address(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 12
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b':',
            10 => *byte == b'.',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
        })
}

#[cfg(test)]
#[path = "sysfs_tests.rs"]
mod tests;
