//! Kubelet's gRPC services.

/// Generate messages and services.
pub(crate) fn generate() -> anyhow::Result<()> {
    Ok(())
}
