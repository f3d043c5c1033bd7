//! Addresses that a port has for a time: taken away when they are somebody else's, and given again.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{AttachError, Attacher, Extent, into_pod::pod_address, namespace_of, repair::Subject};
use crate::{
    claim::{ClaimRef, InterfaceKey, Step},
    datapath::EndpointId,
    link::{LinkError, Namespace},
};

impl Attacher {
    /// Take a port's addresses out of its plan. One that is in a pod speaks for them no more, is no member of its network,
    /// goes down, and has the address `lost` no more. May be called again, also by a daemon whose forerunner was killed on
    /// the way: `lost` comes from the lease, which outlives the plan's addresses.
    pub async fn take_addresses(
        &self,
        claim: &ClaimRef,
        key: &InterfaceKey,
        lost: IpAddr,
    ) -> Result<(), AttachError> {
        let _turn = self.turns.of(|| self.parts_of_claim(&claim.uid)).await;
        // Closed first, also where the checkpoint cannot be written.
        if let Some(id) = self.endpoint_of(claim, key) {
            self.datapath(move |datapath| datapath.set_ready(id, false)).await?;
        }
        let Some(subject) = self.replan(claim, key, Vec::new()).await? else { return Ok(()) };
        let host = self.links.list(&Namespace::Host).await?;
        if let Some(wanted) = self.wanted_of(subject.clone(), &host).await {
            self.datapath(move |datapath| datapath.mend(&wanted)).await?;
        }
        self.set_pod_end_up(&subject, false).await?;
        let Some(ifindex) = subject.attachment.pod_ifindex else { return Ok(()) };
        let pod = namespace_of(&subject.attachment.sandbox);
        unless_gone(self.links.remove_address(&pod, ifindex, lost).await)
    }

    /// Put an address into a port's plan. One that is in a pod gets it, goes up and is opened.
    pub async fn give_address(
        &self,
        claim: &ClaimRef,
        key: &InterfaceKey,
        address: IpNetwork,
    ) -> Result<(), AttachError> {
        {
            let _turn = self.turns.of(|| self.parts_of_claim(&claim.uid)).await;
            let Some(subject) = self.replan(claim, key, vec![address]).await? else { return Ok(()) };
            let host = self.links.list(&Namespace::Host).await?;
            if let Some(wanted) = self.wanted_of(subject.clone(), &host).await {
                self.datapath(move |datapath| datapath.mend(&wanted)).await?;
            }
            if let Some(ifindex) = subject.attachment.pod_ifindex {
                let pod = namespace_of(&subject.attachment.sandbox);
                unless_gone(self.links.add_address(&pod, ifindex, &pod_address(address)).await)?;
            }
            self.set_pod_end_up(&subject, true).await?;
        }
        // Routes went when it went down.
        self.repair(Extent::Everywhere).await;
        Ok(())
    }

    /// The endpoint of an interface that is in a pod.
    fn endpoint_of(&self, claim: &ClaimRef, key: &InterfaceKey) -> Option<EndpointId> {
        let interfaces = self.store.get(&claim.uid)?.interfaces;
        let record = interfaces.into_iter().find(|record| record.plan.key() == *key)?;
        record.attachment.filter(|attachment| attachment.step == Step::Attached)?.endpoint
    }

    /// Change the plan; the interface, if it is attached.
    async fn replan(
        &self,
        claim: &ClaimRef,
        key: &InterfaceKey,
        addresses: Vec<IpNetwork>,
    ) -> Result<Option<Subject>, AttachError> {
        let of = key.clone();
        let checkpoint = self.update(claim, move |checkpoint| {
            if let Some(record) = checkpoint.interface_mut(&of) {
                record.plan.addresses = addresses;
            }
        });
        let record = checkpoint.await?.interfaces.into_iter().find(|record| record.plan.key() == *key);
        let Some(record) = record else { return Ok(None) };
        let attachment = record.attachment.filter(|attachment| attachment.step == Step::Attached);
        Ok(attachment.map(|attachment| Subject {
            claim: claim.clone(),
            plan: record.plan,
            attachment,
            end: None,
        }))
    }

    async fn set_pod_end_up(&self, subject: &Subject, up: bool) -> Result<(), AttachError> {
        let Some(ifindex) = subject.attachment.pod_ifindex else { return Ok(()) };
        unless_gone(self.links.set_up(&namespace_of(&subject.attachment.sandbox), ifindex, up).await)
    }
}

/// What is gone from its pod, or with it, has no state and no address.
fn unless_gone(done: Result<(), LinkError>) -> Result<(), AttachError> {
    match done {
        Err(LinkError::NotFound { .. } | LinkError::NamespaceGone { .. }) => Ok(()),
        done => Ok(done?),
    }
}
