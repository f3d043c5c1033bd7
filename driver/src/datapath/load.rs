//! Programs into the kernel, and into links that are there.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::programs::SchedClassifier;

use super::kernel::Written;
use super::object::{load_patiently, program_name};
use super::pins::PinnedLink;
use super::sys::{self, Hook};
use super::{DatapathError, EndpointId, Placement, bpf_error};

/// The programs of an endpoint.
pub(super) enum Programs {
    /// Loaded when they are asked for. Parsed, the object takes more than a megabyte.
    Object(Ebpf),
    /// Loaded, and nothing else kept.
    Loaded([(&'static str, OwnedFd); 2]),
}

impl Programs {
    /// Loads both programs of a placement, and keeps no more than them.
    pub(super) fn load(
        mut object: Ebpf,
        names: [&'static str; 2],
        id: EndpointId,
    ) -> Result<Self, DatapathError> {
        let mut loaded = |name| {
            let program = load(&mut object, name, id)?.try_clone_to_owned();
            let program =
                program.map_err(|source| bpf_error(format!("keep the program {name} open"), source))?;
            Ok::<_, DatapathError>((name, program))
        };
        Ok(Self::Loaded([loaded(names[0])?, loaded(names[1])?]))
    }

    /// Whether it has a program.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Object(_) => true,
            Self::Loaded(programs) => programs.iter().any(|(had, _)| *had == name),
        }
    }

    /// A program, loaded into the kernel.
    pub(super) fn get(&mut self, name: &str, id: EndpointId) -> Result<BorrowedFd<'_>, DatapathError> {
        match self {
            Self::Object(object) => load(object, name, id),
            Self::Loaded(programs) => match programs.iter().find(|(had, _)| *had == name) {
                Some((_, program)) => Ok(program.as_fd()),
                None => {
                    Err(bpf_error(format!("use the program {name} for endpoint {id}"), "it is not loaded"))
                }
            },
        }
    }
}

/// Puts a program of this process in the place of what a link runs.
pub(super) fn update(
    link: &PinnedLink,
    program: BorrowedFd<'_>,
    name: &'static str,
    id: EndpointId,
    written: &mut Written,
) -> Result<(), DatapathError> {
    sys::update(link.fd.as_fd(), program)
        .map_err(|source| bpf_error(format!("update the link {}", link.path.display()), source))?;
    written.attached.remove(&link.info.program);
    written.remember(&link.fd, id, name)
}

/// Loads one program into the kernel. It stays as long as `object`, or a link that runs it.
pub(super) fn load<'a>(
    object: &'a mut Ebpf,
    name: &str,
    id: EndpointId,
) -> Result<BorrowedFd<'a>, DatapathError> {
    let failed = |doing| format!("{doing} the program {name} for endpoint {id}");
    let program: &mut SchedClassifier = object
        .program_mut(name)
        .ok_or_else(|| bpf_error(failed("find"), "the eBPF object has no such program"))?
        .try_into()
        .map_err(|source| bpf_error(failed("use"), source))?;
    if program.fd().is_err() {
        load_patiently(program).map_err(|source| bpf_error(failed("load"), source))?;
    }
    Ok(program.fd().map_err(|source| bpf_error(failed("use"), source))?.as_fd())
}

impl Written {
    /// What was loaded ahead for an endpoint, if it is for this placement.
    pub(super) fn take_preloaded(&mut self, id: EndpointId, placement: Placement) -> Option<Programs> {
        let preloaded = self.preloaded.remove(&id);
        preloaded.filter(|it| Hook::BOTH.iter().all(|hook| it.has(program_name(placement, *hook))))
    }

    pub(super) fn remember(
        &mut self,
        link: &OwnedFd,
        id: EndpointId,
        name: &'static str,
    ) -> Result<(), DatapathError> {
        let info = sys::link_info(link.as_fd())
            .map_err(|source| bpf_error(format!("read the new link of endpoint {id}"), source))?;
        self.attached.insert(info.program, (id, name));
        Ok(())
    }
}
