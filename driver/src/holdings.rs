//! Who holds what: checkpoints joined with the counters of their endpoints.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    claim::{Checkpoint, ClaimRef, PodRef, Step},
    datapath::{Datapath, EndpointId, EndpointStats, Isolation},
};

/// One interface that is in a pod, or on its way in or out.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holding {
    /// The pod.
    pub pod: PodRef,
    /// By which claim.
    pub claim: ClaimRef,
    /// By which request of the claim.
    pub request: String,
    /// Device in the slice.
    pub device: String,
    /// Name of the link at home, or of a port's end on the host.
    pub host_link: String,
    /// The network it is a port of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Name in the pod.
    pub interface: String,
    /// Addresses in the pod.
    pub addresses: Vec<IpNetwork>,
    /// Protection that was asked for.
    pub isolation: Isolation,
    /// How far it has come.
    pub step: Step,
    /// Endpoint, where there is protection.
    pub endpoint: Option<EndpointId>,
    /// Guards around its programs that are in force: `xdp`, `cgroup/setsockopt`, `cgroup/lsm`.
    pub guards: Vec<String>,
    /// Counters, where there is an endpoint and it could be read.
    pub stats: Option<EndpointStats>,
}

/// Every interface that is not at home, ordered by pod and interface name.
pub fn holdings(checkpoints: &[Checkpoint], datapath: &dyn Datapath) -> Vec<Holding> {
    let mut all: Vec<_> = checkpoints
        .iter()
        .flat_map(|checkpoint| checkpoint.interfaces.iter().map(move |interface| (checkpoint, interface)))
        .filter_map(|(checkpoint, interface)| {
            let attachment = interface.attachment.as_ref()?;
            let plan = &interface.plan;
            Some(Holding {
                pod: attachment.sandbox.pod.clone(),
                claim: checkpoint.claim.clone(),
                request: plan.request.clone(),
                device: plan.device.clone(),
                host_link: plan.host_link.clone(),
                network: plan.port().map(|port| port.network.name.clone()),
                interface: plan.name.clone(),
                addresses: plan.addresses.clone(),
                isolation: plan.isolation,
                step: attachment.step,
                endpoint: attachment.endpoint,
                guards: attachment
                    .endpoint
                    .and_then(|id| datapath.guards(id).ok())
                    .map(|guards| guards.into_iter().map(|guard| guard.hook).collect())
                    .unwrap_or_default(),
                stats: attachment.endpoint.and_then(|id| datapath.stats(id).ok()),
            })
        })
        .collect();
    all.sort_by(|a, b| (&a.pod, &a.interface).cmp(&(&b.pod, &b.interface)));
    all
}

/// Who holds an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The pod.
    pub pod: PodRef,
    /// Name of the interface in the pod.
    pub interface: String,
}

/// The holder of every endpoint.
#[must_use]
pub fn holders(checkpoints: &[Checkpoint]) -> BTreeMap<EndpointId, Holder> {
    let interfaces = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
    interfaces
        .filter_map(|interface| {
            let attachment = interface.attachment.as_ref()?;
            let pod = attachment.sandbox.pod.clone();
            Some((attachment.endpoint?, Holder { pod, interface: interface.plan.name.clone() }))
        })
        .collect()
}
