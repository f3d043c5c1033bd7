//! The claim store: the checkpoints of claims on disk, and the same in memory.
//!
//! Every change is in the file system before the call returns, whole: a daemon that is killed at any line finds the old
//! checkpoint or the new one. What a power cut must not take away is synced to the disk as well ([`files`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use self::files::{Durable, Files, TEMPORARY, sync_dir};
use super::{Checkpoint, ClaimRef, InterfaceRecord, PodRef};
use crate::{keyed::Keyed, link::identity::boot_id};

mod files;
#[cfg(test)]
mod steps_tests;
#[cfg(test)]
mod tests;

/// Longest UID taken; the API server's are 36 characters.
const MAX_UID: usize = 128;

/// What a store operation can fail with.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No checkpoint of that claim.
    #[error("no checkpoint of claim UID {0:?}")]
    NotFound(String),
    /// The UID cannot be a file name.
    #[error(
        "claim UID {0:?} is not allowed; 1 to {MAX_UID} of A-Z a-z 0-9 '-' '_' '.', not starting with '.'"
    )]
    Uid(String),
    /// Another claim has the device.
    #[error("device {device} is held by claim {holder}")]
    DeviceHeld {
        /// The device.
        device: String,
        /// Who has it.
        holder: Box<ClaimRef>,
    },
    /// Programs of the claim wait on a link at home: forgetting the claim would leave it closed.
    #[error("claim {claim} still has programs on {device}")]
    StillProtected {
        /// The claim.
        claim: Box<ClaimRef>,
        /// The device.
        device: String,
    },
    /// A link of the claim is not at home: forgetting the claim would lose it.
    #[error("claim {claim} still has {device} in pod {pod}")]
    StillOut {
        /// The claim.
        claim: Box<ClaimRef>,
        /// Its device.
        device: String,
        /// Where it is, or is being put, or comes from.
        pod: Box<PodRef>,
    },
    /// A checkpoint was changed into that of another claim: a programming error, and nothing was written.
    #[error("the checkpoint of claim UID {0:?} must keep its UID")]
    UidChanged(String),
    /// The file system refused.
    #[error("{action} {path}")]
    Io {
        /// What was tried ("write", "remove", …).
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A file that was found at the start and could not be used. It was renamed and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreProblem {
    /// Where the file is now.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// All checkpoints. Reads are in memory and never wait for the disk; writes of one claim are serialised.
#[derive(Debug)]
pub struct Store {
    files: Files,
    /// Held over a whole write of a claim, so that what is checked before it still holds after it.
    writing: Keyed<String>,
    /// Of the last write.
    revision: AtomicU64,
    claims: Mutex<BTreeMap<String, Checkpoint>>,
    /// Checkpoints that are being written: their devices are theirs already. Locked after `claims`.
    coming: Mutex<BTreeMap<String, Checkpoint>>,
    changed: watch::Sender<()>,
}

/// A poisoned lock is used on: the maps behind it are replaced by single inserts and are always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// Where tests stop the process (`return(abort)`), let the write fail (`return`), or hold it (`pause`).
#[cfg_attr(
    not(feature = "failpoints"),
    expect(clippy::unnecessary_wraps, reason = "fails only by injection")
)]
fn crossing(name: &'static str, path: &Path) -> Result<(), StoreError> {
    fail::fail_point!(name, |argument| {
        if argument.as_deref() == Some("abort") {
            std::process::abort();
        }
        Err(StoreError::Io {
            action: "write",
            path: path.to_owned(),
            source: io::Error::other(format!("injected at {name}")),
        })
    });
    let _ = (name, path);
    Ok(())
}

