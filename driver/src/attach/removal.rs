//! Programs on links that are home again: taken off after the hook, as nothing waits for them but the next attach.
//!
//! Each program off its hook waits for an RCU grace period under the kernel's lock over links. The gate is shut meanwhile, and
//! the checkpoint says what is left to do: a daemon that is killed goes on with it.

use std::collections::BTreeSet;

use super::{AttachError, Attacher, Problem, Reason, crossing, turns::Part};
use crate::{
    claim::{ClaimRef, InterfaceKey},
    datapath::EndpointId,
    telemetry::chain,
};

impl Attacher {
    /// Take the programs off all links that are home again. What could not be done is tried again by the next call, and
    /// before the next attach.
    pub async fn finish_removals(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for uid in self.claims_with_removals() {
            let _turn = self.turns.of(|| BTreeSet::from([Part::Claim(uid.clone())])).await;
            problems.extend(self.finish_removals_of(&uid).await);
        }
        problems
    }

    fn claims_with_removals(&self) -> Vec<String> {
        self.store.look(|claims| {
            let unfinished =
                claims.values().filter(|it| it.interfaces.iter().any(|it| it.removing.is_some()));
            unfinished.map(|checkpoint| checkpoint.claim.uid.clone()).collect()
        })
    }

    /// The same for one claim, whose turn the caller has.
    pub(super) async fn finish_removals_of(&self, uid: &str) -> Vec<Problem> {
        let Some(checkpoint) = self.store.get(uid) else { return Vec::new() };
        let mut problems = Vec::new();
        for interface in &checkpoint.interfaces {
            let Some(id) = interface.removing else { continue };
            if let Err(error) = self.finish_removal(&checkpoint.claim, interface.plan.key(), id).await {
                let note = format!("device {} is home: {}", interface.plan.device, chain(&error));
                let claim = Some(checkpoint.claim.clone());
                problems.push(Problem { claim, pod: None, reason: Reason::ProgramsLeft, note });
            }
        }
        problems
    }

    /// Every claim, for a caller who has the turn of all.
    pub(super) async fn finish_all_removals(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for uid in self.claims_with_removals() {
            problems.extend(self.finish_removals_of(&uid).await);
        }
        problems
    }

    /// Take the programs of `id` off, and forget that this was to be done.
    pub(super) async fn finish_removal(
        &self,
        claim: &ClaimRef,
        key: InterfaceKey,
        id: EndpointId,
    ) -> Result<(), AttachError> {
        crossing("removal-before-programs")?;
        self.forget_endpoint(id).await?;
        crossing("removal-after-programs")?;
        let cleared = self.update(claim, move |checkpoint| {
            if let Some(interface) = checkpoint.interface_mut(&key) {
                interface.removing = interface.removing.filter(|left| *left != id);
            }
        });
        cleared.await?;
        Ok(())
    }
}
