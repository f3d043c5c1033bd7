//! What the driver writes into the folder: `status/<namespace>/<claim>.yaml`,
//! `status/_networks/<network>.yaml`, `slices/<slice>.yaml` and
//! `events.yaml`. Each file is replaced whole, so a reader and a crash see the old or the new one.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// `events.yaml` is moved to `events.old.yaml` above this size, so both together are bounded.
const MAX_EVENTS_BYTES: u64 = 256 * 1024;

const STATUS: &str = "status";
const SLICES: &str = "slices";
const EVENTS: &str = "events.yaml";
const OLD_EVENTS: &str = "events.old.yaml";

/// Names at the top of the folder that are the driver's.
pub(super) fn is_ours(root: &Path, path: &Path) -> bool {
    let name = path.strip_prefix(root).ok().and_then(Path::to_str);
    name.is_some_and(|name| [STATUS, SLICES, EVENTS, OLD_EVENTS].contains(&name))
}

/// The status file of a claim.
pub(super) fn status_file(root: &Path, namespace: &str, name: &str) -> PathBuf {
    root.join(STATUS).join(namespace).join(format!("{name}.yaml"))
}

/// The status file of a network: beside those of claims, in a folder that no namespace can be called.
pub(super) fn network_status_file(root: &Path, name: &str) -> PathBuf {
    root.join(STATUS).join("_networks").join(format!("{name}.yaml"))
}

/// The file of a slice; `None` for a name that is no file name.
pub(super) fn slice_file(root: &Path, name: &str) -> Option<PathBuf> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    plain.then(|| root.join(SLICES).join(format!("{name}.yaml")))
}

/// All slices. One that cannot be read (only another hand can have broken it) is set aside as `<file>.bad`.
pub(super) fn slices<T: DeserializeOwned>(root: &Path) -> io::Result<Vec<T>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(root.join(SLICES)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml")) {
        match read(file) {
            Ok(slice) => found.extend(slice),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let bad = file.with_extension("yaml.bad");
                tracing::warn!(file = %file.display(), bad = %bad.display(), %error, "slice set aside");
                fs::rename(file, bad)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// One object, or `None` if there is no file. What is no such object is [`io::ErrorKind::InvalidData`].
pub(super) fn read<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    serde_yaml_ng::from_str(&text)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", file.display())))
}

/// Write one object: to a new file beside it, to the disk, then over the old one.
pub(super) fn write(file: &Path, object: &impl Serialize) -> io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let text = serde_yaml_ng::to_string(object).map_err(io::Error::other)?;
    let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    new.as_file().sync_all()?;
    new.persist(file).map_err(|error| error.error)?;
    fs::File::open(dir)?.sync_all()
}

/// Remove a file; one that is gone is no error.
pub(super) fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Add one Event to `events.yaml`.
pub(super) fn append_event(root: &Path, event: &impl Serialize) -> io::Result<()> {
    let file = root.join(EVENTS);
    if fs::metadata(&file).is_ok_and(|metadata| metadata.len() > MAX_EVENTS_BYTES) {
        fs::rename(&file, root.join(OLD_EVENTS))?;
    }
    let text = serde_yaml_ng::to_string(event).map_err(io::Error::other)?;
    // One write: a crash leaves a whole document or none.
    fs::OpenOptions::new().create(true).append(true).open(file)?.write_all(format!("---\n{text}").as_bytes())
}
