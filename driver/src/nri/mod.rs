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
    /// Network namespace; `None` for a host-network pod, and where runtimes leave it out: in stop events, and of dead
    /// sandboxes (containerd 1.7).
    pub netns: Option<PathBuf>,
    /// Its first process; `None` for a dead sandbox.
    pub pid: Option<u32>,
    /// Path of the pod's cgroup, where the runtime tells.
    pub cgroup_parent: Option<String>,
    /// Whether the kubelet has the pod from a file or a URL and not from the API server: such a pod cannot name a claim.
    pub is_static: bool,
    /// Whether containers of the pod have been made in it already, as far as the runtime lists them.
    pub has_containers: bool,
}

/// What the driver does at each event of a pod's life. Called in the runtime's hooks, for which runtime and NRI hold one lock
/// of the whole node: the caller answers them after at most half a second, whatever the driver still does.
#[async_trait]
pub trait PodEvents: Send + Sync {
    /// After (re)connecting: every sandbox the runtime has, in any order. containerd also lists those that are dead.
    async fn synchronize(&self, sandboxes: Vec<PodSandbox>);
    /// The sandbox and its namespace exist, no container runs yet. Nothing is refused here: a runtime that has to undo a
    /// sandbox leaves parts of it behind (containerd issue 13609). Events of one sandbox come one at a time, and none
    /// during [`Self::synchronize`].
    async fn run_pod_sandbox(&self, sandbox: PodSandbox);
    /// Whether nothing of the driver concerns the pod, so that its containers need not wait. Answered from memory.
    fn is_free(&self, sandbox: &PodSandbox) -> bool;
    /// A container is about to be made: of any kind, for the first time or again. An error refuses it, and the kubelet
    /// shows it as `CreateContainerError` and tries again.
    async fn create_container(&self, sandbox: PodSandbox, container: &str) -> Result<(), String>;
    /// Why containers of the sandbox have to wait, as far as is known: what is told when [`Self::create_container`] takes
    /// too long.
    fn held_by(&self, sandbox: &PodSandbox) -> Option<String>;
    /// Containers have stopped. Some runtimes have removed the namespace already. Possibly sent more than once.
    async fn stop_pod_sandbox(&self, sandbox: PodSandbox);
    /// The sandbox is gone. Sent without a stop for one that has failed.
    async fn remove_pod_sandbox(&self, sandbox: PodSandbox);
}
