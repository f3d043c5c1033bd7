//! Where is the link? A pod may rename it, change its MAC, delete it or push it on; a namespace that dies
//! gives hardware back and takes made links with it.

use super::{Attacher, namespace_of, stray::LONGEST_WAY_HOME};
use crate::{
    claim::{Attachment, InterfacePlan},
    link::{Link, LinkError},
};

/// Where an attached link was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In its sandbox.
    Sandbox(Link),
    /// In the host's namespace.
    Host(Link),
    /// Nowhere: it does not exist any more.
    Gone(String),
    /// Somewhere else, or on its way.
    Elsewhere(String),
}

impl Attacher {
    pub(super) async fn find(
        &self,
        plan: &InterfacePlan,
        attachment: &Attachment,
        home: &Link,
    ) -> Result<Place, LinkError> {
        let sandbox = namespace_of(&attachment.sandbox);
        // What the pinned bpf links are attached to: known to the kernel wherever the device is.
        let tracked = match attachment.endpoint {
            Some(id) => self.datapath(move |datapath| datapath.attached_ifindex(id)).await.ok(),
            None => None,
        };
        let index = tracked.flatten();
        let (inside, alive) = match self.links.list(&sandbox).await {
            Ok(links) => (links, true),
            Err(LinkError::NamespaceGone { .. }) => (Vec::new(), false),
            Err(error) => return Err(error),
        };
        if let Some(link) =
            inside.into_iter().find(|link| in_sandbox(link, plan, attachment.pod_ifindex, home, index))
        {
            return Ok(Place::Sandbox(link));
        }
        let host = self.links.list(&crate::link::Namespace::Host).await?;
        if let Some(link) = host.into_iter().find(|link| at_home(link, plan, home, index)) {
            return Ok(Place::Host(link));
        }
        let name = &home.name;
        let with_namespace = if alive { "in the pod" } else { "with the pod's network namespace" };
        let gone = Place::Gone(format!("link {name} was deleted {with_namespace}"));
        Ok(match (tracked, alive) {
            // The programs' device is gone, and nothing else says where the link could be. Or there are no programs, and
            // hardware left its namespace while that lives: it was unplugged, or its pod moved it on. Nothing can tell which,
            // and the pod that is to end must not wait for it for ever.
            (Some(None), _) | (None, true) => gone,
            (Some(Some(_)), true) => Place::Elsewhere(format!(
                "link {name} is neither in its sandbox nor at home: the pod has moved it to another namespace"
            )),
            // Without programs on it nothing tells. A made link does not outlive its namespace.
            (None, _) if home.kind.is_some() => gone,
            // Hardware is sent back to the first namespace, a moment after the last process is gone
            // (`default_device_exit_net`, net/core/dev.c). What was unplugged meanwhile never comes, and nothing tells so.
            (None, false) if self.strays.gone_for(plan, attachment) >= LONGEST_WAY_HOME => {
                Place::Gone(format!(
                    "link {name} has not come back from its network namespace within {} s",
                    LONGEST_WAY_HOME.as_secs()
                ))
            }
            _ => Place::Elsewhere(format!("link {name} has not come back from its network namespace yet")),
        })
    }
}

fn same_mac(link: &Link, plan: &InterfacePlan, home: &Link) -> bool {
    match (link.permanent_mac, home.permanent_mac) {
        (Some(now), Some(then)) => now == then,
        _ => link.mac.is_some() && (link.mac == home.mac || link.mac == plan.hardware_addr),
    }
}

fn in_sandbox(
    link: &Link,
    plan: &InterfacePlan,
    pod_ifindex: Option<u32>,
    home: &Link,
    tracked: Option<u32>,
) -> bool {
    if link.kind != home.kind {
        return false;
    }
    // An index is not given again in a namespace, so it holds through a new name and a new MAC.
    if let Some(index) = pod_ifindex {
        return link.ifindex == index;
    }
    // Cut off on the way in, before the index was written down: no process of the pod has run yet.
    let named = link.name == plan.name || link.name == home.name;
    let mac = same_mac(link, plan, home);
    (named && mac) || (tracked == Some(link.ifindex) && (named || mac))
}

/// Of a link found at home, two facts out of name, index and MAC must be the link's: each alone may belong to
/// a link that was made since.
pub(super) fn at_home(link: &Link, plan: &InterfacePlan, home: &Link, tracked: Option<u32>) -> bool {
    let index = link.ifindex == home.ifindex;
    let name = link.name == home.name || link.name == plan.name;
    let mac = same_mac(link, plan, home);
    let facts = [index, name, mac, tracked == Some(link.ifindex)];
    link.kind == home.kind && facts.into_iter().filter(|fact| *fact).count() >= 2
}
