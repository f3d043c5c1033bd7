//! The way in: fail closed, and all interfaces of a pod or none.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::{
    AttachError, AttachFailed, AttachedInterface, Attacher, Outcome, crossing, namespace_of, present::shown,
};
use crate::{
    claim::{
        Attachment, Checkpoint, ClaimRef, InterfaceKey, InterfacePlan, InterfaceRecord, Made, Sandbox, Step,
    },
    datapath::{AttachedProgram, DatapathError, EndpointId, EndpointSpec, Isolation, Placement},
    link::{Address, Home, Link, LinkError, LinkRef, Namespace, Setup, SubInterface},
    netns::Hold,
    nri::PodSandbox,
};

/// `IFA_F_NODAD` (linux/if_addr.h).
const IFA_F_NODAD: u32 = 0x02;

/// One interface to attach.
#[derive(Clone)]
struct Job {
    claim: ClaimRef,
    plan: InterfacePlan,
    attachment: Attachment,
}

impl Attacher {
    /// Attach every interface of the pod's claims to its sandbox. Says what it did even for interfaces that
    /// were there already. On an error what this call has attached is back home, and nothing else has changed.
    pub async fn attach(&self, sandbox: &PodSandbox) -> Result<Outcome, AttachFailed> {
        let _turn = self.turns.of(|| self.parts_of_pod(&sandbox.pod.uid, &sandbox.id)).await;
        self.attach_in_turn(sandbox).await
    }

    pub(super) async fn attach_in_turn(&self, sandbox: &PodSandbox) -> Result<Outcome, AttachFailed> {
        let uid = &sandbox.pod.uid;
        if !self.store.by_pod(uid).iter().any(|claim| claim.is_for(uid)) {
            return Ok(Outcome::default());
        }
        let Some(netns) = sandbox.netns.clone() else {
            return Err(AttachFailed::of_pod(AttachError::HostNetwork(sandbox.pod.clone())));
        };
        let hold = self.namespaces.hold(&netns).await.map_err(AttachFailed::of_pod)?;
        let Hold { id: namespace, path: hold } = hold;
        let (id, pod) = (sandbox.id.clone(), sandbox.pod.clone());
        let to = Sandbox { id, pod, netns, namespace, hold };
        self.begin_attaching(&to.hold);
        let result = self.attach_to(&to, sandbox.cgroup_parent.as_deref()).await;
        self.end_attaching(&to.hold);
        self.release_unused([to.hold]).await;
        result
    }

    async fn attach_to(&self, sandbox: &Sandbox, cgroup: Option<&str>) -> Result<Outcome, AttachFailed> {
        let mut outcome = Outcome::default();
        let other = self.store.look(|claims| {
            let interfaces = claims.values().flat_map(|checkpoint| &checkpoint.interfaces);
            let mut others = interfaces.filter_map(|it| it.attachment.as_ref()).filter(|attachment| {
                attachment.sandbox.namespace == sandbox.namespace
                    && attachment.sandbox.pod.uid != sandbox.pod.uid
            });
            others.next().map(|attachment| attachment.sandbox.pod.clone())
        });
        if let Some(holder) = other {
            let path = sandbox.netns.clone();
            return Err(AttachFailed::of_pod(AttachError::OtherSandbox { path, holder }));
        }
        // What another sandbox of this pod has, or an earlier try left half done, comes home first.
        let stale = |attachment: &Attachment| {
            attachment.sandbox.pod.uid == sandbox.pod.uid
                && (attachment.sandbox.id != sandbox.id
                    || attachment.sandbox.namespace != sandbox.namespace
                    || attachment.step != Step::Attached)
        };
        outcome.problems = self.give_back_where(|_, _, attachment| stale(attachment)).await.problems;
        let mut tried = BTreeSet::new();
        match self.attach_claims(sandbox, cgroup, &mut tried).await {
            Ok(attached) => outcome.attached = attached,
            Err(mut failed) => {
                // What was there before this call stays with the containers that use it.
                let ours = |claim: &ClaimRef, interface: &InterfaceRecord| {
                    tried.contains(&(claim.uid.clone(), interface.plan.key()))
                };
                let undone = self.give_back_where(|claim, interface, _| ours(claim, interface)).await;
                failed.problems = outcome.problems.into_iter().chain(undone.problems).collect();
                return Err(failed);
            }
        }
        Ok(outcome)
    }

    /// Every attachment on record.
    pub(super) fn attachments(&self) -> Vec<Attachment> {
        let interfaces = self.store.all().into_iter().flat_map(|checkpoint| checkpoint.interfaces);
        interfaces.filter_map(|interface| interface.attachment).collect()
    }

