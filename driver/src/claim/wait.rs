//! A prepare that waits for what another claim is about to give back.
//!
//! A pod that is deleted by force is gone from the API at once: its claim is released, the scheduler gives the device to
//! another, and the kubelet of the node prepares that one while it still ends the first pod. A refusal here would be tried
//! again by the kubelet more than a minute later.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::resource::v1::ResourceClaim;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{
    Checkpoint, ClaimRef, InterfaceRecord, PodRef,
    config::{FieldError, Holder},
    service::{CLAIM_TIMEOUT, Claims},
};
use crate::{
    cluster::ClusterError,
    dra::plugin::{Caller, ClaimService as _},
    telemetry::chain,
};

/// Longest wait for what others have; the kubelet gives up a call after 45 s, and the claim is read before and after.
pub const LONGEST: Duration = Duration::from_secs(30);
/// Longest wait for an address that a member on another node has: news of its end takes a watch's time, not a pod's.
const LONGEST_FOR_MEMBERS: Duration = Duration::from_secs(10);

/// Changes are gathered for this long.
const GATHER: Duration = Duration::from_millis(20);

/// Why a claim cannot be prepared now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// In words.
    pub(super) why: String,
    /// Who has what the claim wants, if nothing else is wrong with it.
    pub(super) holders: BTreeSet<Holder>,
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self { why, holders: BTreeSet::new() }
    }
}

impl From<Vec<FieldError>> for Refusal {
    fn from(errors: Vec<FieldError>) -> Self {
        let why = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let holders: Option<_> = errors.into_iter().map(|error| error.holder.map(|holder| *holder)).collect();
        Self { why, holders: holders.unwrap_or_default() }
    }
}

/// What a wait ended with.
enum Woken {
    /// A holder may have given back what it had.
    Free,
    /// The time is over.
    Late,
    /// Nobody waits for the claim any more.
    Ended,
}

impl Claims {
    /// Prepare; what only holders that are leaving keep from the claim is waited for.
    pub(super) async fn prepare_in_time(
        &self,
        asked: &ClaimRef,
        caller: &mut Caller,
    ) -> Result<Checkpoint, String> {
        let start = Instant::now();
        let mut waited = false;
        loop {
            let mut news = (self.store.changes(), self.networks.changes());
            let refusal = match self.prepare_first(asked).await {
                Ok(checkpoint) => return Ok(checkpoint),
                Err(refusal) if refusal.holders.is_empty() => return Err(refusal.why),
                Err(refusal) => refusal,
            };
            for holder in &refusal.holders {
                if let Some(stays) = self.stays(holder).await {
                    return Err(format!("{}; {stays}", refusal.why));
                }
            }
            if !waited {
                info!(claim = %asked, uid = asked.uid, why = refusal.why, "waits until it is given back");
                waited = true;
            }
            let members = refusal.holders.iter().any(|holder| matches!(holder, Holder::Member { .. }));
            let longest = if members { self.wait.min(LONGEST_FOR_MEMBERS) } else { self.wait };
            match self.until_free(asked, &refusal, start + longest, &mut news, caller).await {
                Woken::Free => {}
                Woken::Late => {
                    let who: Vec<_> =
                        refusal.holders.iter().filter_map(|holder| self.describe(holder)).collect();
                    let who = if who.is_empty() { String::new() } else { format!(": {}", who.join(", ")) };
                    let waited = start.elapsed().as_secs();
                    return Err(format!("{}; not given back within {waited} s{who}", refusal.why));
                }
                Woken::Ended => {
                    return Err(format!("{}; the kubelet does not wait for it any more", refusal.why));
                }
            }
        }
    }

