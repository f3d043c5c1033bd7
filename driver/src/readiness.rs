//! Which parts of the daemon work.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Parts that must work before the node can serve claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The kubelet has accepted the plugin.
    Kubelet,
    /// The runtime has accepted the plugin and told its sandboxes.
    Runtime,
    /// The node's slices are as they should be.
    Slices,
}

impl Part {
    const ALL: [Self; 3] = [Self::Kubelet, Self::Runtime, Self::Slices];

    /// Name in metrics and in `/readyz`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kubelet => "kubelet",
            Self::Runtime => "runtime",
            Self::Slices => "slices",
        }
    }
}

/// State of the parts, told by themselves.
#[derive(Debug, Default)]
pub struct Readiness {
    waiting: Mutex<BTreeMap<Part, String>>,
    ended: Mutex<Vec<String>>,
}

impl Readiness {
    /// Nothing works yet.
    #[must_use]
    pub fn new() -> Self {
        let waiting = Part::ALL.map(|part| (part, "not yet".to_owned()));
        Self { waiting: Mutex::new(waiting.into()), ended: Mutex::default() }
    }

    /// The part works.
    pub fn set_ready(&self, part: Part) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&part);
    }

    /// The part waits, and for what.
    pub fn set_waiting(&self, part: Part, why: impl Into<String>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(part, why.into());
    }

    /// A task has ended that must run as long as the daemon.
    pub fn task_ended(&self, task: &str, why: &str) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{task} ended: {why}"));
    }

    /// What has ended that must not; empty is well.
    #[must_use]
    pub fn alive(&self) -> Vec<String> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is missing; empty is ready.
    #[must_use]
    pub fn ready(&self) -> Vec<String> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing = self.alive();
        missing.extend(waiting.iter().map(|(part, why)| format!("{}: {why}", part.name())));
        missing
    }

    /// Whether one part works.
    #[must_use]
    pub fn is_ready(&self, part: Part) -> bool {
        !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&part)
    }

    /// Every part, and what it waits for if it does not work.
    #[must_use]
    pub fn reasons(&self) -> [(&'static str, Option<String>); 3] {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        Part::ALL.map(|part| (part.name(), waiting.get(&part).cloned()))
    }

    /// Every part with whether it works.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, bool); 3] {
        Part::ALL.map(|part| (part.name(), self.is_ready(part)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_part_has_said_so() {
        let readiness = Readiness::new();
        assert_eq!(readiness.ready().len(), 3);
        for part in Part::ALL {
            readiness.set_ready(part);
        }
        assert!(readiness.ready().is_empty());
        readiness.set_waiting(Part::Runtime, "connection lost");
        assert_eq!(readiness.ready(), ["runtime: connection lost"]);
        assert!(readiness.alive().is_empty());
        readiness.task_ended("publisher", "panicked");
        assert_eq!(readiness.ready().len(), 2);
    }
}
