//! The guards around a strict endpoint: early drop on its link, and no sockets in its pod that send around its programs.

use std::{path::PathBuf, sync::PoisonError};

use super::{AttachError, Attacher};
use crate::{
    claim::InterfacePlan,
    datapath::{DatapathError, EndpointId, Isolation, cgroup},
    link::{LinkRef, Namespace},
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

/// How a pod is guarded.
#[derive(Clone, Debug)]
pub(super) struct GuardedPod {
    /// Its cgroup's folder.
    pub(super) cgroup: PathBuf,
    /// The guards that could be had.
    pub(super) hooks: Vec<String>,
}

impl Attacher {
    /// Guard the pods of strict links from now on.
    #[must_use]
    pub fn guarding(mut self, guard: PodGuard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Whether links get the early drop; they do, unless this says no.
    #[must_use]
    pub const fn dropping_early(mut self, on: bool) -> Self {
        self.early_drop = on;
        self
    }

    /// Put the early drop on a link that waits at home with its programs, if it is down. A NIC loses its carrier when it gets
    /// its first XDP program, and the kernel's lock over links is held meanwhile: so never on a link that is up, and never
    /// while a sandbox waits. All that it drops the other programs drop too.
    pub(super) async fn drop_early(&self, id: EndpointId, plan: &InterfacePlan, ifindex: u32) {
        if !self.early_drop || !plan.early_drop || plan.isolation != Isolation::Strict {
            return;
        }
        let why = match self.links.get(&Namespace::Host, &LinkRef::Index(ifindex)).await {
            Ok(link) if link.up => {
                Some("it is up; it can be had on a link that is down when it is claimed".to_owned())
            }
            Ok(_) => match self.datapath(move |datapath| datapath.guard_link(id, ifindex)).await {
                Ok(why) => why,
                Err(error) => Some(chain(&error)),
            },
            Err(error) => Some(chain(&error)),
        };
        if let Some(why) = why {
            tracing::info!(endpoint = id, link = plan.host_link, "no early drop on the link: {why}");
        }
    }

    /// Before the link moves: nothing in the pod runs yet.
    pub(super) async fn put_guard(&self, id: EndpointId, cgroup: Option<&str>) -> Result<(), AttachError> {
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
        let cgroup = cgroup::of_pod(&guard.cgroups, named)?;
        self.guard_cgroup(id, cgroup).await
    }

    async fn guard_cgroup(&self, id: EndpointId, cgroup: PathBuf) -> Result<(), AttachError> {
        let folder = cgroup.clone();
        let hooks = self.datapath(move |datapath| {
            datapath.guard_pod(id, &folder)?;
            let guards = datapath.guards(id)?.into_iter().map(|guard| guard.hook);
            Ok::<_, DatapathError>(guards.filter(|hook| hook.starts_with("cgroup/")).collect())
        });
        let guarded = GuardedPod { cgroup, hooks: hooks.await? };
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner).insert(id, guarded);
        Ok(())
    }

    /// How the pod of an endpoint was guarded, if it was. Not in the checkpoint: the runtime tells the cgroup of every
    /// pod at each connection.
    pub(super) fn guarded_pod(&self, id: EndpointId) -> Option<GuardedPod> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Forget the pods of endpoints that are over.
    pub(super) fn forget_guarded(&self) {
        let held = self.held_endpoints();
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| held.contains(id));
    }

    /// Put the guards on that were there.
    pub(super) async fn guard_as_before(&self, id: EndpointId) -> Result<(), AttachError> {
        match self.guarded_pod(id) {
            Some(GuardedPod { cgroup, .. }) => self.guard_cgroup(id, cgroup).await,
            None => Ok(()),
        }
    }
}
