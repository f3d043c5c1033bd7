//! What the user put into the folder: claims and classes in any `*.yaml` or `*.yml` below it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::{
    core::v1::Namespace,
    resource::v1::{DeviceClass, ResourceClaim},
};

use super::{
    document::{self, Object, Problem},
    written,
};
use crate::network::Declared;

/// A file larger than this is no hand-written object.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The folder at one moment.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// Claims by namespace and name.
    pub(super) claims: BTreeMap<(String, String), ResourceClaim>,
    /// Classes by name.
    pub(super) classes: BTreeMap<String, DeviceClass>,
    /// Networks by name.
    pub(super) networks: BTreeMap<String, Declared>,
    /// Namespaces by name. One that is not here exists all the same, without labels of its own.
    pub(super) namespaces: BTreeMap<String, Namespace>,
    /// What cannot be used.
    pub(super) problems: Vec<Problem>,
}

/// Files that may have the user's objects in them.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    Folder::default().list(dir, dir, &mut files);
    files.sort();
    files
}

impl Folder {
    /// Read all of it. A part that cannot be read is a problem in the answer, not the end of it.
    pub(super) fn read(dir: &Path) -> Self {
        let mut folder = Self::default();
        let mut files = Vec::new();
        folder.list(dir, dir, &mut files);
        files.sort();
        for file in files {
            folder.read_file(&file);
        }
        folder
    }

    /// Problems that may hide the claim: its own, and those that do not tell whose they are.
    pub(super) fn hiding(&self, namespace: &str, name: &str) -> Vec<String> {
        let wanted = format!("{namespace}/{name}");
        self.problems
            .iter()
            .filter(|problem| problem.claim.as_ref().is_none_or(|claim| *claim == wanted))
            .map(ToString::to_string)
            .collect()
    }

    fn list(&mut self, root: &Path, dir: &Path, files: &mut Vec<PathBuf>) {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => return self.problem(dir, &error),
        };
        for entry in entries {
            let found = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)));
            match found {
                Ok((path, _)) if is_hidden(&path) || written::is_ours(root, &path) => {}
                Ok((path, kind)) if kind.is_dir() => self.list(root, &path, files),
                Ok((path, _)) if is_yaml(&path) => files.push(path),
                Ok(_) => {}
                Err(error) => self.problem(dir, &error),
            }
        }
    }

    fn problem(&mut self, file: &Path, message: &dyn ToString) {
        let (file, message) = (file.to_owned(), message.to_string());
        self.problems.push(Problem { file, document: None, claim: None, message });
    }

    fn read_file(&mut self, file: &Path) {
        let text = match read_small(file) {
            Ok(text) => text,
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.problem(file, &error),
        };
        for (index, text) in document::split(&text).iter().enumerate() {
            match document::read(file, index + 1, text) {
                Ok(Some(object)) => self.add(file, index + 1, object),
                Ok(None) => {}
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    fn add(&mut self, file: &Path, document: usize, object: Object) {
        let (twice, claim) = match object {
            Object::Claim(claim) => {
                let namespace = claim.metadata.namespace.clone().unwrap_or_default();
                let name = claim.metadata.name.clone().unwrap_or_default();
                let shown = format!("{namespace}/{name}");
                match self.claims.entry((namespace, name)) {
                    Entry::Vacant(free) => {
                        free.insert(*claim);
                        return;
                    }
                    Entry::Occupied(_) => (format!("ResourceClaim {shown}"), Some(shown)),
                }
            }
            Object::Class(class) => match self.classes.entry(class.metadata.name.clone().unwrap_or_default())
            {
                Entry::Vacant(free) => {
                    free.insert(*class);
                    return;
                }
                Entry::Occupied(taken) => (format!("DeviceClass {}", taken.key()), None),
            },
            Object::Network(network) => match self.networks.entry(network.reference.name.clone()) {
                Entry::Vacant(free) => {
                    free.insert(*network);
                    return;
                }
                Entry::Occupied(taken) => (format!("Network {}", taken.key()), Some(String::new())),
            },
            Object::Namespace(namespace) => {
                match self.namespaces.entry(namespace.metadata.name.clone().unwrap_or_default()) {
                    Entry::Vacant(free) => {
                        free.insert(*namespace);
                        return;
                    }
                    Entry::Occupied(taken) => (format!("Namespace {}", taken.key()), Some(String::new())),
                }
            }
        };
        self.problems.push(Problem {
            file: file.to_owned(),
            document: Some(document),
            claim,
            message: format!("metadata.name: {twice} is in the folder twice; this one is not used"),
        });
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn read_small(file: &Path) -> io::Result<String> {
    let size = fs::metadata(file)?.len();
    if size > MAX_FILE_BYTES {
        let message = format!("{size} bytes are too large; at most {MAX_FILE_BYTES} are read");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    fs::read_to_string(file)
}
