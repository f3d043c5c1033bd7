//! Sub-interfaces: links that are made on a host link, which stays where it is, and deleted after their sandbox.

use super::{AttachError, Attacher, find::Place, namespace_of};
use crate::{
    claim::{Attachment, InterfacePlan, Upper},
    datapath::AttachedProgram,
    link::{self, Link, LinkError, LinkRef, Namespace},
};

impl Attacher {
    /// Make the link on the host, down and under a name that nobody else has; from there it goes the way of a moved
    /// link: programs first.
    pub(super) async fn make_upper(
        &self,
        plan: &InterfacePlan,
        upper: &Upper,
        attachment: &Attachment,
        cgroup: Option<&str>,
    ) -> Result<(u32, Vec<AttachedProgram>), AttachError> {
        let links = &self.links;
        let parent = links.get(&Namespace::Host, &LinkRef::Name(plan.host_link.clone())).await?;
        if !parent.up {
            return Err(AttachError::ParentDown(parent.name));
        }
        // The name is this interface's alone: one that is there is left from a checkpoint that was lost.
        for link in links.list(&Namespace::Host).await? {
            if is_ours(&link, &[&upper.host_name], upper) {
                links.remove(&Namespace::Host, link.ifindex).await?;
            }
        }
        let wanted = link::Upper {
            parent: parent.ifindex,
            name: upper.host_name.clone(),
            mac: plan.hardware_addr,
            sub_interface: upper.sub_interface,
        };
        let ifindex = links.make_upper(&wanted).await?;
        let made = links.get(&Namespace::Host, &LinkRef::Index(ifindex)).await?;
        self.move_in(plan, attachment, &made, cgroup).await
    }

    /// Where a sub-interface is: a pod may rename it, delete it or push it on.
    pub(super) async fn find_upper(
        &self,
        plan: &InterfacePlan,
        upper: &Upper,
        attachment: &Attachment,
    ) -> Result<Place, LinkError> {
        // What the pinned bpf links are attached to: known to the kernel wherever the device is.
        let tracked = match attachment.endpoint {
            Some(id) => self.datapath(move |datapath| datapath.attached_ifindex(id)).await.ok().flatten(),
            None => None,
        };
        match self.links.list(&namespace_of(&attachment.sandbox)).await {
            Ok(inside) => {
                let found = inside.into_iter().find(|link| match attachment.pod_ifindex {
                    // An index is not given again in a namespace, so it holds through a new name.
                    Some(ifindex) => link.ifindex == ifindex,
                    // Cut off before it was written down: no process of the pod has run yet.
                    None => is_ours(link, &[&plan.name, &upper.host_name], upper),
                });
                if let Some(link) = found {
                    return Ok(Place::Sandbox(link));
                }
            }
            Err(LinkError::NamespaceGone { .. }) => {}
            Err(error) => return Err(error),
        }
        let host = self.links.list(&Namespace::Host).await?;
        if let Some(link) = host.into_iter().find(|link| is_ours(link, &[&upper.host_name], upper)) {
            return Ok(Place::Host(link));
        }
        let what = format!("{} on {}", upper.sub_interface, plan.host_link);
        Ok(match tracked {
            None => Place::Gone(format!("{what} was deleted")),
            Some(_) => Place::Elsewhere(format!(
                "{what} is neither in its sandbox nor on the host: the pod has moved it to another namespace, or the \
                 kernel has not cleared up yet"
            )),
        })
    }
}

fn is_ours(link: &Link, names: &[&str], upper: &Upper) -> bool {
    names.contains(&link.name.as_str()) && link.kind.as_deref() == Some(upper.sub_interface.kind())
}
