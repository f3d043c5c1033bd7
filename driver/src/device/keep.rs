//! Devices that are away: what a pod holds stays in the inventory with the facts it was published with.
//!
//! A claimed link is in its pod's namespace, where discovery does not look, and looks different there. Its
//! last facts from home are kept in memory and in `inventory.json` in the state directory, so that slices do
//! not change while it is away, nor when the daemon restarts meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Device, Inventory};

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "inventory.json";

/// Version of the file's layout.
const VERSION: u32 = 1;

/// Tells which devices pods hold: from the moment a claim is checkpointed until its devices are home again.
pub trait Held: Send + Sync {
    /// Names of the held devices.
    fn held(&self) -> BTreeSet<String>;
}

impl<F: Fn() -> BTreeSet<String> + Send + Sync> Held for F {
    fn held(&self) -> BTreeSet<String> {
        self()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    devices: BTreeMap<String, Device>,
}

/// The last inventory, in memory and on disk.
#[derive(Debug, Default)]
pub struct Keep {
    directory: Option<PathBuf>,
    last: Inventory,
    saved: bool,
}

impl Keep {
    /// With the inventory that an earlier run left in `directory`; `None` keeps in memory only. A file that
    /// cannot be used is left out with a warning: its only loss is that held devices are unpublished until
    /// they are home.
    #[must_use]
    pub fn open(directory: Option<PathBuf>) -> Self {
        let last = directory.as_deref().map(load).unwrap_or_default();
        Self { directory, last, saved: false }
    }

    /// `fresh` with the held devices as they were when they were not held yet. A held device that is at home
    /// keeps its old facts too (it is being prepared or returned), but has the index it has now.
    pub fn merge(&mut self, mut fresh: Inventory, held: &BTreeSet<String>) -> Inventory {
        for name in held {
            let Some(known) = self.last.devices.get(name) else {
                if !fresh.devices.contains_key(name) {
                    warn!(device = %name, "a pod holds a device that discovery has never seen");
                }
                continue;
            };
            let mut device = known.clone();
            if let Some(home) = fresh.devices.get(name) {
                device.ifindex = home.ifindex;
            }
            fresh.devices.insert(name.clone(), device);
        }
        if self.last != fresh {
            self.last = fresh.clone();
            self.saved = false;
        }
        fresh
    }

    /// Write the last merged inventory to disk, if it is not there yet. Must precede its publication: a device
    /// that can be claimed is then always on disk before it can leave.
    pub fn save(&mut self) -> io::Result<()> {
        if let (Some(directory), false) = (&self.directory, self.saved) {
            let saved = Saved { version: VERSION, devices: self.last.devices.clone() };
            let mut text = serde_json::to_vec_pretty(&saved)?;
            text.push(b'\n');
            let mut file = tempfile::Builder::new().prefix(".inventory-").tempfile_in(directory)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(directory.join(FILE_NAME)).map_err(|error| error.error)?;
            File::open(directory)?.sync_all()?;
        }
        self.saved = true;
        Ok(())
    }
}

fn load(directory: &Path) -> Inventory {
    let path = directory.join(FILE_NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                warn!(path = %path.display(), %error, "the saved inventory cannot be read");
            }
            return Inventory::default();
        }
    };
    match serde_json::from_slice::<Saved>(&text) {
        Ok(saved) if saved.version == VERSION => Inventory { devices: saved.devices },
        Ok(saved) => {
            warn!(path = %path.display(), version = saved.version, "the saved inventory has another version");
            Inventory::default()
        }
        Err(error) => {
            warn!(path = %path.display(), %error, "the saved inventory is damaged");
            Inventory::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, ifindex: u32, state: &str) -> Device {
        Device {
            name: name.to_owned(),
            ifname: name.to_owned(),
            ifindex,
            oper_state: state.to_owned(),
            addresses: vec!["192.0.2.7/24".parse().expect("an address")],
            gateways: vec!["192.0.2.1".parse().expect("an address")],
            ..Device::default()
        }
    }

    fn inventory(devices: &[Device]) -> Inventory {
        Inventory { devices: devices.iter().map(|d| (d.name.clone(), d.clone())).collect() }
    }

    fn held(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_held_device_stays_as_it_was_until_released() {
        let mut keep = Keep::open(None);
        let home = inventory(&[device("eth1", 3, "up"), device("eth2", 4, "up")]);
        assert_eq!(keep.merge(home.clone(), &held(&[])), home);
        // Being attached: down and renumbered, but still here.
        let seen =
            keep.merge(inventory(&[device("eth1", 9, "down"), device("eth2", 4, "up")]), &held(&["eth1"]));
        assert_eq!(seen, inventory(&[device("eth1", 9, "up"), device("eth2", 4, "up")]));
        // Away; eth2 is away too, but nobody holds it.
        let seen = keep.merge(inventory(&[]), &held(&["eth1"]));
        assert_eq!(seen, inventory(&[device("eth1", 9, "up")]));
        // Home and released.
        let back = inventory(&[device("eth1", 12, "down")]);
        assert_eq!(keep.merge(back.clone(), &held(&[])), back);
        // Gone for good.
        assert_eq!(keep.merge(inventory(&[]), &held(&[])), inventory(&[]));
    }

    #[test]
    fn a_restart_while_held_changes_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let open = || Keep::open(Some(directory.path().to_owned()));
        let home = inventory(&[device("eth1", 3, "up")]);
        let mut keep = open();
        keep.merge(home.clone(), &held(&[]));
        keep.save().expect("saved");
        keep.merge(inventory(&[]), &held(&["eth1"]));
        keep.save().expect("saved");
        drop(keep);
        let mut keep = open();
        assert_eq!(keep.merge(inventory(&[]), &held(&["eth1"])), home);
        let files: Vec<_> = fs::read_dir(directory.path()).expect("listed").collect();
        assert_eq!(files.len(), 1, "no temporary file is left: {files:?}");
    }

    #[test]
    fn a_damaged_file_is_passed_over_and_replaced() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE_NAME);
        for damaged in ["", "{", r#"{"version":99,"devices":{}}"#] {
            fs::write(&path, damaged).expect("written");
            let mut keep = Keep::open(Some(directory.path().to_owned()));
            let seen = keep.merge(inventory(&[]), &held(&["eth1"]));
            assert_eq!(seen, inventory(&[]));
            keep.save().expect("saved");
            assert_eq!(load(directory.path()), inventory(&[]));
            assert!(fs::read_to_string(&path).expect("read").contains("\"version\": 1"));
        }
    }
}
