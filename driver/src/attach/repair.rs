//! Attached interfaces are kept as they were made: links, addresses, routes, map entries, guards of pods.
//!
//! Programs are looked after by [`crate::drift`], which has to see their order.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    AttachError, Attacher,
    compare::{Deviation, NO_IPV6, host_end, host_silence, in_pod},
    into_pod::{endpoint_spec, pod_address, sysctls},
    namespace_of,
    port::{port_spec, silent},
};
use crate::{
    claim::{Attachment, ClaimRef, InterfacePlan, InterfaceRecord, Made, PodRef, Step},
    datapath::{
        DatapathError,
        state::{MapPart, Wanted},
    },
    link::{Link, LinkError, Namespace, PairKind},
    telemetry::chain,
};

/// What was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Only what is on the host: for its netlink events, which tell nothing of pods.
    Host,
    /// One pod, by the path at which its network namespace is held, on the host and inside.
    Pod(PathBuf),
    /// Inside of pods as well.
    Everywhere,
}

/// What became of a deviation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mended {
    /// It is as it was made.
    Repaired,
    /// It could not be put right: why. It is tried again.
    Failed(String),
    /// It is not touched: see [`Deviation::is_left`].
    Left,
}

/// A deviation of an attached interface that was found, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Its claim.
    pub claim: ClaimRef,
    /// Its pod.
    pub pod: PodRef,
    /// Its name in the pod, by plan.
    pub interface: String,
    /// What was found.
    pub found: Deviation,
    /// What became of it.
    pub mended: Mended,
}

impl Repair {
    /// A sentence for people.
    #[must_use]
    pub fn note(&self) -> String {
        let Self { interface, found, mended, .. } = self;
        match mended {
            Mended::Repaired => format!("interface {interface}: {found}; this is put right"),
            Mended::Failed(why) => {
                format!("interface {interface}: {found}; this could not be put right: {why}")
            }
            Mended::Left if *found == Deviation::Missing => {
                format!("interface {interface}: {found}; it is attached again as soon as that can be done")
            }
            Mended::Left => format!("interface {interface}: {found}; this is left to the pod"),
        }
    }
}

/// An attached interface, and what it was made to be.
#[derive(Clone)]
pub(super) struct Subject {
    pub(super) claim: ClaimRef,
    pub(super) plan: InterfacePlan,
    pub(super) attachment: Attachment,
    /// The host's end of a port.
    pub(super) end: Option<Link>,
}

impl Attacher {
    /// Compare every attached interface with its plan once, and put right what is not the pod's own affair. An
    /// interface is changed only in its turn, and only if it is still attached then, as it was planned.
    pub async fn repair(&self, extent: Extent) -> Vec<Repair> {
        let mut subjects = self.attached();
        if let Extent::Pod(hold) = &extent {
            subjects.retain(|subject| subject.attachment.sandbox.hold == *hold);
        }
        self.forget_guarded();
        let Ok(host) = self.links.list(&Namespace::Host).await else { return Vec::new() };
        for subject in &mut subjects {
            self.find_end(subject, &host).await;
        }
        let wanted: Vec<Wanted> = subjects.iter().filter_map(|subject| wanted(subject, &host)).collect();
        let compared = self.datapath(move |datapath| datapath.compare(&wanted)).await;
        let differing = compared.unwrap_or_else(|error| {
            tracing::warn!("the maps cannot be compared: {}", chain(&error));
            BTreeMap::new()
        });
        let mut repairs = Vec::new();
        for subject in subjects {
            let maps = subject.attachment.endpoint.is_some_and(|id| differing.contains_key(&id));
            if extent == Extent::Host && !maps && host_deviations(&subject).is_empty() {
                continue;
            }
            let _turn = self.turns.of(|| self.parts_of_claim(&subject.claim.uid)).await;
            if self.still_attached(&subject) {
                repairs.extend(self.repair_one(subject, &extent, maps).await);
            }
        }
        repairs
    }

    fn attached(&self) -> Vec<Subject> {
        let mut subjects = Vec::new();
        for checkpoint in self.store.all() {
            for InterfaceRecord { plan, attachment, .. } in checkpoint.interfaces {
                // A port that has lost its address is closed, and stays so.
                if plan.lacks_address() {
                    continue;
                }
                let Some(attachment) = attachment.filter(|it| it.step == Step::Attached) else { continue };
                subjects.push(Subject { claim: checkpoint.claim.clone(), plan, attachment, end: None });
            }
        }
        subjects
    }

    fn still_attached(&self, subject: &Subject) -> bool {
        self.store.get(&subject.claim.uid).is_some_and(|checkpoint| {
            checkpoint
                .interfaces
                .iter()
                .any(|it| it.plan == subject.plan && it.attachment.as_ref() == Some(&subject.attachment))
        })
    }

