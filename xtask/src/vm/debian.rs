//! Debian's kernels, unpacked beside the system.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use super::{
    private_apt::{self, PrivateApt, run},
    series::Series,
};
use crate::command::root;

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
    let unpacked = root().join("target/kernels").join(series.name).join("root");
    private_apt::keep(&unpacked, series.suite, parts)
        .with_context(|| format!("get a kernel from Debian {}", series.suite))?;
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

/// The packages that the kernel of a suite is made of.
fn parts(apt: &PrivateApt) -> Result<Vec<String>> {
    let depends = ["depends", "--recurse", "--important", META];
    let tree = run(apt.command("apt-cache").args(depends))?;
    let parts: Vec<String> = tree.lines().filter(|package| is_part(package)).map(str::to_owned).collect();
    ensure!(!parts.is_empty(), "{META} depends on no kernel");
    Ok(parts)
}

/// Whether a line of `apt-cache depends --recurse` names a package of the kernel itself, with its version.
fn is_part(package: &str) -> bool {
    PARTS.iter().any(|part| {
        package.strip_prefix(part).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    })
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
