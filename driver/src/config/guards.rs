//! How links of isolation `strict` are guarded beside their programs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::{
    attach::{PodGuard, Unguarded},
    datapath::cgroup,
};

/// Settings of guards.
#[derive(Clone, Debug, Args)]
pub struct GuardArgs {
    /// Where the host's cgroups are mounted. Strict links need the pod's cgroup in the unified hierarchy (version 2), here or
    /// in `unified` below.
    #[arg(long, value_name = "DIR", default_value = cgroup::DEFAULT_CGROUPS)]
    pub cgroup_root: PathBuf,

    /// What becomes of strict links whose pod's cgroup cannot be guarded. With `allow`, a pod with NET_RAW can send around
    /// their programs.
    #[arg(long, value_enum, default_value_t)]
    pub unguarded_pods: Unguarded,

    /// Whether claimed links of isolation `strict` get the early drop (native XDP), where it can be had: on a link that is
    /// down when its claim is prepared. A device class may turn it off for its own links (`earlyDrop: "off"`).
    #[arg(long, value_enum, default_value_t, env = "NETFERRY_EARLY_DROP")]
    pub early_drop: EarlyDrop,
}

/// Whether there is an early drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EarlyDrop {
    /// On links whose driver has native XDP.
    #[default]
    On,
    /// On none.
    Off,
}

impl GuardArgs {
    /// The same for [`crate::attach`].
    #[must_use]
    pub fn pod_guard(&self) -> PodGuard {
        PodGuard { cgroups: self.cgroup_root.clone(), unguarded: self.unguarded_pods }
    }
}
