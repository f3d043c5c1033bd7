//! Who puts the tunnels' headers on and takes them off: the programs where they may, else the kernel's device.

use std::{collections::BTreeMap, net::Ipv4Addr};

use tracing::info;

use super::{
    TunnelDevice,
    converge::{Converger, Rest},
};
use crate::{
    datapath::{AyaDatapath, networks::TunnelEnds},
    link::{Namespace, underlay::Underlay},
};

/// The link between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLink {
    /// Its index.
    pub ifindex: u32,
    /// The address of this node on it.
    pub address: Ipv4Addr,
}

impl<L: Underlay> Converger<L> {
    /// Have the programs do it over the link of `wanted`, or nobody but the `device`. Networks work either way, so that what
    /// fails is no network's problem.
    pub(super) async fn headers(&self, device: u32, wanted: &TunnelDevice, rest: &mut Rest) {
        let ends = self.ends(device, wanted, rest).await;
        if let Some(ends) = &ends {
            let attached = self.attach(ends.link, AyaDatapath::attach_underlay).await;
            if rest.note(attached).is_none() {
                return;
            }
        }
        let before = rest.note(self.datapath.tunnel_ends());
        let done = rest.note(self.datapath.set_tunnel_ends(ends.as_ref()));
        if done.is_some() && before != Some(ends) {
            let programs = ends.is_some();
            info!(programs, "tunnels' headers are put on and taken off by programs, or by the kernel");
        }
    }

    async fn ends(&self, device: u32, wanted: &TunnelDevice, rest: &mut Rest) -> Option<TunnelEnds> {
        let NodeLink { ifindex, address } = wanted.between?;
        // Frames that programs make pass no IPsec policy: what is to be encrypted would not be.
        if rest.note(self.links.ipsec_policies().await)? > 0 {
            return None;
        }
        // The kernel looks for a route in the name of a device that may forward. This one hands nothing to the host.
        let sysctls = BTreeMap::from([("ipv4/forwarding".to_owned(), "1".to_owned())]);
        rest.note(self.links.set_sysctls(&Namespace::Host, device, &sysctls).await)?;
        Some(TunnelEnds { device, link: ifindex, address, port: wanted.port })
    }
}
