//! The runtime interface, for tests that make pods in a real runtime.

use anyhow::Context as _;

/// Generate messages and the client from `proto/cri.proto`, where the feature `cri` asks for them.
pub(crate) fn generate() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=proto/cri.proto");
    if std::env::var_os("CARGO_FEATURE_CRI").is_none() {
        return Ok(());
    }
    let descriptors = protox::compile(["proto/cri.proto"], ["proto"]).context("compile proto/cri.proto")?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)
        .context("generate proto/cri.proto")
}
