//! A watch over the programs of links in pods: they must stay attached, and first. What has come before them is put
//! behind them again; a link that cannot be protected any more is taken out of its pod.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{
    claim::{Attachment, ClaimRef, InterfacePlan, Step, service::Release, store::Store},
    cluster::{Event, EventType, Subject},
    datapath::{AyaDatapath, Datapath as _, DatapathError, EndpointId},
    findings::{Findings, Supervisor},
    link::{LinkError, LinkRef, Links as _, Namespace, kernel::KernelLinks},
    metrics::Metrics,
    status::Reporter,
    telemetry::chain,
};

/// Who is told of what was found.
#[async_trait]
pub trait Told: Send + Sync {
    /// Programs had drifted, and `note` says how it was left.
    fn drifted(&self, drift: &Drift);
    /// Every link was looked at, and this is what had drifted.
    fn looked(&self, drifts: &[Drift]);
    /// The link of a claim cannot be protected: take it out of its pod.
    async fn take_out(&self, drift: &Drift);
}

/// Programs that were not where they must be.
#[derive(Clone, Debug)]
pub struct Drift {
    /// The claim.
    pub claim: ClaimRef,
    /// The interface in the pod.
    pub interface: String,
    /// Where it is.
    pub attachment: Attachment,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// What was found.
    pub found: String,
    /// Whether the programs are where they must be again; else what kept them from it.
    pub repaired: Result<(), String>,
}

impl Drift {
    /// A sentence for people.
    #[must_use]
    pub fn note(&self) -> String {
        let Self { interface, found, repaired, .. } = self;
        match repaired {
            Ok(()) => format!("interface {interface}: {found}; its programs are in place, and first again"),
            Err(why) => format!("interface {interface}: {found}; this could not be put right: {why}"),
        }
    }
}

/// Looks after the programs.
pub struct DriftWatch<T> {
    /// To enter the pods' namespaces.
    pub links: KernelLinks,
    /// The programs.
    pub datapath: Arc<AyaDatapath>,
    /// Which links are in pods.
    pub store: Arc<Store>,
    /// Who is told.
    pub told: T,
}

/// What a look at one link ended with.
enum Look {
    Fine,
    Repaired(DatapathError),
    Unprotected(DatapathError, DatapathError),
}

