//! A new version of the programs, in the place of the old one and under its traffic.

use super::fallback::Reached;
use super::kernel::{AyaDatapath, Written};
use super::load::{load, update};
use super::object::running_name;
use super::{DatapathError, EndpointId};

/// What became of the endpoints in an upgrade of their programs.
#[derive(Debug, Default)]
pub struct Upgrade {
    /// Run the programs of this process now. No frame saw neither the old nor the new ones.
    pub updated: Vec<EndpointId>,
    /// Their device is gone, and nothing was to be done.
    pub gone: Vec<EndpointId>,
    /// Have filters, which are reached only from the namespace they are in; see [`AyaDatapath::upgrade_inside`].
    pub later: Vec<EndpointId>,
    /// Still run what they ran; 0 stands for an uplink or a tunnel device.
    pub failed: Vec<(EndpointId, DatapathError)>,
}

impl AyaDatapath {
    /// Gives every attached endpoint the programs of this process, in place. For the start of a new version on
    /// the pins of an old one.
    pub fn upgrade(&self) -> Result<Upgrade, DatapathError> {
        let mut written = self.written();
        let mut upgrade = Upgrade::default();
        for id in self.pins.endpoints()? {
            let filters = self.pins.programs_of(id)?;
            if !filters.is_empty() {
                match self.upgrade_filters(&mut written, id, &filters) {
                    Ok(Reached::Updated) => upgrade.updated.push(id),
                    Ok(Reached::Elsewhere) => upgrade.later.push(id),
                    Err(error) => upgrade.failed.push((id, error)),
                }
                continue;
            }
            match self.upgrade_endpoint(&mut written, id) {
                Ok(true) => upgrade.updated.push(id),
                Ok(false) => upgrade.gone.push(id),
                Err(error) => upgrade.failed.push((id, error)),
            }
        }
        self.upgrade_borders(&mut written, &mut upgrade)?;
        Ok(upgrade)
    }

    /// False if the device is gone.
    fn upgrade_endpoint(&self, written: &mut Written, id: EndpointId) -> Result<bool, DatapathError> {
        let links = self.pins.links_of(id)?;
        if links.iter().all(|link| link.info.ifindex == 0) {
            return Ok(false);
        }
        let mut object = self.programs.prepare(id)?;
        for link in links {
            let name = running_name(&link, id)?;
            update(&link, load(&mut object, name, id)?, name, id, written)?;
        }
        self.upgrade_guards(id, &mut object)?;
        Ok(true)
    }
}
