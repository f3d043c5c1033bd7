//! Interfaces that are in their sandbox already: whether they are as they must be.

use super::{AttachError, AttachedInterface, Attacher, namespace_of};
use crate::{
    claim::{Attachment, ClaimRef, InterfacePlan, InterfaceRecord, Sandbox, Step},
    datapath::{AttachedProgram, DatapathError},
    link::{LinkError, LinkRef},
    telemetry::chain,
};

impl Attacher {
    /// The interface, if it is in this sandbox already and still protected.
    pub(super) async fn already_attached(
        &self,
        claim: &ClaimRef,
        interface: &InterfaceRecord,
        sandbox: &Sandbox,
    ) -> Result<Option<AttachedInterface>, AttachError> {
        let Some(attachment) = &interface.attachment else { return Ok(None) };
        let device = interface.plan.device.clone();
        if attachment.sandbox.pod.uid != sandbox.pod.uid {
            return Err(AttachError::InUse { device, holder: attachment.sandbox.pod.clone() });
        }
        if attachment.sandbox.id != sandbox.id || attachment.step != Step::Attached {
            return Err(AttachError::NotHome { device, sandbox: attachment.sandbox.id.clone() });
        }
        match self.check(&interface.plan, attachment).await {
            Ok(programs) => Ok(Some(shown(claim, &interface.plan, attachment, programs))),
            // It was deleted, or has lost its programs: it comes home, or is made anew, and goes in again whole.
            Err(
                found @ (AttachError::Link(LinkError::NotFound { .. })
                | AttachError::Datapath(DatapathError::NotProtected { .. })),
            ) => {
                tracing::warn!(%claim, device, "taken out of its pod: {}", chain(&found));
                let key = interface.plan.key();
                let lost = |of: &ClaimRef, it: &InterfaceRecord| of == claim && it.plan.key() == key;
                self.give_back_where(|of, it, _| lost(of, it)).await;
                let record = self.store.get(&claim.uid);
                let out = record.is_some_and(|record| {
                    record.interfaces.iter().any(|it| it.plan.key() == key && it.attachment.is_some())
                });
                if out { Err(AttachError::NotHome { device, sandbox: sandbox.id.clone() }) } else { Ok(None) }
            }
            Err(error) => Err(error),
        }
    }

    /// Whether an attached interface is where it should be, with its programs.
    pub(super) async fn check(
        &self,
        plan: &InterfacePlan,
        attachment: &Attachment,
    ) -> Result<Vec<AttachedProgram>, AttachError> {
        let mut ifindex = attachment.pod_ifindex.unwrap_or(0);
        self.links.get(&namespace_of(&attachment.sandbox), &LinkRef::Index(ifindex)).await?;
        if plan.port().is_some() {
            ifindex = self.host_end(plan).await?.ifindex;
        }
        match attachment.endpoint {
            Some(id) => Ok(self.datapath(move |datapath| datapath.verify(id, ifindex)).await?),
            None => Ok(Vec::new()),
        }
    }
}

/// What is said of an attached interface.
pub(super) fn shown(
    claim: &ClaimRef,
    plan: &InterfacePlan,
    attachment: &Attachment,
    programs: Vec<AttachedProgram>,
) -> AttachedInterface {
    AttachedInterface {
        claim: claim.clone(),
        pod: attachment.sandbox.pod.clone(),
        request: plan.request.clone(),
        pool: plan.pool.clone(),
        device: plan.device.clone(),
        name: plan.name.clone(),
        ifindex: attachment.pod_ifindex.unwrap_or(0),
        mac: plan.hardware_addr.or(attachment.home.as_ref().and_then(|home| home.link.mac)),
        addresses: plan.addresses.clone(),
        endpoint: attachment.endpoint,
        programs,
    }
}
