//! What changes in a network namespace, as it changes.

use std::io;

use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rtnetlink::MulticastGroup;
use tokio::runtime::Handle as Runtime;

use super::{KernelLinks, namespace};
use crate::link::{LinkError, Namespace};

/// Tells that links, addresses or routes of a namespace have changed. It keeps the namespace alive: drop it when the sandbox
/// is over.
pub struct Events {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl KernelLinks {
    /// Listen in a namespace. What has changed before is not told.
    pub async fn events(&self, namespace: &Namespace) -> Result<Events, LinkError> {
        let runtime = Runtime::current();
        let opened = namespace::within(namespace, self.host(), move || {
            // The socket belongs to the namespace it is made in, and to the runtime it is registered with.
            let _runtime = runtime.enter();
            event_socket()
        });
        let gone = |source| LinkError::NamespaceGone { namespace: namespace.clone(), source };
        Ok(Events { socket: opened.await?.map_err(gone)?, buffer: Vec::with_capacity(8 << 10) })
    }
}

impl Events {
    /// Returns when something has changed. Where the kernel has lost events, that is a change.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.buffer.clear();
        match self.socket.recv_from(&mut self.buffer).await {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            received => received.map(drop),
        }
    }
}

/// A socket that gets what the kernel tells of links, addresses and routes of the calling thread's network namespace.
pub(crate) fn event_socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let raw = socket.socket_mut();
    raw.bind(&SocketAddr::new(0, 0))?;
    for group in [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ] {
        raw.add_membership(group as u32)?;
    }
    Ok(socket)
}
