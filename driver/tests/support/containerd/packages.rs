//! Debian's packages of containerd, unpacked beside the system.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::private_apt::{self, run};

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
/// Cached in `target/runtimes/`, or where `NETFERRY_RUNTIMES` says.
pub fn binaries(series: Series) -> anyhow::Result<PathBuf> {
    let home = home().join(series.version().trim_end_matches('.'));
    fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
    // Test binaries run side by side.
    let lock = File::create(home.join("lock"))?;
    lock.lock().context("lock the runtimes' cache")?;
    let root = home.join("root");
    private_apt::keep(&root, series.suite(), |_| Ok(vec!["containerd".to_owned()]))
        .with_context(|| format!("get containerd from Debian {}", series.suite()))?;
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
