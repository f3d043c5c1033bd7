//! Kernel modules: found in a kernel's folder, in an order in which they can be loaded.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::command::foreign;

/// What the tests use of a kernel that may be built as a module.
const WANTED: [&str; 20] = [
    "8021q",
    "act_gact",
    "act_mirred",
    "bridge",
    "cls_bpf",
    "cls_matchall",
    "cls_u32",
    "dummy",
    "ipvlan",
    "macvlan",
    "macvtap",
    "netkit",
    "sch_htb",
    "sch_ingress",
    "sch_netem",
    "tun",
    "veth",
    "vrf",
    "vxlan",
    "xfrm_user",
];

/// A module, decompressed.
pub(crate) struct Module {
    /// Its name, with underscores.
    pub(crate) name: String,
    /// The object file.
    pub(crate) bytes: Vec<u8>,
}

/// The wanted modules and what they depend on, in order. What is built into the kernel, or what it does not have,
/// is not among them.
pub(crate) fn load_order(folder: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(&folder.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(file) = files.get(name) else { return Ok(()) };
    let bytes = read(file).with_context(|| format!("read {}", file.display()))?;
    for needed in depends(&bytes) {
        add(&needed, files, order)?;
    }
    order.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// Module files by name, whatever their compression.
fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some((name, _)) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(".ko"))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(file)?);
    }
    let output = foreign("xz").args(["--decompress", "--stdout"]).arg(file).output().context("start xz")?;
    anyhow::ensure!(output.status.success(), "xz: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// The names in the field `depends=` of a module's section `.modinfo`, whose fields end with a zero byte.
fn depends(module: &[u8]) -> Vec<String> {
    let field = b"\0depends=";
    let Some(at) = module.windows(field.len()).position(|bytes| bytes == field) else { return Vec::new() };
    let value = module[at + field.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        let module = b"\x7fELF\0license=GPL\0depends=garp,mrp,llc-two\0retpoline=Y\0";
        assert_eq!(depends(module), ["garp", "mrp", "llc_two"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"none").is_empty());
    }
}
