//! Hardware that was given up: it vanished with its pod, or did not come back from the pod's namespace in time. Its record
//! stays on disk, so that a link that is seen at home later is put right all the same.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Attacher;
use crate::claim::{Attachment, ClaimRef, InterfacePlan};

/// How long hardware may take from the end of its network namespace until it is in the host's. The kernel's worker needs
/// some grace periods for it; a device that was unplugged meanwhile never comes.
pub(super) const LONGEST_WAY_HOME: Duration = Duration::from_mins(1);

/// Version of the file's layout.
const VERSION: u32 = 1;

/// A link that was given up, as it was attached last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Stray {
    pub(super) claim: ClaimRef,
    pub(super) plan: InterfacePlan,
    pub(super) attachment: Attachment,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    strays: BTreeMap<String, Stray>,
}

/// What was given up, by device, and since when namespaces of hardware that is away are gone.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// `None` keeps them in memory only.
    path: Option<PathBuf>,
    known: Mutex<BTreeMap<String, Stray>>,
    gone_since: Mutex<BTreeMap<(String, String), Instant>>,
}

impl Strays {
    /// What an earlier run has written. A file that cannot be used is set aside as `<file>.bad`.
    pub(super) fn open(path: &Path) -> Self {
        let known = match fs::read(path) {
            Ok(text) => read(&text).unwrap_or_else(|problem| {
                let bad = path.with_extension("json.bad");
                let renamed = fs::rename(path, &bad);
                tracing::error!(path = %path.display(), bad = %bad.display(), ?renamed, "set aside: {problem}");
                BTreeMap::new()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(path = %path.display(), %error, "cannot be read");
                }
                BTreeMap::new()
            }
        };
        Self { path: Some(path.to_owned()), known: Mutex::new(known), gone_since: Mutex::default() }
    }

    /// How long the namespace of an attached link has been gone, counted from the first question.
    pub(super) fn gone_for(&self, plan: &InterfacePlan, attachment: &Attachment) -> Duration {
        let mut since = self.gone_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.entry(key(plan, attachment)).or_insert_with(Instant::now).elapsed()
    }

    fn settled(&self, plan: &InterfacePlan, attachment: &Attachment) {
        self.gone_since.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(plan, attachment));
    }

    fn all(&self) -> Vec<Stray> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Stray>)) -> io::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.clone();
        change(&mut known);
        match &self.path {
            Some(path) if *known != before => write(path, &known),
            _ => Ok(()),
        }
    }
}

fn key(plan: &InterfacePlan, attachment: &Attachment) -> (String, String) {
    (attachment.sandbox.id.clone(), plan.device.clone())
}

fn read(text: &[u8]) -> Result<BTreeMap<String, Stray>, String> {
    let OnDisk { version, strays } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if version == VERSION {
        Ok(strays)
    } else {
        Err(format!("version {version}; this build reads {VERSION}"))
    }
}

fn write(path: &Path, known: &BTreeMap<String, Stray>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".strays-").tempfile_in(folder)?;
    serde_json::to_writer_pretty(&mut file, &OnDisk { version: VERSION, strays: known.clone() })?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

impl Attacher {
    /// The same, that writes down in this file which hardware was given up, and has what an earlier run gave up.
    #[must_use]
    pub fn remembering(mut self, file: &Path) -> Self {
        self.strays = Strays::open(file);
        self
    }

    /// Write down a link that was given up. On a full disk it is known until the daemon ends.
    pub(super) fn give_up(&self, claim: &ClaimRef, plan: &InterfacePlan, attachment: &Attachment) {
        self.strays.settled(plan, attachment);
        let stray = Stray { claim: claim.clone(), plan: plan.clone(), attachment: attachment.clone() };
        let device = plan.device.clone();
        if let Err(error) = self.strays.change(|known| drop(known.insert(device, stray))) {
            tracing::error!(device = plan.device, %error, "it cannot be written down that the link was given up");
        }
    }

    /// Strike out a link that is home.
    pub(super) fn is_home(&self, plan: &InterfacePlan, attachment: &Attachment) {
        self.strays.settled(plan, attachment);
        if let Err(error) = self.strays.change(|known| drop(known.remove(&plan.device))) {
            tracing::error!(device = plan.device, %error, "it cannot be written down that the link is home");
        }
    }

    /// What was given up and is not home yet.
    pub(super) fn strays(&self) -> Vec<Stray> {
        self.strays.all()
    }
}
