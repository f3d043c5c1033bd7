//! The two nodes' namespaces, the wire between them, and what is seen on it.

use std::{
    collections::BTreeMap,
    fmt,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use netferry::cluster::versions::ApiVersion;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, socket};

use crate::support::{apiserver::ApiServer, netns::NetNs};

const LINK: &str = "wire0";
/// The server's address, on a link of its own to each node.
const SERVER: &str = "203.0.113.1";
const VXLAN_PORT: [u8; 2] = 4789_u16.to_be_bytes();

/// The address of a node on the wire.
pub(super) fn address(node: usize) -> String {
    format!("192.0.2.{}", node + 1)
}

/// The namespaces go with it.
pub(super) struct Wire {
    pub(super) nodes: [NetNs; 2],
    control: NetNs,
    tap: OwnedFd,
}

/// Frames since the last look: those of tunnels by VNI, and others that carry IPv4 or belong to a pod.
pub(super) struct Seen {
    pub(super) tunnelled: BTreeMap<u32, usize>,
    pub(super) others: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (vni, count) in &self.tunnelled {
            write!(f, "{count} frames with VNI {vni}, ")?;
        }
        write!(f, "{} outside of tunnels", self.others)
    }
}

impl Wire {
    pub(super) fn new() -> Result<Self> {
        let (control, nodes) = (NetNs::new(), [NetNs::new(), NetNs::new()]);
        control.ip("link add br0 type bridge");
        control.ip("link set br0 up");
        control.ip(&format!("address add {SERVER}/24 dev br0"));
        nodes[0].ip(&format!("link add {LINK} type veth peer name {LINK} netns {}", nodes[1].name));
        for (number, node) in nodes.iter().enumerate() {
            node.ip(&format!("link add control0 type veth peer name to{number} netns {}", control.name));
            control.ip(&format!("link set to{number} master br0 up"));
            node.ip(&format!("address add 203.0.113.{}/24 dev control0", 11 + number));
            node.ip("link set control0 up");
            // The hosts have no IPv6 of their own here, which would be on the wire.
            node.ip(&format!("link set {LINK} addrgenmode none"));
            node.ip(&format!("address add {}/24 dev {LINK}", address(number)));
            node.ip(&format!("link set {LINK} up"));
        }
        let tap = nodes[1].scoped(tap)?;
        Ok(Self { nodes, control, tap })
    }

    /// A server on the nodes' other links.
    pub(super) fn serve(&self, versions: &[ApiVersion]) -> Result<ApiServer> {
        let listener = self.control.scoped(|| std::net::TcpListener::bind((SERVER, 0)))?;
        listener.set_nonblocking(true)?;
        Ok(ApiServer::start_on(tokio::net::TcpListener::from_std(listener)?, versions))
    }

    /// What was on the wire since the last look.
    pub(super) fn seen(&self) -> Seen {
        let mut seen = Seen { tunnelled: BTreeMap::new(), others: 0 };
        loop {
            let mut it = [0; 2048];
            let Ok(length) = recv(self.tap.as_raw_fd(), &mut it, MsgFlags::empty()) else { return seen };
            if length >= 50 && it[12..14] == [8, 0] && it[23] == 17 && it[36..38] == VXLAN_PORT {
                *seen.tunnelled.entry(u32::from_be_bytes([0, it[46], it[47], it[48]])).or_default() += 1;
            } else if it[12..14] != [8, 6] || it[38..41] != [192, 0, 2] {
                // The hosts ask for each other's hardware addresses, and that is all.
                seen.others += 1;
            }
        }
    }
}

/// A socket that hears everything on the wire, in this thread's namespace.
fn tap() -> Result<OwnedFd> {
    let entry = nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == LINK)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .context("the wire has no link")?;
    let tap = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)?;
    bind(tap.as_raw_fd(), &entry)?;
    Ok(tap)
}
