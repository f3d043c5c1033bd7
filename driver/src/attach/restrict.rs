//! What the plan allows an interface, put in force while its gate is still closed.

use std::sync::Arc;

use super::{Attacher, blocking};
use crate::{
    claim::InterfacePlan,
    datapath::{DatapathError, EndpointId},
};

impl Attacher {
    /// Sets policy and limits of an attached endpoint. Until it is ready nothing passes: no frame is judged without
    /// them.
    pub(super) async fn restrict(&self, id: EndpointId, plan: &InterfacePlan) -> Result<(), DatapathError> {
        if let Some(policy) = plan.policy.clone() {
            match &self.peers {
                Some(peers) if policy.names_peers() => {
                    let network = plan.port().map(|port| port.network.name.clone());
                    let peers = Arc::clone(peers);
                    blocking(move || peers.set(id, &policy, network.as_deref())).await?;
                }
                _ => self.datapath(move |datapath| datapath.set_policy(id, &policy)).await?,
            }
        }
        if let Some(limits) = plan.limits {
            self.datapath(move |datapath| datapath.set_limits(id, &limits)).await?;
        }
        Ok(())
    }
}
