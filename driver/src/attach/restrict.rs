//! What the plan allows an interface, put in force while its gate is still closed.

use super::Attacher;
use crate::{
    claim::InterfacePlan,
    datapath::{DatapathError, EndpointId},
};

impl Attacher {
    /// Sets policy and limits of an attached endpoint. Until it is ready nothing passes: no frame is judged without
    /// them.
    pub(super) async fn restrict(&self, id: EndpointId, plan: &InterfacePlan) -> Result<(), DatapathError> {
        if let Some(policy) = plan.policy.clone() {
            self.datapath(move |datapath| datapath.set_policy(id, &policy)).await?;
        }
        if let Some(limits) = plan.limits {
            self.datapath(move |datapath| datapath.set_limits(id, &limits)).await?;
        }
        Ok(())
    }
}