impl<T: Told> DriftWatch<T> {
    /// Look at every link from time to time, until `stop`.
    pub async fn watch(self, every: Duration, stop: CancellationToken) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.look_at_all().await;
        }
    }

    /// Look at every link once; what had drifted.
    pub async fn look_at_all(&self) -> Vec<Drift> {
        let mut drifts = Vec::new();
        for checkpoint in self.store.all() {
            for interface in checkpoint.interfaces {
                let Some(attachment) = interface.attachment else { continue };
                let (Step::Attached, Some(endpoint)) = (attachment.step, attachment.endpoint) else {
                    continue;
                };
                let (found, repaired) = match self.look(&interface.plan, &attachment, endpoint).await {
                    Ok(Look::Fine) => continue,
                    Ok(Look::Repaired(found)) => (found, Ok(())),
                    Ok(Look::Unprotected(found, why)) => (found, Err(why)),
                    // The pod has just gone; the sweep takes care of its links.
                    Err(why) => {
                        debug!(endpoint, "not looked at: {}", chain(&why));
                        continue;
                    }
                };
                // A return that began meanwhile takes programs away, as it must.
                if !self.stays(&checkpoint.claim, &attachment) {
                    continue;
                }
                let lost = matches!(repaired, Err(DatapathError::NotProtected { .. }));
                let drift = Drift {
                    claim: checkpoint.claim.clone(),
                    interface: interface.plan.name,
                    attachment,
                    endpoint,
                    found: chain(&found),
                    repaired: repaired.map_err(|why| chain(&why)),
                };
                self.told.drifted(&drift);
                if lost {
                    self.told.take_out(&drift).await;
                }
                drifts.push(drift);
            }
        }
        self.told.looked(&drifts);
        drifts
    }

    /// The order of programs is told only inside the namespace the device is in.
    async fn look(
        &self,
        plan: &InterfacePlan,
        attachment: &Attachment,
        id: EndpointId,
    ) -> Result<Look, LinkError> {
        let datapath = Arc::clone(&self.datapath);
        // The programs of a port are on the host's end of its pair: known by its name when no pin tells.
        let (namespace, known) = if plan.port().is_some() {
            let host_end = LinkRef::Name(plan.host_link.clone());
            let host_end = self.links.get(&Namespace::Host, &host_end).await;
            (Namespace::Host, host_end.ok().map(|link| link.ifindex))
        } else {
            (attachment.sandbox.held(), attachment.pod_ifindex)
        };
        let look = move || {
            // A device that is gone is not unprotected; the sweep finds out.
            let ifindex = match (datapath.attached_ifindex(id), known) {
                // An error with a known index: the kernel does not tell, as with filters in place of links.
                (Ok(Some(ifindex)), _) | (Ok(None) | Err(_), Some(ifindex)) => ifindex,
                (Ok(None), None) => return Look::Fine,
                (Err(error), None) => {
                    warn!(endpoint = id, "cannot look at its programs: {}", chain(&error));
                    return Look::Fine;
                }
            };
            if nix::net::if_::if_indextoname(ifindex).is_err() {
                return Look::Fine;
            }
            if let Err(error) = datapath.upgrade_inside(id) {
                warn!(endpoint = id, "keeps the programs of an earlier daemon: {}", chain(&error));
            }
            match datapath.verify_inside(id, ifindex) {
                Ok(_) => match datapath.repair_guard(id, ifindex) {
                    Ok(None) => Look::Fine,
                    Ok(Some(found)) => Look::Repaired(found),
                    Err(error) => {
                        warn!(endpoint = id, "{}", chain(&error));
                        Look::Fine
                    }
                },
                Err(found @ DatapathError::NotProtected { .. }) => {
                    match datapath.repair_inside(id, ifindex) {
                        Ok(_) => Look::Repaired(found),
                        Err(why) => Look::Unprotected(found, why),
                    }
                }
                Err(error) => {
                    warn!(endpoint = id, "cannot look at its programs: {}", chain(&error));
                    Look::Fine
                }
            }
        };
        self.links.within(&namespace, look).await
    }

    fn stays(&self, claim: &ClaimRef, attachment: &Attachment) -> bool {
        let checkpoint = self.store.get(&claim.uid);
        checkpoint.is_some_and(|it| it.interfaces.iter().any(|it| it.attachment.as_ref() == Some(attachment)))
    }
}

/// Tells metrics and Events, and brings home by the kubelet's way.
pub struct Tell {
    reporter: Reporter,
    metrics: Arc<Metrics>,
    findings: Arc<Findings>,
    release: Arc<dyn Release>,
}

impl Tell {
    /// `release` brings the links of a claim home.
    #[must_use]
    pub fn new(
        reporter: Reporter,
        metrics: Arc<Metrics>,
        findings: Arc<Findings>,
        release: Arc<dyn Release>,
    ) -> Self {
        Self { reporter, metrics, findings, release }
    }
}

#[async_trait]
impl Told for Tell {
    fn drifted(&self, drift: &Drift) {
        let (claim, pod, note) = (&drift.claim, &drift.attachment.sandbox.pod, drift.note());
        warn!(%claim, %pod, endpoint = drift.endpoint, "{note}");
        self.metrics.drifted(drift.repaired.is_ok());
        for subject in [Subject::Claim(claim.clone()), Subject::Pod(pod.clone())] {
            self.reporter.event(Event {
                subject,
                event_type: EventType::Warning,
                reason: "ProgramsDrifted",
                action: "Check",
                note: note.clone(),
            });
        }
    }

    fn looked(&self, drifts: &[Drift]) {
        let wrong = drifts.iter().filter(|drift| drift.repaired.is_err());
        let wrong = wrong.map(|drift| (drift.claim.clone(), drift.interface.clone(), drift.note()));
        self.findings.looked(Supervisor::Programs, true, wrong);
    }

    async fn take_out(&self, drift: &Drift) {
        if let Err(why) = self.release.release(&drift.claim.uid).await {
            error!(claim = %drift.claim, "an unprotected link could not be taken out of its pod: {why}");
        }
    }
}
