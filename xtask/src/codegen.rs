//! `cargo xtask codegen`: what is made from the Rust types.

use std::{fs, process::Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::command::{cargo, line, root};

/// Write the CustomResourceDefinition of Networks. `cargo xtask manifests` fails while it is another one.
pub(crate) fn run() -> Result<()> {
    let path = root().join("manifests/base/crd.yaml");
    let mut command = cargo();
    command.args(["run", "--quiet", "--locked", "--package", "netferry", "--example", "crd"]);
    println!("$ {}", line(&command));
    let made = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(made.status.success(), "`{}` failed ({})", line(&command), made.status);
    fs::write(&path, made.stdout).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
