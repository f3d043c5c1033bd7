//! [`Datapath`] on the kernel: tcx links, pinned, and the shared maps.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::programs::SchedClassifier;

use super::features::Features;
use super::foreign::{self, TcxProgram};
use super::object::{ProgramLoader, check_pinned};
use super::pins::{PinnedLink, Pins};
use super::sys::{self, Hook};
use super::tables::Tables;
use super::{
    AttachedProgram, Datapath, DatapathError, EndpointId, EndpointSpec, EndpointStats, ForeignProgram,
    Placement, bpf_error, not_protected, refuse_foreign,
};

/// The programs and maps of this host, found again by their pins after a restart.
pub struct AyaDatapath {
    pins: Pins,
    programs: ProgramLoader,
    features: Features,
    /// Also makes the verbs that write take turns.
    tables: Mutex<Tables>,
}

impl AyaDatapath {
    /// Opens the pins under `root` ([`super::DEFAULT_ROOT`] on a host), or makes them. Mounts nothing: fails if
    /// the root is not on a bpf file system, or if a pinned map has another layout.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        let pins = Pins::create(root)?;
        check_pinned(&pins.maps())?;
        let programs = ProgramLoader::new(&pins)?;
        // Endpoint 0 is nobody's: this is for the maps only.
        let tables = Tables::take(&mut programs.prepare(0)?)?;
        Ok(Self { pins, programs, features: Features::probe(), tables: Mutex::new(tables) })
    }

    /// What this kernel can do.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // A panic between two map writes leaves what a kill would leave, and the verbs repair that.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Programs on a link: those of others, and which of our endpoints the rest belong to.
    fn survey(&self, ifindex: u32) -> Result<(Vec<ForeignProgram>, Vec<EndpointId>), DatapathError> {
        let tcx = foreign::tcx_programs(ifindex)?;
        let owners = self.pins.owners(&tcx.iter().map(|program| program.id).collect::<Vec<_>>())?;
        let (mut foreign, mut ours) = (Vec::new(), Vec::new());
        for TcxProgram { hook, id } in tcx {
            match owners.iter().find(|(program, _)| *program == id) {
                Some((_, endpoint)) => ours.push(*endpoint),
                None => foreign.push(foreign::describe(hook.name(), id)),
            }
        }
        foreign.extend(foreign::netlink_programs(ifindex)?);
        Ok((foreign, ours))
    }

    /// Looks for what an earlier attach has left: links on this device are kept, to be updated in place; links
    /// of a device that is gone are removed; links in use on another device are a refusal.
    fn sort_leftovers(
        &self,
        id: EndpointId,
        ifindex: u32,
        on_link: &[EndpointId],
    ) -> Result<(), DatapathError> {
        if let Some(other) = on_link.iter().find(|other| **other != id) {
            return Err(not_protected(
                id,
                format!("the link still carries the programs of endpoint {other}"),
            ));
        }
        for link in self.pins.links_of(id)? {
            match link.info.ifindex {
                0 => link.remove()?,
                at if at == ifindex && link.runs_here() => {}
                at => {
                    let problem = format!("its programs are on another device (index {at} in its namespace)");
                    return Err(not_protected(id, problem));
                }
            }
        }
        Ok(())
    }

    fn attach_hook(
        &self,
        object: &mut Ebpf,
        ifindex: u32,
        spec: &EndpointSpec,
        hook: Hook,
    ) -> Result<(), DatapathError> {
        let fd = load(object, program_name(spec.placement, hook), spec.id)?;
        let failed = |doing| format!("{doing} the {} program of endpoint {}", hook.name(), spec.id);
        if let Some(link) = self.pins.link(spec.id, hook)? {
            return sys::update(link.fd.as_fd(), fd).map_err(|source| bpf_error(failed("update"), source));
        }
        let link = sys::attach_first(fd, ifindex, hook)
            .map_err(|source| bpf_error(format!("{} to interface {ifindex}", failed("attach")), source))?;
        self.pins.pin(spec.id, hook, &link)?;
        Ok(())
    }

    fn try_attach(
        &self,
        tables: &mut Tables,
        ifindex: u32,
        spec: &EndpointSpec,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        tables.forget(spec.id)?;
        let mut object = self.programs.prepare(spec.id)?;
        tables.write(ifindex, spec)?;
        fail_point("datapath::attach::written")?;
        self.attach_hook(&mut object, ifindex, spec, Hook::Ingress)?;
        fail_point("datapath::attach::ingress")?;
        self.attach_hook(&mut object, ifindex, spec, Hook::Egress)?;
        fail_point("datapath::attach::egress")?;
        self.check(spec.id, ifindex, Order::Seen)
    }

    /// Detach, unpin and forget.
    fn remove(&self, tables: &mut Tables, id: EndpointId) -> Result<(), DatapathError> {
        tables.set_ready(id, false)?;
        self.pins.remove(id)?;
        tables.forget(id)
    }

    fn check(
        &self,
        id: EndpointId,
        ifindex: u32,
        order: Order,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        let links = self.pins.links_of(id)?;
        if let Some(hook) = Hook::BOTH.iter().find(|hook| links.iter().all(|link| link.hook != **hook)) {
            return Err(not_protected(id, format!("its {} link is not pinned", hook.name())));
        }
        for PinnedLink { hook, path, info, .. } in &links {
            let name = hook.name();
            if info.hook != Some(*hook) {
                return Err(not_protected(id, format!("{} is not a {name} link", path.display())));
            }
            match info.ifindex {
                0 => return Err(not_protected(id, format!("the device of its {name} link is gone"))),
                at if at != ifindex => {
                    return Err(not_protected(
                        id,
                        format!("its {name} link is on interface {at}, not {ifindex}"),
                    ));
                }
                _ => {}
            }
            // The same index may be another device in this namespace: then our program is not in its list.
            let running = sys::query(ifindex, *hook).unwrap_or_default();
            match running.iter().position(|program| *program == info.program) {
                Some(0) => {}
                Some(place) => {
                    return Err(not_protected(
                        id,
                        format!("{place} programs of others run before its {name} program"),
                    ));
                }
                None if order == Order::Seen => {
                    return Err(not_protected(
                        id,
                        format!("interface {ifindex} here does not run its {name} program"),
                    ));
                }
                None => {}
            }
        }
        Ok(links.into_iter().map(attached).collect())
    }
}