    async fn attach_claims(
        &self,
        sandbox: &Sandbox,
        cgroup: Option<&str>,
        tried: &mut BTreeSet<(String, InterfaceKey)>,
    ) -> Result<Vec<AttachedInterface>, AttachFailed> {
        let claims: Vec<Checkpoint> = self.store.by_pod(&sandbox.pod.uid);
        let claims: Vec<&Checkpoint> = claims.iter().filter(|claim| claim.is_for(&sandbox.pod.uid)).collect();
        no_conflicts(&claims)?;
        let mut attached = Vec::new();
        let mut jobs = Vec::new();
        for claim in &claims {
            for interface in &claim.interfaces {
                let plan = &interface.plan;
                let failed = |cause| AttachFailed::of(&claim.claim, &plan.device, cause);
                match self.already_attached(&claim.claim, interface, sandbox).await.map_err(failed)? {
                    Some(interface) => {
                        // A port is judged on the host, whatever sockets its pod has.
                        if let (Some(id), false) = (interface.endpoint, plan.port().is_some()) {
                            self.guard_again(id, cgroup).await;
                        }
                        attached.push(interface);
                    }
                    None => jobs.push(self.prepare(&claim.claim, interface, sandbox).await.map_err(failed)?),
                }
            }
        }
        tried.extend(jobs.iter().map(|job| (job.claim.uid.clone(), job.plan.key())));
        self.room_in(sandbox, &jobs).await?;
        self.write_step(&jobs).await?;
        self.take_newest_plans(&mut jobs);
        for job in &mut jobs {
            let failed = |cause| AttachFailed::of(&job.claim, &job.plan.device, cause);
            let done = self.bring_in(&job.plan, &job.attachment, cgroup).await;
            let (ifindex, programs) = done.map_err(failed)?;
            job.attachment.pod_ifindex = Some(ifindex);
            job.attachment.step = Step::Attached;
            attached.push(shown(&job.claim, &job.plan, &job.attachment, programs));
        }
        crossing("attach-before-done").map_err(AttachFailed::of_pod)?;
        self.write_step(&jobs).await?;
        Ok(attached)
    }

    /// The plans that the checkpoints have now: a network may have changed them before the step was written. From then on
    /// such a change is applied to the interface.
    fn take_newest_plans(&self, jobs: &mut [Job]) {
        for job in jobs {
            let newest = self.store.get(&job.claim.uid);
            if let Some(record) = newest.as_ref().and_then(|it| it.interface(&job.plan.key())) {
                job.plan = record.plan.clone();
            }
        }
    }

    /// Read what the link is at home and refuse what can be refused before anything is changed.
    async fn prepare(
        &self,
        claim: &ClaimRef,
        interface: &InterfaceRecord,
        sandbox: &Sandbox,
    ) -> Result<Job, AttachError> {
        let plan = &interface.plan;
        if let Some(id) = interface.removing {
            self.finish_removal(claim, plan.key(), id).await?;
        }
        let home = match &plan.made {
            None => Some(self.home_of(plan).await?),
            Some(_) => None,
        };
        let endpoint = match (plan.isolation, interface.reserved) {
            (Isolation::Off, _) => None,
            (Isolation::Strict | Isolation::BestEffort, Some(id)) => Some(id),
            (Isolation::Strict | Isolation::BestEffort, None) => Some(self.new_endpoint().await?),
        };
        let attachment = Attachment {
            step: Step::Attaching,
            sandbox: sandbox.clone(),
            endpoint,
            home,
            pod_ifindex: None,
            lost: None,
        };
        Ok(Job { claim: claim.clone(), plan: plan.clone(), attachment })
    }

    /// A link of the host, as it is there, if it may leave and be protected.
    async fn home_of(&self, plan: &InterfacePlan) -> Result<Home, AttachError> {
        let link = self.links.get(&Namespace::Host, &LinkRef::Name(plan.host_link.clone())).await?;
        let foreign = async {
            if plan.isolation != Isolation::Off {
                self.no_foreign_programs(&link).await?;
            }
            Ok::<_, AttachError>(())
        };
        // Side by side: a sandbox waits.
        let (home, foreign) = tokio::join!(self.links.home(&Namespace::Host, link.ifindex), foreign);
        let home = home?;
        if plan.isolation != Isolation::Off && plan.hardware_addr.or(link.mac).is_none() {
            return Err(AttachError::NoMac(link.name));
        }
        foreign.map(|()| home)
    }

    /// The sandbox must be there and have the names free, before a link at home is touched.
    async fn room_in(&self, sandbox: &Sandbox, jobs: &[Job]) -> Result<(), AttachFailed> {
        if jobs.is_empty() {
            return Ok(());
        }
        let namespace = namespace_of(sandbox);
        let links = self.links.list(&namespace).await.map_err(AttachFailed::of_pod)?;
        let taken =
            |name: &String| links.iter().any(|link| link.name == *name || link.alt_names.contains(name));
        match jobs.iter().find(|job| taken(&job.plan.name)) {
            None => Ok(()),
            Some(Job { claim, plan, .. }) => {
                let name = plan.name.clone();
                Err(AttachFailed::of(claim, &plan.device, LinkError::NameTaken { name, namespace }))
            }
        }
    }