    /// What a port is to have in the maps.
    pub(super) async fn wanted_of(&self, mut subject: Subject, host: &[Link]) -> Option<Wanted> {
        self.find_end(&mut subject, host).await;
        wanted(&subject, host)
    }

    /// By its name, or where an administrator has renamed it by its programs.
    async fn find_end(&self, subject: &mut Subject, host: &[Link]) {
        let (Some(_), Some(id)) = (subject.plan.port(), subject.attachment.endpoint) else { return };
        let named = host.iter().find(|link| link.name == subject.plan.host_link);
        subject.end = if let Some(link) = named {
            Some(link.clone())
        } else {
            let at = self.datapath(move |datapath| datapath.attached_ifindex(id)).await.ok().flatten();
            host.iter().find(|link| Some(link.ifindex) == at).cloned()
        };
    }

    async fn repair_one(&self, mut subject: Subject, extent: &Extent, maps: bool) -> Vec<Repair> {
        let host = self.links.list(&Namespace::Host).await.unwrap_or_default();
        self.find_end(&mut subject, &host).await;
        let mut found = host_deviations(&subject);
        if *extent != Extent::Host {
            // Its namespace is held, but the pod has ended: the sweep takes care of its links.
            if !self.may_live(&subject.attachment.sandbox).await {
                return Vec::new();
            }
            if let Some(end) = &subject.end
                && let Ok(look) = self.links.look(&Namespace::Host, end.ifindex, &[NO_IPV6]).await
            {
                found.extend(host_silence(&look.sysctls));
            }
            match self.look_inside(&subject).await {
                Ok(inside) => found.extend(inside),
                // The sweep takes care of its links.
                Err(LinkError::NamespaceGone { .. }) => return Vec::new(),
                Err(error) => tracing::warn!(claim = %subject.claim, "not compared: {}", chain(&error)),
            }
            found.extend(self.unguarded(&subject).await);
        }
        let mut all = Vec::new();
        if *extent != Extent::Host {
            let lost = found.contains(&Deviation::Missing);
            all.extend(self.note_lost(&subject, lost).await.map(|mended| (Deviation::Missing, mended)));
        }
        for found in found {
            let mended = if found.is_left() {
                Mended::Left
            } else {
                done(self.mend(&subject, &found).await.map_err(|error| chain(&error)))
            };
            all.push((found, mended));
        }
        if maps && let Some(wanted) = wanted(&subject, &host) {
            all.extend(self.mend_maps(wanted).await);
        }
        let Subject { claim, plan, attachment, .. } = subject;
        let (interface, pod) = (plan.name, attachment.sandbox.pod);
        let tell = |(found, mended)| Repair {
            claim: claim.clone(),
            pod: pod.clone(),
            interface: interface.clone(),
            found,
            mended,
        };
        all.into_iter().map(tell).collect()
    }

    /// Write down that the pod has lost the interface, or has it again: status and health follow, and the attach is tried
    /// again. Returns what became of it where it is there again.
    async fn note_lost(&self, subject: &Subject, lost: bool) -> Option<Mended> {
        if lost == subject.attachment.lost.is_some() {
            return None;
        }
        let name = &subject.plan.name;
        let why = lost.then(|| {
            format!("interface {name} is not in the pod any more: it was deleted, or its link is gone")
        });
        let key = subject.plan.key();
        let written = self.update(&subject.claim, move |checkpoint| {
            let interface = checkpoint.interface_mut(&key);
            if let Some(attachment) = interface.and_then(|interface| interface.attachment.as_mut()) {
                attachment.lost = why;
            }
        });
        match written.await {
            Ok(_) if lost => None,
            Ok(_) => Some(Mended::Repaired),
            Err(error) => Some(Mended::Failed(chain(&error))),
        }
    }

    /// Compares again: what was seen before this turn may have been an attach on its way.
    async fn mend_maps(&self, wanted: Wanted) -> Vec<(Deviation, Mended)> {
        let mending = self.datapath(move |datapath| {
            let parts: Vec<MapPart> =
                datapath.compare(std::slice::from_ref(&wanted))?.into_values().flatten().collect();
            let mended = if parts.is_empty() { Ok(()) } else { datapath.mend(&wanted) };
            Ok::<_, DatapathError>((parts, mended))
        });
        match mending.await {
            Ok((parts, mended)) => {
                let mended = done(mended.map_err(|error| chain(&error)));
                parts.into_iter().map(|part| (Deviation::Maps(part), mended.clone())).collect()
            }
            Err(error) => {
                tracing::warn!("the maps cannot be compared: {}", chain(&error));
                Vec::new()
            }
        }
    }

