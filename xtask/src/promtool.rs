//! promtool, which proves that alerts fire. Debian's package starts a server too, so it is unpacked and not installed.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    apt,
    command::{is_root, root, which},
};

/// `PATH` with promtool in it, which is fetched if that is possible. Without it, its test is skipped and says so.
pub(crate) fn path() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let tools = root().join("target/tools/promtool");
    let folder = tools.join("usr/bin");
    if which("promtool").is_some() {
        return Ok(path);
    }
    if !folder.join("promtool").is_file() {
        if !is_root() || !apt::is_debian() {
            return Ok(path);
        }
        fetch(&tools).context("cannot fetch promtool")?;
    }
    Ok(env::join_paths([folder].into_iter().chain(env::split_paths(&path)))?)
}

/// Leaves the whole program or nothing.
fn fetch(tools: &Path) -> Result<()> {
    let parent = tools.parent().context("a folder")?;
    fs::create_dir_all(parent)?;
    let part: PathBuf = parent.join(format!("promtool.{}", std::process::id()));
    apt::unpack("prometheus", &part)?;
    let _ = fs::remove_dir_all(tools);
    fs::rename(&part, tools)?;
    Ok(())
}
