//! Claims that several pods may name.
//!
//! The kubelet prepares a claim once, not once for each pod that names it: of the second pod the driver hears nothing but its
//! sandbox. So a pod that no checkpoint names is held while a claim of its namespace that it might name is prepared here,
//! until the API server has been asked, after the sandbox was made, for whom the claim is reserved. The scheduler reserves
//! a claim before it binds the pod, so that answer is never too early.

use futures::future::join_all;
use tokio::task::spawn_blocking;

use super::{Sandboxes, known::Known};
use crate::{
    claim::{ClaimRef, PodRef},
    cluster::ClusterError,
    nri::PodSandbox,
    telemetry::chain,
};

/// What a claim says of a pod.
enum Said {
    NotNamed,
    Named,
    Unknown(String),
}

impl Sandboxes {
    /// Claims that the pod might name, for all that is known.
    pub(super) fn open_questions(&self, sandbox: &PodSandbox) -> Vec<ClaimRef> {
        // It is not the API server's, so no claim can be reserved for it; nor does it wait for the API server.
        if sandbox.is_static {
            return Vec::new();
        }
        let asked = self.registry.get(&sandbox.id).map(|known| known.asked).unwrap_or_default();
        let mut claims = self.store.shareable(&sandbox.pod.namespace);
        claims.retain(|claim| !asked.contains(&claim.uid));
        claims
    }

    /// Ask for whom they are reserved. A claim that names the pod has it in its checkpoint from now on.
    pub(super) async fn ask(&self, known: &Known) -> Result<(), String> {
        let pod = &known.sandbox.pod;
        let questions = self.open_questions(&known.sandbox);
        let answers = join_all(questions.iter().map(|claim| self.names(claim, pod))).await;
        let mut unknown = None;
        for (claim, said) in questions.iter().zip(answers) {
            match said {
                Said::NotNamed => self.registry.change(&known.sandbox.id, |known| {
                    known.asked.insert(claim.uid.clone());
                }),
                Said::Named => self.add(claim, pod).await?,
                Said::Unknown(why) => {
                    unknown = Some(format!("whether claim {claim} is reserved for it is not known: {why}"));
                }
            }
        }
        unknown.map_or(Ok(()), Err)
    }

    async fn names(&self, claim: &ClaimRef, pod: &PodRef) -> Said {
        let found = match self.cluster.claim(&claim.namespace, &claim.name).await {
            Ok(found) => found,
            Err(ClusterError::NotFound { .. }) => return Said::NotNamed,
            Err(error) => return Said::Unknown(chain(&error)),
        };
        // A claim that was made again under the name is not prepared here.
        if found.metadata.uid.as_deref() != Some(&claim.uid) {
            return Said::NotNamed;
        }
        let reserved = found.status.and_then(|status| status.reserved_for).unwrap_or_default();
        if reserved.iter().any(|consumer| consumer.uid == pod.uid) { Said::Named } else { Said::NotNamed }
    }

    async fn add(&self, claim: &ClaimRef, pod: &PodRef) -> Result<(), String> {
        let (store, uid, pod) = (self.store.clone(), claim.uid.clone(), pod.clone());
        let written = spawn_blocking(move || {
            store.update(&uid, |checkpoint| {
                if !checkpoint.is_for(&pod.uid) {
                    checkpoint.pods.push(pod);
                }
            })
        });
        match written.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(error) => Err(chain(&error)),
        }
    }
}
