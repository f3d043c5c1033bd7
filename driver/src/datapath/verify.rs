//! Whether an endpoint's programs run where they should.

use super::kernel::AyaDatapath;
use super::pins::PinnedLink;
use super::sys::{self, Hook};
use super::{AttachedProgram, DatapathError, EndpointId, not_protected};

/// Whether the order of programs must be seen. It can only be asked in the namespace the device is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Seen,
    IfVisible,
}

impl AyaDatapath {
    /// The programs of an endpoint, if both are on this interface and run before those of others.
    pub(super) fn check(
        &self,
        id: EndpointId,
        ifindex: u32,
        order: Order,
    ) -> Result<Vec<AttachedProgram>, DatapathError> {
        let filters = self.pins.programs_of(id)?;
        if !filters.is_empty() {
            return self.check_filters(id, ifindex, order, filters);
        }
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
        Ok(links.into_iter().map(AttachedProgram::from).collect())
    }
}
