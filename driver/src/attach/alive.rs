//! Which of the sandboxes that a runtime lists live: of each pod one at most.
//!
//! containerd lists every sandbox of its store, dead ones too, in any order. A sandbox lives if the path that the runtime
//! gave for its network namespace leads to that namespace today. That the driver holds the namespace proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::Attacher;
use crate::{
    claim::{PodRef, Sandbox},
    netns::{NetnsError, NetnsId, Seen},
    nri::PodSandbox,
    telemetry::chain,
};

/// What became of the sandboxes of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// Those that live, and are the newest of their pod. Sandboxes without a namespace of their own are among them.
    pub sandboxes: Vec<PodSandbox>,
    /// Those whose links stay where they are, because the kernel did not say whether they live.
    pub uncertain: BTreeSet<String>,
    /// The others, and why, by sandbox id.
    pub ended: BTreeMap<String, Ended>,
}

/// Why a sandbox gets no links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its path leads to its namespace no more.
    Dead,
    /// Its pod has a newer one.
    Replaced,
    /// Another pod's sandbox has the same namespace, and nothing says whose it is.
    Ambiguous(PodRef),
}

/// A sandbox of the list with the namespace it leads to.
struct Candidate {
    sandbox: PodSandbox,
    seen: Seen,
    /// Whether a checkpoint says that this is its namespace.
    on_record: bool,
}

impl Attacher {
    /// See the module. Nothing is changed.
    pub(super) async fn alive(&self, listed: &[PodSandbox]) -> Alive {
        let mut alive = Alive::default();
        let mut candidates = Vec::new();
        let records = self.recorded();
        for sandbox in listed {
            let record = records.get(&sandbox.id);
            let Some(netns) = sandbox.netns.as_ref().or(record.map(|record| &record.netns)) else {
                // Of a dead one containerd 1.7 tells no namespace either, as of a pod of the host's network.
                match sandbox.pid {
                    Some(_) => alive.sandboxes.push(sandbox.clone()),
                    None => drop(alive.ended.insert(sandbox.id.clone(), Ended::Dead)),
                }
                continue;
            };
            match self.namespaces.look(netns).await {
                Ok(seen) if record.is_none_or(|record| record.namespace == seen.id) => {
                    let sandbox = PodSandbox { netns: Some(netns.clone()), ..sandbox.clone() };
                    candidates.push(Candidate { sandbox, seen, on_record: record.is_some() });
                }
                Ok(_) => drop(alive.ended.insert(sandbox.id.clone(), Ended::Dead)),
                Err(error) if error.is_gone() => {
                    alive.ended.insert(sandbox.id.clone(), Ended::Dead);
                }
                Err(error) => {
                    tracing::warn!(pod = %sandbox.pod, sandbox = sandbox.id, "{}", chain(&error));
                    alive.uncertain.insert(sandbox.id.clone());
                }
            }
        }
        choose(candidates, &mut alive);
        alive
    }

    /// Sandboxes that checkpoints name.
    fn recorded(&self) -> BTreeMap<String, Sandbox> {
        let sandboxes = self.attachments().into_iter().map(|attachment| attachment.sandbox);
        sandboxes.map(|sandbox| (sandbox.id.clone(), sandbox)).collect()
    }

    /// Whether a sandbox on record lives, or the kernel does not say.
    pub(super) async fn may_live(&self, sandbox: &Sandbox) -> bool {
        lives(self.namespaces.look(&sandbox.netns).await, sandbox)
    }
}

fn lives(found: Result<Seen, NetnsError>, sandbox: &Sandbox) -> bool {
    match found {
        Ok(seen) => seen.id == sandbox.namespace,
        Err(error) => !error.is_gone(),
    }
}

/// One sandbox for each namespace, and one for each pod.
fn choose(candidates: Vec<Candidate>, alive: &mut Alive) {
    let mut by_namespace: BTreeMap<NetnsId, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        by_namespace.entry(candidate.seen.id.clone()).or_default().push(candidate);
    }
    let mut by_pod: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    for mut same in by_namespace.into_values() {
        // A path that was given again: a dead sandbox seems to lead to the namespace of a living one. A record says whose it
        // is; else the first process, which containerd names of living sandboxes alone, and CRI-O may name of none.
        let signs: [fn(&Candidate) -> bool; 2] =
            [|candidate| candidate.on_record, |candidate| candidate.sandbox.pid.is_some()];
        for sign in signs {
            if same.iter().any(sign) {
                for other in same.extract_if(.., |candidate| !sign(candidate)) {
                    alive.ended.insert(other.sandbox.id, Ended::Dead);
                }
            }
        }
        let other = same.iter().find(|one| one.sandbox.pod.uid != same[0].sandbox.pod.uid);
        if let Some(other) = other {
            let pods = [same[0].sandbox.pod.clone(), other.sandbox.pod.clone()];
            for candidate in same {
                let other = pods.iter().find(|pod| pod.uid != candidate.sandbox.pod.uid);
                let other = other.unwrap_or(&pods[0]).clone();
                alive.ended.insert(candidate.sandbox.id, Ended::Ambiguous(other));
            }
            continue;
        }
        for candidate in same {
            by_pod.entry(candidate.sandbox.pod.uid.clone()).or_default().push(candidate);
        }
    }
    for mut sandboxes in by_pod.into_values() {
        sandboxes.sort_by_key(|candidate| (candidate.seen.since, candidate.seen.id.cookie));
        let newest = sandboxes.pop();
        for candidate in sandboxes {
            alive.ended.insert(candidate.sandbox.id, Ended::Replaced);
        }
        alive.sandboxes.extend(newest.map(|candidate| candidate.sandbox));
    }
}
