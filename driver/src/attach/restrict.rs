//! What the plan allows an interface, put in force while its gate is still closed, or while it is in use.

use super::{Attacher, blocking};
use crate::{
    claim::InterfacePlan,
    datapath::{DatapathError, EndpointId, limits::Limits, policy::Policy},
};

impl Attacher {
    /// Sets policy and limits of an attached endpoint. Until it is ready nothing passes: no frame is judged without
    /// them.
    pub(super) async fn restrict(&self, id: EndpointId, plan: &InterfacePlan) -> Result<(), DatapathError> {
        if let Some(policy) = plan.policy.clone() {
            self.put_policy(id, policy, plan).await?;
        }
        if let Some(limits) = plan.limits {
            self.put_limits(id, limits).await?;
        }
        Ok(())
    }

    /// Sets policy and limits of an endpoint that is in use in the place of those it has, also where there are none any
    /// more. Its open flows are judged again.
    pub(super) async fn restrict_again(
        &self,
        id: EndpointId,
        plan: &InterfacePlan,
    ) -> Result<(), DatapathError> {
        self.put_policy(id, plan.policy.clone().unwrap_or_default(), plan).await?;
        self.put_limits(id, plan.limits.unwrap_or_default()).await
    }

    async fn put_policy(
        &self,
        id: EndpointId,
        policy: Policy,
        plan: &InterfacePlan,
    ) -> Result<(), DatapathError> {
        let Some(peers) = self.peers.clone() else {
            return self.datapath(move |datapath| datapath.set_policy(id, &policy)).await;
        };
        let network = plan.port().map(|port| (port.network.name.clone(), port.id));
        blocking(move || {
            let network = network.as_ref().map(|(name, number)| (name.as_str(), *number));
            peers.set(id, &policy, network)
        })
        .await
    }

    async fn put_limits(&self, id: EndpointId, limits: Limits) -> Result<(), DatapathError> {
        self.datapath(move |datapath| datapath.set_limits(id, &limits)).await
    }
}
