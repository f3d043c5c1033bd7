//! The numbers of networks on this node, and what they were when they were last valid.
//!
//! One file, replaced whole (temporary file, fsync, rename, fsync of the folder): a crash leaves the old one or the
//! new one. It is written before a number is used. Because it has the specs too, networks are known right after a
//! restart, also while the API server is away.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{Network, NetworkId, NetworkRef, spec::NetworkSpec};

/// Layout of the file this build writes.
const VERSION: u32 = 1;
const TEMPORARY: &str = ".networks-";

/// What the file can fail with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is there and says nothing. Without it a network could get the number that ports of another one have.
    #[error("{path} cannot be used: {problem}; mend it, or remove it once no pod of this node has a port")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Every number is taken.
    #[error("every one of {0} numbers of networks is in use")]
    Exhausted(NetworkId),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    reference: NetworkRef,
    id: NetworkId,
    spec: NetworkSpec,
    /// The object is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

/// Networks that have numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbered {
    /// Those that are declared.
    pub networks: Vec<Network>,
    /// Those that are deleted, and still have ports.
    pub retired: Vec<Network>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    /// The next number to give: one that was given back is not used again soon, so that what is left in a map or a
    /// log is not taken for another network's.
    next: NetworkId,
    networks: Vec<Entry>,
}

/// The numbers of networks.
#[derive(Debug)]
pub struct Identities {
    path: PathBuf,
    kept: Mutex<OnDisk>,
}

impl Identities {
    /// Read the file; none means no networks. Its folder is made.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        }
        let kept = match fs::read(path) {
            Ok(text) => {
                read(&text).map_err(|problem| IdentityError::Broken { path: path.to_owned(), problem })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                OnDisk { version: VERSION, next: 1, networks: Vec::new() }
            }
            Err(error) => return Err(io_error("read", path)(error)),
        };
        Ok(Self { path: path.to_owned(), kept: Mutex::new(kept) })
    }

    /// The networks of the file, for a reader beside the daemon that owns it. No file means none.
    pub fn read(path: &Path) -> Result<Numbered, IdentityError> {
        match fs::read(path) {
            Ok(text) => read(&text)
                .map(|kept| kept.numbered())
                .map_err(|problem| IdentityError::Broken { path: path.to_owned(), problem }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Numbered::default()),
            Err(error) => Err(io_error("read", path)(error)),
        }
    }

    /// Every network that has a number, as it was when it was last valid.
    #[must_use]
    pub fn list(&self) -> Numbered {
        self.lock().numbered()
    }

    /// Make the file say `wanted`, and of the others only those in `held` (UIDs of networks with ports). A network
    /// that has a number keeps it; others get one. On disk when it returns.
    pub fn keep(
        &self,
        wanted: &[(NetworkRef, NetworkSpec)],
        held: &BTreeSet<String>,
    ) -> Result<Numbered, IdentityError> {
        self.keep_with(wanted, &[], held)
    }

    /// The same. Of those that stay only because they are held, `deleting` has what they say now.
    pub fn keep_with(
        &self,
        wanted: &[(NetworkRef, NetworkSpec)],
        deleting: &[(NetworkRef, NetworkSpec)],
        held: &BTreeSet<String>,
    ) -> Result<Numbered, IdentityError> {
        let mut kept = self.lock();
        let mut now = OnDisk { version: VERSION, next: kept.next, networks: Vec::new() };
        let is_wanted = |uid: &str| wanted.iter().any(|(reference, _)| reference.uid == uid);
        let stays = |entry: &&Entry| held.contains(&entry.reference.uid) && !is_wanted(&entry.reference.uid);
        let retired = |entry: &Entry| {
            let newest = deleting.iter().find(|(reference, _)| *reference == entry.reference);
            let spec = newest.map_or(&entry.spec, |(_, spec)| spec).clone();
            Entry { deleted: true, spec, ..entry.clone() }
        };
        now.networks.extend(kept.networks.iter().filter(stays).map(retired));
        let mut taken: BTreeSet<NetworkId> = kept.networks.iter().map(|entry| entry.id).collect();
        for (reference, spec) in wanted {
            let known = kept.networks.iter().find(|entry| entry.reference.uid == reference.uid);
            let id = if let Some(entry) = known {
                entry.id
            } else {
                let id = free(now.next, &taken).ok_or(IdentityError::Exhausted(NetworkId::MAX))?;
                now.next = id.checked_add(1).unwrap_or(1);
                id
            };
            taken.insert(id);
            now.networks.push(Entry { reference: reference.clone(), id, spec: spec.clone(), deleted: false });
        }
        now.networks.sort_by(|a, b| (&a.reference, a.id).cmp(&(&b.reference, b.id)));
        if now != *kept {
            self.write(&now)?;
            *kept = now;
        }
        Ok(kept.numbered())
    }

    fn lock(&self) -> MutexGuard<'_, OnDisk> {
        // It is replaced whole, so it is whole also after a panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, kept: &OnDisk) -> Result<(), IdentityError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let replace = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(kept)?;
            text.push(b'\n');
            let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            File::open(dir)?.sync_all()
        };
        replace().map_err(io_error("write", &self.path))
    }
}

