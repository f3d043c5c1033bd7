//! Ports that are in use follow their networks: policy, limits, and routes through gateways.
//!
//! What a port is to have is written to its checkpoint before anything is changed, with a mark that its pod may not have it
//! yet. The mark is taken off once everything is in force, so that a daemon that was killed between goes on with it.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt as _, stream};

use super::{AttachError, Attacher, compare::Deviation, namespace_of};
use crate::{
    claim::{
        Checkpoint, ClaimRef, InterfaceKey, InterfacePlan, InterfaceRecord, Made, Step,
        plan::follow::{Terms, terms},
        store::StoreError,
    },
    network::{NetworkRef, known::ByUid},
    telemetry::chain,
};

/// Named points where a test can stop the process or let a change fail, as [`super::FAILPOINTS`].
pub const FAILPOINTS: [&str; 2] = ["follow-after-checkpoint", "follow-after-policy"];

/// Claims whose ports are changed at a time.
const AT_ONCE: usize = 8;

/// What became of the ports of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Ports in pods that were changed.
    pub changed: usize,
    /// Networks with ports on this node, and what of them is not in force as the network says: a sentence for each port.
    pub networks: BTreeMap<NetworkRef, Vec<String>>,
    /// Whether something has to be tried again.
    pub again: bool,
}

/// What became of one port.
enum Port {
    /// It was as it is to be, or no pod has it.
    Same,
    /// It was changed in its pod.
    Changed,
    /// Its pod does not have it now, and why: it is looked at again when that changes.
    Later(&'static str),
    /// It could not be changed.
    Failed(String),
}

impl Attacher {
    /// Have every port be as its network, and what its claim asks for, say now. Attaches are not waited for.
    pub async fn follow(&self, networks: &Arc<ByUid>) -> Followed {
        let checkpoints = self.store.all().into_iter().filter(has_port);
        let claims = stream::iter(checkpoints).map(|checkpoint| self.follow_claim(checkpoint, networks));
        let outcomes: Vec<Vec<(NetworkRef, String, Port)>> = claims.buffer_unordered(AT_ONCE).collect().await;
        let mut followed = Followed::default();
        for (network, subject, port) in outcomes.into_iter().flatten() {
            let problems = followed.networks.entry(network).or_default();
            match port {
                Port::Same => {}
                Port::Changed => followed.changed += 1,
                Port::Later(why) => problems.push(format!("{subject} {why}")),
                Port::Failed(why) => {
                    followed.again = true;
                    problems.push(format!("{subject}: {why}"));
                }
            }
        }
        for (network, problems) in &mut followed.networks {
            problems.extend(self.not_following(network, networks));
        }
        followed
    }

    async fn follow_claim(
        &self,
        checkpoint: Checkpoint,
        networks: &Arc<ByUid>,
    ) -> Vec<(NetworkRef, String, Port)> {
        let claim = checkpoint.claim.clone();
        let checkpoint = match self.write_terms(checkpoint, networks).await {
            Ok(checkpoint) => checkpoint,
            // Unprepared meanwhile.
            Err(StoreError::NotFound(_)) => return Vec::new(),
            Err(error) => {
                let failed = |record: &InterfaceRecord| {
                    let port = record.plan.port()?;
                    Some((port.network.clone(), subject(&claim, &record.plan), Port::Failed(chain(&error))))
                };
                return self
                    .store
                    .get(&claim.uid)
                    .iter()
                    .flat_map(|it| &it.interfaces)
                    .filter_map(failed)
                    .collect();
            }
        };
        let mut outcomes = Vec::new();
        let mut applied = Vec::new();
        for record in &checkpoint.interfaces {
            let Some(port) = record.plan.port() else { continue };
            let outcome = if port.unapplied { self.apply(record).await } else { Port::Same };
            if matches!(outcome, Port::Changed) {
                applied.push((record.plan.key(), record.plan.clone()));
            }
            outcomes.push((port.network.clone(), subject(&claim, &record.plan), outcome));
        }
        if !applied.is_empty()
            && let Err(error) = self.update(&claim, move |all| take_marks_off(all, &applied)).await
        {
            // It is applied once more than needed.
            tracing::warn!(%claim, "{}", chain(&error));
        }
        outcomes
    }

