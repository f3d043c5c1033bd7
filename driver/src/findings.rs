//! What the supervisors of attached interfaces found when they last looked, and could not put right: for the devices' health.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

use crate::claim::{Attachment, ClaimRef, store::Store};

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Supervisor {
    /// Looks whether programs are attached, and first.
    Programs,
    /// Looks whether links, addresses, routes and map entries are as they were made.
    Interfaces,
}

/// An interface: the UID of its claim, and its name in the pod.
type Interface = (String, String);

/// What was found, and of which attachment: another one has nothing to do with it.
#[derive(Debug)]
struct Finding {
    attachment: Attachment,
    found: String,
}

#[derive(Debug, Default)]
struct Known {
    findings: BTreeMap<Supervisor, BTreeMap<Interface, Finding>>,
    looked: BTreeMap<Supervisor, SystemTime>,
}

/// See the module.
#[derive(Debug)]
pub struct Findings {
    store: Arc<Store>,
    known: Mutex<Known>,
    changed: watch::Sender<()>,
}

impl Findings {
    /// Nobody has looked yet.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, known: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A supervisor has looked at every interface now, or at a part of each (`whole` is false): these are wrong and stay so.
    /// A look at a part does not say that what was found before is over.
    pub fn looked(
        &self,
        supervisor: Supervisor,
        whole: bool,
        wrong: impl IntoIterator<Item = (ClaimRef, String, String)>,
    ) {
        let wrong: BTreeMap<Interface, Finding> = wrong
            .into_iter()
            .filter_map(|(claim, interface, found)| {
                let checkpoint = self.store.get(&claim.uid)?;
                let record = checkpoint.interfaces.into_iter().find(|it| it.plan.name == interface)?;
                Some(((claim.uid, interface), Finding { attachment: record.attachment?, found }))
            })
            .collect();
        let mut known = self.lock();
        if whole {
            known.looked.insert(supervisor, SystemTime::now());
        }
        let findings = known.findings.entry(supervisor).or_default();
        let texts = |findings: &BTreeMap<Interface, Finding>| {
            findings.iter().map(|(key, finding)| (key.clone(), finding.found.clone())).collect::<Vec<_>>()
        };
        let before = texts(findings);
        if whole {
            *findings = wrong;
        } else {
            findings.extend(wrong);
        }
        let is_news = before != texts(findings);
        drop(known);
        if is_news {
            self.changed.send_replace(());
        }
    }

    /// What is wrong with an attached interface of a claim, as far as a supervisor has seen.
    #[must_use]
    pub fn of(&self, claim: &ClaimRef, interface: &str, attachment: &Attachment) -> Option<String> {
        let known = self.lock();
        let key = (claim.uid.clone(), interface.to_owned());
        let mut found = known.findings.values().filter_map(|findings| findings.get(&key));
        found.find(|finding| finding.attachment == *attachment).map(|finding| finding.found.clone())
    }

    /// When the programs of all interfaces were last looked at; `None` if they were not since the daemon started.
    #[must_use]
    pub fn last_look(&self) -> Option<SystemTime> {
        self.lock().looked.get(&Supervisor::Programs).copied()
    }

    /// Changes when something else is wrong than before.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
