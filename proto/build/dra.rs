//! Kubelet's gRPC services.

use anyhow::Context as _;

/// Messages that v1 and v1beta1 have alike, so that one implementation serves both.
const SHARED: [&str; 8] = [
    "NodePrepareResourcesRequest",
    "NodePrepareResourcesResponse",
    "NodePrepareResourceResponse",
    "Device",
    "NodeUnprepareResourcesRequest",
    "NodeUnprepareResourcesResponse",
    "NodeUnprepareResourceResponse",
    "Claim",
];

/// Generate messages, clients and server traits.
pub(crate) fn generate() -> anyhow::Result<()> {
    let files =
        ["registration", "dra_v1", "dra_v1beta1", "dra_health", "dra_health_v1", "dra_health_v1beta1"]
            .map(|name| format!("proto/{name}.proto"));
    for file in &files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["proto"]).context("compile the kubelet's proto files")?;
    let mut builder = tonic_prost_build::configure();
    for message in SHARED {
        builder = builder.extern_path(
            format!(".k8s.io.kubelet.pkg.apis.dra.v1beta1.{message}"),
            format!("crate::dra::v1::{message}"),
        );
    }
    for version in ["v1", "v1beta1"] {
        for message in ["NodeWatchResourcesRequest", "NodeWatchResourcesResponse"] {
            builder = builder
                .extern_path(format!(".{version}.{message}"), format!("crate::dra::health::{message}"));
        }
    }
    builder.compile_fds(descriptors).context("generate the kubelet's services")
}
