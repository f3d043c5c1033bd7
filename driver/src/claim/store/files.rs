//! The files of the claim store: for each claim one that outlives the machine's power, and one beside it for its steps.
//!
//! `<uid>.json` has what must be there after a power cut: the plan. It is written with fsync of the file and its folder.
//! `<uid>.step` has the steps of attach and return, which are void in another boot ([`read`]): it is renamed into its place
//! whole, without fsync, as a daemon that is killed loses nothing that it has written. Each has the whole checkpoint, and the
//! one with the higher revision counts.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Checkpoint, StoreError, StoreProblem, io_error};

/// Files that cannot be used, each with the reason.
pub(super) type Unusable = Vec<(PathBuf, String)>;

/// Layout of the files this build writes; files of another layout are set aside, not guessed at.
pub(super) const VERSION: u32 = 2;
/// Files of an interrupted write start so, and are deleted at the next start.
pub(super) const TEMPORARY: &str = ".write-";

/// A checkpoint as it is on disk.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OnDisk<C> {
    pub(super) version: u32,
    /// The boot in which it was written. Attachments, namespaces and programs do not outlive it.
    pub(super) boot_id: String,
    /// Higher with each write of the store.
    #[serde(default)]
    pub(super) revision: u64,
    #[serde(flatten)]
    pub(super) checkpoint: C,
}

/// Whether a write is there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    Yes,
    /// It is there after a kill of the daemon.
    No,
}

/// A folder of checkpoints, in one boot.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) boot_id: String,
}

impl Files {
    pub(super) fn path(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }

    fn step_path(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.step"))
    }

    /// What is there of a claim, and its revision. Of a file that cannot be used: which, and why.
    pub(super) fn read(&self, uid: &str) -> (Option<(Checkpoint, u64)>, Unusable) {
        let mut problems = Vec::new();
        let mut newest: Option<OnDisk<Checkpoint>> = None;
        for path in [self.path(uid), self.step_path(uid)] {
            match read(&path, uid) {
                Ok(found) => {
                    let is_step = path.extension().is_some_and(|it| it == "step");
                    let is_void = is_step && found.boot_id != self.boot_id;
                    if !is_void && newest.as_ref().is_none_or(|newest| newest.revision <= found.revision) {
                        newest = Some(found);
                    }
                }
                Err(Unreadable::Missing) => {}
                Err(Unreadable::Wrong(problem)) => problems.push((path, problem)),
            }
        }
        let newest = newest.map(|mut found| {
            if found.boot_id != self.boot_id {
                for interface in &mut found.checkpoint.interfaces {
                    (interface.attachment, interface.reserved, interface.removing) = (None, None, None);
                }
            }
            (found.checkpoint, found.revision)
        });
        (newest, problems)
    }

    /// Replace a checkpoint. A crash at any line leaves the old one or the new one, never a mixture.
    pub(super) fn write(
        &self,
        checkpoint: &Checkpoint,
        revision: u64,
        durable: Durable,
    ) -> Result<(), StoreError> {
        let uid = &checkpoint.claim.uid;
        let path = if durable == Durable::Yes { self.path(uid) } else { self.step_path(uid) };
        let replace = || {
            let (version, boot_id) = (VERSION, self.boot_id.clone());
            let mut text = serde_json::to_vec_pretty(&OnDisk { version, boot_id, revision, checkpoint })?;
            text.push(b'\n');
            let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)?;
            file.write_all(&text)?;
            if durable == Durable::Yes {
                file.as_file().sync_all()?;
            }
            file.persist(&path)?;
            Ok::<_, io::Error>(())
        };
        replace().map_err(io_error("write", &path))?;
        if durable == Durable::Yes {
            sync_dir(&self.dir)?;
            // Of a lower revision: it may stay if it cannot be removed.
            let _ = fs::remove_file(self.step_path(uid));
        }
        Ok(())
    }

    /// The steps last: alone they are those of a claim that is forgotten.
    pub(super) fn remove(&self, uid: &str) -> Result<(), StoreError> {
        let path = self.path(uid);
        absent(fs::remove_file(&path)).map_err(io_error("remove", &path))?;
        sync_dir(&self.dir)?;
        self.remove_steps(uid)
    }

    pub(super) fn remove_steps(&self, uid: &str) -> Result<(), StoreError> {
        let path = self.step_path(uid);
        absent(fs::remove_file(&path)).map_err(io_error("remove", &path))
    }

    /// Keep a file that cannot be used, under a name that the store does not read.
    pub(super) fn set_aside(path: &Path, problem: String) -> Result<StoreProblem, StoreError> {
        let mut kept = PathBuf::from(format!("{}.bad", path.display()));
        let mut number = 1;
        while kept.exists() {
            number += 1;
            kept = PathBuf::from(format!("{}.bad.{number}", path.display()));
        }
        fs::rename(path, &kept).map_err(io_error("set aside", path))?;
        Ok(StoreProblem { path: kept, problem })
    }
}

/// A removal of what is not there has succeeded.
pub(super) fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Rename is durable only once its folder is (`rename(2)`, `fsync(2)`).
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(io_error("fsync", dir))
}

enum Unreadable {
    Missing,
    Wrong(String),
}

fn read(path: &Path, uid: &str) -> Result<OnDisk<Checkpoint>, Unreadable> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unreadable::Missing),
        text => text.map_err(|error| Unreadable::Wrong(format!("cannot be read: {error}")))?,
    };
    parse(&text, uid).map_err(Unreadable::Wrong)
}

fn parse(text: &[u8], uid: &str) -> Result<OnDisk<Checkpoint>, String> {
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(format!("version {version} is not known; this build reads {VERSION}")),
        None => return Err("has no version".to_owned()),
    }
    let on_disk: OnDisk<Checkpoint> =
        serde_json::from_value(value).map_err(|error| format!("is not a checkpoint: {error}"))?;
    if on_disk.checkpoint.claim.uid != uid {
        return Err(format!("is of claim UID {:?}, but named for {uid}", on_disk.checkpoint.claim.uid));
    }
    Ok(on_disk)
}
