//! The command line of `netferry doctor`.

use std::path::PathBuf;

use clap::Args;

use super::{Output, Ports, StateArgs};
use crate::datapath::cgroup;

/// Settings of `netferry doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
    /// Kubeconfig file; without it, the in-cluster service account.
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Kubelet's root folder.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub kubelet_root_dir: PathBuf,
    /// The runtime's NRI socket.
    #[arg(long, value_name = "PATH", default_value = "/var/run/nri/nri.sock")]
    pub nri_socket: PathBuf,
    /// Where the host's cgroups are mounted.
    #[arg(long, value_name = "DIR", default_value = cgroup::DEFAULT_CGROUPS)]
    pub cgroup_root: PathBuf,
    /// What ports of networks are to be made of, as the daemon is told.
    #[arg(long, value_enum, default_value_t, env = "NETFERRY_PORTS")]
    pub ports: Ports,
    /// Format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}
