//! The sandboxes that the driver knows, and whether their containers may be made. In memory: after a restart the runtime
//! lists them again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    attach::{Alive, Ended},
    nri::PodSandbox,
};

/// First pause before an attach is tried again; doubled after each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Where a sandbox stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It waits for its interfaces, or for an answer, and this is why.
    Held(String),
    /// Nothing of the driver concerns its pod.
    Free,
    /// It has every interface of its pod's claims.
    Attached,
    /// It has been stopped, is dead, or has been replaced: it gets nothing any more.
    Ended(String),
}

/// What is known of one sandbox.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) sandbox: PodSandbox,
    pub(super) standing: Standing,
    /// Whether containers have been made in it: it had its interfaces once, or runs without them.
    pub(super) opened: bool,
    /// Claims that do not name the pod, as the API server said after the sandbox was made.
    pub(super) asked: BTreeSet<String>,
    /// What the last failure waited for, to notice that it has changed.
    pub(super) waits_for: u64,
    /// The failure that was last reported.
    pub(super) reported: Option<String>,
    /// One event or attempt at a time.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    failures: u32,
    next_try: Instant,
}

impl Known {
    fn new(sandbox: PodSandbox) -> Self {
        Self {
            opened: sandbox.has_containers,
            sandbox,
            standing: Standing::Held("its interfaces are being attached still".to_owned()),
            asked: BTreeSet::new(),
            waits_for: 0,
            reported: None,
            turn: Arc::default(),
            failures: 0,
            next_try: Instant::now(),
        }
    }

    pub(super) const fn has_ended(&self) -> bool {
        matches!(self.standing, Standing::Ended(_))
    }

    /// Whether an attempt is due: in its time, or because what it waited for has changed.
    pub(super) fn is_due(&self, now: Instant, waits_for: u64) -> bool {
        matches!(self.standing, Standing::Held(_)) && (now >= self.next_try || waits_for != self.waits_for)
    }
}

/// See the module.
#[derive(Default)]
pub struct Registry {
    known: Mutex<BTreeMap<String, Known>>,
    changed: watch::Sender<()>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &str) -> Option<Known> {
        self.lock().get(id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Known> {
        self.lock().values().cloned().collect()
    }

    /// A sandbox begins: others of its pod are replaced.
    pub(super) fn begin(&self, sandbox: &PodSandbox) {
        let mut known = self.lock();
        for other in known.values_mut() {
            if other.sandbox.pod.uid == sandbox.pod.uid
                && other.sandbox.id != sandbox.id
                && !other.has_ended()
            {
                other.standing = Standing::Ended(format!("sandbox {} of the pod is newer", sandbox.id));
            }
        }
        known.insert(sandbox.id.clone(), Known::new(sandbox.clone()));
    }

    /// A sandbox that is heard of without its beginning, as when its event was lost with the runtime's connection.
    pub(super) fn know(&self, sandbox: &PodSandbox) -> Known {
        if let Some(known) = self.get(&sandbox.id) {
            return known;
        }
        self.begin(sandbox);
        self.get(&sandbox.id).unwrap_or_else(|| Known::new(sandbox.clone()))
    }

    /// Take over what the runtime lists.
    pub(super) fn replace(&self, listed: &[PodSandbox], alive: &Alive) {
        let mut known = self.lock();
        let mut before = std::mem::take(&mut *known);
        for sandbox in listed {
            let mut entry = before.remove(&sandbox.id).unwrap_or_else(|| Known::new(sandbox.clone()));
            entry.opened |= sandbox.has_containers;
            if let Some(ended) = alive.ended.get(&sandbox.id) {
                entry.standing = match ended {
                    Ended::Dead => Standing::Ended("the sandbox is dead".to_owned()),
                    Ended::Replaced => Standing::Ended("a newer sandbox of the pod lives".to_owned()),
                    Ended::Ambiguous(other) => Standing::Ended(format!(
                        "the runtime lists its network namespace for a sandbox of pod {other} too"
                    )),
                };
            }
            known.insert(sandbox.id.clone(), entry);
        }
    }

    pub(super) fn change(&self, id: &str, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.lock().get_mut(id) {
            change(known);
        }
    }

    /// The sandbox has what it needs. One that ended meanwhile stays ended.
    pub(super) fn succeeded(&self, id: &str, standing: Standing) {
        self.change(id, |known| {
            if !known.has_ended() {
                known.standing = standing;
            }
            (known.failures, known.reported) = (0, None);
        });
        self.changed.send_replace(());
    }

    /// The sandbox waits. Returns whether the reason is another than the one last reported.
    pub(super) fn failed(&self, id: &str, why: &str, waits_for: u64) -> bool {
        let mut is_new = false;
        self.change(id, |known| {
            if known.has_ended() {
                return;
            }
            known.standing = Standing::Held(why.to_owned());
            known.next_try = Instant::now() + pause(known.failures);
            known.failures = known.failures.saturating_add(1);
            if known.waits_for != waits_for {
                known.failures = 0;
            }
            known.waits_for = waits_for;
            is_new = known.reported.as_deref() != Some(why);
            known.reported = Some(why.to_owned());
        });
        self.changed.send_replace(());
        is_new
    }

    pub(super) fn end(&self, id: &str) {
        self.change(id, |known| known.standing = Standing::Ended("the sandbox has been stopped".to_owned()));
    }

    pub(super) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    /// When the next attempt is due, if any is.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let known = self.lock();
        let held = known.values().filter(|known| matches!(known.standing, Standing::Held(_)));
        held.map(|known| known.next_try).min()
    }

    /// Notified after each attempt, when reads see what came of it.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Why a living sandbox of the pod waits for its interfaces, if it does.
    #[must_use]
    pub fn held(&self, pod_uid: &str) -> Option<String> {
        self.lock().values().find_map(|known| match &known.standing {
            Standing::Held(why) if known.sandbox.pod.uid == pod_uid => Some(why.clone()),
            _ => None,
        })
    }

    /// Why a living sandbox of the pod lacks its interfaces after an attempt to attach them, if it does.
    #[must_use]
    pub fn lacks(&self, pod_uid: &str) -> Option<String> {
        self.lock().values().find_map(|known| match (&known.standing, &known.reported) {
            (Standing::Held(why), Some(_)) if known.sandbox.pod.uid == pod_uid => Some(why.clone()),
            _ => None,
        })
    }

    /// Living sandboxes that wait for their interfaces.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.lock().values().filter(|known| matches!(known.standing, Standing::Held(_))).count()
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE)
}
