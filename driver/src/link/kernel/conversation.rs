//! One netlink socket in one namespace, for one verb.

use std::{io, path::Path, time::Duration};

use futures::StreamExt as _;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use tokio::{runtime::Handle as Runtime, task::JoinHandle, time::timeout};

use super::namespace;
use crate::link::{LinkError, Namespace};

/// Longest wait for the kernel's answer. It answers within the system call; only an answer that the decoder
/// threw away is missing for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module. A socket keeps its namespace alive, so none is kept longer than a verb.
pub(super) struct Conversation {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Conversation {
    /// Open a socket in the namespace. It asks for strict checking, so that the kernel filters dumps by link
    /// and a routing table of a million entries is not read for a handful.
    pub(super) async fn open(namespace: &Namespace, host: Option<&Path>) -> Result<Self, LinkError> {
        let runtime = Runtime::current();
        let opened = namespace::within(namespace, host, move || {
            // The socket belongs to the namespace it is made in, and to the runtime it is registered with.
            let _runtime = runtime.enter();
            rtnetlink::new_connection_with_strict_check()
        })
        .await?;
        let (connection, handle, _) =
            opened.map_err(|source| LinkError::NamespaceGone { namespace: namespace.clone(), source })?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Ask for a change and wait for the acknowledgement.
    pub(super) async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).await.map(|_| ())
    }

    /// Ask for one object.
    pub(super) async fn get(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK).await
    }

    /// Ask for every object.
    pub(super) async fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP).await
    }

    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut answers = self.handle.clone().request(request).map_err(io::Error::other)?;
        let mut objects = Vec::new();
        let wait = async {
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Overrun(_) => {
                        return Err(io::Error::other("the kernel's answer did not fit"));
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        timeout(PATIENCE, wait).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(objects)
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
