//! Bringing claimed links into a pod's sandbox and home again: the only place where [`Links`] and
//! [`Datapath`] meet.
//!
//! Both ways are written so that they may be cut off anywhere and be started again. The way in writes down
//! first what the link is at home; whatever happens after that, the way home ([`give_back`]) looks where the
//! link is and does what is missing. A failed attach, a stopped pod and a crash are all cleared up by that
//! one way.

mod alive;
mod compare;
mod error;
mod find;
pub mod follow;
mod give_back;
mod guard;
mod holds;
mod into_pod;
mod lease;
mod movable;
mod outcome;
mod port;
mod present;
mod protect;
mod recover;
mod repair;
mod restrict;
mod sub_interface;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use netferry_common::{flow::SCOPE_ENDPOINT, maps::MAX_ENDPOINTS, slot};
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{
    claim::{
        Checkpoint, ClaimRef, InterfaceRecord,
        store::{Store, StoreError},
    },
    datapath::{Datapath, DatapathError, EndpointId},
    link::{Links, Namespace, PairKind},
    netns::Namespaces,
    network::peers::PolicyPeers,
};

pub use self::{
    alive::{Alive, Ended},
    compare::Deviation,
    error::{AttachError, AttachFailed},
    guard::{PodGuard, Unguarded},
    outcome::{AttachedInterface, Outcome, Problem, Reason},
    repair::{Extent, Mended, Repair},
};

/// Named points of both ways, in the order of a moved link, where a test can stop the process (`return(abort)`) or let the
/// step fail (`return`).
pub const FAILPOINTS: [&str; 11] = [
    "attach-after-checkpoint",
    "attach-after-programs",
    "attach-after-guards",
    "attach-after-move",
    "attach-after-ready",
    "attach-after-up",
    "attach-before-done",
    "return-after-checkpoint",
    "return-after-move",
    "return-after-restore",
    "return-before-done",
];

/// Attaches the claims of sandboxes, and returns their links.
pub struct Attacher {
    links: Arc<dyn Links>,
    namespaces: Arc<dyn Namespaces>,
    datapath: Arc<dyn Datapath>,
    store: Arc<Store>,
    /// `None`: pods are not guarded, which only tests want.
    guard: Option<PodGuard>,
    /// Whether links get the early drop.
    early_drop: bool,
    /// Pods that this process has guarded.
    guarded: std::sync::Mutex<BTreeMap<EndpointId, guard::GuardedPod>>,
    /// Who the peers with names in policies are; `None`: nobody knows.
    peers: Option<Arc<PolicyPeers>>,
    /// What ports are made of.
    ports: PairKind,
    /// The namespace that the attach under way needs, although no checkpoint names it yet.
    attaching: std::sync::Mutex<Option<PathBuf>>,
    /// One at a time: two pods never race for a name or a device. The kernel's own lock over links is as wide.
    turn: Mutex<()>,
    /// Highest endpoint id given out; ids are not used again while the process lives.
    last_endpoint: AtomicU32,
}

impl Attacher {
    /// An attacher over these parts.
    #[must_use]
    pub fn new(
        links: Arc<dyn Links>,
        namespaces: Arc<dyn Namespaces>,
        datapath: Arc<dyn Datapath>,
        store: Arc<Store>,
    ) -> Self {
        Self {
            links,
            namespaces,
            datapath,
            store,
            guard: None,
            early_drop: true,
            guarded: std::sync::Mutex::default(),
            peers: None,
            ports: PairKind::default(),
            attaching: std::sync::Mutex::default(),
            turn: Mutex::new(()),
            last_endpoint: AtomicU32::new(0),
        }
    }

    /// The same, that knows who the peers with names in policies are.
    #[must_use]
    pub fn knowing(mut self, peers: Arc<PolicyPeers>) -> Self {
        self.peers = Some(peers);
        self
    }

    fn attaching(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        self.attaching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run a bpf call away from the threads that serve sockets: loading programs takes milliseconds.
    async fn datapath<T: Send + 'static>(&self, call: impl FnOnce(&dyn Datapath) -> T + Send + 'static) -> T {
        let datapath = Arc::clone(&self.datapath);
        blocking(move || call(&*datapath)).await
    }

    /// Change a checkpoint; it is on disk when this returns.
    async fn update(
        &self,
        claim: &ClaimRef,
        change: impl FnOnce(&mut Checkpoint) + Send + 'static,
    ) -> Result<Checkpoint, StoreError> {
        let (store, uid) = (Arc::clone(&self.store), claim.uid.clone());
        blocking(move || store.update(&uid, change)).await
    }

    /// An id that no checkpoint, pin or map entry has or had, with a slot that is free.
    async fn new_endpoint(&self) -> Result<EndpointId, DatapathError> {
        let known = |datapath: &dyn Datapath| Ok((datapath.endpoints()?, datapath.last_endpoint()?));
        let (mut used, last) = self.datapath(known).await?;
        used.extend(self.held_endpoints());
        let slots: BTreeSet<u32> = used.iter().map(|id| slot::of(*id)).collect();
        let highest = used.into_iter().fold(last, u32::max).max(self.last_endpoint.load(Ordering::Relaxed));
        let mut id = next_id(highest);
        for _ in 0..MAX_ENDPOINTS {
            if !slots.contains(&slot::of(id)) {
                break;
            }
            id = next_id(id);
        }
        self.last_endpoint.store(id, Ordering::Relaxed);
        Ok(id)
    }

    fn held_endpoints(&self) -> BTreeSet<EndpointId> {
        let checkpoints = self.store.all();
        let attachments = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
        let endpoints = |interface: &InterfaceRecord| {
            [interface.reserved, interface.attachment.as_ref().and_then(|attachment| attachment.endpoint)]
        };
        attachments.flat_map(endpoints).flatten().collect()
    }
}

/// Ids are numbers of 31 bits: the highest one says in a flow whose it is.
fn next_id(id: EndpointId) -> EndpointId {
    id.checked_add(1).filter(|id| *id < SCOPE_ENDPOINT).unwrap_or(1)
}

/// The namespace of a sandbox, as the driver holds it.
fn namespace_of(sandbox: &crate::claim::Sandbox) -> Namespace {
    sandbox.held()
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(call).await {
        Ok(value) => value,
        // Not cancelled: nothing aborts it. A panic goes on where it would have gone.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Pass a named point; see [`FAILPOINTS`].
#[cfg_attr(
    not(feature = "failpoints"),
    expect(clippy::unnecessary_wraps, reason = "fails only by injection")
)]
fn crossing(name: &'static str) -> Result<(), AttachError> {
    fail::fail_point!(name, |argument| {
        if argument.as_deref() == Some("abort") {
            std::process::abort();
        }
        Err(AttachError::Injected(name))
    });
    let _ = name;
    Ok(())
}
