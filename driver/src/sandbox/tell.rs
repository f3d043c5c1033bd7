//! What metrics, claim status and Events hear of sandboxes.

use tracing::{info, warn};

use super::{Sandboxes, known::Known};
use crate::{
    attach::{AttachFailed, AttachedInterface, Outcome, Problem, Reason},
    claim::{ClaimRef, PodRef},
    cluster::{Event, EventType, Subject},
    nri::PodSandbox,
};

impl Sandboxes {
    pub(super) fn tell_attached(&self, interface: &AttachedInterface) {
        let AttachedInterface { claim, pod, device, name, .. } = interface;
        let protection = match interface.programs.len() {
            0 => "without isolation".to_owned(),
            n => format!("protected by {n} programs"),
        };
        info!(%claim, %pod, device, interface = name, "attached, {protection}");
        let note = format!("device {device} of claim {claim} is {name} in the pod, {protection}");
        for subject in [Subject::Claim(claim.clone()), Subject::Pod(pod.clone())] {
            self.reporter.event(Event {
                subject,
                event_type: EventType::Normal,
                reason: "LinkAttached",
                action: "Attach",
                note: note.clone(),
            });
        }
        self.reporter.claim_changed(claim);
    }

    fn tell_returned(&self, outcome: &Outcome) {
        let gone = |claim: &ClaimRef| {
            let of = |problem: &&Problem| problem.claim.as_ref() == Some(claim);
            outcome.problems.iter().filter(of).any(|problem| problem.reason == Reason::LinkGone)
        };
        for claim in &outcome.returned {
            if !gone(claim) {
                info!(%claim, "links are home");
            }
            self.reporter.claim_changed(claim);
        }
    }

    pub(super) fn tell_problems(&self, problems: &[Problem]) {
        for problem in problems {
            warn!(reason = %problem.reason, "{}", problem.note);
            let subjects = [problem.claim.clone().map(Subject::Claim), problem.pod.clone().map(Subject::Pod)];
            let mut subjects: Vec<_> = subjects.into_iter().flatten().collect();
            if subjects.is_empty() {
                subjects.push(Subject::Node);
            }
            for subject in subjects {
                self.warn_of(subject, problem.reason.as_str(), "Return", &problem.note);
            }
        }
    }

    /// A failed attach concerns every claim of the pod, unless it is one claim's.
    pub(super) fn tell_failed(&self, known: &Known, failed: &AttachFailed) {
        let pod = &known.sandbox.pod;
        let mut message = failed.to_string();
        if known.opened {
            message.push_str(CURE);
        }
        warn!(%pod, "cannot attach: {message}");
        let claims = self.claims_of(pod);
        let concerned = claims.iter().filter(|claim| failed.claim.as_deref().is_none_or(|of| of == *claim));
        for claim in concerned {
            self.reporter.attach_failed(claim, pod, &message);
        }
        self.tell_problems(&failed.problems);
    }

    /// A pod waits for an answer of the API server.
    pub(super) fn tell_held(&self, pod: &PodRef, why: &str) {
        warn!(%pod, "held back: {why}");
        self.warn_of(Subject::Pod(pod.clone()), "ClaimUnknown", "Attach", why);
    }

    /// A sandbox that was made while the driver was away lacks its interfaces.
    pub(super) fn tell_lacking(&self, sandbox: &PodSandbox, why: &str) {
        let cure = if sandbox.has_containers { CURE } else { "" };
        for claim in self.claims_of(&sandbox.pod) {
            self.reporter.attach_failed(&claim, &sandbox.pod, &format!("{why}{cure}"));
        }
    }

    pub(super) fn tell_recovered(&self, outcome: &Outcome) {
        for interface in &outcome.attached {
            info!(claim = %interface.claim, pod = %interface.pod, interface = interface.name, "in place");
            self.reporter.claim_changed(&interface.claim);
        }
        self.tell_returned(outcome);
        let mut problems = outcome.problems.clone();
        problems.retain(|problem| problem.reason != Reason::NotAttached);
        self.tell_problems(&problems);
    }

    pub(super) fn after_return(&self, outcome: &Outcome) {
        if !outcome.returned.is_empty() || !outcome.problems.is_empty() {
            self.metrics.returned(outcome.problems.is_empty());
        }
        self.tell_returned(outcome);
        self.tell_problems(&outcome.problems);
    }

    fn claims_of(&self, pod: &PodRef) -> Vec<ClaimRef> {
        self.store.by_pod(&pod.uid).into_iter().map(|checkpoint| checkpoint.claim).collect()
    }

    fn warn_of(&self, subject: Subject, reason: &'static str, action: &'static str, note: &str) {
        self.reporter.event(Event {
            subject,
            event_type: EventType::Warning,
            reason,
            action,
            note: note.to_owned(),
        });
    }
}

/// For pods whose containers run without what they claimed.
const CURE: &str =
    "; containers of the pod run without it: delete the pod to have it made again with its interfaces";
