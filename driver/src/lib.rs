//! Netferry, a Kubernetes network driver.
//!
//! Four flows share one store of claims ([`claim::store`]): links are discovered and published ([`device`],
//! [`publish`]); the kubelet prepares claims ([`dra`], [`claim`]); the runtime's sandbox hook attaches the
//! links ([`nri`], [`attach`], [`link`], [`datapath`]); and a stopped pod's links come home. Kernel and
//! cluster are touched only behind the traits [`link::Links`], [`datapath::Datapath`] and
//! [`cluster::Cluster`].

pub mod attach;
pub mod claim;
pub mod cli;
pub mod cluster;
pub mod config;
mod counted;
pub mod daemon;
pub mod datapath;
pub mod device;
pub mod dhcp;
pub mod dra;
pub mod drift;
pub mod findings;
pub mod flow_log;
pub mod follow;
pub mod holdings;
pub mod http;
mod keyed;
pub mod label;
pub mod link;
pub mod local_socket;
pub mod measured;
pub mod metrics;
pub mod netns;
pub mod network;
pub mod nri;
pub mod publish;
pub mod query;
pub mod readiness;
pub mod repair;
pub mod sandbox;
pub mod selector;
pub mod serving;
pub mod status;
pub mod telemetry;
pub mod version;

/// The driver's default name: the `driver` field of slices and allocation results, and the domain of its
/// attributes and its configuration API.
pub const DRIVER_NAME: &str = "netferry.dev";
