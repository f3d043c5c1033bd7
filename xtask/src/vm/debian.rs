//! Debian's kernels, unpacked beside the system: apt with private state, and dpkg.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::series::Series;
use crate::command::{foreign, line, root};

/// A kernel that can be booted.
pub(crate) struct Kernel {
    /// Its version, as its modules' folder is called.
    pub(crate) version: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// The folder of its modules.
    pub(crate) modules: PathBuf,
}

/// The metapackage of the kernel for virtual machines: a third of the size of the general one.
const META: &str = "linux-image-cloud-amd64";
/// Packages that a kernel is made of. Newer suites have split it.
const PARTS: [&str; 4] = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// The kernel of a series, downloaded and unpacked at the first call. Remove `target/kernels/` for newer ones.
pub(crate) fn kernel(series: &Series) -> Result<Kernel> {
    let home = root().join("target/kernels").join(series.name);
    let unpacked = home.join("root");
    if !unpacked.exists() {
        let fresh = home.join("fresh");
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        fetch(series, &fresh).with_context(|| format!("get a kernel from Debian {}", series.suite))?;
        fs::rename(fresh.join("root"), &unpacked)?;
        fs::remove_dir_all(&fresh)?;
    }
    let modules = ["usr/lib/modules", "lib/modules"]
        .iter()
        .filter_map(|folder| fs::read_dir(unpacked.join(folder)).ok())
        .flatten()
        .find_map(|entry| entry.ok().map(|entry| entry.path()))
        .context("the packages have no modules")?;
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ensure!(
        series.name == "newest" || version.starts_with(&format!("{}.", series.name)),
        "Debian {} has Linux {version}, {} is wanted",
        series.suite,
        series.name
    );
    let image = [unpacked.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|image| image.is_file())
        .context("the packages have no kernel image")?;
    Ok(Kernel { version, image, modules })
}

/// Downloads into `dir` and unpacks into `dir/root`. Neither apt's lists nor dpkg's status of this machine are
/// touched.
fn fetch(series: &Series, dir: &Path) -> Result<()> {
    for folder in ["state/lists/partial", "cache/archives/partial", "deb"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    let sources = dir.join("sources.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(&sources, format!("deb [signed-by={keyring}] {} {} main\n", mirror()?, series.suite))?;
    let options = private(dir, &sources);
    let apt = |program: &str| {
        let mut apt = foreign(program);
        apt.arg("-q").args(&options).current_dir(dir.join("deb"));
        apt
    };
    said(apt("apt-get").arg("update"))?;
    let depends = ["depends", "--recurse", "--important", META];
    let tree = said(apt("apt-cache").args(depends))?;
    let parts: Vec<&str> = tree.lines().filter(|package| is_part(package)).collect();
    ensure!(!parts.is_empty(), "{META} depends on no kernel");
    said(apt("apt-get").arg("download").args(&parts))?;
    for package in fs::read_dir(dir.join("deb"))? {
        said(foreign("dpkg").arg("-x").arg(package?.path()).arg(dir.join("root")))?;
    }
    Ok(())
}

/// Whether a line of `apt-cache depends --recurse` names a package of the kernel itself, with its version.
fn is_part(package: &str) -> bool {
    PARTS.iter().any(|part| {
        package.strip_prefix(part).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    })
}

/// Options that keep apt within `dir`.
fn private(dir: &Path, sources: &Path) -> Vec<OsString> {
    let set = |name: &str, value: &dyn AsRef<OsStr>| {
        let mut option = OsString::from("-o");
        option.push(name);
        option.push("=");
        option.push(value);
        option
    };
    vec![
        set("Dir::Etc::sourcelist", &sources),
        set("Dir::Etc::sourceparts", &"-"),
        set("Dir::Etc::preferencesparts", &"-"),
        set("Dir::State", &dir.join("state")),
        set("Dir::State::status", &"/dev/null"),
        set("Dir::Cache", &dir.join("cache")),
        set("Acquire::Languages", &"none"),
        set("Acquire::Retries", &"3"),
        set("APT::Sandbox::User", &"root"),
    ]
}

/// The archive this machine's own packages come from: a mirror or proxy is set there if one is needed.
fn mirror() -> Result<String> {
    let targets = ["indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let listed = said(foreign("apt-get").args(targets))?;
    let mirror = listed.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    Ok(mirror.unwrap_or("http://deb.debian.org/debian").to_owned())
}

/// Runs to the end; standard output, or an error with all that was said.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", line(command)))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("`{}`: {}\n{said}{}", line(command), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_itself_is_taken() {
        for part in ["linux-image-6.1.0-50-cloud-amd64", "linux-modules-7.2.12+deb14-cloud-amd64"] {
            assert!(is_part(part), "{part}");
        }
        for other in ["linux-image-cloud-amd64", "linux-base", "  Depends: linux-base-7.2", "libc6"] {
            assert!(!is_part(other), "{other}");
        }
    }
}
