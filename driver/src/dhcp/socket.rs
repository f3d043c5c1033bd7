//! A packet socket on an uplink: it sends in the name of a port that has no address yet, and hears what servers answer
//! to it, in one VLAN.
//!
//! It is bound to all protocols, since only those sockets see a frame before the uplink's program does; the filter in
//! the kernel lets nothing else wake it.

use std::{
    io::{self, Read as _},
    os::fd::AsRawFd as _,
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{LinkAddr, SockaddrLike as _, bind},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::wire;
use crate::{datapath::watch_socket, link::MacAddr};

/// What the kernel tells of a frame beside its bytes: offsets of classic BPF (include/uapi/linux/filter.h).
const ANCILLARY: u32 = 0xffff_f000;
const PACKET_TYPE: u32 = ANCILLARY + 4;
const VLAN_TAG: u32 = ANCILLARY + 44;
/// Frames that this host sends (include/uapi/linux/if_packet.h): a pod may have sent them.
const OUTGOING: u32 = 4;

/// Codes of classic BPF (include/uapi/linux/bpf_common.h).
mod code {
    pub(super) const LOAD_WORD: u16 = 0x20;
    pub(super) const LOAD_HALF: u16 = 0x28;
    pub(super) const LOAD_BYTE: u16 = 0x30;
    /// At an offset from X.
    pub(super) const LOAD_WORD_X: u16 = 0x40;
    pub(super) const LOAD_HALF_X: u16 = 0x48;
    /// X becomes the length of the IPv4 header there.
    pub(super) const HEADER_TO_X: u16 = 0xb1;
    pub(super) const AND: u16 = 0x54;
    pub(super) const IF_EQUAL: u16 = 0x15;
    pub(super) const IF_SET: u16 = 0x45;
    pub(super) const RETURN: u16 = 0x06;
}

const ETHERTYPE: u32 = 12;
const IP: u32 = 14;
const IPV4: u32 = 0x0800;
const UDP: u32 = 17;
const CLIENT_PORT: u32 = 68;
/// More fragments to come, or not the first.
const FRAGMENT: u32 = 0x3fff;
/// Offset of `chaddr` from the IPv4 header's end: UDP header, then 28 bytes of the message.
const CHADDR: u32 = 8 + 28;

/// A socket for one port.
#[derive(Debug)]
pub struct PortSocket(AsyncFd<Socket>);

impl PortSocket {
    /// On the link of that name in this thread's network namespace, for `vlan` (0: untagged) and a port's `mac`.
    pub fn open(link: &str, vlan: u16, mac: MacAddr) -> io::Result<Self> {
        let everything = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
        let socket = Socket::new(
            Domain::PACKET,
            Type::RAW.nonblocking(),
            Some(Protocol::from(i32::from(everything))),
        )?;
        socket.attach_filter(&filter(vlan, mac))?;
        bind(socket.as_raw_fd(), &address(link)?)?;
        Ok(Self(watch_socket(socket)?))
    }

    /// Send a frame as it is.
    pub async fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.async_io(tokio::io::Interest::WRITABLE, |socket| socket.send(frame)).await.map(drop)
    }

    /// The next answer to what `mac` asked as `xid`. Cancel safe.
    pub async fn next(&self, mac: MacAddr, xid: u32) -> io::Result<wire::Heard> {
        let mut buffer = [0; 2048];
        loop {
            let read = |mut socket: &Socket| socket.read(&mut buffer);
            let length = self.0.async_io(tokio::io::Interest::READABLE, read).await?;
            if let Some(heard) = wire::heard(&buffer[..length], mac, xid) {
                return Ok(heard);
            }
        }
    }
}

/// The address of a link itself, without a protocol: the socket keeps its own.
fn address(link: &str) -> io::Result<LinkAddr> {
    let found = getifaddrs()?.filter(|interface| interface.interface_name == link).find_map(|interface| {
        let address = interface.address?;
        address.as_link_addr().copied().filter(|link| link.family().is_some())
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such link"))
}

/// A step of the filter.
#[derive(Clone, Copy)]
enum Step {
    /// This instruction.
    Do(u16, u32),
    /// Go on if the accumulator is this.
    Need(u32),
    /// Go on if it is not.
    Refuse(u32),
    /// Go on if it has none of these bits.
    RefuseBits(u32),
}

/// Lets DHCP answers for a hardware address in: IPv4, UDP to the client's port, whole, in the VLAN.
fn filter(vlan: u16, mac: MacAddr) -> Vec<SockFilter> {
    use Step::{Do, Need, Refuse, RefuseBits};
    let [.., fifth, last] = mac.0;
    let front = mac.0.iter().take(4).fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    let steps = [
        Do(code::LOAD_WORD, PACKET_TYPE),
        Refuse(OUTGOING),
        // The kernel has taken the tag out of the frame by now.
        Do(code::LOAD_WORD, VLAN_TAG),
        Do(code::AND, 0xfff),
        Need(u32::from(vlan)),
        Do(code::LOAD_HALF, ETHERTYPE),
        Need(IPV4),
        Do(code::LOAD_BYTE, IP + 9),
        Need(UDP),
        Do(code::LOAD_HALF, IP + 6),
        RefuseBits(FRAGMENT),
        Do(code::HEADER_TO_X, IP),
        Do(code::LOAD_HALF_X, IP + 2),
        Need(CLIENT_PORT),
        Do(code::LOAD_WORD_X, IP + CHADDR),
        Need(front),
        Do(code::LOAD_HALF_X, IP + CHADDR + 4),
        Need(u32::from(fifth) << 8 | u32::from(last)),
        Do(code::RETURN, u32::MAX),
    ];
    // What is refused goes on behind them.
    let mut left = u8::try_from(steps.len()).unwrap_or(u8::MAX);
    let mut program = Vec::with_capacity(steps.len() + 1);
    for step in steps {
        left -= 1;
        program.push(match step {
            Do(code, k) => SockFilter::new(code, 0, 0, k),
            Need(k) => SockFilter::new(code::IF_EQUAL, 0, left, k),
            Refuse(k) => SockFilter::new(code::IF_EQUAL, left, 0, k),
            RefuseBits(k) => SockFilter::new(code::IF_SET, left, 0, k),
        });
    }
    program.push(SockFilter::new(code::RETURN, 0, 0, 0));
    program
}
