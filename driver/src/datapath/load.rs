//! Programs into the kernel, and into links that are there.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::programs::SchedClassifier;

use super::kernel::Written;
use super::object::load_patiently;
use super::pins::PinnedLink;
use super::{DatapathError, EndpointId, bpf_error, sys};

/// Puts a program of this process in the place of what a link runs.
pub(super) fn update(
    link: &PinnedLink,
    object: &mut Ebpf,
    name: &'static str,
    id: EndpointId,
    written: &mut Written,
) -> Result<(), DatapathError> {
    let program = load(object, name, id)?;
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
    pub(super) fn take_preloaded(&mut self, id: EndpointId) -> Option<Ebpf> {
        self.preloaded.remove(&id)
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
