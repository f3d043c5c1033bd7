//! Ports: pairs that are made in the pod's sandbox and deleted after it.

use std::collections::BTreeMap;

use super::{AttachError, Attacher, crossing, into_pod::setup, namespace_of};
use crate::{
    claim::{Attachment, InterfacePlan, Port},
    datapath::{AttachedProgram, DatapathError, EndpointId, EndpointSpec, Placement},
    link::{Link, LinkError, LinkRef, Namespace, Pair, PairKind},
};

/// MTU of an Ethernet link (IEEE 802.3), where the plan names none.
const ETHERNET_MTU: u32 = 1500;

impl Attacher {
    /// What the ports of later attaches are made of. Those that are there stay what they are.
    #[must_use]
    pub const fn making(mut self, ports: PairKind) -> Self {
        self.ports = ports;
        self
    }

    /// Make the pair, protect its host end, set up, open. Until both ends are up nothing passes, and until the
    /// endpoint is ready its programs drop everything.
    pub(super) async fn make_port(
        &self,
        plan: &InterfacePlan,
        port: &Port,
        attachment: &Attachment,
    ) -> Result<(u32, Vec<AttachedProgram>), AttachError> {
        let links = &self.links;
        if plan.lacks_address() {
            return Err(AttachError::NoAddress(port.network.name.clone()));
        }
        let id = attachment.endpoint.ok_or_else(|| DatapathError::NotProtected {
            id: 0,
            problem: "a port has no endpoint".to_owned(),
        })?;
        let spec = port_spec(plan, port, id)?;
        let pod = namespace_of(&attachment.sandbox);
        // The name is this interface's alone: one that is there is left from a checkpoint that was lost.
        self.delete_pair(plan, None).await?;
        let pair = Pair {
            kind: self.ports,
            host_name: plan.host_link.clone(),
            pod: pod.clone(),
            pod_name: plan.name.clone(),
            pod_mac: spec.mac,
            mtu: spec.mtu,
        };
        let ends = links.make_pair(&pair).await?;
        crossing("attach-after-move")?;
        links.set_sysctls(&Namespace::Host, ends.host, &silent()).await?;
        self.datapath(move |datapath| datapath.attach(ends.host, &spec)).await?;
        self.restrict(id, plan).await?;
        let programs = self.datapath(move |datapath| datapath.verify(id, ends.host)).await?;
        crossing("attach-after-programs")?;
        // Nothing of a pod sends around the programs of a host end: it needs no guards.
        crossing("attach-after-guards")?;
        links.configure(&pod, ends.pod, &setup(plan)).await?;
        self.datapath(move |datapath| datapath.set_ready(id, true)).await?;
        crossing("attach-after-ready")?;
        links.open_pair(ends.host, self.ports).await?;
        links.set_up(&pod, ends.pod, true).await?;
        crossing("attach-after-up")?;
        links.add_routes(&pod, ends.pod, &plan.routes).await?;
        Ok((ends.pod, programs))
    }

    /// The host's end of a port.
    pub(super) async fn host_end(&self, plan: &InterfacePlan) -> Result<Link, LinkError> {
        let link = self.links.get(&Namespace::Host, &LinkRef::Name(plan.host_link.clone())).await?;
        if is_end(&link) {
            return Ok(link);
        }
        Err(LinkError::NotFound { link: plan.host_link.clone(), namespace: Namespace::Host })
    }

    /// Delete a port's pair, by its host end. The pod's end may be anywhere, and the pair may have gone with it.
    pub(super) async fn delete_pair(
        &self,
        plan: &InterfacePlan,
        endpoint: Option<EndpointId>,
    ) -> Result<(), LinkError> {
        // An administrator may have renamed it: its programs know it still.
        let tracked = match endpoint {
            Some(id) => self.datapath(move |datapath| datapath.attached_ifindex(id)).await.ok().flatten(),
            None => None,
        };
        for link in self.links.list(&Namespace::Host).await? {
            let ours = link.name == plan.host_link || tracked == Some(link.ifindex);
            if ours && is_end(&link) {
                self.links.remove(&Namespace::Host, link.ifindex).await?;
            }
        }
        Ok(())
    }
}

/// Whether a link may be the host's end of a port: of either kind, as an earlier daemon may have made the other one.
pub(super) fn is_end(link: &Link) -> bool {
    PairKind::of(link.kind.as_deref()).is_some()
}

/// What the programs of a port hold its pod to.
pub(super) fn port_spec(
    plan: &InterfacePlan,
    port: &Port,
    id: EndpointId,
) -> Result<EndpointSpec, AttachError> {
    Ok(EndpointSpec {
        id,
        placement: Placement::HostVeth,
        network: port.id,
        mac: plan.hardware_addr.ok_or_else(|| AttachError::NoMac(plan.host_link.clone()))?,
        addresses: plan.addresses.clone(),
        mtu: plan.mtu.unwrap_or(ETHERNET_MTU),
    })
}

/// The host is no member of the network: its end has no address and sends nothing by itself.
pub(super) fn silent() -> BTreeMap<String, String> {
    BTreeMap::from([("ipv6/disable_ipv6".to_owned(), "1".to_owned())])
}
