//! `cargo xtask ci`: what must hold before a change is merged.

use anyhow::Result;
use clap::Args;

use crate::{lint, test};

/// Options of `ci`.
#[derive(Args, Default)]
#[group(skip)]
pub(crate) struct Options {
    /// Options of `test`.
    #[command(flatten)]
    test: test::Options,
}

/// Lints, then tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    lint::run(&lint::Options::default())?;
    test::run(&options.test)
}
