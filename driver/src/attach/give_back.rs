//! The way home: for a stopped pod, a failed attach and a crash alike.

use std::{collections::BTreeSet, time::Duration};

use super::{
    AttachError, Attacher, Outcome, Problem, Reason, crossing,
    find::{Place, at_home},
    namespace_of,
    stray::Stray,
    turns::{Part, Turn},
};
use crate::{
    claim::{Attachment, Checkpoint, ClaimRef, InterfacePlan, InterfaceRecord, Made, Step, Upper},
    link::{Home, Link, LinkError, Namespace},
    telemetry::chain,
};

/// Longest interface name (`IFNAMSIZ` less the terminating zero).
const MAX_NAME: usize = 15;

/// How long to wait for a link that is nowhere: well inside the runtime's limit for a hook.
const CLEAN_UP_TRIES: u32 = 15;
const CLEAN_UP_PAUSE: Duration = Duration::from_millis(20);

/// One interface on its way home.
struct Return<'a> {
    attacher: &'a Attacher,
    claim: ClaimRef,
    plan: InterfacePlan,
    attachment: Attachment,
    problems: Vec<Problem>,
}

impl Attacher {
    /// Bring home everything that the sandbox has, and take the programs off. The runtime may leave out the namespace: it is
    /// known. Errors become problems; what could not be finished is tried again by the next call.
    pub async fn give_back(&self, sandbox_id: &str) -> Outcome {
        let _turn = self.turn_of_sandbox(sandbox_id).await;
        self.give_back_where(|_, _, attachment| attachment.sandbox.id == sandbox_id).await
    }

    /// Bring home everything that the sandbox has. Its programs stay on, closed, until
    /// [`finish_removals`](Self::finish_removals): whoever waits for the end of a sandbox does not wait for that.
    pub async fn give_back_links(&self, sandbox_id: &str) -> Outcome {
        let _turn = self.turn_of_sandbox(sandbox_id).await;
        self.bring_home_where(|_, _, attachment| attachment.sandbox.id == sandbox_id).await
    }

    async fn turn_of_sandbox(&self, sandbox_id: &str) -> Turn {
        let parts = || {
            let mut parts = self.parts_of(|_, attachment| attachment.sandbox.id == sandbox_id);
            parts.insert(Part::Sandbox(sandbox_id.to_owned()));
            parts
        };
        self.turns.of(parts).await
    }

    /// Bring home everything of a claim, wherever it is.
    pub async fn give_back_claim(&self, uid: &str) -> Outcome {
        let _turn = self.turns.of(|| self.parts_of_claim(uid)).await;
        let mut outcome = self.give_back_where(|claim, _, _| claim.uid == uid).await;
        outcome.problems.extend(self.finish_removals_of(uid).await);
        if let Err(error) = self.unprotect(uid).await {
            let claim = self.store.get(uid).map(|checkpoint| checkpoint.claim);
            let note = format!("programs on a link that waits at home: {}", chain(&error));
            outcome.problems.push(Problem { claim, pod: None, reason: Reason::ProgramsLeft, note });
        }
        outcome
    }

    /// Bring home what no event will: the links of sandboxes that have ended, and what an earlier return or undo could not
    /// finish. containerd reports no stop of a sandbox that is older than its own start (`needsStopping`,
    /// pkg/nri/nri.go, forgets them). Nothing of a pod may stay for long by the namespace that is held for its links.
    pub async fn sweep(&self) -> Outcome {
        let mut outcome = Outcome::default();
        let mut seen = BTreeSet::new();
        for Attachment { sandbox, step, .. } in self.attachments() {
            let fine =
                step == Step::Attached && self.is_held(&sandbox).await && self.may_live(&sandbox).await;
            if fine || !seen.insert(sandbox.namespace.clone()) {
                continue;
            }
            let within = |attachment: &Attachment| attachment.sandbox.namespace == sandbox.namespace;
            let _turn = self.turns.of(|| self.parts_of(|_, attachment| within(attachment))).await;
            // What was seen before this turn may have been an attach or a return on its way.
            let mut ended = false;
            for attachment in self.attachments().iter().filter(|attachment| within(attachment)) {
                self.hold_again(&attachment.sandbox).await;
                ended |= attachment.step != Step::Attached || !self.may_live(&attachment.sandbox).await;
            }
            if ended {
                let mut returned = self.give_back_where(|_, _, attachment| within(attachment)).await;
                outcome.returned.append(&mut returned.returned);
                outcome.problems.append(&mut returned.problems);
            }
        }
        outcome.problems.extend(self.restore_strays().await);
        outcome.problems.extend(self.finish_removals().await);
        outcome
    }

