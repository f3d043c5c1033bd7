//! Debian packages: what is missing is installed if that is allowed, else the command is told.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::command::{is_root, output, run, which};

/// Whether this machine installs software with apt.
pub(crate) fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && which("apt-get").is_some()
}

/// Whether apt knows a version of the package to install.
pub(crate) fn offers(package: &str) -> bool {
    output(Command::new("apt-cache").args(["policy", package]))
        .and_then(|policy| {
            policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:").map(str::to_owned))
        })
        .is_some_and(|version| version.trim() != "(none)")
}

/// Refreshes the package lists.
fn update() -> Result<()> {
    run(apt_get().arg("update"))
}

/// The command a person would type to install packages.
pub(crate) fn advice(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "))
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
    if packages.iter().any(|package| !offers(package)) {
        update()?;
    }
    let install =
        |packages: &[&str]| run(apt_get().args(["install", "-y", "--no-install-recommends"]).args(packages));
    // A package list of yesterday names files that a mirror may have dropped since.
    install(packages)
        .or_else(|_| update().and_then(|()| install(packages)))
        .with_context(|| format!("cannot install packages; try: {}", advice(packages)))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}
