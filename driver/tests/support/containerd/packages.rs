//! Debian's packages of containerd, unpacked beside the system: apt and dpkg with private state.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

/// A series of containerd, each with its own generation of NRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// NRI 0.6: no request timeout told, no synchronization in parts; NRI off by default.
    V1_7,
    /// NRI 0.8 and later, events through `StateChange`.
    V2_1,
}

impl Series {
    /// The Debian suite that has it.
    fn suite(self) -> &'static str {
        match self {
            Self::V1_7 => "trixie",
            Self::V2_1 => "forky",
        }
    }

    /// How its versions begin.
    fn version(self) -> &'static str {
        match self {
            Self::V1_7 => "1.7.",
            Self::V2_1 => "2.1.",
        }
    }
}

/// The folder of `series`' binaries, downloaded and unpacked at the first call.
///
/// Cached in `target/runtimes/`, or where `NETFERRY_RUNTIMES` says. Neither apt's lists nor dpkg's status of the
/// machine are touched.
pub fn binaries(series: Series) -> anyhow::Result<PathBuf> {
    let home = home().join(series.version().trim_end_matches('.'));
    fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
    // Test binaries run side by side.
    let lock = File::create(home.join("lock"))?;
    lock.lock().context("lock the runtimes' cache")?;
    let root = home.join("root");
    if !root.exists() {
        let fresh = tempfile::tempdir_in(&home)?;
        fetch(series, fresh.path())
            .with_context(|| format!("get containerd from Debian {}", series.suite()))?;
        fs::rename(fresh.path().join("root"), &root)?;
    }
    let bin = root.join("usr/bin");
    let version = run(Command::new(bin.join("containerd")).arg("--version"))?;
    let number = version.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    ensure!(
        number.starts_with(series.version()),
        "Debian {} has containerd {number}, {}x is wanted; remove {} after the suite is right",
        series.suite(),
        series.version(),
        root.display()
    );
    Ok(bin)
}

fn home() -> PathBuf {
    if let Some(home) = std::env::var_os("NETFERRY_RUNTIMES") {
        return home.into();
    }
    let target = option_env!("CARGO_TARGET_TMPDIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        |tmp| Path::new(tmp).join(".."),
    );
    target.join("runtimes")
}

/// Download into `dir` and unpack into `dir/root`.
fn fetch(series: Series, dir: &Path) -> anyhow::Result<()> {
    for folder in ["state/lists/partial", "cache/archives/partial", "deb"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    let sources = dir.join("sources.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(&sources, format!("deb [signed-by={keyring}] {} {} main\n", mirror()?, series.suite()))?;
    let set = |name: &str, value: &dyn AsRef<OsStr>| {
        let mut option = std::ffi::OsString::from(name);
        option.push("=");
        option.push(value);
        option
    };
    let options = [
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
    ];
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.arg("-q")
            .args(options.iter().flat_map(|option| [OsStr::new("-o"), option]))
            .current_dir(dir.join("deb"));
        apt
    };
    run(apt().arg("update"))?;
    run(apt().args(["download", "containerd"]))?;
    let package = fs::read_dir(dir.join("deb"))?.next().context("apt-get downloaded nothing")??.path();
    run(Command::new("dpkg").arg("-x").arg(&package).arg(dir.join("root")))?;
    Ok(())
}

/// The archive this machine's own packages come from: a mirror or proxy is set there if one is needed.
fn mirror() -> anyhow::Result<String> {
    let targets = ["indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let listed = run(Command::new("apt-get").args(targets))?;
    let mirror = listed.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    Ok(mirror.unwrap_or("http://deb.debian.org/debian").to_owned())
}

/// Run to the end; standard output, or an error with all that was said.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}