    /// Put right what was given up as gone and is in the host's namespace after all.
    async fn restore_strays(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for Stray { claim, plan, attachment } in self.strays() {
            let Some(home) = attachment.home.clone() else { continue };
            let _turn = self.turns.of_all().await;
            let Ok(host) = self.links.list(&Namespace::Host).await else { return problems };
            let Some(link) = host.into_iter().find(|link| at_home(link, &plan, &home.link, None)) else {
                continue;
            };
            let mut the_return = Return { attacher: self, claim, plan, attachment, problems: Vec::new() };
            let home = the_return.home_under_a_free_name(&home, Some(&link)).await;
            the_return.restore(link.ifindex, &home).await;
            self.is_home(&the_return.plan, &the_return.attachment);
            tracing::info!(link = home.link.name, "a link that was given up is home again, as it was");
            problems.append(&mut the_return.problems);
        }
        problems
    }

    /// Bring home the interfaces that are wanted, take the programs off, and let go of namespaces that no interface is in any
    /// more.
    pub(super) async fn give_back_where(
        &self,
        wanted: impl Fn(&ClaimRef, &InterfaceRecord, &Attachment) -> bool,
    ) -> Outcome {
        let mut touched = BTreeSet::new();
        let mut outcome = self.return_where(wanted, &mut touched).await;
        for uid in touched {
            outcome.problems.extend(self.finish_removals_of(&uid).await);
        }
        outcome
    }

    async fn bring_home_where(
        &self,
        wanted: impl Fn(&ClaimRef, &InterfaceRecord, &Attachment) -> bool,
    ) -> Outcome {
        self.return_where(wanted, &mut BTreeSet::new()).await
    }

    /// Collects the claims with interfaces that were wanted.
    async fn return_where(
        &self,
        wanted: impl Fn(&ClaimRef, &InterfaceRecord, &Attachment) -> bool,
        claims: &mut BTreeSet<String>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut holds = BTreeSet::new();
        let concerned = self.store.look(|all| {
            let concerns = |checkpoint: &&Checkpoint| {
                let claim = &checkpoint.claim;
                let mut interfaces = checkpoint.interfaces.iter();
                interfaces.any(|it| it.attachment.as_ref().is_some_and(|at| wanted(claim, it, at)))
            };
            all.values().filter(concerns).cloned().collect::<Vec<_>>()
        });
        for checkpoint in concerned {
            // The last one in is the first one out.
            for interface in checkpoint.interfaces.iter().rev() {
                let Some(attachment) = &interface.attachment else { continue };
                if wanted(&checkpoint.claim, interface, attachment) {
                    holds.insert(attachment.sandbox.hold.clone());
                    outcome
                        .problems
                        .extend(self.bring_home(&checkpoint.claim, &interface.plan, attachment).await);
                }
            }
            claims.insert(checkpoint.claim.uid.clone());
            let home = self.store.get(&checkpoint.claim.uid).is_none_or(|checkpoint| {
                checkpoint.interfaces.iter().all(|interface| interface.attachment.is_none())
            });
            if home {
                outcome.returned.push(checkpoint.claim);
            }
        }
        self.release_unused(holds).await;
        outcome
    }

    /// Bring one interface home, from wherever it is and however far an earlier try had come.
    pub(super) async fn bring_home(
        &self,
        claim: &ClaimRef,
        plan: &InterfacePlan,
        attachment: &Attachment,
    ) -> Vec<Problem> {
        let mut the_return = Return {
            attacher: self,
            claim: claim.clone(),
            plan: plan.clone(),
            attachment: attachment.clone(),
            problems: Vec::new(),
        };
        self.hold_again(&attachment.sandbox).await;
        if let Err((reason, note)) = the_return.run().await {
            the_return.note(reason, note);
        }
        for problem in &the_return.problems {
            tracing::warn!(claim = %claim, device = plan.device, reason = %problem.reason, "{}", problem.note);
        }
        the_return.problems
    }
}

/// What stopped a return: it is tried again later.
type Stopped = (Reason, String);

