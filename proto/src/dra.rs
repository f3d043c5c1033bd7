//! What the kubelet speaks with a DRA driver: gRPC over unix sockets.

/// Plugin registration (`proto/registration.proto`).
pub mod registration {
    #![allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("pluginregistration");
}

/// DRA v1 (`proto/dra_v1.proto`).
pub mod v1 {
    #![allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

/// DRA v1beta1 (`proto/dra_v1beta1.proto`): the service only; its messages are those of [`v1`].
pub mod v1beta1 {
    #![allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
}

/// DRA health v1alpha1 (`proto/dra_health.proto`).
pub mod health {
    #![allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("v1alpha1");
}

/// DRA health v1 (`proto/dra_health_v1.proto`): the service only; its messages are those of [`health`].
pub mod health_v1 {
    #![allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("v1");
}

/// DRA health v1beta1 (`proto/dra_health_v1beta1.proto`): the service only; its messages are those of [`health`].
pub mod health_v1beta1 {
    #![allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("v1beta1");
}
