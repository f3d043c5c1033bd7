//! `cargo xtask codegen`: what is made from the Rust types and from the base manifests.

use std::{fs, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    chart,
    command::{cargo, line, root},
};

/// Options of `codegen`.
#[derive(Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Only the Helm chart, for which the driver need not be built.
    #[arg(long)]
    chart: bool,
}

/// Write the CustomResourceDefinition of Networks, and the Helm chart. `cargo xtask lint` and `cargo xtask manifests` fail while
/// they are others.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.chart {
        return chart::write();
    }
    let path = root().join("manifests/base/crd.yaml");
    let mut command = cargo();
    command.args(["run", "--quiet", "--locked", "--package", "netferry", "--example", "crd"]);
    println!("$ {}", line(&command));
    let made = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(made.status.success(), "`{}` failed ({})", line(&command), made.status);
    fs::write(&path, made.stdout).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    chart::write()
}
