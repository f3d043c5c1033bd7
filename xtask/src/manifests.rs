//! `cargo xtask manifests`: the test that reads `manifests/` the way the API server would.

use anyhow::Result;

use crate::command::{cargo, run as run_command};

/// Checks every manifest.
pub(crate) fn run() -> Result<()> {
    run_command(cargo().args(["test", "--locked", "--package", "netferry", "--test", "manifests"]))
}
