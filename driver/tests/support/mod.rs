//! What the tests and the demo play with: namespaces, and the other side of every wire.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod apiserver;
pub mod containerd;
pub mod daemon;
pub mod kubelet;
pub mod netns;
pub mod runtime;

/// Say why a test does not run. The line is also written to the file that `NETFERRY_SKIP_LOG` names, where
/// `cargo xtask test` counts it.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIP {test}: {why}");
    if let Some(path) = std::env::var_os("NETFERRY_SKIP_LOG") {
        use std::io::Write as _;
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("skip log");
        writeln!(log, "{test}: {why}").expect("skip log");
    }
}
