//! After a restart: keep what lives, return what is dead, finish what was half done.

use super::{Alive, AttachError, Attacher, Outcome, Problem, Reason, port::is_end};
use crate::{
    claim::{Attachment, Step, made::is_host_name},
    datapath::{DatapathError, EndpointId},
    link::{Link, Namespace},
    nri::PodSandbox,
    telemetry::chain,
};

impl Attacher {
    /// Bring checkpoints, kernel and runtime together. `listed` are all sandboxes the runtime has, dead ones among them, in
    /// any order, as it lists them after a connection. May be called at any time and as often as wanted.
    pub async fn recover(&self, listed: &[PodSandbox]) -> Outcome {
        self.recover_with(listed).await.0
    }

    /// [`Attacher::recover`], and what became of each sandbox.
    pub async fn recover_with(&self, listed: &[PodSandbox]) -> (Outcome, Alive) {
        let _turn = self.turns.of_all().await;
        for attachment in self.attachments() {
            self.hold_again(&attachment.sandbox).await;
        }
        let alive = self.alive(listed).await;
        let mut outcome = self.return_what_cannot_stay(&alive).await;
        for sandbox in &alive.sandboxes {
            match self.attach_in_turn(sandbox).await {
                Ok(mut attached) => {
                    outcome.attached.append(&mut attached.attached);
                    outcome.problems.append(&mut attached.problems);
                }
                Err(failed) => {
                    let note = format!("sandbox {}: {failed}", sandbox.id);
                    let pod = Some(sandbox.pod.clone());
                    let claim = failed.claim.as_deref().cloned();
                    outcome.problems.push(Problem { claim, pod, reason: Reason::NotAttached, note });
                    outcome.problems.extend(failed.problems);
                }
            }
        }
        outcome.problems.extend(self.finish_all_removals().await);
        // Last: what a lost checkpoint has left must not keep living pods waiting.
        outcome.problems.extend(self.clear_holds().await);
        outcome.problems.extend(self.detach_orphans().await);
        (outcome, alive)
    }

    /// Return what no living sandbox has. An interface of a living one that is not as it must be comes home too: the attach
    /// that follows puts it in again, whole.
    async fn return_what_cannot_stay(&self, alive: &Alive) -> Outcome {
        let lives = |attachment: &Attachment| {
            alive.uncertain.contains(&attachment.sandbox.id)
                || alive.sandboxes.iter().any(|sandbox| sandbox.id == attachment.sandbox.id)
        };
        let mut broken = Vec::new();
        let mut problems = Vec::new();
        for checkpoint in self.store.all() {
            for interface in &checkpoint.interfaces {
                let Some(attachment) = &interface.attachment else { continue };
                if attachment.step != Step::Attached || !lives(attachment) {
                    continue;
                }
                if let Err(error) = self.check(&interface.plan, attachment).await {
                    let device = interface.plan.device.clone();
                    problems.push(Problem {
                        claim: Some(checkpoint.claim.clone()),
                        pod: Some(attachment.sandbox.pod.clone()),
                        reason: Reason::Unprotected,
                        note: format!("device {device} is taken out of its pod: {}", chain(&error)),
                    });
                    broken.push(attachment.clone());
                }
            }
        }
        let mut outcome = self
            .give_back_where(|_, _, attachment| {
                attachment.step != Step::Attached || !lives(attachment) || broken.contains(attachment)
            })
            .await;
        problems.append(&mut outcome.problems);
        outcome.problems = problems;
        outcome
    }

    /// As [`Attacher::recover`] does, but at any time: endpoints and map entries that no checkpoint knows.
    pub async fn clear_orphans(&self) -> Vec<Problem> {
        let _turn = self.turns.of_all().await;
        let mut problems = self.clear_holds().await;
        problems.extend(self.detach_orphans().await);
        problems
    }

    /// Endpoints that no checkpoint knows.
    pub(super) async fn orphans(&self) -> Result<Vec<EndpointId>, DatapathError> {
        let endpoints = self.datapath(|datapath| datapath.endpoints()).await?;
        let held = self.held_endpoints();
        Ok(endpoints.into_iter().filter(|id| !held.contains(id)).collect())
    }

    /// A pair that no checkpoint knows has no pod that waits for it. It is ours if our programs are on it and its name is
    /// one that we give.
    async fn delete_orphaned_port(&self, id: EndpointId) -> Result<(), AttachError> {
        let at = self.datapath(move |datapath| {
            let Some(ifindex) = datapath.attached_ifindex(id)? else { return Ok(None) };
            // In this namespace, or another device with the same index in another?
            Ok::<_, DatapathError>(datapath.verify_inside(id, ifindex).is_ok().then_some(ifindex))
        });
        let Some(ifindex) = at.await? else { return Ok(()) };
        let links = self.links.list(&Namespace::Host).await?;
        let ours = |link: &&Link| link.ifindex == ifindex && is_host_name(&link.name) && is_end(link);
        if let Some(link) = links.iter().find(ours) {
            self.links.remove(&Namespace::Host, link.ifindex).await?;
            tracing::warn!(endpoint = id, link = link.name, "a port without a checkpoint is deleted");
        }
        Ok(())
    }

    /// Endpoints that no checkpoint knows, because a checkpoint was lost. Their device may still be in a pod:
    /// then the programs stay, with the gate closed.
    async fn detach_orphans(&self) -> Vec<Problem> {
        let problem = |note| Problem { claim: None, pod: None, reason: Reason::ProgramsLeft, note };
        let orphans = match self.orphans().await {
            Ok(orphans) => orphans,
            Err(error) => return vec![problem(chain(&error))],
        };
        let mut problems = Vec::new();
        for id in orphans {
            if let Err(error) = self.delete_orphaned_port(id).await {
                problems.push(problem(format!("the port of endpoint {id}: {}", chain(&error))));
            }
            let cleared = self.datapath(move |datapath| match datapath.attached_ifindex(id) {
                Ok(None) => datapath.detach(id).map(|()| None),
                Ok(Some(ifindex)) => datapath.set_ready(id, false).map(|()| Some(ifindex)),
                Err(error) => datapath.set_ready(id, false).and(Err(error)),
            });
            match cleared.await {
                Ok(None) => self.free_number(id).await,
                Ok(Some(ifindex)) => problems.push(problem(format!(
                    "endpoint {id} has no checkpoint, but its programs are on a link (index {ifindex} in a \
                     namespace that is not known): its gate is closed and they are left"
                ))),
                Err(error) => problems.push(problem(format!("endpoint {id}: {}", chain(&error)))),
            }
        }
        problems
    }
}
