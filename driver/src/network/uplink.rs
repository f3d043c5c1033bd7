//! The link of this node that an uplink network uses.

use super::spec::NetworkSpec;
use crate::device::{Device, Inventory, rule::Rule};

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoUplink {
    /// The network has another transport.
    #[error("the network has no uplink transport")]
    OtherTransport,
    /// No link is selected.
    #[error("no link of this node is selected by {0:?}")]
    NotHere(String),
    /// The selector does not say which.
    #[error("several links of this node are selected by {selector:?}: {links}; allowed: one")]
    Ambiguous {
        /// The selector.
        selector: String,
        /// Names of the links.
        links: String,
    },
}

/// The one link that the network's selector is true for. A selector that fails on a link, because it asks for an
/// attribute the link does not have, does not select it.
pub fn of<'a>(spec: &NetworkSpec, inventory: &'a Inventory, driver: &str) -> Result<&'a Device, NoUplink> {
    let Some(uplink) = &spec.transport.uplink else { return Err(NoUplink::OtherTransport) };
    let not_here = || NoUplink::NotHere(uplink.selector.clone());
    // The link stays at home: it may well be the one of the default route.
    let rule = Rule::new(driver, &uplink.selector, true).map_err(|_| not_here())?;
    let selected: Vec<&Device> =
        inventory.devices.values().filter(|device| rule.check(device).is_ok()).collect();
    match selected[..] {
        [] => Err(not_here()),
        [device] => Ok(device),
        ref several => Err(NoUplink::Ambiguous {
            selector: uplink.selector.clone(),
            links: several.iter().map(|device| device.ifname.as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}
