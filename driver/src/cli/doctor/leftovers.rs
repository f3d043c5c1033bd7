//! What a daemon has left that no claim names.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::{Check, State};
use crate::{
    claim::{Checkpoint, made::is_host_name, store::Store},
    config::StateArgs,
    telemetry::chain,
};

const CURE: &str = "the daemon removes them within a minute of its start; without it, netferry run --cleanup";

/// Held namespaces, pins and links.
pub(super) fn checks(state: &StateArgs) -> Vec<Check> {
    let checkpoints = Store::read(&state.claims_dir());
    let checkpoints = match &checkpoints {
        Ok(checkpoints) => checkpoints,
        Err(error) => {
            return vec![Check::of("leftovers", State::Warn, Err(chain(error)), "run this as root")];
        }
    };
    let result = |name, found| Check::of(name, State::Warn, found, CURE);
    vec![
        result("held namespaces", namespaces(&state.netns_dir(), checkpoints)),
        result("pinned programs", pins(&state.pin_root().join("links"), checkpoints)),
        result("links of the driver", links(Path::new("/sys/class/net"), checkpoints)),
    ]
}

/// Names in a folder; none if there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, String> {
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => {
            let names = found.map_err(failed)?.flatten().map(|entry| entry.file_name());
            Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
        }
    }
}

fn judged(used: usize, unused: &[String], folder: &Path) -> Result<String, String> {
    match unused.first() {
        None if used == 0 => Ok("none".to_owned()),
        None => Ok(format!("{used} in {}, each of a claim", folder.display())),
        Some(first) => {
            Err(format!("{} in {} without a claim, {first} among them", unused.len(), folder.display()))
        }
    }
}

fn namespaces(folder: &Path, checkpoints: &[Checkpoint]) -> Result<String, String> {
    let interfaces = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
    let used: BTreeSet<_> = interfaces
        .filter_map(|interface| Some(interface.attachment.as_ref()?.sandbox.hold.clone()))
        .collect();
    let (used, unused): (Vec<_>, Vec<_>) =
        names(folder)?.into_iter().partition(|name| used.contains(&folder.join(name)));
    judged(used.len(), &unused, folder)
}

fn pins(folder: &Path, checkpoints: &[Checkpoint]) -> Result<String, String> {
    let interfaces = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
    let used: BTreeSet<String> = interfaces
        .flat_map(|interface| [interface.attachment.as_ref().and_then(|it| it.endpoint), interface.reserved])
        .flatten()
        .map(|endpoint| endpoint.to_string())
        .collect();
    let (used, unused): (Vec<_>, Vec<_>) = names(folder)?.into_iter().partition(|name| used.contains(name));
    judged(used.len(), &unused, folder)
}

fn links(folder: &Path, checkpoints: &[Checkpoint]) -> Result<String, String> {
    let interfaces = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
    let used: BTreeSet<_> = interfaces.map(|interface| interface.plan.host_link.as_str()).collect();
    let ours = names(folder)?.into_iter().filter(|name| is_host_name(name));
    let (used, unused): (Vec<_>, Vec<_>) = ours.partition(|name| used.contains(name.as_str()));
    judged(used.len(), &unused, folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_claim_names_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(pins(&folder.path().join("absent"), &[]), Ok("none".to_owned()));
        fs::create_dir(folder.path().join("7")).unwrap();
        for found in [pins(folder.path(), &[]), namespaces(folder.path(), &[])] {
            let error = found.unwrap_err();
            assert!(error.starts_with("1 in ") && error.contains("without a claim, 7"), "{error}");
        }
        assert_eq!(links(folder.path(), &[]), Ok("none".to_owned()));
    }
}
