use std::os::unix::fs::symlink;

use super::*;

/// A sysfs tree in a temporary directory.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, text).expect("a file");
    }

    /// Link `path` to `target`, both below the root; absolute, which canonicalizes alike.
    fn link(&self, path: &str, target: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        symlink(self.0.path().join(target), path).expect("a symbolic link");
    }

    /// A network interface on the PCI function at `path` (below devices).
    fn function(&self, path: &str, driver: &str, ifname: Option<&str>) {
        let address = path.rsplit('/').next().expect("an address");
        let device = format!("devices/{path}");
        self.file(&format!("{device}/numa_node"), "1\n");
        self.link(&format!("{device}/driver"), &format!("bus/pci/drivers/{driver}"));
        self.link(&format!("bus/pci/devices/{address}"), &device);
        if let Some(ifname) = ifname {
            self.file(&format!("{device}/net/{ifname}/speed"), "25000\n");
            self.link(&format!("{device}/net/{ifname}/device"), &device);
            self.link(&format!("class/net/{ifname}"), &format!("{device}/net/{ifname}"));
        }
    }

    fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.0.path())
    }
}

const PF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.0";
const VF0: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.2";
const VF1: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.3";

/// A physical function with two virtual ones; the second's interface is not in this namespace.
fn sriov_tree() -> Tree {
    let tree = Tree::new();
    tree.function(PF, "mlx5_core", Some("ens1f0"));
    tree.function(VF0, "mlx5_core", Some("ens1f0v0"));
    tree.function(VF1, "vfio-pci", None);
    tree.file(&format!("devices/{PF}/sriov_totalvfs"), "8\n");
    tree.file(&format!("devices/{PF}/sriov_numvfs"), "2\n");
    for (index, vf) in [VF0, VF1].iter().enumerate() {
        tree.link(&format!("devices/{PF}/virtfn{index}"), &format!("devices/{vf}"));
        tree.link(&format!("devices/{vf}/physfn"), &format!("devices/{PF}"));
    }
    tree.file(&format!("devices/{PF}/infiniband/mlx5_1/node_guid"), "");
    tree.file(&format!("devices/{PF}/infiniband/mlx5_0/node_guid"), "");
    tree
}

#[test]
fn reads_a_physical_function() {
    let facts = sriov_tree().sysfs().facts("ens1f0");
    assert_eq!(
        facts,
        SysfsFacts {
            driver: Some("mlx5_core".to_owned()),
            pci_address: Some("0000:3b:00.0".to_owned()),
            pcie_root: Some("pci0000:3a".to_owned()),
            numa_node: Some(1),
            speed_mbps: Some(25000),
            sriov: Some(Sriov::Physical { vfs: 2, max_vfs: 8 }),
            rdma_device: Some("mlx5_0".to_owned()),
            is_virtual: false,
        }
    );
}

#[test]
fn reads_a_virtual_function_and_its_index() {
    let tree = sriov_tree();
    let facts = tree.sysfs().facts("ens1f0v0");
    assert_eq!(facts.sriov, Some(Sriov::Virtual { pf: "ens1f0".to_owned(), index: 0 }));
    assert_eq!(facts.rdma_device, None);
    // A physical function's interface that has left this namespace is not named.
    fs::remove_file(tree.0.path().join("class/net/ens1f0")).expect("remove");
    let facts = tree.sysfs().facts("ens1f0v0");
    assert_eq!(facts.sriov, Some(Sriov::Virtual { pf: String::new(), index: 0 }));
}

#[test]
fn function_without_virtual_functions_has_no_role() {
    let tree = Tree::new();
    tree.function(PF, "ixgbe", Some("eth1"));
    tree.file(&format!("devices/{PF}/sriov_totalvfs"), "0\n");
    assert_eq!(tree.sysfs().facts("eth1").sriov, None);
}

#[test]
fn virtio_link_gets_the_pci_function_above() {
    let tree = Tree::new();
    let function = "pci0000:00/0000:00:03.0";
    tree.function(function, "virtio-pci", None);
    let device = format!("devices/{function}/virtio0");
    tree.link(&format!("{device}/driver"), "bus/virtio/drivers/virtio_net");
    tree.file(&format!("{device}/net/eth0/speed"), "-1\n");
    tree.link(&format!("{device}/net/eth0/device"), &device);
    tree.link("class/net/eth0", &format!("{device}/net/eth0"));
    let facts = tree.sysfs().facts("eth0");
    assert_eq!(facts.driver.as_deref(), Some("virtio_net"));
    assert_eq!(facts.pci_address.as_deref(), Some("0000:00:03.0"));
    assert_eq!(facts.pcie_root.as_deref(), Some("pci0000:00"));
    assert_eq!(facts.numa_node, Some(1));
    assert_eq!(facts.speed_mbps, None);
}

#[test]
fn root_that_is_no_pci_root_is_left_out() {
    let tree = Tree::new();
    tree.function("platform/soc/pci0001:00/0001:01:00.0", "r8169", Some("eth0"));
    let facts = tree.sysfs().facts("eth0");
    assert_eq!(facts.pci_address.as_deref(), Some("0001:01:00.0"));
    assert_eq!(facts.pcie_root, None);
}

#[test]
fn numa_minus_one_is_none() {
    let tree = Tree::new();
    tree.function(PF, "igb", Some("eth0"));
    tree.file(&format!("devices/{PF}/numa_node"), "-1\n");
    assert_eq!(tree.sysfs().facts("eth0").numa_node, None);
}

#[test]
fn virtual_and_missing_links() {
    let tree = Tree::new();
    tree.file("devices/virtual/net/veth0/speed", "10000\n");
    tree.link("class/net/veth0", "devices/virtual/net/veth0");
    assert_eq!(
        tree.sysfs().facts("veth0"),
        SysfsFacts { is_virtual: true, speed_mbps: Some(10000), ..SysfsFacts::default() }
    );
    assert_eq!(tree.sysfs().facts("gone"), SysfsFacts::default());
}
