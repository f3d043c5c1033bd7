//! Debian packages: what is missing is installed if that is allowed, else the command is told.

use std::{
    path::Path,
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, bail};

use crate::command::{is_root, output, run, which};

static ONLY_NEW: AtomicBool = AtomicBool::new(false);

/// From now on nothing is installed for which another package would have to be upgraded.
pub(crate) fn only_new() {
    ONLY_NEW.store(true, Ordering::Relaxed);
}

/// Whether this machine installs software with apt.
pub(crate) fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && which("apt-get").is_some()
}

/// Refreshes the package lists, once in a run: what an old list names may be gone, or too old.
fn update() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() {
        run(apt_get().arg("update"))?;
        let _ = DONE.set(());
    }
    Ok(())
}

/// The command a person would type to install packages.
pub(crate) fn advice(packages: &[&str]) -> String {
    format!(
        "apt-get update && apt-get install -y --no-upgrade --no-install-recommends {}",
        packages.join(" ")
    )
}

/// Installs packages, or says how to when this process may not.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !is_debian() {
        bail!("{why} needs what Debian calls {}; install that and try again", packages.join(", "));
    }
    if !is_root() {
        bail!("{why} needs packages that only root can install; run: sudo sh -c '{}'", advice(packages));
    }
    println!("installing {} ({why})", packages.join(", "));
    update()?;
    // What is here stays as it is.
    let install = ["install", "-y", "--no-upgrade", "--no-install-recommends"];
    if ONLY_NEW.load(Ordering::Relaxed) {
        let plan = output(apt_get().arg("--simulate").args(install).args(packages)).unwrap_or_default();
        let upgrades = upgrades(&plan);
        if !upgrades.is_empty() {
            bail!(
                "{why} upgrades no package of this machine, but would have to: {}; if that is right, run: {}",
                upgrades.join(", "),
                advice(packages)
            );
        }
    }
    run(apt_get().args(install).args(packages))
        .with_context(|| format!("cannot install packages; try: {}", advice(packages)))
}

/// Unpacks a package into a folder, without installing it.
pub(crate) fn unpack(package: &str, folder: &Path) -> Result<()> {
    println!("fetching {package}, to unpack it into {}", folder.display());
    update()?;
    std::fs::create_dir_all(folder)?;
    run(apt_get().args(["download", package]).current_dir(folder))?;
    let archives = std::fs::read_dir(folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let archive = archives
        .into_iter()
        .find(|path| path.extension().is_some_and(|it| it == "deb"))
        .with_context(|| format!("apt-get download {package} left no archive"))?;
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(folder))?;
    std::fs::remove_file(archive)?;
    Ok(())
}

/// The packages that a simulated run of apt would replace: `Inst NAME [OLD] (NEW …)`; a new one has no version before.
fn upgrades(plan: &str) -> Vec<&str> {
    let installs = plan.lines().filter_map(|line| line.strip_prefix("Inst "));
    installs
        .filter_map(|line| line.split_once(" [").map(|(name, _)| name))
        .filter(|name| !name.contains(' '))
        .collect()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_are_seen_in_a_plan() {
        let plan = "Reading package lists...\nInst libc6 [2.36-9] (2.36-9+deb12u14 Debian:12/stable [amd64]) []\n\
                    Inst bpftool (7.1.0 Debian:12/stable [amd64])\nConf bpftool (7.1.0 Debian:12/stable [amd64])\n";
        assert_eq!(upgrades(plan), ["libc6"]);
        assert!(upgrades("").is_empty());
    }
}
