//! Whether programs of others are on a link, for its publication.

use std::sync::Arc;

use nix::net::if_::if_nametoindex;
use tracing::warn;

use crate::{
    claim::store::Store,
    datapath::{Datapath, DatapathError, ForeignProgram},
    device::Device,
    publish::publisher::HasForeign,
    telemetry::chain,
};

/// Whether programs of others are on a link that is at home. One that a claim holds has none, or it would not hold it.
pub(super) fn has_foreign_programs(
    store: &Arc<Store>,
    datapath: &Arc<impl Datapath + 'static>,
) -> Arc<HasForeign> {
    let (store, datapath) = (Arc::clone(store), Arc::clone(datapath));
    Arc::new(move |device: &Device| {
        !store.held_devices().contains_key(&device.name)
            && has_any(device, datapath.foreign_programs(device.ifindex))
    })
}

/// Where it is not known, the link is taken as one with such programs. Nothing is on a link that is gone.
fn has_any(device: &Device, found: Result<Vec<ForeignProgram>, DatapathError>) -> bool {
    match found {
        Ok(programs) => !programs.is_empty(),
        Err(_) if if_nametoindex(device.ifname.as_str()).is_err() => false,
        Err(error) => {
            warn!(link = device.ifname, "taken as a link with programs of others: {}", chain(&error));
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_which_it_is_not_known_has_programs_unless_it_is_gone() {
        let device = |ifname: &str| Device { ifname: ifname.to_owned(), ..Device::default() };
        let (here, gone) = (device("lo"), device("nf-not-there"));
        let program = ForeignProgram { hook: "xdp".into(), id: 7, name: "theirs".into() };
        assert!(has_any(&here, Ok(vec![program])));
        assert!(!has_any(&here, Ok(Vec::new())));
        assert!(has_any(&here, Err(DatapathError::NotPermitted)));
        assert!(!has_any(&gone, Err(DatapathError::NotPermitted)));
    }
}
