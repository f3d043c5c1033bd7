//! The programs of an earlier daemon, at the start of this one.

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use crate::{datapath::AyaDatapath, telemetry::chain};

/// Give the interfaces that an earlier daemon attached the programs of this one. An interface that keeps its old
/// programs is protected as before.
pub(super) fn upgrade(datapath: &AyaDatapath) -> Result<()> {
    let upgrade = datapath.upgrade().context("cannot list the attached programs")?;
    for (endpoint, error) in upgrade.failed {
        warn!(endpoint, "keeps the programs of an earlier daemon: {}", chain(&error));
    }
    if !upgrade.updated.is_empty() {
        info!(endpoints = upgrade.updated.len(), "programs updated in place");
    }
    Ok(())
}
