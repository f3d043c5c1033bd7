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
mod numbers;
mod outcome;
mod port;
mod present;
mod protect;
mod recover;
mod removal;
mod repair;
mod restrict;
mod stray;
mod sub_interface;
mod turns;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use tokio::task::spawn_blocking;

use self::{
    numbers::Numbers,
    stray::Strays,
    turns::{Part, Turns},
};
use crate::{
    claim::{
        Attachment, Checkpoint, ClaimRef, InterfaceRecord,
        store::{Store, StoreError},
    },
    datapath::{Datapath, EndpointId},
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
pub const FAILPOINTS: [&str; 13] = [
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
    "removal-before-programs",
    "removal-after-programs",
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
    /// The namespaces that attaches under way need, although no checkpoint names them yet: how many need each.
    attaching: std::sync::Mutex<BTreeMap<PathBuf, u32>>,
    turns: Turns,
    numbers: Numbers,
    strays: Strays,
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
            turns: Turns::default(),
            numbers: Numbers::default(),
            strays: Strays::default(),
        }
    }

    /// The same, that knows who the peers with names in policies are.
    #[must_use]
    pub fn knowing(mut self, peers: Arc<PolicyPeers>) -> Self {
        self.peers = Some(peers);
        self
    }

    fn attaching(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, u32>> {
        self.attaching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_attaching(&self, hold: &Path) {
        *self.attaching().entry(hold.to_owned()).or_default() += 1;
    }

    fn end_attaching(&self, hold: &Path) {
        let mut attaching = self.attaching();
        if let Some(count) = attaching.get_mut(hold) {
            *count -= 1;
            if *count == 0 {
                attaching.remove(hold);
            }
        }
    }

    /// Run a bpf call away from the threads that serve sockets: loading programs takes milliseconds.
    async fn datapath<T: Send + 'static>(&self, call: impl FnOnce(&dyn Datapath) -> T + Send + 'static) -> T {
        let datapath = Arc::clone(&self.datapath);
        blocking(move || call(&*datapath)).await
    }

    /// The claims of a pod, its sandbox, and itself.
    fn parts_of_pod(&self, uid: &str, sandbox_id: &str) -> BTreeSet<Part> {
        let claims = self.store.look(|claims| {
            let concern = |it: &&Checkpoint| it.is_for(uid) || it.holders().any(|pod| pod.uid == uid);
            claims.values().filter(concern).map(|it| Part::Claim(it.claim.uid.clone())).collect::<Vec<_>>()
        });
        let own = [Part::Pod(uid.to_owned()), Part::Sandbox(sandbox_id.to_owned())];
        own.into_iter().chain(claims).collect()
    }

    /// The claims and pods of attachments.
    fn parts_of(&self, wanted: impl Fn(&ClaimRef, &Attachment) -> bool) -> BTreeSet<Part> {
        self.store.look(|claims| {
            let mut parts = BTreeSet::new();
            for checkpoint in claims.values() {
                for attachment in checkpoint.interfaces.iter().filter_map(|it| it.attachment.as_ref()) {
                    if wanted(&checkpoint.claim, attachment) {
                        parts.insert(Part::Claim(checkpoint.claim.uid.clone()));
                        parts.insert(Part::Pod(attachment.sandbox.pod.uid.clone()));
                    }
                }
            }
            parts
        })
    }

    /// The claim, and the pods that have interfaces of it.
    fn parts_of_claim(&self, uid: &str) -> BTreeSet<Part> {
        let mut parts = self.parts_of(|claim, _| claim.uid == uid);
        parts.insert(Part::Claim(uid.to_owned()));
        parts
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

    fn held_endpoints(&self) -> BTreeSet<EndpointId> {
        let endpoints = |interface: &InterfaceRecord| {
            let attached = interface.attachment.as_ref().and_then(|attachment| attachment.endpoint);
            [interface.reserved, interface.removing, attached]
        };
        self.store.look(|claims| {
            let interfaces = claims.values().flat_map(|checkpoint| &checkpoint.interfaces);
            interfaces.flat_map(endpoints).flatten().collect()
        })
    }
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