impl Return<'_> {
    fn note(&mut self, reason: Reason, note: String) {
        let pod = Some(self.attachment.sandbox.pod.clone());
        self.problems.push(Problem { claim: Some(self.claim.clone()), pod, reason, note });
    }

    async fn run(&mut self) -> Result<(), Stopped> {
        self.write_step().await;
        stop_at("return-after-checkpoint")?;
        self.close_gate().await;
        match self.plan.made.clone() {
            None => self.come_home().await?,
            Some(Made::Port(_)) => self.unmake().await?,
            Some(Made::SubInterface(upper)) => self.unmake_upper(&upper).await?,
        }
        stop_at("return-after-restore")?;
        stop_at("return-before-done")?;
        let (key, endpoint) = (self.plan.key(), self.attachment.endpoint);
        let cleared = self.attacher.update(&self.claim, move |checkpoint| {
            if let Some(interface) = checkpoint.interface_mut(&key) {
                interface.attachment = None;
                interface.reserved = None;
                // Last, so that nothing of ours is ever in a pod unprotected.
                interface.removing = endpoint;
            }
        });
        cleared.await.map(drop).map_err(|error| (Reason::NotReturned, chain(&error)))
    }

    async fn come_home(&mut self) -> Result<(), Stopped> {
        let Some(home) = self.attachment.home.clone() else {
            let note = AttachError::NoHome(self.plan.host_link.clone()).to_string();
            return Err((Reason::NotReturned, note));
        };
        let place = self.find(&home.link).await?;
        let arrived = match place {
            Place::Sandbox(link) => Some(self.leave_sandbox(&link, &home).await?),
            Place::Host(link) => {
                let home = self.home_under_a_free_name(&home, Some(&link)).await;
                Some((link.ifindex, home))
            }
            Place::Gone(note) => {
                if home.link.kind.is_none() {
                    self.attacher.give_up(&self.claim, &self.plan, &self.attachment);
                }
                self.remake(home, note).await
            }
            Place::Elsewhere(note) => return Err((Reason::NotReturned, note)),
        };
        stop_at("return-after-move")?;
        if let Some((ifindex, home)) = arrived {
            self.restore(ifindex, &home).await;
            self.attacher.is_home(&self.plan, &self.attachment);
        }
        Ok(())
    }

    /// A link that is gone is made from its record, if that says how. Never under another name than its own: what has that
    /// name now was most likely made in its stead.
    async fn remake(&mut self, home: Home, note: String) -> Option<(u32, Home)> {
        let links = &self.attacher.links;
        let mut remade = links.remake(&home).await;
        if matches!(remade, Err(LinkError::Kernel { .. })) {
            tokio::time::sleep(CLEAN_UP_PAUSE).await;
            remade = links.remake(&home).await;
        }
        match remade {
            Ok(ifindex) => {
                self.note(Reason::Remade, format!("{note}; it has been made anew"));
                return Some((ifindex, home));
            }
            Err(LinkError::NoRecipe { .. }) => self.note(Reason::LinkGone, note),
            Err(error) => {
                self.note(Reason::LinkGone, format!("{note}, and cannot be made anew: {}", chain(&error)));
            }
        }
        None
    }

    /// What fails once may succeed when the rest is there; what fails again is told, and the link is free all the same.
    async fn restore(&mut self, ifindex: u32, home: &Home) {
        let links = &self.attacher.links;
        if links.restore(ifindex, home).await.is_ok() {
            return;
        }
        tokio::time::sleep(CLEAN_UP_PAUSE).await;
        if let Err(errors) = links.restore(ifindex, home).await {
            for error in errors {
                self.note(Reason::NotRestored, chain(&error));
            }
        }
    }

    /// The pair of a port goes, wherever the pod's end of it is. Most often it has gone with the pod's namespace.
    async fn unmake(&mut self) -> Result<(), Stopped> {
        let deleted = self.attacher.delete_pair(&self.plan, self.attachment.endpoint).await;
        deleted.map_err(|error| (Reason::NotReturned, chain(&error)))?;
        stop_at("return-after-move")
    }

    /// A sub-interface goes; its parent was never touched.
    async fn unmake_upper(&mut self, upper: &Upper) -> Result<(), Stopped> {
        let links = &self.attacher.links;
        let found = self.wait_for(|| self.attacher.find_upper(&self.plan, upper, &self.attachment)).await?;
        let deleted = match found {
            Place::Sandbox(link) => links.remove(&namespace_of(&self.attachment.sandbox), link.ifindex).await,
            Place::Host(link) => links.remove(&Namespace::Host, link.ifindex).await,
            // With its pod's namespace, most often.
            Place::Gone(_) => Ok(()),
            Place::Elsewhere(note) => return Err((Reason::NotReturned, note)),
        };
        deleted.map_err(|error| (Reason::NotReturned, chain(&error)))?;
        stop_at("return-after-move")
    }

    async fn find(&self, home: &Link) -> Result<Place, Stopped> {
        self.wait_for(|| self.attacher.find(&self.plan, &self.attachment, home)).await
    }

    /// A namespace that has just lost its last process takes the kernel some grace periods to clear up.
    async fn wait_for<F>(&self, find: impl Fn() -> F) -> Result<Place, Stopped>
    where
        F: Future<Output = Result<Place, LinkError>>,
    {
        let mut tries = CLEAN_UP_TRIES;
        loop {
            let found = find().await;
            match found.map_err(|error| (Reason::NotReturned, chain(&error)))? {
                Place::Elsewhere(_) if tries > 0 => tries -= 1,
                place => return Ok(place),
            }
            tokio::time::sleep(CLEAN_UP_PAUSE).await;
        }
    }

    async fn write_step(&mut self) {
        if self.attachment.step == Step::Returning {
            return;
        }
        let key = self.plan.key();
        let written = self.attacher.update(&self.claim, move |checkpoint| {
            let interface = checkpoint.interface_mut(&key);
            if let Some(attachment) = interface.and_then(|interface| interface.attachment.as_mut()) {
                attachment.step = Step::Returning;
            }
        });
        // A full disk must not keep a link away from home: the next start finds the older step and the link
        // at home, and ends in the same place.
        if let Err(error) = written.await {
            self.note(Reason::NotRestored, chain(&error));
        }
    }

    async fn close_gate(&mut self) {
        let Some(id) = self.attachment.endpoint else { return };
        let closed = self.attacher.datapath(move |datapath| datapath.set_ready(id, false)).await;
        if let Err(error) = closed {
            self.note(Reason::ProgramsLeft, chain(&error));
        }
    }

    async fn leave_sandbox(&mut self, link: &Link, home: &Home) -> Result<(u32, Home), Stopped> {
        let links = &self.attacher.links;
        let sandbox = namespace_of(&self.attachment.sandbox);
        let not_returned = |error: &LinkError| (Reason::NotReturned, chain(error));
        // A link that cannot be set down moves all the same: the kernel closes it.
        let _ = links.set_up(&sandbox, link.ifindex, false).await;
        let wanted = home.clone();
        let index = Some(wanted.link.ifindex);
        let moved = links.move_to(&sandbox, link.ifindex, &Namespace::Host, &wanted.link.name, index).await;
        match moved {
            Ok(ifindex) => return Ok((ifindex, wanted)),
            Err(LinkError::NameTaken { .. }) => {}
            Err(error) => return Err(not_returned(&error)),
        }
        // The name, or one of the alternative names it brings along, has been given away at home.
        let home = self.home_under_a_free_name(home, None).await;
        let links = &self.attacher.links;
        for name in link.alt_names.difference(&home.link.alt_names) {
            let _ = links.remove_alt_name(&sandbox, link.ifindex, name).await;
        }
        let moved = links.move_to(&sandbox, link.ifindex, &Namespace::Host, &home.link.name, index).await;
        Ok((moved.map_err(|error| not_returned(&error))?, home))
    }

    /// The home to restore, without the names that belong to other links now. `here` is the link, if it is
    /// in the host's namespace already.
    async fn home_under_a_free_name(&mut self, home: &Home, here: Option<&Link>) -> Home {
        let mut home = home.clone();
        let Ok(links) = self.attacher.links.list(&Namespace::Host).await else { return home };
        let others = links.into_iter().filter(|link| here.is_none_or(|here| here.ifindex != link.ifindex));
        let taken: BTreeSet<String> =
            others.flat_map(|link| [link.name].into_iter().chain(link.alt_names)).collect();
        home.link.alt_names.retain(|name| !taken.contains(name));
        let name = home.link.name.clone();
        if taken.contains(&name) {
            let tries = 0..=u32::try_from(taken.len()).unwrap_or(u32::MAX);
            if let Some(free) = tries.map(|n| free_name(&name, n)).find(|name| !taken.contains(name)) {
                self.note(
                    Reason::NameTaken,
                    format!("the name {name:?} belongs to another link now; the link is home as {free:?}"),
                );
                home.link.name = free;
            }
        }
        home
    }
}

/// `nf-` and the old name, with a number after the first try, in 15 characters.
pub(super) fn free_name(base: &str, number: u32) -> String {
    let end = if number == 0 { String::new() } else { format!("-{number}") };
    let room = MAX_NAME - 3 - end.len();
    let mut cut = base.len().min(room);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("nf-{}{end}", &base[..cut])
}

fn stop_at(name: &'static str) -> Result<(), Stopped> {
    crossing(name).map_err(|error| (Reason::NotReturned, error.to_string()))
}
