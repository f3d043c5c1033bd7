//! What networks that go on beyond the node need of links, all in the host's namespace.

use async_trait::async_trait;

use super::{LinkError, Links, MacAddr};

/// A VXLAN device for the tunnels of all networks: it takes VNI and destination of each frame from the programs
/// (`external`), and learns nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name.
    pub name: String,
    /// UDP port of the tunnels.
    pub port: u16,
    /// Its hardware address. It is there from the first moment, and so says whose device it is; inner frames have others.
    pub mac: MacAddr,
    /// MTU in bytes, of what is inside.
    pub mtu: u32,
}

/// Further verbs on the kernel's links.
#[async_trait]
pub trait Underlay: Links {
    /// Make a tunnel device, down. Returns its index. [`LinkError::NameTaken`] if there is a link of that name.
    async fn make_tunnel(&self, tunnel: &Tunnel) -> Result<u32, LinkError>;
    /// The settings of a link that is a tunnel device as [`Underlay::make_tunnel`] makes one; `None` for any other.
    async fn tunnel(&self, ifindex: u32) -> Result<Option<Tunnel>, LinkError>;
    /// How many IPsec policies the host's namespace has.
    async fn ipsec_policies(&self) -> Result<u32, LinkError>;
    /// Whether the link was set to take frames for every hardware address (`IFF_PROMISC`). Bridges and packet sockets
    /// that want the same do not show here.
    async fn is_promiscuous(&self, ifindex: u32) -> Result<bool, LinkError>;
    /// Set whether it does.
    async fn set_promiscuous(&self, ifindex: u32, on: bool) -> Result<(), LinkError>;
}