    /// Programs of others would travel with the link and could see or let through what ours do not.
    pub(super) async fn no_foreign_programs(&self, link: &Link) -> Result<(), DatapathError> {
        let ifindex = link.ifindex;
        let foreign = self.datapath(move |datapath| datapath.foreign_programs(ifindex)).await?;
        if foreign.is_empty() {
            return Ok(());
        }
        let each =
            foreign.iter().map(|program| format!("{} {} {:?}", program.hook, program.id, program.name));
        let programs = each.collect::<Vec<_>>().join(", ");
        Err(DatapathError::Foreign { link: link.name.clone(), programs })
    }

    /// Checkpoint how far the jobs are: one write a claim.
    async fn write_step(&self, jobs: &[Job]) -> Result<(), AttachFailed> {
        let mut by_claim: BTreeMap<&ClaimRef, Vec<(InterfaceKey, Attachment)>> = BTreeMap::new();
        for job in jobs {
            by_claim.entry(&job.claim).or_default().push((job.plan.key(), job.attachment.clone()));
        }
        for (claim, attachments) in by_claim {
            let device = attachments.first().map(|(key, _)| key.device.clone()).unwrap_or_default();
            let written = self.update(claim, move |checkpoint| {
                for (key, attachment) in attachments {
                    if let Some(interface) = checkpoint.interface_mut(&key) {
                        interface.attachment = Some(attachment);
                    }
                }
            });
            written.await.map_err(|error| AttachFailed::of(claim, &device, error))?;
        }
        Ok(())
    }

    /// Whether the programs of an interface can only be put on once it is in the pod, and may be.
    pub(super) async fn protected_inside(&self, plan: &InterfacePlan) -> bool {
        plan.isolation == Isolation::BestEffort && !self.datapath(|datapath| datapath.travels()).await
    }

    /// Protect, move or make, set up. The order is what keeps an unprotected link out of the pod.
    async fn bring_in(
        &self,
        plan: &InterfacePlan,
        attachment: &Attachment,
        cgroup: Option<&str>,
    ) -> Result<(u32, Vec<AttachedProgram>), AttachError> {
        crossing("attach-after-checkpoint")?;
        match (&plan.made, &attachment.home) {
            (Some(Made::Port(port)), _) => self.make_port(plan, port, attachment).await,
            (Some(Made::SubInterface(upper)), _) => self.make_upper(plan, upper, attachment, cgroup).await,
            (None, Some(home)) => self.move_in(plan, attachment, &home.link, cgroup).await,
            (None, None) => Err(AttachError::NoHome(plan.host_link.clone())),
        }
    }

    /// `home` is the link on the host: one that has its home there, or was made there just now.
    pub(super) async fn move_in(
        &self,
        plan: &InterfacePlan,
        attachment: &Attachment,
        home: &Link,
        cgroup: Option<&str>,
    ) -> Result<(u32, Vec<AttachedProgram>), AttachError> {
        let links = &self.links;
        let pod = namespace_of(&attachment.sandbox);
        links.set_up(&Namespace::Host, home.ifindex, false).await?;
        let inside = self.protected_inside(plan).await;
        if let Some(id) = attachment.endpoint.filter(|_| !inside) {
            let spec = endpoint_spec(plan, id, home)?;
            let ifindex = home.ifindex;
            self.datapath(move |datapath| datapath.attach(ifindex, &spec)).await?;
            self.restrict(id, plan).await?;
        }
        crossing("attach-after-programs")?;
        // Both wait for the kernel, not for each other: no process of the pod runs yet, and its link is shut until both are
        // done. Each is waited for to its end, as what goes on behind a failure would be in the way of undoing it.
        // What is protected as well as can be is not refused for want of a guard.
        let strict = attachment.endpoint.filter(|_| plan.isolation == Isolation::Strict);
        let guard = async {
            match strict {
                Some(id) => self.put_guard(id, cgroup).await,
                None => Ok(()),
            }
        };
        let (guarded, moved) =
            tokio::join!(guard, links.move_to(&Namespace::Host, home.ifindex, &pod, &plan.name, None));
        guarded?;
        crossing("attach-after-guards")?;
        let ifindex = moved?;
        crossing("attach-after-move")?;
        let mut programs = Vec::new();
        if let Some(id) = attachment.endpoint.filter(|_| inside) {
            let (spec, netns) = (endpoint_spec(plan, id, home)?, attachment.sandbox.hold.clone());
            self.datapath(move |datapath| datapath.attach_inside(&netns, ifindex, &spec)).await?;
            self.restrict(id, plan).await?;
        }
        if let Some(id) = attachment.endpoint {
            programs = self.datapath(move |datapath| datapath.verify(id, ifindex)).await?;
        }
        let setup = Setup { mac: plan.hardware_addr, mtu: plan.mtu, ..setup(plan) };
        links.configure(&pod, ifindex, &setup).await?;
        if let Some(id) = attachment.endpoint {
            self.datapath(move |datapath| datapath.set_ready(id, true)).await?;
        }
        crossing("attach-after-ready")?;
        links.set_up(&pod, ifindex, true).await?;
        crossing("attach-after-up")?;
        // Routes need a link that is up.
        links.add_routes(&pod, ifindex, &plan.routes).await?;
        Ok((ifindex, programs))
    }
}

