//! Debian packages: what is missing is installed if that is allowed, else the command is told.

use std::{path::Path, process::Command, sync::OnceLock};

use anyhow::{Context, Result, bail};

use crate::command::{is_root, run, which};

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
    run(apt_get().args(["install", "-y", "--no-upgrade", "--no-install-recommends"]).args(packages))
        .with_context(|| format!("cannot install packages; try: {}", advice(packages)))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}
