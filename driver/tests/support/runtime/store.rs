//! What the stand-in runtime knows of sandboxes, and its one lock.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use netferry_proto::nri as api;
use tokio::task::AbortHandle;

use super::{
    behavior::{Behavior, DeadSandbox},
    spec::PodSandboxSpec,
};

/// Shared by a runtime and its plugins; outlives both.
#[derive(Clone, Default)]
pub struct Store(Arc<Inner>);

#[derive(Default)]
struct Inner {
    sandboxes: Mutex<BTreeMap<String, Known>>,
    /// Held from an event's way to the plugin until its answer, whatever the sandbox: every method of `Adaptation` in
    /// `pkg/adaptation/adaptation.go` of containerd/nri begins with `r.Lock()`, and so do those of `local` in
    /// `internal/nri/nri.go` of containerd and of CRI-O, synchronization included.
    node: tokio::sync::Mutex<()>,
    connections: Mutex<Vec<AbortHandle>>,
    lists: AtomicU64,
}

struct Known {
    spec: PodSandboxSpec,
    dead: bool,
    told: Told,
}

/// What this life of the runtime told of a sandbox: the states of `local` in containerd's `internal/nri/nri.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing: it is older than the runtime's start.
    Nothing,
    Run,
    Stop,
}

impl Store {
    /// Begin a new life: every connection breaks, and all sandboxes are older than this start.
    pub fn restart(&self) {
        for connection in self.connections().drain(..) {
            connection.abort();
        }
        for known in self.known().values_mut() {
            // A stop that was told is recorded on disk by CRI-O, and of no matter to containerd.
            if known.told == Told::Run {
                known.told = Told::Nothing;
            }
        }
    }

    /// The pause container of a sandbox is gone. The sandbox stays in the list until it is removed.
    pub fn died(&self, id: &str) {
        self.known().get_mut(id).unwrap_or_else(|| panic!("there is no sandbox {id}")).dead = true;
    }

    /// Whether a sandbox has its pause container. One that the runtime does not know has none.
    pub fn is_alive(&self, id: &str) -> bool {
        self.known().get(id).is_some_and(|known| !known.dead)
    }

    /// All sandboxes that were not removed, dead ones too.
    pub fn sandboxes(&self) -> Vec<PodSandboxSpec> {
        self.known().values().map(|known| known.spec.clone()).collect()
    }

    pub(super) async fn one_at_a_time(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.node.lock().await
    }

    pub(super) fn add(&self, spec: PodSandboxSpec, told: Told) {
        self.known().insert(spec.id.clone(), Known { spec, dead: false, told });
    }

    pub(super) fn remove(&self, id: &str) {
        self.known().remove(id);
    }

    /// Of a sandbox that it does not know, because it was refused, the plugin heard that it runs.
    pub(super) fn told(&self, id: &str) -> Told {
        self.known().get(id).map_or(Told::Run, |known| known.told)
    }

    /// The sandbox was stopped; whether that was told is in `told`.
    pub(super) fn stopped(&self, id: &str, told: Told) {
        if let Some(known) = self.known().get_mut(id) {
            known.dead = true;
            known.told = told;
        }
    }

    pub(super) fn connected(&self, connection: AbortHandle) {
        self.connections().push(connection);
    }

    /// What a synchronization lists (`ListPodSandboxes` in `internal/cri/nri/nri_api_linux.go` of containerd): dead
    /// sandboxes too, in any order.
    pub(super) fn list(&self, behavior: &Behavior) -> Vec<api::PodSandbox> {
        let mut pods: Vec<_> = self
            .known()
            .values()
            .filter(|known| !known.dead || behavior.lists_dead)
            .map(|known| if known.dead { behavior.dead.describe(&known.spec) } else { known.spec.message() })
            .collect();
        shuffle(&mut pods, behavior.seed ^ self.0.lists.fetch_add(1, Ordering::Relaxed));
        pods
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, Vec<AbortHandle>> {
        self.0.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeadSandbox {
    pub(super) fn describe(self, sandbox: &PodSandboxSpec) -> api::PodSandbox {
        let mut message = sandbox.message();
        message.pid = 0;
        let is_there = |namespace: &api::LinuxNamespace| {
            namespace.type_ != "network" || std::path::Path::new(&namespace.path).exists()
        };
        let namespaces = &mut message.linux.mut_or_insert_default().namespaces;
        match self {
            Self::WithoutSpec => {
                namespaces.clear();
                message.annotations.retain(|key, _| !key.starts_with("io.kubernetes.cri."));
            }
            Self::StalePath => {}
            Self::PathWhileThere => namespaces.retain(is_there),
        }
        message
    }
}

/// Fisher and Yates, with numbers of splitmix64.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    for last in (1..items.len()).rev() {
        let below = u64::try_from(last + 1).expect("fits");
        let other = usize::try_from(next() % below).expect("below a length");
        items.swap(last, other);
    }
}
