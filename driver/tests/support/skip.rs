//! Tests that cannot run where they are. A file of its own: most test binaries need nothing else of the support.

use std::{env, fs::OpenOptions, io::Write as _};

/// Say why a test does not run. The line is also written to the file that `NETFERRY_SKIP_LOG` names, where
/// `cargo xtask test` counts it.
pub(crate) fn skip(test: &str, why: &str) {
    eprintln!("SKIP {test}: {why}");
    if let Some(path) = env::var_os("NETFERRY_SKIP_LOG") {
        let mut log = OpenOptions::new().create(true).append(true).open(path).expect("skip log");
        writeln!(log, "{test}: {why}").expect("skip log");
    }
}
