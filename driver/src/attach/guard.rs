//! The guards around a strict endpoint: early drop on its link, and no sockets in its pod that send around its programs.

use std::path::PathBuf;

use super::{AttachError, Attacher};
use crate::{
    datapath::{EndpointId, cgroup},
    telemetry::chain,
};

/// How pods are guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodGuard {
    /// Where the host's cgroups are mounted.
    pub cgroups: PathBuf,
    /// What becomes of a pod that cannot be guarded.
    pub unguarded: Unguarded,
}

/// What becomes of strict links of a pod that cannot be guarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Unguarded {
    /// They are not attached.
    #[default]
    Refuse,
    /// They are attached, with a warning: a pod with NET_RAW can send around their programs.
    Allow,
}

impl Attacher {
    /// Guard the pods of strict links from now on.
    #[must_use]
    pub fn guarding(mut self, guard: PodGuard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Before the link moves, while it is down: nothing in the pod runs yet, and a driver may change its queues in peace.
    pub(super) async fn put_guards(
        &self,
        id: EndpointId,
        ifindex: u32,
        cgroup: Option<&str>,
    ) -> Result<(), AttachError> {
        if let Some(why) = self.datapath(move |datapath| datapath.guard_link(id, ifindex)).await? {
            tracing::info!(endpoint = id, ifindex, "no early drop on the link: {why}");
        }
        match (self.guard_pod(id, cgroup).await, &self.guard) {
            (Err(error), Some(PodGuard { unguarded: Unguarded::Allow, .. })) => {
                tracing::warn!(endpoint = id, "the pod is not guarded: {}", chain(&error));
                Ok(())
            }
            (result, _) => result,
        }
    }

    /// For a pod that has its links already, perhaps from a daemon that did not guard: it keeps them.
    pub(super) async fn guard_again(&self, id: EndpointId, cgroup: Option<&str>) {
        if let Err(error) = self.guard_pod(id, cgroup).await {
            tracing::warn!(endpoint = id, "a pod that runs is not guarded: {}", chain(&error));
        }
    }

    async fn guard_pod(&self, id: EndpointId, named: Option<&str>) -> Result<(), AttachError> {
        let Some(guard) = &self.guard else { return Ok(()) };
        let path = cgroup::of_pod(&guard.cgroups, named)?;
        Ok(self.datapath(move |datapath| datapath.guard_pod(id, &path)).await?)
    }
}
