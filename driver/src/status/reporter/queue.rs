//! What waits to be written: claims once each, Events in order. Both bounded.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use crate::{
    claim::{Checkpoint, ClaimRef, InterfaceRecord, Step},
    cluster::Event,
    status::{Failure, Stage},
};

/// Far more claims than a node can hold; above it, claims are found again through their checkpoints.
pub(super) const MAX_CLAIMS: usize = 4096;
/// Events that wait; the oldest makes room.
pub(super) const MAX_EVENTS: usize = 512;

/// Next thing to do.
#[derive(Debug)]
pub(super) enum Work {
    Claim { claim: ClaimRef, attempt: u32 },
    Event { event: Event, attempt: u32 },
    Wait(Instant),
    None,
}

struct Due {
    attempt: u32,
    at: Instant,
}

struct Known {
    failure: Failure,
    /// The claim has changed since.
    overtaken: bool,
}

#[derive(Default)]
struct State {
    claims: HashMap<ClaimRef, Due>,
    failures: HashMap<ClaimRef, Known>,
    events: VecDeque<(Event, u32)>,
    /// Events are written in order, so one time holds for all.
    events_at: Option<Instant>,
    overflow: bool,
}

#[derive(Default)]
pub(super) struct Queue(Mutex<State>);

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A claim is to be written now, whatever it waited for.
    pub(super) fn claim(&self, claim: &ClaimRef, failure: Option<Failure>) {
        let mut state = self.state();
        match failure {
            Some(failure) => {
                if state.failures.contains_key(claim) || state.failures.len() < MAX_CLAIMS {
                    state.failures.insert(claim.clone(), Known { failure, overtaken: false });
                }
            }
            None => {
                if let Some(known) = state.failures.get_mut(claim) {
                    known.overtaken = true;
                }
            }
        }
        if state.claims.len() >= MAX_CLAIMS && !state.claims.contains_key(claim) {
            state.overflow = true;
            return;
        }
        state.claims.insert(claim.clone(), Due { attempt: 0, at: Instant::now() });
    }

    /// A write failed. A change that came meanwhile goes first.
    pub(super) fn again(&self, claim: ClaimRef, attempt: u32, at: Instant) {
        self.state().claims.entry(claim).or_insert(Due { attempt, at });
    }

    pub(super) fn event(&self, event: Event) {
        let mut state = self.state();
        if state.events.len() >= MAX_EVENTS {
            let lost = state.events.pop_front();
            tracing::warn!(reason = lost.map(|(event, _)| event.reason), "Event lost: too many are waiting");
        }
        state.events.push_back((event, 0));
    }

    pub(super) fn event_again(&self, event: Event, attempt: u32, at: Instant) {
        let mut state = self.state();
        state.events_at = Some(at);
        if state.events.len() < MAX_EVENTS {
            state.events.push_front((event, attempt));
        }
    }

    /// What failed last for a claim, unless its checkpoint shows that this is past: it was prepared after a
    /// failed prepare, attached after a failed attach, or unprepared.
    pub(super) fn failure(&self, claim: &ClaimRef, checkpoint: Option<&Checkpoint>) -> Option<Failure> {
        let mut state = self.state();
        let known = state.failures.get(claim)?;
        let past = match checkpoint {
            None => known.overtaken,
            Some(checkpoint) => {
                let in_pod = |record: &InterfaceRecord| {
                    record.attachment.as_ref().is_some_and(|attachment| attachment.step == Step::Attached)
                };
                known.failure.stage == Stage::Prepare || checkpoint.interfaces.iter().any(in_pod)
            }
        };
        if !past {
            return Some(known.failure.clone());
        }
        state.failures.remove(claim);
        None
    }

    /// The claim is gone.
    pub(super) fn forget(&self, claim: &ClaimRef) {
        let mut state = self.state();
        state.failures.remove(claim);
    }

    /// Claims were turned away, and there is room again.
    pub(super) fn take_overflow(&self) -> bool {
        let mut state = self.state();
        let again = state.overflow && state.claims.len() < MAX_CLAIMS / 2;
        state.overflow &= !again;
        again
    }

    /// The next thing due at `now`, or with `all` the next thing whenever it is due.
    pub(super) fn next(&self, now: Instant, all: bool) -> Work {
        let mut state = self.state();
        let claim =
            state.claims.iter().min_by_key(|(_, due)| due.at).map(|(claim, due)| (claim.clone(), due.at));
        let event = (!state.events.is_empty()).then(|| state.events_at.unwrap_or(now));
        if let Some((claim, at)) = &claim
            && (all || *at <= now)
            && let Some(due) = state.claims.remove(claim)
        {
            return Work::Claim { claim: claim.clone(), attempt: due.attempt };
        }
        if event.is_some_and(|at| all || at <= now)
            && let Some((event, attempt)) = state.events.pop_front()
        {
            state.events_at = None;
            return Work::Event { event, attempt };
        }
        claim.map(|(_, at)| at).into_iter().chain(event).min().map_or(Work::None, Work::Wait)
    }

    /// Claims and Events that wait.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let state = self.state();
        (state.claims.len(), state.events.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::{EventType, Subject};

    fn claim(number: usize) -> ClaimRef {
        ClaimRef { namespace: "d".to_owned(), name: format!("c{number}"), uid: number.to_string() }
    }

    fn event(note: usize) -> Event {
        let (subject, event_type, note) = (Subject::Node, EventType::Normal, note.to_string());
        Event { subject, event_type, reason: "Test", action: "Test", note }
    }

    #[test]
    fn a_claim_waits_once_and_a_change_ends_its_wait() {
        let queue = Queue::default();
        queue.claim(&claim(1), None);
        queue.claim(&claim(1), None);
        let now = Instant::now();
        assert!(matches!(queue.next(now, false), Work::Claim { attempt: 0, .. }));
        assert!(matches!(queue.next(now, false), Work::None));
        let later = now + Duration::from_mins(1);
        queue.again(claim(1), 3, later);
        assert!(matches!(queue.next(now, false), Work::Wait(until) if until == later));
        queue.claim(&claim(1), None);
        queue.again(claim(1), 4, later);
        assert!(
            matches!(queue.next(Instant::now(), false), Work::Claim { attempt: 0, .. }),
            "the change goes first"
        );
        queue.again(claim(1), 3, later);
        assert!(matches!(queue.next(now, true), Work::Claim { attempt: 3, .. }), "a drain does not wait");
    }

    #[test]
    fn too_many_claims_are_found_again_and_too_many_events_lose_the_oldest() {
        let queue = Queue::default();
        for number in 0..=MAX_CLAIMS {
            queue.claim(&claim(number), None);
            queue.event(event(number));
        }
        assert_eq!(queue.waiting(), (MAX_CLAIMS, MAX_EVENTS));
        assert!(!queue.take_overflow(), "no room yet");
        let mut notes = Vec::new();
        loop {
            match queue.next(Instant::now(), true) {
                Work::Event { event, .. } => notes.push(event.note),
                Work::Claim { .. } => {}
                Work::None | Work::Wait(_) => break,
            }
        }
        assert_eq!(notes.first(), Some(&(MAX_CLAIMS + 1 - MAX_EVENTS).to_string()));
        assert!(queue.take_overflow());
        assert!(!queue.take_overflow(), "said once");
    }
}
