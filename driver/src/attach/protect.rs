//! Programs on a claimed link while it still waits at home, between prepare and the sandbox's hook.
//!
//! Attaching a tcx program waits for an RCU grace period under the kernel's lock over links, twice a link, and
//! the hook has to be quick. A claimed link is nobody else's, so it may be closed as soon as it is prepared.

use super::{AttachError, Attacher, blocking, into_pod::endpoint_spec, port::port_spec};
use crate::{
    claim::{ClaimRef, InterfaceKey, InterfacePlan, InterfaceRecord},
    datapath::{EndpointId, Isolation},
    link::{LinkRef, Namespace},
    telemetry::chain,
};

impl Attacher {
    /// Put closed programs on the links of a prepared claim. What fails here is left to the attach, which does
    /// it again and tells the error.
    pub async fn protect(&self, claim_uid: &str) {
        let _turn = self.turns.of(|| self.parts_of_claim(claim_uid)).await;
        for problem in self.finish_removals_of(claim_uid).await {
            tracing::info!(claim = claim_uid, "not protected ahead: {}", problem.note);
        }
        let Some(checkpoint) = self.store.get(claim_uid) else { return };
        for interface in &checkpoint.interfaces {
            if interface.attachment.is_none()
                && interface.removing.is_none()
                && interface.plan.isolation != Isolation::Off
                && !self.protected_inside(&interface.plan).await
                && let Err(error) = self.protect_at_home(&checkpoint.claim, interface).await
            {
                let device = &interface.plan.device;
                tracing::info!(claim = %checkpoint.claim, device, "not protected ahead: {}", chain(&error));
            }
        }
    }

    /// Why an interface planned like this can never be attached here, if so.
    #[must_use]
    pub fn unattachable(&self, plan: &InterfacePlan) -> Option<String> {
        let moved = plan.port().is_none();
        let refused = moved && plan.isolation == Isolation::Strict && !self.datapath.travels();
        refused.then(|| {
            "isolation: \"strict\" is not allowed on this node, whose kernel lacks tcx (upstream since Linux 6.6): a pod \
             could remove the programs of a moved link; \"best-effort\" or \"off\""
                .to_owned()
        })
    }

    async fn protect_at_home(
        &self,
        claim: &ClaimRef,
        interface: &InterfaceRecord,
    ) -> Result<(), AttachError> {
        let plan = &interface.plan;
        if let Some(port) = plan.port() {
            // There is no link yet, but most of the time is the kernel's verifier.
            let id = self.reserved(claim, interface).await?;
            let spec = port_spec(plan, port, id)?;
            self.datapath(move |datapath| datapath.preload(&spec)).await?;
            return Ok(());
        }
        let link = self.links.get(&Namespace::Host, &LinkRef::Name(plan.host_link.clone())).await?;
        if plan.made.is_some() {
            let id = self.reserved(claim, interface).await?;
            let spec = endpoint_spec(plan, id, &link)?;
            self.datapath(move |datapath| datapath.preload(&spec)).await?;
            return Ok(());
        }
        self.no_foreign_programs(&link).await?;
        let id = self.reserved(claim, interface).await?;
        let spec = endpoint_spec(plan, id, &link)?;
        let ifindex = link.ifindex;
        self.datapath(move |datapath| datapath.attach(ifindex, &spec)).await?;
        self.drop_early(id, plan, ifindex).await;
        Ok(())
    }

    /// Written down before the programs are there: whatever happens next, unprepare takes them away.
    async fn reserved(
        &self,
        claim: &ClaimRef,
        interface: &InterfaceRecord,
    ) -> Result<EndpointId, AttachError> {
        if let Some(id) = interface.reserved {
            return Ok(id);
        }
        let id = self.new_endpoint().await?;
        self.set_reserved(claim, interface.plan.key(), Some(id)).await?;
        Ok(id)
    }

    /// Take away programs that wait on links at home. Returns what could not be done.
    pub(super) async fn unprotect(&self, claim_uid: &str) -> Result<(), AttachError> {
        let Some(checkpoint) = self.store.get(claim_uid) else { return Ok(()) };
        for interface in checkpoint.interfaces.iter().filter(|interface| interface.attachment.is_none()) {
            if let Some(id) = interface.reserved {
                self.forget_endpoint(id).await?;
                self.set_reserved(&checkpoint.claim, interface.plan.key(), None).await?;
            }
        }
        Ok(())
    }

    async fn set_reserved(
        &self,
        claim: &ClaimRef,
        key: InterfaceKey,
        id: Option<EndpointId>,
    ) -> Result<(), AttachError> {
        let (store, uid) = (self.store.clone(), claim.uid.clone());
        let change = move || {
            store.update(&uid, |checkpoint| {
                if let Some(interface) = checkpoint.interface_mut(&key) {
                    interface.reserved = id;
                }
            })
        };
        blocking(change).await?;
        Ok(())
    }
}