    /// Wait until a holder has given back what it has, without any lock.
    async fn until_free(
        &self,
        asked: &ClaimRef,
        refusal: &Refusal,
        deadline: Instant,
        news: &mut (watch::Receiver<()>, watch::Receiver<()>),
        caller: &mut Caller,
    ) -> Woken {
        let wait = async {
            loop {
                for holder in &refusal.holders {
                    if self.has_given_back(holder, asked).await {
                        return;
                    }
                }
                tokio::select! {
                    () = changed(&mut news.0) => {}
                    () = changed(&mut news.1) => {}
                }
                // One event changes many records.
                sleep(GATHER).await;
            }
        };
        match caller.wait(timeout_at(deadline, wait)).await {
            Some(Ok(())) => Woken::Free,
            Some(Err(_)) => Woken::Late,
            None => Woken::Ended,
        }
    }

    async fn has_given_back(&self, holder: &Holder, asked: &ClaimRef) -> bool {
        let claim = match holder {
            Holder::Member { network, address } => {
                return self.networks.holder(network, *address, asked).is_none();
            }
            Holder::Claim(claim) => claim,
        };
        let Some(checkpoint) = self.store.get(&claim.uid) else { return true };
        let out = |it: &InterfaceRecord| it.attachment.is_some();
        if checkpoint.interfaces.iter().any(out) || !matches!(self.object(claim).await, Ok(None)) {
            return false;
        }
        // All that it had is at home and its object is deleted: nobody can use it again, and the kubelet has nothing but
        // its own call to make.
        match self.unprepare(claim).await {
            Ok(()) => true,
            Err(why) => {
                warn!(%claim, uid = claim.uid, why, "cannot be unprepared for the next claim of its device");
                false
            }
        }
    }

    /// Why there is no sense in waiting for a holder: its claim is in use. What cannot be learnt does not say so.
    async fn stays(&self, holder: &Holder) -> Option<String> {
        let Holder::Claim(claim) = holder else { return None };
        let object = self.object(claim).await.ok()??;
        if object.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let status = object.status?;
        status.allocation?;
        for consumer in status.reserved_for.into_iter().flatten() {
            let (namespace, name, uid) = (claim.namespace.clone(), consumer.name, consumer.uid);
            let pod = PodRef { namespace, name, uid };
            if consumer.resource != "pods" || self.is_staying(&pod).await {
                return Some(self.describe(holder).unwrap_or_else(|| format!("claim {claim} is in use")));
            }
        }
        None
    }

    async fn is_staying(&self, pod: &PodRef) -> bool {
        match timeout(CLAIM_TIMEOUT, self.cluster.is_leaving(pod)).await {
            Ok(Ok(leaving)) => !leaving,
            Ok(Err(error)) => {
                info!(%pod, "cannot be read: {}", chain(&error));
                false
            }
            Err(_) => false,
        }
    }

    /// The object of a claim; `None` if it is gone or was made again.
    async fn object(&self, claim: &ClaimRef) -> Result<Option<ResourceClaim>, ()> {
        match timeout(CLAIM_TIMEOUT, self.cluster.claim(&claim.namespace, &claim.name)).await {
            Ok(Ok(object)) => Ok(Some(object).filter(|it| it.metadata.uid.as_deref() == Some(&claim.uid))),
            Ok(Err(ClusterError::NotFound { .. })) => Ok(None),
            Ok(Err(_)) | Err(_) => Err(()),
        }
    }

    /// Who has it, and since when.
    fn describe(&self, holder: &Holder) -> Option<String> {
        let Holder::Claim(claim) = holder else { return None };
        let checkpoint = self.store.get(&claim.uid)?;
        let since = checkpoint.since.map(|since| format!(" since {since:.0}")).unwrap_or_default();
        let out: BTreeSet<String> = checkpoint.holders().map(ToString::to_string).collect();
        let pods: BTreeSet<String> = checkpoint.pods.iter().map(ToString::to_string).collect();
        let list = |pods: BTreeSet<String>| pods.into_iter().collect::<Vec<_>>().join(", ");
        Some(if out.is_empty() {
            format!("claim {claim} is prepared{since} for pod {}, which has nothing of it now", list(pods))
        } else {
            format!("claim {claim} is prepared{since}, and pod {} has its interface", list(out))
        })
    }
}

/// The next change; never, once there can be none.
async fn changed(news: &mut watch::Receiver<()>) {
    if news.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
