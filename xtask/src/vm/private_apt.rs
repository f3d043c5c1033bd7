//! Packages of a Debian suite, unpacked beside the system: apt and dpkg with their state in a folder, so that neither apt's
//! lists nor dpkg's status of this machine are touched.
//!
//! Also part of the driver's tests, which include this file.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The keys of Debian's archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt for one suite, with its state in a folder.
pub(crate) struct PrivateApt {
    dir: PathBuf,
    options: Vec<OsString>,
}

impl PrivateApt {
    /// For a suite, with all it needs and makes in `dir`. Its lists are fetched.
    fn open(suite: &str, dir: &Path) -> Result<Self> {
        for folder in ["state/lists/partial", "cache/archives/partial", "deb"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let sources = dir.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?))?;
        let apt = Self { dir: dir.to_owned(), options: options(dir, &sources) };
        run(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    /// One of apt's programs, for this suite.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        command.arg("-q").args(&self.options).current_dir(self.dir.join("deb"));
        command
    }

    /// Downloads packages and unpacks them, without those they depend on. Returns the folder that stands for `/`.
    fn unpack(&self, packages: &[String]) -> Result<PathBuf> {
        run(self.command("apt-get").arg("download").args(packages))?;
        let root = self.dir.join("root");
        for package in fs::read_dir(self.dir.join("deb"))? {
            run(command("dpkg").arg("-x").arg(package?.path()).arg(&root))?;
        }
        Ok(root)
    }
}

/// Has packages of a suite in the folder `root`, downloaded and unpacked at the first call: whole, or not there.
pub(crate) fn keep(
    root: &Path,
    suite: &str,
    packages: impl FnOnce(&PrivateApt) -> Result<Vec<String>>,
) -> Result<()> {
    if root.exists() {
        return Ok(());
    }
    let fresh = root.with_extension("fresh");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    let apt = PrivateApt::open(suite, &fresh)?;
    fs::rename(apt.unpack(&packages(&apt)?)?, root)?;
    fs::remove_dir_all(&fresh)?;
    Ok(())
}

/// What keeps apt within `dir`.
fn options(dir: &Path, sources: &Path) -> Vec<OsString> {
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
        set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", &"false"),
        set("Acquire::Retries", &"3"),
        set("APT::Sandbox::User", &"root"),
    ]
}

/// The archive this machine's own packages come from: a mirror or proxy is set there if one is needed.
fn mirror() -> Result<String> {
    let targets = ["indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let listed = run(command("apt-get").args(targets))?;
    let mirror = listed.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    Ok(mirror.unwrap_or("http://deb.debian.org/debian").to_owned())
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    // cargo's is for what cargo builds.
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// Runs to the end; standard output, or an error with all that was said.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}
