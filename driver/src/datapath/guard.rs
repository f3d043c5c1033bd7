//! What surrounds the programs of an endpoint: the early drop on its link (`xdp_guard`), and the refusal of sockets that
//! send around its programs, on the pod's cgroup (`sockopt_guard`).
//!
//! Each is a bpf link pinned in the endpoint's folder, beside those of its programs: it stays when the daemon ends, moves
//! with the device, and goes at detach.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use aya::programs::{CgroupSockopt, LsmCgroup, Program, Xdp};
use aya::{Btf, Ebpf};

use super::kernel::AyaDatapath;
use super::pins::read_pinned;
use super::sys::{self, CgroupHook, GuardInfo};
use super::{AttachedProgram, DatapathError, EndpointId, bpf_error, not_protected};

/// A place for a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// The device's driver.
    Xdp,
    /// The pod's cgroup.
    Cgroup(CgroupHook),
}

impl Guard {
    pub(super) const ALL: [Self; 3] =
        [Self::Xdp, Self::Cgroup(CgroupHook::SetSockopt), Self::Cgroup(CgroupHook::Lsm)];

    /// File name of its pin.
    const fn pin(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Cgroup(CgroupHook::SetSockopt) => "sockopt",
            Self::Cgroup(CgroupHook::Lsm) => "lsm",
        }
    }

    /// Name in output.
    const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Cgroup(CgroupHook::SetSockopt) => "cgroup/setsockopt",
            Self::Cgroup(CgroupHook::Lsm) => "cgroup/lsm",
        }
    }

    /// Name in driver-ebpf.
    const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "xdp_guard",
            Self::Cgroup(CgroupHook::SetSockopt) => "sockopt_guard",
            Self::Cgroup(CgroupHook::Lsm) => "sockopt_lsm",
        }
    }
}

/// A pinned guard.
struct Pinned {
    guard: Guard,
    path: PathBuf,
    fd: OwnedFd,
    info: GuardInfo,
}

impl Pinned {
    /// Detaches and unpins it.
    fn remove(&self) -> Result<(), DatapathError> {
        let failed = |doing| format!("{doing} the link {}", self.path.display());
        match sys::detach(self.fd.as_fd()) {
            // Detached already, or what it was on is gone.
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ENOLINK | libc::ENODEV | libc::EOPNOTSUPP | libc::EINVAL)
                ) =>
            {
                return Err(bpf_error(failed("detach"), error));
            }
            _ => {}
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(bpf_error(failed("unpin"), error)),
            _ => Ok(()),
        }
    }
}

/// The programs of pods' cgroups. They know no endpoint, and are loaded once.
#[derive(Default)]
pub(super) struct CgroupPrograms {
    object: Mutex<Option<Ebpf>>,
    /// Why this kernel takes no lsm program. To ask it takes 20 ms, as all its types are read.
    no_lsm: OnceLock<String>,
}

impl AyaDatapath {
    fn guard(&self, id: EndpointId, guard: Guard) -> Result<Option<Pinned>, DatapathError> {
        let path = self.pins.folder(id).join(guard.pin());
        let found = read_pinned(&path, sys::guard_info)?;
        Ok(found.map(|(fd, info)| Pinned { guard, path, fd, info }))
    }

    fn guards_of(&self, id: EndpointId) -> Result<Vec<Pinned>, DatapathError> {
        let mut guards = Vec::new();
        for guard in Guard::ALL {
            guards.extend(self.guard(id, guard)?);
        }
        Ok(guards)
    }

    /// The guards of an endpoint that are in force.
    pub(super) fn list_guards(&self, id: EndpointId) -> Result<Vec<AttachedProgram>, DatapathError> {
        let in_force = self.guards_of(id)?.into_iter().filter(|pinned| pinned.info.at != 0);
        Ok(in_force
            .map(|pinned| AttachedProgram {
                hook: pinned.guard.name().to_owned(),
                id: pinned.info.program,
                name: sys::program_name(pinned.info.program).unwrap_or_default(),
                ifindex: match pinned.guard {
                    // An index is 32 bits in the kernel.
                    Guard::Xdp => u32::try_from(pinned.info.at).unwrap_or(0),
                    Guard::Cgroup(_) => 0,
                },
                pin: pinned.path,
            })
            .collect())
    }