fn free(from: NetworkId, taken: &BTreeSet<NetworkId>) -> Option<NetworkId> {
    let from = from.max(1);
    (from..=NetworkId::MAX).chain(1..from).find(|id| !taken.contains(id))
}

impl OnDisk {
    fn numbered(&self) -> Numbered {
        let network = |entry: &Entry| Network {
            reference: entry.reference.clone(),
            id: entry.id,
            spec: entry.spec.clone(),
        };
        let (retired, live): (Vec<&Entry>, Vec<&Entry>) =
            self.networks.iter().partition(|entry| entry.deleted);
        Numbered {
            networks: live.into_iter().map(network).collect(),
            retired: retired.into_iter().map(network).collect(),
        }
    }
}

fn read(text: &[u8]) -> Result<OnDisk, String> {
    let kept: OnDisk = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if kept.version != VERSION {
        return Err(format!("version {} is not known; this build reads {VERSION}", kept.version));
    }
    let ids: BTreeSet<NetworkId> = kept.networks.iter().map(|entry| entry.id).collect();
    let uids: BTreeSet<&String> = kept.networks.iter().map(|entry| &entry.reference.uid).collect();
    if ids.contains(&0) || ids.len() != kept.networks.len() || uids.len() != kept.networks.len() {
        return Err("a number or a UID is there twice, or 0".to_owned());
    }
    Ok(kept)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::network::validate::parse;

    fn wanted(name: &str, uid: &str) -> (NetworkRef, NetworkSpec) {
        let spec = json!({"subnets": ["10.1.0.0/16"], "transport": {"local": {}}});
        let reference = NetworkRef { name: name.to_owned(), uid: uid.to_owned() };
        (reference, parse(&spec).expect("a spec"))
    }

    fn ids(numbered: &Numbered) -> Vec<(&str, &str, NetworkId)> {
        rows(&numbered.networks)
    }

    fn rows(networks: &[Network]) -> Vec<(&str, &str, NetworkId)> {
        networks
            .iter()
            .map(|network| (network.reference.name.as_str(), network.reference.uid.as_str(), network.id))
            .collect()
    }

    #[test]
    fn numbers_survive_and_are_not_given_twice() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("state/networks.json");
        let (blue, red, blue_again) = (wanted("blue", "1"), wanted("red", "2"), wanted("blue", "3"));
        let nobody = BTreeSet::new();
        let identities = Identities::open(&path).expect("open");
        let kept = identities.keep(&[blue.clone(), red.clone()], &nobody).expect("keep");
        assert_eq!(ids(&kept), [("blue", "1", 1), ("red", "2", 2)]);

        let identities = Identities::open(&path).expect("open again");
        assert_eq!(identities.list(), kept, "specs too");
        // The old blue has ports; the new one is another network.
        let held = BTreeSet::from(["1".to_owned()]);
        let kept = identities.keep(&[blue_again.clone(), red.clone()], &held).expect("keep");
        assert_eq!(ids(&kept), [("blue", "3", 3), ("red", "2", 2)]);
        assert_eq!(rows(&kept.retired), [("blue", "1", 1)]);
        let again = Identities::open(&path).expect("open again");
        assert_eq!(again.list(), kept, "which is the deleted one is on disk too");
        let kept = identities.keep(&[blue_again], &nobody).expect("keep");
        assert_eq!((ids(&kept), kept.retired.len()), (vec![("blue", "3", 3)], 0));
        let kept = identities.keep(&[red], &nobody).expect("keep");
        assert_eq!(ids(&kept), [("red", "2", 4)], "what was given back is not used again at once");
        assert_eq!(Identities::read(&path).expect("read"), kept);
    }

    #[test]
    fn numbers_go_round_and_skip_0() {
        let taken = BTreeSet::from([1, NetworkId::MAX]);
        assert_eq!(free(NetworkId::MAX, &taken), Some(2));
        assert_eq!(free(0, &taken), Some(2));
    }

    #[test]
    fn a_broken_file_is_an_error_and_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("networks.json");
        let spec = json!({"subnets": ["10.1.0.0/16"], "transport": {"local": {}}});
        let entry = |uid: &str, id: u32| json!({"name": uid, "uid": uid, "id": id, "spec": spec});
        for text in [
            "{".to_owned(),
            json!({"version": 2, "next": 1, "networks": []}).to_string(),
            json!({"version": 1, "next": 1, "networks": [entry("a", 0)]}).to_string(),
            json!({"version": 1, "next": 1, "networks": [entry("a", 1), entry("b", 1)]}).to_string(),
        ] {
            fs::write(&path, &text).expect("write");
            let error = Identities::open(&path).expect_err(&text).to_string();
            assert!(error.contains("networks.json"), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("still there"), text);
        }
    }
}
