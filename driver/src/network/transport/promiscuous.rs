//! Links that this driver has made promiscuous, on disk.
//!
//! The kernel has one such flag for all administrators: only what this driver has switched on may it switch off. It is
//! written down before the link is changed, and struck out after it was changed back.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Changes with each start of the machine, and with it every link is another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OnDisk {
    boot: String,
    /// Names by index.
    links: BTreeMap<u32, String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Promiscuous {
    path: PathBuf,
    kept: OnDisk,
}

impl Promiscuous {
    /// What an earlier daemon has written since the machine was started. A file that cannot be read counts as empty:
    /// then a link stays promiscuous, which harms less than one that an administrator wants so and is not.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let boot = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let kept = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "cannot be used; links stay promiscuous");
                OnDisk::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => OnDisk::default(),
            Err(error) => return Err(error),
        };
        let kept = if kept.boot == boot { kept } else { OnDisk { boot, links: BTreeMap::new() } };
        Ok(Self { path: path.to_owned(), kept })
    }

    /// Links that this driver has made promiscuous, names by index.
    pub(super) fn links(&self) -> &BTreeMap<u32, String> {
        &self.kept.links
    }

    /// Write a link down.
    pub(super) fn add(&mut self, ifindex: u32, name: &str) -> io::Result<()> {
        self.change(|links| links.insert(ifindex, name.to_owned()))
    }

    /// Strike a link out.
    pub(super) fn remove(&mut self, ifindex: u32) -> io::Result<()> {
        self.change(|links| links.remove(&ifindex))
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut BTreeMap<u32, String>) -> T) -> io::Result<()> {
        let mut now = self.kept.clone();
        change(&mut now.links);
        if now == self.kept {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let mut file = tempfile::Builder::new().prefix(".promiscuous").tempfile_in(dir)?;
        serde_json::to_writer(&mut file, &now)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        File::open(dir)?.sync_all()?;
        self.kept = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_again_until_the_machine_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/promiscuous.json");
        let mut kept = Promiscuous::open(&path).unwrap();
        kept.add(7, "eth1").unwrap();
        kept.add(8, "eth2").unwrap();
        kept.remove(8).unwrap();
        kept.remove(9).unwrap();
        let again = Promiscuous::open(&path).unwrap();
        assert_eq!(again.links(), &BTreeMap::from([(7, "eth1".to_owned())]));
        let text = fs::read_to_string(&path).unwrap().replace(&again.kept.boot, "another");
        fs::write(&path, text).unwrap();
        assert!(Promiscuous::open(&path).unwrap().links().is_empty());
        fs::write(&path, "{").unwrap();
        assert!(Promiscuous::open(&path).unwrap().links().is_empty());
    }
}