    /// Whether an XDP program is the guard of one of our endpoints.
    pub(super) fn is_guard(&self, program: u32) -> Result<bool, DatapathError> {
        for id in self.pins.endpoints()? {
            if self.guard(id, Guard::Xdp)?.is_some_and(|pinned| pinned.info.program == program) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts the early drop on a link. `Some`: its driver cannot, and why; there is no other way it would be put on.
    pub(super) fn guard_device(&self, id: EndpointId, ifindex: u32) -> Result<Option<String>, DatapathError> {
        let _turn = self.turns.lock(&id);
        let record = self.written().tables.record(id)?;
        let record = record.ok_or_else(|| not_protected(id, "it is not in the map of endpoints"))?;
        if record.ifindex != 0 {
            // There, what the device receives comes from the pod.
            return Ok(Some("the early drop is for moved links, not for the host end of a pair".to_owned()));
        }
        if let Some(pinned) = self.guard(id, Guard::Xdp)? {
            if pinned.info.at == u64::from(ifindex) {
                return Ok(None);
            }
            pinned.remove()?;
        }
        let mut object = self.programs.prepare(id)?;
        let program = match load(&mut object, Guard::Xdp, || None) {
            Ok(program) => program,
            // What a kernel that lacks XDP in several buffers says; the programs behind do all this too.
            Err(error) => return Ok(Some(crate::telemetry::chain(&error))),
        };
        match sys::attach_xdp(program, ifindex) {
            Ok(link) => self.pin_guard(id, Guard::Xdp, &link).map(|()| None),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Ok(Some("its driver has no native XDP for frames in several buffers".to_owned()))
            }
            Err(error) => Ok(Some(format!("its driver refuses XDP: {error}"))),
        }
    }

    /// Refuses the sockets of a pod that send around its programs, for as long as the endpoint is there.
    pub(super) fn guard_cgroup(&self, id: EndpointId, cgroup: &Path) -> Result<(), DatapathError> {
        let failed = |source: io::Error| {
            bpf_error(format!("guard the pod's cgroup {} for endpoint {id}", cgroup.display()), source)
        };
        let folder = std::fs::File::open(cgroup).map_err(failed)?;
        let _turn = self.turns.lock(&id);
        for hook in [CgroupHook::SetSockopt, CgroupHook::Lsm] {
            let guard = Guard::Cgroup(hook);
            match self.guard(id, guard)? {
                Some(pinned) if pinned.info.at == cgroup_id(&folder) => continue,
                Some(pinned) => pinned.remove()?,
                None => {}
            }
            let attached = self.cgroup_program(hook).and_then(|program| match program {
                // Many kernels have no BPF security module; what that means is told by `netferry doctor`.
                None => Ok(()),
                Some(program) => sys::attach_cgroup(program.as_fd(), folder.as_fd(), hook)
                    .map_err(failed)
                    .and_then(|link| self.pin_guard(id, guard, &link)),
            });
            match attached {
                Err(error) if hook == CgroupHook::Lsm => {
                    tracing::debug!(endpoint = id, "no lsm guard: {}", crate::telemetry::chain(&error));
                }
                attached => attached?,
            }
        }
        Ok(())
    }

    /// The program for a hook of pods' cgroups, loaded if it is not yet. None if this kernel takes no such program.
    fn cgroup_program(&self, hook: CgroupHook) -> Result<Option<OwnedFd>, DatapathError> {
        let CgroupPrograms { object, no_lsm } = &self.cgroup_programs;
        if hook == CgroupHook::Lsm && no_lsm.get().is_some() {
            return Ok(None);
        }
        let mut object = object.lock().unwrap_or_else(PoisonError::into_inner);
        let object = match &mut *object {
            Some(object) => object,
            none => none.insert(self.programs.prepare(0)?),
        };
        match load(object, Guard::Cgroup(hook), || kernel_types(hook)) {
            Ok(program) => {
                let program = program.try_clone_to_owned();
                program.map(Some).map_err(|source| bpf_error("keep a cgroup program open", source))
            }
            Err(error) if hook == CgroupHook::Lsm && !passing(&error) => {
                let why = no_lsm.get_or_init(|| crate::telemetry::chain(&error));
                tracing::info!("pods get no lsm guard on this kernel: {why}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn pin_guard(&self, id: EndpointId, guard: Guard, link: &OwnedFd) -> Result<(), DatapathError> {
        let folder = self.pins.folder(id);
        if !folder.exists() {
            return Err(not_protected(id, "it has no programs, so it can have no guard"));
        }
        let path = folder.join(guard.pin());
        sys::pin(link.as_fd(), &path)
            .map_err(|source| bpf_error(format!("pin the link {}", path.display()), source))
    }

    /// Gives the guards of an endpoint the programs of this process, in place.
    pub(super) fn upgrade_guards(&self, id: EndpointId, object: &mut Ebpf) -> Result<(), DatapathError> {
        for pinned in self.guards_of(id)?.into_iter().filter(|pinned| pinned.info.at != 0) {
            let types = || match pinned.guard {
                Guard::Xdp => None,
                Guard::Cgroup(hook) => kernel_types(hook),
            };
            let program = load(object, pinned.guard, types)?;
            sys::update(pinned.fd.as_fd(), program)
                .map_err(|source| bpf_error(format!("update the link {}", pinned.path.display()), source))?;
        }
        Ok(())
    }

    /// Puts the early drop on the link again if it was detached and the link is down, from a thread in the namespace the link
    /// is in. What was found, if it was. On a link that is up it stays off: a NIC would lose its carrier.
    pub fn repair_guard(&self, id: EndpointId, ifindex: u32) -> Result<Option<DatapathError>, DatapathError> {
        match self.guard(id, Guard::Xdp)? {
            Some(pinned) if pinned.info.at == 0 && !is_up(ifindex)? => {}
            _ => return Ok(None),
        }
        match self.guard_device(id, ifindex)? {
            None => Ok(Some(not_protected(id, "its early drop (xdp) was not attached"))),
            Some(why) => Err(not_protected(id, format!("its early drop (xdp) cannot be attached: {why}"))),
        }
    }

    /// Detaches and unpins the guards of an endpoint.
    pub(super) fn remove_guards(&self, id: EndpointId) -> Result<(), DatapathError> {
        self.guards_of(id)?.iter().try_for_each(Pinned::remove)
    }
}

/// Whether what failed may succeed later, as nothing but memory or time was short.
fn passing(error: &DatapathError) -> bool {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.any(|cause| {
        let cause = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        matches!(cause, Some(libc::ENOMEM | libc::EAGAIN | libc::EINTR | libc::EMFILE | libc::ENFILE))
    })
}

/// Whether a link of this thread's namespace is up.
fn is_up(ifindex: u32) -> Result<bool, DatapathError> {
    let failed = |source: nix::errno::Errno| bpf_error(format!("look at interface {ifindex}"), source);
    let name = nix::net::if_::if_indextoname(ifindex).map_err(failed)?;
    let mut addresses = nix::ifaddrs::getifaddrs().map_err(failed)?;
    Ok(addresses.any(|it| {
        it.interface_name.as_bytes() == name.to_bytes()
            && it.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP)
    }))
}

/// A cgroup's id is the number of its folder (`cgroup_id()`, on machines of 64 bits).
fn cgroup_id(folder: &std::fs::File) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    folder.metadata().map_or(0, |metadata| metadata.ino())
}

/// The kernel's type information, for a program that names a function of the kernel.
fn kernel_types(hook: CgroupHook) -> Option<Btf> {
    (hook == CgroupHook::Lsm).then(|| Btf::from_sys_fs().ok()).flatten()
}

/// Loads one program into the kernel. It stays as long as `object`, or a link that runs it.
fn load(
    object: &mut Ebpf,
    guard: Guard,
    types: impl FnOnce() -> Option<Btf>,
) -> Result<BorrowedFd<'_>, DatapathError> {
    let name = guard.program();
    let failed = |doing| format!("{doing} the program {name}");
    let program = object
        .program_mut(name)
        .ok_or_else(|| bpf_error(failed("find"), "the eBPF object has no such program"))?;
    let loaded = program.fd().is_ok();
    let result = match program {
        _ if loaded => Ok(()),
        Program::Xdp(program) => Xdp::load(program),
        Program::CgroupSockopt(program) => CgroupSockopt::load(program),
        Program::LsmCgroup(program) => match types() {
            Some(types) => LsmCgroup::load(program, "socket_setsockopt", &types),
            None => return Err(bpf_error(failed("load"), "the kernel has no type information")),
        },
        _ => return Err(bpf_error(failed("use"), "it is a program of another kind")),
    };
    result.map_err(|source| bpf_error(failed("load"), source))?;
    Ok(program.fd().map_err(|source| bpf_error(failed("use"), source))?.as_fd())
}
