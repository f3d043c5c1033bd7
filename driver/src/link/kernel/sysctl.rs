//! Per-link sysctls, through /proc/sys.
//!
//! `/proc/sys/net` shows the namespace of the reader, so these run on a thread inside the namespace.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

/// Folders with one folder a link and one named `default`, and the prefix that names get here.
const FOLDERS: [(&str, &str); 4] = [
    ("/proc/sys/net/ipv4/conf", "ipv4/"),
    ("/proc/sys/net/ipv6/conf", "ipv6/"),
    ("/proc/sys/net/ipv4/neigh", "ipv4/neigh/"),
    ("/proc/sys/net/ipv6/neigh", "ipv6/neigh/"),
];

/// What cannot be written back: the kernel derives them (`mc_forwarding` from the multicast routing daemon,
/// IPv6 `mtu` from the link), or reading tells nothing (`stable_secret`).
const DERIVED: [&str; 3] = ["ipv4/mc_forwarding", "ipv6/mc_forwarding", "ipv6/mtu"];

/// The link's sysctls that differ from the namespace's defaults.
pub(super) fn changed(link: &str) -> BTreeMap<String, String> {
    let mut changed = BTreeMap::new();
    for (folder, prefix) in FOLDERS {
        let own = PathBuf::from(folder).join(link);
        // No folder: the protocol is off on the link (an MTU below 1280 has no IPv6).
        let Ok(entries) = fs::read_dir(&own) else { continue };
        for entry in entries.flatten() {
            let file = entry.file_name();
            let Ok(value) = fs::read_to_string(entry.path()) else { continue };
            let name = format!("{prefix}{}", file.to_string_lossy());
            let usual = fs::read_to_string(PathBuf::from(folder).join("default").join(&file));
            // No default: namespaces other than the first have none for neighbours.
            if usual.ok().as_ref() != Some(&value) && !DERIVED.contains(&name.as_str()) {
                changed.insert(name, value.trim_end().to_owned());
            }
        }
    }
    changed
}

fn path(link: &str, name: &str) -> Option<PathBuf> {
    let (folder, prefix) = FOLDERS.into_iter().rev().find(|(_, prefix)| name.starts_with(prefix))?;
    Some(PathBuf::from(folder).join(link).join(&name[prefix.len()..]))
}

/// The values of those that the link has.
pub(super) fn read(link: &str, names: &[&'static str]) -> BTreeMap<String, String> {
    let value = |name: &str| fs::read_to_string(path(link, name)?).ok();
    let pair = |name: &&str| Some(((*name).to_owned(), value(name)?.trim_end().to_owned()));
    names.iter().filter_map(pair).collect()
}

/// Write those that have another value now. Returns the first that the kernel refused, after trying all.
pub(super) fn write(link: &str, sysctls: &BTreeMap<String, String>) -> Result<(), (String, io::Error)> {
    let mut refused = None;
    for (name, value) in sysctls {
        let Some(path) = path(link, name) else { continue };
        match fs::read_to_string(&path) {
            Ok(now) if now.trim_end() == value => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            _ => {}
        }
        if let Err(error) = fs::write(&path, value) {
            refused.get_or_insert((format!("{name} to {value:?}"), error));
        }
    }
    refused.map_or(Ok(()), Err)
}
