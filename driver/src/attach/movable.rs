//! Whether a link can be moved, or something be made on it, as it is now: asked before its claim is prepared.

use super::{AttachError, Attacher};
use crate::{
    claim::{InterfacePlan, Made},
    link::{LinkError, LinkRef, Namespace},
    telemetry::chain,
};

impl Attacher {
    /// Why the link of this plan cannot be moved into a pod as it is now: it is not on the host, programs of others are on
    /// it, or something of it could not be put back. Of a sub-interface: why nothing can be made on its parent now. `None` for
    /// a port. The attach checks it all again.
    pub async fn not_movable_now(&self, plan: &InterfacePlan) -> Option<String> {
        if plan.port().is_some() {
            return None;
        }
        let link = match self.links.get(&Namespace::Host, &LinkRef::Name(plan.host_link.clone())).await {
            Ok(link) => link,
            Err(LinkError::NotFound { .. }) => {
                return Some(format!("link {} is not on the host now", plan.host_link));
            }
            Err(error) => return Some(chain(&error)),
        };
        if let Some(Made::SubInterface(_)) = plan.made {
            return (!link.up).then(|| chain(&AttachError::ParentDown(link.name)));
        }
        if let Err(error) = self.no_foreign_programs(&link).await {
            return Some(chain(&error));
        }
        self.links.home(&Namespace::Host, link.ifindex).await.err().map(|error| chain(&error))
    }
}