    /// Write down what the claim's ports are to have; only if that is something else.
    async fn write_terms(
        &self,
        checkpoint: Checkpoint,
        networks: &Arc<ByUid>,
    ) -> Result<Checkpoint, StoreError> {
        if !checkpoint.interfaces.iter().any(|record| new_terms(record, networks).is_some()) {
            return Ok(checkpoint);
        }
        let networks = Arc::clone(networks);
        let change = move |checkpoint: &mut Checkpoint| {
            for record in &mut checkpoint.interfaces {
                if let Some(terms) = new_terms(record, &networks) {
                    terms.write(&mut record.plan, record.attachment.is_some());
                }
            }
        };
        self.update(&checkpoint.claim, change).await
    }

    /// Have a pod's port be as its plan says.
    async fn apply(&self, record: &InterfaceRecord) -> Port {
        let Some(attachment) = &record.attachment else { return Port::Same };
        match attachment.step {
            Step::Attached if attachment.lost.is_none() => {}
            Step::Attached => return Port::Later("has lost its interface"),
            Step::Attaching => return Port::Later("is being attached"),
            Step::Returning => return Port::Same,
        }
        let Some(id) = attachment.endpoint else { return Port::Same };
        let done = async {
            super::crossing("follow-after-checkpoint")?;
            self.restrict_again(id, &record.plan).await?;
            super::crossing("follow-after-policy")?;
            let pod = namespace_of(&attachment.sandbox);
            if let Some(ifindex) = attachment.pod_ifindex.filter(|_| !record.plan.routes.is_empty()) {
                let inside = self.links.look(&pod, ifindex, &[]).await?;
                for found in super::compare::in_pod(&record.plan, None, None, &inside) {
                    if let Deviation::Route(route) = found {
                        self.links.replace_route(&pod, ifindex, &route).await?;
                    }
                }
            }
            Ok::<_, AttachError>(())
        };
        match done.await {
            Ok(()) => Port::Changed,
            Err(error) => Port::Failed(chain(&error)),
        }
    }

    /// Ports of a network that are not all that it says, and stay so.
    fn not_following(&self, network: &NetworkRef, networks: &ByUid) -> Vec<String> {
        let Some(known) = networks.get(&network.uid) else { return Vec::new() };
        let mut problems = Vec::new();
        for checkpoint in self.store.all() {
            for record in &checkpoint.interfaces {
                if record.plan.port().is_none_or(|port| port.network != *network) {
                    continue;
                }
                let subject = subject(&checkpoint.claim, &record.plan);
                match terms(&known.spec, &record.plan) {
                    None => problems.push(format!(
                        "{subject} was prepared by a driver that did not record what it asks for, and follows no change"
                    )),
                    Some(Terms { closed: Some(why), .. }) => {
                        problems.push(format!("{subject} is closed in a direction: {why}"));
                    }
                    Some(_) => {}
                }
            }
        }
        problems
    }
}

fn has_port(checkpoint: &Checkpoint) -> bool {
    checkpoint.interfaces.iter().any(|record| record.plan.port().is_some())
}

fn subject(claim: &ClaimRef, plan: &InterfacePlan) -> String {
    format!("claim {claim}, request {}", plan.request)
}

/// What the plan of a port is to say, if that is something else than it says. A network that is not known says nothing: the
/// plan stays.
fn new_terms(record: &InterfaceRecord, networks: &ByUid) -> Option<Terms> {
    let network = networks.get(&record.plan.port()?.network.uid)?;
    terms(&network.spec, &record.plan).filter(|terms| !terms.are_those_of(&record.plan))
}

/// Of those that say still what was applied.
fn take_marks_off(checkpoint: &mut Checkpoint, applied: &[(InterfaceKey, InterfacePlan)]) {
    for (key, plan) in applied {
        if let Some(record) = checkpoint.interface_mut(key)
            && (&record.plan.policy, record.plan.limits, &record.plan.routes)
                == (&plan.policy, plan.limits, &plan.routes)
            && let Some(Made::Port(port)) = &mut record.plan.made
        {
            port.unapplied = false;
        }
    }
}
