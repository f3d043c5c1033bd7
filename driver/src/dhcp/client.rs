//! The exchanges of a client: each sends, waits, and sends again.

use std::{io, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::{
    lease::Lease,
    socket::PortSocket,
    wire::{self, Heard, NotWritten, Say},
};
use crate::link::MacAddr;

/// The link and the VLAN on which a port is a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Name of the link.
    pub link: String,
    /// VLAN id, 0 for untagged.
    pub vlan: u16,
}

impl std::fmt::Display for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.vlan {
            0 => write!(f, "uplink {}", self.link),
            vlan => write!(f, "VLAN {vlan} of uplink {}", self.link),
        }
    }
}

/// How long to wait for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// After each message of one kind; as many are sent.
    pub waits: Vec<Duration>,
}

impl Default for Pace {
    /// Fourteen seconds: a kubelet gives up a prepare after 45, of which half may have gone before. (RFC 2131, section 4.1
    /// doubles from four; servers that probe an address first take three.)
    fn default() -> Self {
        Self { waits: [2, 4, 8].map(Duration::from_secs).to_vec() }
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The link, or its socket.
    #[error("cannot speak DHCP on {wire}")]
    Socket {
        /// Where.
        wire: Wire,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The message.
    #[error(transparent)]
    NotWritten(#[from] NotWritten),
    /// Nobody answered.
    #[error("no DHCP server answered {asked} on {wire}, which was sent {sent} times in {seconds} s")]
    NoAnswer {
        /// Which message.
        asked: &'static str,
        /// Where.
        wire: Wire,
        /// How often it was sent.
        sent: usize,
        /// Over how long.
        seconds: u64,
    },
    /// A server said no.
    #[error("the DHCP server on {wire} refused the address{}{why}", if why.is_empty() { "" } else { ": " })]
    Refused {
        /// Where.
        wire: Wire,
        /// What it said.
        why: String,
    },
}

/// How a lease is extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    /// Its port is not there yet: the answer goes to everybody.
    Confirm,
    /// By its server; the answer goes to the port.
    Renew,
    /// By any server.
    Rebind,
}

/// The client of one port on one wire.
#[derive(Debug)]
pub struct Client<'a> {
    wire: &'a Wire,
    mac: MacAddr,
    socket: PortSocket,
    /// A random number nobody else knows.
    xid: u32,
}

impl<'a> Client<'a> {
    /// For the port with this hardware address. In the network namespace of the calling thread.
    pub fn new(wire: &'a Wire, mac: MacAddr) -> Result<Self, ClientError> {
        let socket = PortSocket::open(&wire.link, wire.vlan, mac)
            .map_err(|source| ClientError::Socket { wire: wire.clone(), source })?;
        let xid = dhcproto::v4::Message::default().xid();
        Ok(Self { wire, mac, socket, xid })
    }

    /// Get an address, `wanted` if it may be.
    pub async fn acquire(
        &self,
        wanted: Option<std::net::Ipv4Addr>,
        pace: &Pace,
    ) -> Result<Lease, ClientError> {
        let offer = |heard| match heard {
            Heard::Offer(grant) => Some(grant),
            _ => None,
        };
        let offer = self.exchange(Say::Discover(wanted), "DHCPDISCOVER", pace, offer).await?;
        let (address, server) = (offer.address, offer.server);
        let answer = |heard| match heard {
            Heard::Ack(grant) if grant.address == address => Some(Ok(grant)),
            Heard::Nak(why) => Some(Err(why)),
            _ => None,
        };
        let select = Say::Select { address, server };
        match self.exchange(select, "DHCPREQUEST", pace, answer).await? {
            Ok(grant) => Ok(Lease::new(&grant, Timestamp::now())),
            Err(why) => Err(self.refused(why)),
        }
    }

    /// Have a lease go on. [`ClientError::Refused`]: the address is not the port's any more.
    pub async fn extend(&self, lease: &Lease, how: Extend, pace: &Pace) -> Result<Lease, ClientError> {
        let say = match how {
            Extend::Confirm => Say::Confirm(lease.address),
            Extend::Renew => Say::Renew(lease),
            Extend::Rebind => Say::Rebind(lease),
        };
        let answer = |heard| match heard {
            Heard::Ack(grant) if grant.address == lease.address => Some(Ok(grant)),
            Heard::Nak(why) => Some(Err(why)),
            _ => None,
        };
        match self.exchange(say, "DHCPREQUEST", pace, answer).await? {
            Ok(grant) => Ok(Lease::new(&grant, Timestamp::now())),
            Err(why) => Err(self.refused(why)),
        }
    }

    /// Give an address back. Nobody answers that.
    pub async fn release(&self, lease: &Lease) -> Result<(), ClientError> {
        self.send(Say::Release(lease)).await
    }

    fn refused(&self, why: String) -> ClientError {
        ClientError::Refused { wire: self.wire.clone(), why }
    }

    async fn send(&self, say: Say<'_>) -> Result<(), ClientError> {
        let frame = wire::frame(say, self.mac, self.wire.vlan, self.xid)?;
        self.socket.send(&frame).await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> ClientError {
        ClientError::Socket { wire: self.wire.clone(), source }
    }

    /// Say something until `take` takes what is heard.
    async fn exchange<T>(
        &self,
        say: Say<'_>,
        asked: &'static str,
        pace: &Pace,
        take: impl Fn(Heard) -> Option<T>,
    ) -> Result<T, ClientError> {
        for wait in &pace.waits {
            self.send(say).await?;
            let end = Instant::now() + *wait;
            while let Ok(heard) = timeout_at(end, self.socket.next(self.mac, self.xid)).await {
                if let Some(taken) = take(heard.map_err(|source| self.failed(source))?) {
                    return Ok(taken);
                }
            }
        }
        let seconds = pace.waits.iter().sum::<Duration>().as_secs();
        Err(ClientError::NoAnswer { asked, wire: self.wire.clone(), sent: pace.waits.len(), seconds })
    }
}
