//! What tests leave behind on the machine: nothing, or the run fails.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::command::root;

/// What of the tests' making exists: namespaces, links, pins and processes.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Looks at the machine.
    pub(crate) fn look() -> Self {
        let mut found = BTreeSet::new();
        for (folder, what) in [("/run/netns", "network namespace"), ("/sys/class/net", "link")] {
            for name in names(Path::new(folder)).filter(|name| name.starts_with("nf-")) {
                found.insert(format!("{what} {name}"));
            }
        }
        for name in names(Path::new("/sys/fs/bpf"))
            .filter(|name| name.starts_with("netferry") || name.starts_with("nf-") || name.starts_with("nf_"))
        {
            // An empty folder holds no program and no map.
            for pin in files(&Path::new("/sys/fs/bpf").join(name)) {
                found.insert(format!("pin {}", pin.display()));
            }
        }
        for mount in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
            if let Some(path) = mount.split(' ').nth(1).filter(|path| path.contains("/nf-")) {
                // The namespaces among them are listed above by name.
                if !path.starts_with("/run/netns/") && !path.starts_with("/var/run/netns/") {
                    found.insert(format!("mount {path}"));
                }
            }
        }
        found.extend(processes());
        Self(found)
    }

    /// What is here now and was not before.
    pub(crate) fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Processes whose program was built in this workspace (the daemon, test binaries), except this one, and
/// what else carries a test's name on its command line (runtimes that tests start).
fn processes() -> impl Iterator<Item = String> {
    let target = root().join("target");
    names(Path::new("/proc")).filter_map(move |pid| {
        let number: u32 = pid.parse().ok()?;
        let folder = Path::new("/proc").join(&pid);
        let program = fs::read_link(folder.join("exe")).ok()?;
        let command = fs::read(folder.join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let ours = program.starts_with(&target) && program.file_name()? != "xtask";
        let started = command.contains("/nf-") || command.contains(" nf-");
        (number != std::process::id() && (ours || started))
            .then(|| format!("process {number} {}", command.trim_end()))
    })
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        names(path).flat_map(|name| files(&path.join(name))).collect()
    } else {
        vec![path.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_counts() {
        let set = |names: &[&str]| Leftovers(names.iter().map(|&name| name.to_owned()).collect());
        let before = set(&["link nf-a"]);
        assert_eq!(
            set(&["link nf-a", "pin /sys/fs/bpf/netferry/v1/x"]).since(&before),
            ["pin /sys/fs/bpf/netferry/v1/x"]
        );
        assert!(set(&[]).since(&before).is_empty());
    }

    #[test]
    fn a_process_of_this_workspace_is_seen() {
        let folder = root().join("target/tools/nf-leftover-test");
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join("sleeper");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
        let name = format!("process {} {} 60", child.id(), program.display());
        // Until exec, the child still is this test's binary.
        let seen = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            Leftovers::look().0.contains(&name)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert!(seen, "{name} was not found");
    }
}
