//! Namespaces that the driver holds: as long as a link of a claim is in them, and no longer.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{AttachError, Attacher, Problem, Reason, give_back::free_name};
use crate::{claim::Sandbox, link::Namespace, netns::NetnsError, telemetry::chain};

impl Attacher {
    /// Namespaces in which links of claims are, by the path at which they are held.
    fn used_holds(&self) -> BTreeSet<PathBuf> {
        let held: Vec<_> = self.store.look(|claims| {
            let interfaces = claims.values().flat_map(|checkpoint| &checkpoint.interfaces);
            interfaces.filter_map(|it| it.attachment.as_ref()).map(|it| it.sandbox.hold.clone()).collect()
        });
        held.into_iter().chain(self.attaching().keys().cloned()).collect()
    }

    /// Let go of these namespaces, unless a link of a claim is in them still.
    pub(super) async fn release_unused(&self, holds: impl IntoIterator<Item = PathBuf>) {
        let used = self.used_holds();
        for hold in holds.into_iter().filter(|hold| !used.contains(hold)) {
            // It is tried again by `clear_holds`.
            if let Err(error) = self.namespaces.release(&hold).await {
                tracing::warn!(hold = %hold.display(), "a network namespace is still held: {}", chain(&error));
            }
        }
    }

    pub(super) async fn is_held(&self, sandbox: &Sandbox) -> bool {
        self.namespaces.look(&sandbox.hold).await.is_ok_and(|seen| seen.id == sandbox.namespace)
    }

    /// Hold the namespace of a sandbox again, if somebody has taken the hold away while the sandbox lives.
    pub(super) async fn hold_again(&self, sandbox: &Sandbox) {
        if !self.is_held(sandbox).await
            && self.namespaces.look(&sandbox.netns).await.is_ok_and(|seen| seen.id == sandbox.namespace)
            && let Err(error) = self.namespaces.hold(&sandbox.netns).await
        {
            tracing::warn!(sandbox = sandbox.id, "its network namespace is not held: {}", chain(&error));
        }
    }

    /// Namespaces that are held, and those of them in which no link of a claim is: left by a daemon that was killed, or by
    /// a checkpoint that was lost.
    pub async fn holds(&self) -> Result<(usize, Vec<PathBuf>), NetnsError> {
        let held = self.namespaces.held().await?;
        let used = self.used_holds();
        let count = held.len();
        Ok((count, held.into_iter().filter(|hold| !used.contains(hold)).collect()))
    }

    /// Look into held namespaces that no checkpoint names, as after a restart, at any time.
    pub async fn clear_unused_holds(&self) -> Vec<Problem> {
        // Most often there is nothing to do, and nobody waits.
        if matches!(self.holds().await, Ok((_, unused)) if unused.is_empty()) {
            return Vec::new();
        }
        let _turn = self.turns.of_all().await;
        self.clear_holds().await
    }

    /// Look into held namespaces that no checkpoint names, fetch the links with programs of ours, and let go of them.
    pub(super) async fn clear_holds(&self) -> Vec<Problem> {
        let unused = match self.holds().await {
            Ok((_, unused)) => unused,
            Err(error) => return vec![left(chain(&error))],
        };
        let mut problems = Vec::new();
        for hold in unused {
            // A living pod keeps what it has, although its checkpoint is lost; its gate is closed.
            match self.namespaces.is_used(&hold).await {
                Ok(false) => {}
                Ok(true) => continue,
                Err(error) => {
                    problems.push(left(chain(&error)));
                    continue;
                }
            }
            match self.fetch_orphans(&hold).await {
                Ok(fetched) => problems.extend(fetched.into_iter().map(left)),
                Err(error) => problems.push(left(format!("{}: {}", hold.display(), chain(&error)))),
            }
            if let Err(error) = self.namespaces.release(&hold).await {
                problems.push(left(chain(&error)));
            }
        }
        problems
    }

    /// Links in a namespace that have the programs of an endpoint without a checkpoint. Hardware returns by itself when the
    /// namespace ends, and what was made for a pod may go with it; a link that has its home on the host may not.
    async fn fetch_orphans(&self, hold: &Path) -> Result<Vec<String>, AttachError> {
        let namespace = &Namespace::at(hold);
        let Ok(links) = self.links.list(namespace).await else { return Ok(Vec::new()) };
        let mut fetched = Vec::new();
        for id in self.orphans().await? {
            let at = self.datapath(move |datapath| datapath.attached_ifindex(id)).await?;
            let Some(link) = links.iter().find(|link| Some(link.ifindex) == at) else { continue };
            let (path, ifindex) = (hold.to_owned(), link.ifindex);
            // An index says nothing by itself: each namespace has its own.
            if !self.datapath(move |datapath| datapath.serves(id, &path, ifindex)).await? {
                continue;
            }
            let names = self.links.list(&Namespace::Host).await?;
            let taken =
                |name: &String| names.iter().any(|it| it.name == *name || it.alt_names.contains(name));
            let Some(home) = (0..=1000).map(|n| free_name(&link.name, n)).find(|name| !taken(name)) else {
                continue;
            };
            self.links.set_up(namespace, link.ifindex, false).await?;
            self.links.move_to(namespace, link.ifindex, &Namespace::Host, &home, None).await?;
            self.forget_endpoint(id).await?;
            fetched.push(format!("link {} of a lost checkpoint is home as {home}, down", link.name));
        }
        Ok(fetched)
    }
}

fn left(note: String) -> Problem {
    Problem { claim: None, pod: None, reason: Reason::NamespaceHeld, note }
}