impl Store {
    /// The checkpoints in `dir` as they are, for a reader beside the daemon that owns them: nothing is made,
    /// set aside or removed, and files that cannot be read are passed over. No folder means no checkpoints.
    pub fn read(dir: &Path) -> Result<Vec<Checkpoint>, StoreError> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("list", dir))?,
        };
        let files = Files { dir: dir.to_owned(), boot_id: boot_id().to_owned() };
        let mut checkpoints = Vec::new();
        for entry in entries {
            let path = entry.map_err(io_error("list", dir))?.path();
            if let (Some("json"), Some(uid)) =
                (path.extension().and_then(|e| e.to_str()), path.file_stem().and_then(|stem| stem.to_str()))
            {
                checkpoints.extend(files.read(uid).0.map(|(checkpoint, _)| checkpoint));
            }
        }
        Ok(checkpoints)
    }

    /// Open the store in `dir`, made if it is not there, and read every checkpoint.
    ///
    /// A file that cannot be read, is of another version or belongs under another name is renamed to
    /// `<file>.bad` and reported; the rest of the store is usable.
    ///
    /// A checkpoint of another boot keeps its plan alone: what was attached then is gone, and a link that is at home is as
    /// the node's configuration has made it since.
    pub fn open(dir: &Path) -> Result<(Self, Vec<StoreProblem>), StoreError> {
        Self::open_in_boot(dir, boot_id())
    }

    /// [`Store::open`] in a boot of this id.
    pub fn open_in_boot(dir: &Path, boot_id: &str) -> Result<(Self, Vec<StoreProblem>), StoreError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        // The files tell where pods' links are: nobody but root has to know.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io_error("set mode of", dir))?;
        let files = Files { dir: dir.to_owned(), boot_id: boot_id.to_owned() };
        let (mut planned, mut steps) = (BTreeSet::new(), BTreeSet::new());
        for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
            let path = entry.map_err(io_error("list", dir))?.path();
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if file_name.starts_with(TEMPORARY) {
                files::absent(fs::remove_file(&path)).map_err(io_error("remove", &path))?;
            } else if let Some(uid) = file_name.strip_suffix(".json") {
                planned.insert(uid.to_owned());
            } else if let Some(uid) = file_name.strip_suffix(".step") {
                steps.insert(uid.to_owned());
            }
        }
        for uid in steps.difference(&planned) {
            files.remove_steps(uid)?;
        }
        let (mut claims, mut problems, mut last) = (BTreeMap::new(), Vec::new(), 0);
        for uid in planned {
            let (found, wrong) = files.read(&uid);
            let has_plan = !wrong.iter().any(|(path, _)| *path == files.path(&uid));
            for (path, problem) in wrong {
                problems.push(Files::set_aside(&path, problem)?);
            }
            let Some((checkpoint, revision)) = found else { continue };
            last = last.max(revision);
            if !has_plan {
                // Its steps have it all: so they become what is durable.
                files.write(&checkpoint, revision, Durable::Yes)?;
            }
            claims.insert(uid, checkpoint);
        }
        if !problems.is_empty() {
            sync_dir(dir)?;
        }
        let store = Self {
            files,
            writing: Keyed::default(),
            revision: AtomicU64::new(last),
            claims: Mutex::new(claims),
            coming: Mutex::default(),
            changed: watch::Sender::new(()),
        };
        Ok((store, problems))
    }

    /// Told after each change, when reads see it.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The checkpoint of a claim.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Checkpoint> {
        lock(&self.claims).get(uid).cloned()
    }

    /// Read what is in memory without a copy. `read` must not wait, nor call the store.
    pub(crate) fn look<T>(&self, read: impl FnOnce(&BTreeMap<String, Checkpoint>) -> T) -> T {
        read(&lock(&self.claims))
    }

    /// Every checkpoint, by claim UID.
    #[must_use]
    pub fn all(&self) -> Vec<Checkpoint> {
        lock(&self.claims).values().cloned().collect()
    }

    /// The checkpoints of claims that are reserved for the pod or attached to one of its sandboxes. In memory
    /// only: made for the runtime's hook.
    #[must_use]
    pub fn by_pod(&self, pod_uid: &str) -> Vec<Checkpoint> {
        let concerns = |checkpoint: &&Checkpoint| {
            checkpoint.is_for(pod_uid)
                || checkpoint
                    .interfaces
                    .iter()
                    .filter_map(|interface| interface.attachment.as_ref())
                    .any(|attachment| attachment.sandbox.pod.uid == pod_uid)
        };
        lock(&self.claims).values().filter(concerns).cloned().collect()
    }

    /// Whether a claim that is prepared is reserved for the pod, as far as the driver has seen. In memory only: made for
    /// the runtime's hooks.
    #[must_use]
    pub fn has_claims(&self, pod_uid: &str) -> bool {
        lock(&self.claims).values().any(|checkpoint| checkpoint.is_for(pod_uid))
    }

    /// Whether the sandbox has every interface of the claims that are reserved for its pod. In memory only.
    #[must_use]
    pub fn has_all(&self, pod_uid: &str, sandbox_id: &str) -> bool {
        let claims = lock(&self.claims);
        let mut interfaces =
            claims.values().filter(|it| it.is_for(pod_uid)).flat_map(|checkpoint| &checkpoint.interfaces);
        interfaces.all(|it| it.attachment.as_ref().is_some_and(|attachment| attachment.is_in(sandbox_id)))
    }

    /// Prepared claims of a namespace that any pod of it may name. In memory only.
    #[must_use]
    pub fn shareable(&self, namespace: &str) -> Vec<ClaimRef> {
        let claims = lock(&self.claims);
        let open = claims.values().filter(|it| it.shareable && it.claim.namespace == namespace);
        open.map(|checkpoint| checkpoint.claim.clone()).collect()
    }

    /// Links of the host that every prepared claim has: who claims it, and the pod it is attached to now. A port of a
    /// network has none; of a link with several sub-interfaces, one of its holders is told.
    #[must_use]
    pub fn held_devices(&self) -> BTreeMap<String, (ClaimRef, Option<PodRef>)> {
        let mut held = BTreeMap::new();
        for checkpoint in lock(&self.claims).values() {
            for interface in checkpoint.interfaces.iter().filter(|it| it.plan.port().is_none()) {
                let pod = interface.attachment.as_ref().map(|attachment| attachment.sandbox.pod.clone());
                held.insert(interface.plan.device.clone(), (checkpoint.claim.clone(), pod));
            }
        }
        held
    }

    /// Write the checkpoint of a claim, new or in place of the one there is. Refused if one of its devices is
    /// held by another claim: of two claims prepared at once for one device, the second fails.
    pub fn put(&self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let _writing = self.writing.lock(&checkpoint.claim.uid);
        self.write(checkpoint, Durable::Yes)
    }

    /// Change a checkpoint under its write lock; returns it as it is on disk now. A change of steps alone, which are void in
    /// another boot, is there after a kill of the daemon; any other one also after a power cut.
    pub fn update(&self, uid: &str, change: impl FnOnce(&mut Checkpoint)) -> Result<Checkpoint, StoreError> {
        let _writing = self.writing.lock(&uid.to_owned());
        let before = self.get(uid).ok_or_else(|| StoreError::NotFound(uid.to_owned()))?;
        let mut checkpoint = before.clone();
        change(&mut checkpoint);
        if checkpoint.claim.uid != uid {
            return Err(StoreError::UidChanged(uid.to_owned()));
        }
        let durable = if before.plans_as(&checkpoint) { Durable::No } else { Durable::Yes };
        self.write(checkpoint.clone(), durable)?;
        Ok(checkpoint)
    }

    /// Forget a claim; one that is not there is no error, one with an interface that has an attachment or
    /// programs is.
    pub fn remove(&self, uid: &str) -> Result<(), StoreError> {
        let _writing = self.writing.lock(&uid.to_owned());
        let path = self.path(uid)?;
        if let Some(checkpoint) = self.get(uid) {
            for interface in checkpoint.interfaces {
                if interface.removing.is_some()
                    || (interface.attachment.is_none() && interface.reserved.is_some())
                {
                    let claim = Box::new(checkpoint.claim);
                    return Err(StoreError::StillProtected { claim, device: interface.plan.device });
                }
                if let Some(attachment) = interface.attachment {
                    return Err(StoreError::StillOut {
                        claim: checkpoint.claim.into(),
                        device: interface.plan.device,
                        pod: attachment.sandbox.pod.into(),
                    });
                }
            }
        }
        crossing("store-before-write", &path)?;
        self.files.remove(uid)?;
        lock(&self.claims).remove(uid);
        self.changed.send_replace(());
        crossing("store-after-write", &path)
    }

    fn path(&self, uid: &str) -> Result<PathBuf, StoreError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if uid.is_empty() || uid.len() > MAX_UID || uid.starts_with('.') || !uid.bytes().all(allowed) {
            return Err(StoreError::Uid(uid.to_owned()));
        }
        Ok(self.files.path(uid))
    }

    /// Disk first, then memory: memory never claims what a restart would not find. When only the last fsync
    /// fails, the disk may be one step ahead of memory; a step is written before its action, so that is the
    /// same as a crash right after the write.
    fn write(&self, checkpoint: Checkpoint, durable: Durable) -> Result<(), StoreError> {
        let path = self.path(&checkpoint.claim.uid)?;
        let _coming = self.reserve(&checkpoint)?;
        crossing("store-before-write", &path)?;
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        self.files.write(&checkpoint, revision, durable)?;
        lock(&self.claims).insert(checkpoint.claim.uid.clone(), checkpoint);
        self.changed.send_replace(());
        crossing("store-after-write", &path)
    }

    /// Refuse a checkpoint with a device of another claim, also of one that is being written; else take its devices. A link
    /// that is moved has one holder. What is made beside others has none.
    fn reserve(&self, checkpoint: &Checkpoint) -> Result<Coming<'_>, StoreError> {
        let claims = lock(&self.claims);
        let mut coming = lock(&self.coming);
        let uid = &checkpoint.claim.uid;
        for other in claims.values().chain(coming.values()).filter(|other| other.claim.uid != *uid) {
            for InterfaceRecord { plan, .. } in &checkpoint.interfaces {
                let conflict = |theirs: &InterfaceRecord| {
                    theirs.plan.device == plan.device && (theirs.plan.made.is_none() || plan.made.is_none())
                };
                if other.interfaces.iter().any(conflict) {
                    let holder = other.claim.clone().into();
                    return Err(StoreError::DeviceHeld { device: plan.device.clone(), holder });
                }
            }
        }
        coming.insert(uid.clone(), checkpoint.clone());
        Ok(Coming { coming: &self.coming, uid: uid.clone() })
    }
}

/// A checkpoint that is being written.
struct Coming<'a> {
    coming: &'a Mutex<BTreeMap<String, Checkpoint>>,
    uid: String,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        lock(self.coming).remove(&self.uid);
    }
}
