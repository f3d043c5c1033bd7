//! How tunnels between nodes are made.

use std::net::IpAddr;

use clap::Args;

use crate::network::transport::{Headers, TunnelSettings, VXLAN_PORT};

/// Settings of overlay networks.
#[derive(Clone, Copy, Debug, Args)]
pub struct OverlayArgs {
    /// UDP port of the tunnels of overlay networks, the same on all nodes.
    #[arg(long, value_name = "PORT", default_value_t = VXLAN_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub overlay_port: u16,

    /// Address of this node that tunnels leave from; the `InternalIP` of its Node object if not given. Other nodes go by the
    /// Node object.
    #[arg(long, value_name = "ADDRESS")]
    pub overlay_address: Option<IpAddr>,

    /// Who puts the headers of tunnels on and takes them off.
    #[arg(long, value_enum, default_value_t)]
    pub overlay_headers: Headers,
}

impl OverlayArgs {
    /// The same for [`crate::network::transport`].
    #[must_use]
    pub const fn settings(self) -> TunnelSettings {
        TunnelSettings {
            port: self.overlay_port,
            address: self.overlay_address,
            headers: self.overlay_headers,
        }
    }
}