/// Whether the order of programs must be seen. It can only be asked in the namespace the device is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Seen,
    IfVisible,
}

/// Loads one program into the kernel. It stays as long as `object`, or a link that runs it.
fn load<'a>(object: &'a mut Ebpf, name: &str, id: EndpointId) -> Result<BorrowedFd<'a>, DatapathError> {
    let failed = |doing| format!("{doing} the program {name} for endpoint {id}");
    let program: &mut SchedClassifier = object
        .program_mut(name)
        .ok_or_else(|| bpf_error(failed("find"), "the eBPF object has no such program"))?
        .try_into()
        .map_err(|source| bpf_error(failed("use"), source))?;
    program.load().map_err(|source| bpf_error(failed("load"), source))?;
    Ok(program.fd().map_err(|source| bpf_error(failed("use"), source))?.as_fd())
}

/// A place at which a test can make an attach fail, or kill the process.
fn fail_point(name: &'static str) -> Result<(), DatapathError> {
    fail::fail_point!(name, |_| Err(bpf_error(format!("pass {name}"), "failure asked for by the test")));
    Ok(())
}

fn attached(link: PinnedLink) -> AttachedProgram {
    AttachedProgram {
        hook: link.hook.name().to_owned(),
        id: link.info.program,
        name: sys::program_name(link.info.program).unwrap_or_default(),
        pin: link.path,
        ifindex: link.info.ifindex,
    }
}

/// Names in driver-ebpf. On a moved link, what the device receives goes to the pod; on the host end of a
/// veth pair it comes from the pod.
const fn program_name(placement: Placement, hook: Hook) -> &'static str {
    match (placement, hook) {
        (Placement::MovedLink, Hook::Ingress) => "link_ingress",
        (Placement::MovedLink, Hook::Egress) => "link_egress",
        (Placement::HostVeth, Hook::Ingress) => "from_pod",
        (Placement::HostVeth, Hook::Egress) => "to_pod",
    }
}

impl Datapath for AyaDatapath {
    fn foreign_programs(&self, ifindex: u32) -> Result<Vec<ForeignProgram>, DatapathError> {
        Ok(self.survey(ifindex)?.0)
    }

    fn attach(&self, ifindex: u32, spec: &EndpointSpec) -> Result<Vec<AttachedProgram>, DatapathError> {
        if spec.id == 0 {
            return Err(not_protected(0, "0 is no endpoint id"));
        }
        if !self.features.tcx {
            return Err(DatapathError::Unsupported {
                feature: "tcx (upstream since Linux 6.6)",
                consequence: "a pod could remove the programs of a moved link, so strict isolation is refused",
            });
        }
        let mut tables = self.tables();
        let (foreign, ours) = self.survey(ifindex)?;
        refuse_foreign(ifindex, &foreign)?;
        self.sort_leftovers(spec.id, ifindex, &ours)?;
        self.try_attach(&mut tables, ifindex, spec).inspect_err(|_| {
            if let Err(error) = self.remove(&mut tables, spec.id) {
                tracing::error!(endpoint = spec.id, %error, "a failed attach could not be undone; it drops everything");
            }
        })
    }

    fn verify(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.check(id, ifindex, Order::IfVisible)
    }

    fn verify_inside(&self, id: EndpointId, ifindex: u32) -> Result<Vec<AttachedProgram>, DatapathError> {
        self.check(id, ifindex, Order::Seen)
    }

    fn set_ready(&self, id: EndpointId, ready: bool) -> Result<(), DatapathError> {
        self.tables().set_ready(id, ready)
    }

    fn attached_ifindex(&self, id: EndpointId) -> Result<Option<u32>, DatapathError> {
        let links = self.pins.links_of(id)?;
        Ok(links.iter().map(|link| link.info.ifindex).find(|ifindex| *ifindex != 0))
    }

    fn detach(&self, id: EndpointId) -> Result<(), DatapathError> {
        self.remove(&mut self.tables(), id)
    }

    fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        let mut ids = self.pins.endpoints()?;
        ids.extend(self.tables().endpoints()?);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn stats(&self, id: EndpointId) -> Result<EndpointStats, DatapathError> {
        self.tables().stats(id)
    }
}
