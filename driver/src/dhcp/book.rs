//! Which addresses were asked for and leased, one file a claim: what a daemon that was killed has to ask for again, to
//! renew, or to give back.
//!
//! A file is written before the first message is sent and before a lease is used, and removed after the address was
//! given back: replaced whole, and on disk when the call returns.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{client::Wire, lease::Lease};
use crate::{
    claim::{ClaimRef, InterfaceKey},
    link::MacAddr,
    network::NetworkRef,
};

/// Layout of the files.
const VERSION: u32 = 1;
/// Files of an interrupted write start so.
const TEMPORARY: &str = ".write-";

/// The address of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Request of the claim.
    pub request: String,
    /// Its device.
    pub device: String,
    /// Its share.
    #[serde(default, rename = "shareID", skip_serializing_if = "Option::is_none")]
    pub share_id: Option<String>,
    /// The network.
    pub network: NetworkRef,
    /// The link it was asked for on.
    pub link: String,
    /// The VLAN, 0 for untagged.
    pub vlan: u16,
    /// The port's hardware address.
    pub mac: MacAddr,
    /// What was granted; `None` while it is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// Why the address is not the port's any more, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

impl Entry {
    /// Which interface of the claim.
    #[must_use]
    pub fn key(&self) -> InterfaceKey {
        let Self { request, device, share_id, .. } = self;
        InterfaceKey { request: request.clone(), device: device.clone(), share_id: share_id.clone() }
    }

    /// Where it was asked for.
    #[must_use]
    pub fn wire(&self) -> Wire {
        Wire { link: self.link.clone(), vlan: self.vlan }
    }
}

/// The addresses of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The claim.
    pub claim: ClaimRef,
    /// One for each of its ports on networks with DHCP.
    pub entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct OnDisk<R> {
    version: u32,
    #[serde(flatten)]
    record: R,
}

/// All of them.
#[derive(Debug)]
pub struct Book {
    dir: PathBuf,
    /// Held over a whole write.
    records: Mutex<BTreeMap<String, Record>>,
}

impl Book {
    /// Read the files in `dir`, which is made if it is not there. A file that cannot be used is an error: the
    /// address in it would stay in use without being anybody's.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let wrong = |path: &Path, why: String| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} cannot be used: {why}; its addresses are free when their leases end",
                    path.display()
                ),
            )
        };
        fs::create_dir_all(dir)?;
        // Like the checkpoints: nobody but root has to know.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(TEMPORARY) {
                fs::remove_file(&path)?;
                continue;
            }
            let Some(uid) = name.strip_suffix(".json") else { continue };
            let on_disk: OnDisk<Record> =
                serde_json::from_slice(&fs::read(&path)?).map_err(|error| wrong(&path, error.to_string()))?;
            if on_disk.version != VERSION || on_disk.record.claim.uid != uid {
                return Err(wrong(
                    &path,
                    format!("it is of version {} or of another claim", on_disk.version),
                ));
            }
            records.insert(uid.to_owned(), on_disk.record);
        }
        Ok(Self { dir: dir.to_owned(), records: Mutex::new(records) })
    }

    /// A poisoned lock is used on: records are replaced by single inserts, and are always whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of a claim.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Record> {
        self.lock().get(uid).cloned()
    }

    /// Everything.
    #[must_use]
    pub fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    /// Write a claim's record, in the place of the one there is.
    pub fn put(&self, record: Record) -> io::Result<()> {
        let mut records = self.lock();
        let mut text = serde_json::to_vec_pretty(&OnDisk { version: VERSION, record: &record })?;
        text.push(b'\n');
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(self.path(&record.claim.uid)?)?;
        self.sync()?;
        records.insert(record.claim.uid.clone(), record);
        Ok(())
    }

    /// Change the entry of an interface, if it is there still.
    pub fn update(&self, uid: &str, key: &InterfaceKey, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        let Some(mut record) = self.get(uid) else { return Ok(()) };
        let Some(entry) = record.entries.iter_mut().find(|entry| entry.key() == *key) else { return Ok(()) };
        change(entry);
        self.put(record)
    }

    /// Forget a claim.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        let mut records = self.lock();
        match fs::remove_file(self.path(uid)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.sync()?,
        }
        records.remove(uid);
        Ok(())
    }

    /// A claim's UID comes from the API server, and becomes a name of a file.
    fn path(&self, uid: &str) -> io::Result<PathBuf> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if uid.is_empty() || uid.len() > 128 || uid.starts_with('.') || !uid.bytes().all(allowed) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("claim UID {uid:?} is not allowed"),
            ));
        }
        Ok(self.dir.join(format!("{uid}.json")))
    }

    /// Rename is durable only once its folder is (`rename(2)`, `fsync(2)`).
    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str) -> Record {
        let entry = Entry {
            request: "port".into(),
            device: "port-blue".into(),
            share_id: Some("s1".into()),
            network: NetworkRef { name: "blue".into(), uid: "n1".into() },
            link: "eth1".into(),
            vlan: 7,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            lease: None,
            lost: None,
        };
        let claim = ClaimRef { namespace: "default".into(), name: "c".into(), uid: uid.into() };
        Record { claim, entries: vec![entry] }
    }

    #[test]
    fn what_was_written_is_there_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("leases");
        let book = Book::open(&path).expect("open");
        book.put(record("u1")).expect("write");
        book.put(record("u2")).expect("write");
        let key = record("u2").entries[0].key();
        book.update("u2", &key, |entry| entry.lost = Some("refused".into())).expect("change");
        book.update("u3", &key, |_| panic!("there is none")).expect("nothing to change");
        book.remove("u1").expect("remove");
        book.remove("u1").expect("it is gone");
        fs::write(path.join(".write-x"), "half").expect("a write that was cut off");
        let again = Book::open(&path).expect("open again");
        assert_eq!((again.all(), again.get("u1")), (book.all(), None));
        assert_eq!(again.get("u2").expect("there").entries[0].lost.as_deref(), Some("refused"));
        assert!(!path.join(".write-x").exists());
        for bad in ["", "../x", ".u", "a/b"] {
            assert!(book.put(record(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("a folder");
        for text in ["{", r#"{"version":2,"claim":{"namespace":"a","name":"b","uid":"u1"},"entries":[]}"#] {
            fs::write(dir.path().join("u1.json"), text).expect("write");
            let error = Book::open(dir.path()).expect_err("it is broken").to_string();
            assert!(error.contains("u1.json cannot be used"), "{error}");
        }
    }
}
