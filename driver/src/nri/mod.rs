//! The runtime's side: NRI over one socket, and the pod events that attach and return links.

#![forbid(unsafe_code)]

mod dispatch;
pub mod mux;
mod plugin;
pub mod session;

use std::path::PathBuf;

use async_trait::async_trait;

pub use self::{
    plugin::RuntimeInfo,
    session::{NriConfig, SessionStatus, run},
};
use crate::claim::PodRef;

/// A pod sandbox as the runtime describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSandbox {
    /// Runtime's sandbox id.
    pub id: String,
    /// Its pod.
    pub pod: PodRef,
    /// Network namespace; `None` for a host-network pod, and for the stop events of runtimes that leave it out.
    pub netns: Option<PathBuf>,
    /// Path of the pod's cgroup, where the runtime tells.
    pub cgroup_parent: Option<String>,
}

/// What the driver does at each event of a pod's life. Called in the runtime's hook: no API calls, and well
/// inside the runtime's limit (2 s by default).
#[async_trait]
pub trait PodEvents: Send + Sync {
    /// After (re)connecting: every sandbox the runtime has. A restarted containerd 2.1 also lists sandboxes that failed:
    /// their namespace is gone.
    async fn synchronize(&self, sandboxes: Vec<PodSandbox>);
    /// The sandbox and its namespace exist, no container runs yet. An error fails the sandbox. What is not done within
    /// the runtime's limit is refused on the driver's behalf; a success that comes later is followed at once by
    /// [`Self::stop_pod_sandbox`]. Events of one sandbox come one at a time, and none during
    /// [`Self::synchronize`].
    async fn run_pod_sandbox(&self, sandbox: PodSandbox) -> Result<(), String>;
    /// Containers have stopped; the namespace still exists, as long as this returns within the runtime's limit. Also
    /// sent for a sandbox whose [`Self::run_pod_sandbox`] failed, and possibly more than once.
    async fn stop_pod_sandbox(&self, sandbox: PodSandbox);
    /// The sandbox is gone.
    async fn remove_pod_sandbox(&self, sandbox: PodSandbox);
}