/// What the programs of endpoint `id` hold the pod to. `link` is the link at home.
pub(super) fn endpoint_spec(
    plan: &InterfacePlan,
    id: EndpointId,
    link: &Link,
) -> Result<EndpointSpec, AttachError> {
    let mac = plan.hardware_addr.or(link.mac).ok_or_else(|| AttachError::NoMac(link.name.clone()))?;
    // The link at hand may be the parent of what is made on it.
    let shares_mac = match &plan.made {
        Some(Made::SubInterface(upper)) => matches!(upper.sub_interface, SubInterface::Ipvlan(_)),
        _ => link.kind.as_deref() == Some("ipvlan"),
    };
    Ok(EndpointSpec {
        id,
        placement: if shares_mac { Placement::SharedMac } else { Placement::MovedLink },
        network: 0,
        mac,
        addresses: plan.addresses.clone(),
        mtu: plan.mtu.unwrap_or(link.mtu),
    })
}

/// What the interface of a pod has before it is up, whatever it is made of.
pub(super) fn setup(plan: &InterfacePlan) -> Setup {
    let addresses = plan.addresses.iter().map(|address| pod_address(*address)).collect();
    Setup { mac: None, mtu: None, sysctls: sysctls(plan), addresses }
}

/// The allocator gave these addresses to this pod alone: waiting a second for the outcome of duplicate address
/// detection would only keep its first connections waiting.
pub(super) fn pod_address(address: IpNetwork) -> Address {
    let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
    Address { flags, ..Address::plain(address) }
}

/// Per-link sysctls of an interface in a pod.
pub(super) fn sysctls(plan: &InterfacePlan) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    let mut set = |name: &str, value: &str| sysctls.insert(name.to_owned(), value.to_owned());
    if plan.addresses.iter().any(IpNetwork::is_ipv6) {
        // A runtime may switch IPv6 off by default; a claim that names an address asks for it.
        set("ipv6/disable_ipv6", "0");
    }
    if plan.isolation != Isolation::Off {
        // Only the planned addresses and the link-local address made of the MAC may send. Others would be
        // made from a router's advertisements, be chosen as sources, and be dropped.
        for name in ["accept_ra", "autoconf", "use_tempaddr", "addr_gen_mode"] {
            set(&format!("ipv6/{name}"), "0");
        }
        // The link-local address is made of the MAC, which is enforced: it need not be probed for a second.
        // (`accept_dad` of one link does nothing while that of `all` is on, the kernel's default.)
        set("ipv6/dad_transmits", "0");
        set("ipv6/router_solicitation_delay", "0");
    }
    // Neighbours may still know the address with another pod's MAC.
    set("ipv4/arp_notify", "1");
    set("ipv6/ndisc_notify", "1");
    sysctls
}

/// No two interfaces of the pod's claims want the same name or the same link.
fn no_conflicts(claims: &[&Checkpoint]) -> Result<(), AttachFailed> {
    let mut seen: BTreeSet<(&'static str, &str)> = BTreeSet::new();
    let mut owners: BTreeMap<(&'static str, &str), &str> = BTreeMap::new();
    for claim in claims {
        for InterfaceRecord { plan, .. } in &claim.interfaces {
            // A parent stays for the next one: what is made on it has a name of its own.
            let link = match &plan.made {
                Some(Made::SubInterface(upper)) => upper.host_name.as_str(),
                _ => plan.host_link.as_str(),
            };
            for key in [("name", plan.name.as_str()), ("device", link)] {
                if !seen.insert(key) {
                    let conflict = AttachError::Conflict {
                        field: key.0,
                        value: key.1.to_owned(),
                        one: owners.get(&key).map_or_else(String::new, |device| (*device).to_owned()),
                        other: plan.device.clone(),
                    };
                    return Err(AttachFailed::of(&claim.claim, &plan.device, conflict));
                }
                owners.insert(key, &plan.device);
            }
        }
    }
    Ok(())
}
