//! Where a pod's cgroup is: what the runtime names, below the unified hierarchy.

use std::io;
use std::path::{Component, Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where hosts mount their cgroups.
pub const DEFAULT_CGROUPS: &str = "/sys/fs/cgroup";

/// Why a pod's cgroup is not known.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Only hierarchies of version 1.
    #[error(
        "{} is no cgroup v2 hierarchy, and neither is `unified` in it: mount one there, or name another folder with \
         --cgroup-root", .0.display()
    )]
    NotUnified(PathBuf),
    /// The runtime said nothing.
    #[error(
        "the runtime does not name the pod's cgroup (linux.cgroup_parent is empty): it must be a path or a slice"
    )]
    NotNamed,
    /// The runtime said something else.
    #[error("the runtime names {0:?} as the pod's cgroup: a path without `..`, or a slice, is allowed")]
    Named(String),
    /// It is not there.
    #[error("the pod's cgroup {} cannot be used", .0.display())]
    Missing(PathBuf, #[source] io::Error),
}

/// The unified hierarchy below a folder: the folder itself, or `unified` in it beside those of version 1.
pub fn unified(root: &Path) -> Result<PathBuf, CgroupError> {
    let is_unified =
        |path: &PathBuf| statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    [root.to_owned(), root.join("unified")]
        .into_iter()
        .find(is_unified)
        .ok_or_else(|| CgroupError::NotUnified(root.to_owned()))
}

/// The folder of a pod's cgroup, which is there.
pub fn of_pod(root: &Path, named: Option<&str>) -> Result<PathBuf, CgroupError> {
    let path = unified(root)?.join(relative(named)?);
    match std::fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(CgroupError::Missing(path, error)),
    }
}

/// A cgroup as runtimes name it: a path (the kubelet's form, whatever driver it has), a systemd slice, or
/// `slice:prefix:name`, whose scopes are below the slice. The hierarchy's root is nobody's.
fn relative(named: Option<&str>) -> Result<PathBuf, CgroupError> {
    let named = named.filter(|named| !named.is_empty()).ok_or(CgroupError::NotNamed)?;
    let wrong = || CgroupError::Named(named.to_owned());
    let (parent, is_triple) = match named.split(':').collect::<Vec<_>>()[..] {
        [slice, _, _] => (slice, true),
        [path] => (path, false),
        _ => return Err(wrong()),
    };
    let slice = parent.strip_suffix(".slice").filter(|slice| !slice.contains('/'));
    let path = if let Some(slice) = slice {
        expand(slice).ok_or_else(wrong)?
    } else if is_triple {
        return Err(wrong());
    } else {
        PathBuf::from(parent.trim_start_matches('/'))
    };
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && path.components().next().is_some() { Ok(path) } else { Err(wrong()) }
}

/// The slice `a-b` is at `a.slice/a-b.slice` (systemd.slice(5)).
fn expand(name: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        let part = &name[..end];
        if part.is_empty() || part.ends_with('-') {
            return None;
        }
        path.push(format!("{part}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_name_leads_to_its_folder() {
        let burstable = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7_a.slice";
        for (named, path) in [
            ("/kubepods/burstable/pod7-a", "kubepods/burstable/pod7-a"),
            ("/kubepods.slice/kubepods-pod7.slice", "kubepods.slice/kubepods-pod7.slice"),
            ("kubepods-burstable-pod7_a.slice", burstable),
            ("kubepods-burstable-pod7_a.slice:cri-containerd:0123", burstable),
            ("pods", "pods"),
        ] {
            assert_eq!(relative(Some(named)).unwrap(), Path::new(path), "{named}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for named in
            ["/", "/pods/../..", "../x", "-.slice", "a--b.slice", "a:b", "/x:cri-containerd:y", "a:b:c:d"]
        {
            assert!(matches!(relative(Some(named)), Err(CgroupError::Named(_))), "{named}");
        }
        assert!(matches!(relative(None), Err(CgroupError::NotNamed)));
        assert!(matches!(relative(Some("")), Err(CgroupError::NotNamed)));
    }

    #[test]
    fn a_folder_on_another_file_system_is_no_hierarchy() {
        let folder = tempfile::tempdir().unwrap();
        let error = of_pod(folder.path(), Some("/pods")).unwrap_err().to_string();
        assert!(error.contains("no cgroup v2 hierarchy"), "{error}");
    }
}