    async fn look_inside(&self, subject: &Subject) -> Result<Vec<Deviation>, LinkError> {
        let Subject { plan, attachment, .. } = subject;
        let Some(ifindex) = attachment.pod_ifindex else { return Ok(Vec::new()) };
        let home = attachment.home.as_ref().map(|home| &home.link);
        let mac = plan.hardware_addr.or(home.and_then(|home| home.mac));
        let mtu = plan.mtu.or(home.map(|home| home.mtu));
        match self.links.look(&namespace_of(&attachment.sandbox), ifindex, &[]).await {
            Ok(inside) => Ok(in_pod(plan, mac, mtu, &inside)),
            Err(LinkError::NotFound { .. }) => Ok(vec![Deviation::Missing]),
            Err(error) => Err(error),
        }
    }

    async fn mend(&self, subject: &Subject, found: &Deviation) -> Result<(), AttachError> {
        let Subject { plan, attachment, end, .. } = subject;
        let (links, pod) = (&self.links, namespace_of(&attachment.sandbox));
        let host = &Namespace::Host;
        let end = end.as_ref().map_or(0, |end| end.ifindex);
        let inside = attachment.pod_ifindex.unwrap_or(0);
        match found {
            Deviation::HostName(_) => links.rename(host, end, &plan.host_link).await?,
            Deviation::HostDown => links.set_up(host, end, true).await?,
            Deviation::HostBlackhole => links.open_pair(end, PairKind::Netkit).await?,
            Deviation::HostMtu(_) => links.set_mtu(host, end, subject.port_mtu().unwrap_or(0)).await?,
            Deviation::HostIpv6 => links.set_sysctls(host, end, &silent()).await?,
            Deviation::Address(address) => {
                // With IPv6 off on the link, none of its addresses is taken.
                links.set_sysctls(&pod, inside, &sysctls(plan)).await?;
                links.add_address(&pod, inside, &pod_address(*address)).await?;
            }
            Deviation::Route(route) => links.add_routes(&pod, inside, std::slice::from_ref(route)).await?,
            Deviation::Unguarded(_) => {
                if let Some(id) = attachment.endpoint {
                    self.guard_as_before(id).await?;
                }
            }
            // Of these, maps have a way of their own, and the others are left.
            Deviation::Maps(_)
            | Deviation::Missing
            | Deviation::Name(_)
            | Deviation::Down
            | Deviation::Mac(_)
            | Deviation::Mtu(_) => {}
        }
        Ok(())
    }

    /// The guards of its pod that were in force once and are not any more.
    async fn unguarded(&self, subject: &Subject) -> Vec<Deviation> {
        let Some(id) = subject.attachment.endpoint else { return Vec::new() };
        let Some(guarded) = self.guarded_pod(id) else { return Vec::new() };
        // Without its cgroup the pod has no processes.
        if !guarded.cgroup.exists() {
            return Vec::new();
        }
        let Ok(now) = self.datapath(move |datapath| datapath.guards(id)).await else { return Vec::new() };
        let missing = guarded.hooks.into_iter().filter(|hook| now.iter().all(|guard| guard.hook != *hook));
        missing.map(Deviation::Unguarded).collect()
    }
}

impl Subject {
    /// What both ends of a port have, in bytes.
    fn port_mtu(&self) -> Option<u32> {
        let port = self.plan.port()?;
        Some(port_spec(&self.plan, port, self.attachment.endpoint?).ok()?.mtu)
    }
}

fn done(result: Result<(), String>) -> Mended {
    result.map_or_else(Mended::Failed, |()| Mended::Repaired)
}

fn host_deviations(subject: &Subject) -> Vec<Deviation> {
    match (subject.port_mtu(), &subject.end) {
        (Some(mtu), Some(end)) => host_end(&subject.plan, mtu, end),
        _ => Vec::new(),
    }
}

/// What an endpoint is to have in the maps; `None` if that cannot be told.
fn wanted(subject: &Subject, host: &[Link]) -> Option<Wanted> {
    let Subject { plan, attachment, end, .. } = subject;
    let id = attachment.endpoint?;
    let mut ifindex = 0;
    let spec = match (&plan.made, &attachment.home) {
        (Some(Made::Port(port)), _) => {
            ifindex = end.as_ref()?.ifindex;
            port_spec(plan, port, id)
        }
        (Some(Made::SubInterface(_)), _) => {
            endpoint_spec(plan, id, host.iter().find(|link| link.name == plan.host_link)?)
        }
        (None, Some(home)) => endpoint_spec(plan, id, &home.link),
        (None, None) => return None,
    };
    let made_on_parent = matches!(plan.made, Some(Made::SubInterface(_)));
    Some(Wanted {
        spec: spec.ok()?,
        ifindex,
        policy: plan.policy.clone(),
        limits: plan.limits.unwrap_or_default(),
        assumes_mac: made_on_parent && plan.hardware_addr.is_none(),
        assumes_mtu: made_on_parent && plan.mtu.is_none(),
        open: !plan.lacks_address(),
    })
}
