//! What a hostile process tries with sockets and bpf(2). It runs as a process of its own in the pod, with NET_ADMIN and
//! NET_RAW alone, and prints what came of it.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use netferry::link::MacAddr;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, sendto, socket,
};

use crate::sys;

/// What the wire's other end looks for.
pub(crate) const MARK: &[u8] = b"nf-tamper";
/// Frames that each attack sends.
pub(crate) const FRAMES: usize = 5;
pub(crate) const LINK: &str = "net1";
pub(crate) const POD: &str = "198.51.100.7";
pub(crate) const PEER: &str = "198.51.100.1";
/// Nobody's.
pub(crate) const FORGED: &str = "198.51.100.66";
pub(crate) const FORGED_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x66]);

const SOL_PACKET: i32 = 263;
const SOL_XDP: i32 = 283;
const PACKET_TX_RING: i32 = 13;
const PACKET_QDISC_BYPASS: i32 = 20;
const XDP_UMEM_REG: i32 = 4;

/// A frame to the peer's MAC with the mark in it.
pub(crate) fn frame(source_mac: MacAddr, dest_mac: MacAddr, source: &str) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("an IPv4 address").octets();
    let builder = etherparse::PacketBuilder::ethernet2(source_mac.0, dest_mac.0)
        .ipv4(octets(source), octets(PEER), 64)
        .udp(4000, 4000);
    let mut frame = Vec::new();
    builder.write(&mut frame, MARK).expect("a frame");
    frame
}

/// Runs one attack by name.
pub(crate) fn run(name: &str, own: MacAddr, peer: MacAddr) -> io::Result<()> {
    let honest = || frame(own, peer, POD);
    let forged = || frame(FORGED_MAC, peer, FORGED);
    match name {
        "packet honest" => Packet::open()?.send(&honest()),
        "packet forged MAC" => Packet::open()?.send(&frame(FORGED_MAC, peer, POD)),
        "packet forged address" => Packet::open()?.send(&frame(own, peer, FORGED)),
        "packet VLAN" => {
            let frame = honest();
            Packet::open()?.send(&[&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat())
        }
        "packet ring" => Packet::open()?.send_by_ring(&forged()),
        "bypass" => {
            let packet = Packet::open()?;
            let set = sys::setsockopt(packet.socket.as_fd(), SOL_PACKET, PACKET_QDISC_BYPASS, &1_i32);
            packet.send(&forged())?;
            set
        }
        "bypass by ring" => {
            let packet = Packet::open()?;
            let set = sys::setsockopt(packet.socket.as_fd(), SOL_PACKET, PACKET_QDISC_BYPASS, &1_i32);
            packet.send_by_ring(&forged())?;
            set
        }
        "bypass by 32 bits" => {
            let packet = Packet::open()?;
            let set = sys::setsockopt_32(packet.socket.as_fd(), SOL_PACKET, PACKET_QDISC_BYPASS, 1);
            packet.send(&forged())?;
            set.unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::ENOSYS)))
        }
        "AF_XDP" => {
            let socket = sys::socket(libc::AF_XDP, libc::SOCK_RAW)?;
            // struct xdp_umem_reg: no address is needed to be refused.
            sys::setsockopt(socket.as_fd(), SOL_XDP, XDP_UMEM_REG, &[0_u64; 4])
        }
        "raw IP" => raw_ip(),
        "other options" => other_options(),
        "bpf: detach the first program" => {
            // BPF_PROG_DETACH {target_ifindex, attach_bpf_fd, attach_type, attach_flags: BPF_F_BEFORE}, tcx/egress.
            let index = nix::net::if_::if_nametoindex(LINK)?;
            sys::bpf(9, &mut [index, 0, 47, 1 << 3, 0, 0, 0, 0])
        }
        // By id, as `bpftool link detach` does: BPF_LINK_GET_FD_BY_ID of every id that is likely.
        "bpf: open links" => {
            let opened = (1..4096_u32).map(|id| sys::bpf(30, &mut [id, 0, 0, 0]));
            let refused = |result: &io::Result<()>| {
                result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
            };
            assert!(opened.into_iter().all(|result| refused(&result)), "a link was opened");
            Err(io::Error::from_raw_os_error(libc::EPERM))
        }
        "bpf: load a program" => {
            // BPF_PROG_LOAD of `r0 = 0; exit` as XDP.
            const CODE: [u64; 2] = [0xb7, 0x95];
            const LICENSE: [u8; 4] = *b"GPL\0";
            static PROGRAM: ([u64; 2], [u8; 4]) = (CODE, LICENSE);
            let addresses = [PROGRAM.0.as_ptr() as u64, PROGRAM.1.as_ptr() as u64];
            sys::bpf(5, &mut [6 | 2_u64 << 32, addresses[0], addresses[1], 0, 0, 0, 0, 0])
        }
        other => panic!("no attack {other:?}"),
    }
}

/// Everything that is not refused works as before, values longer than a page among them.
fn other_options() -> io::Result<()> {
    let udp = std::net::UdpSocket::bind("0.0.0.0:0")?;
    sys::setsockopt(udp.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &65_536_i32)?;
    sys::setsockopt(udp.as_fd(), libc::IPPROTO_IP, libc::IP_TTL, &7_i32)?;
    assert_eq!(udp.ttl()?, 7);
    sys::setsockopt_bytes(udp.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"net1\0")?;
    let packet = Packet::open()?;
    sys::setsockopt(packet.socket.as_fd(), SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
    // IP_MSFILTER with 1020 sources: 16 bytes and 4 each, more than a page. The group must have been joined.
    let group = std::net::Ipv4Addr::new(224, 0, 0, 251);
    let index = nix::net::if_::if_nametoindex("lo")?.cast_signed();
    sys::setsockopt(udp.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &0_i32)?;
    let [a, b, c, d] = group.octets();
    sys::setsockopt(
        udp.as_fd(),
        libc::IPPROTO_IP,
        libc::IP_ADD_MEMBERSHIP,
        &[i32::from_ne_bytes([a, b, c, d]), 0, index],
    )?;
    let long = sys::setsockopt_bytes(udp.as_fd(), libc::IPPROTO_IP, libc::MCAST_MSFILTER, &vec![0; 140_000]);
    // Its own check of the length, not the hook's, which would be EFAULT or EPERM.
    match long {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINVAL)) => Ok(()),
        other => other,
    }
}

fn raw_ip() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), Some(SockProtocol::Raw))?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &LINK.into())?;
    let whole = frame(FORGED_MAC, FORGED_MAC, FORGED);
    let to: SockaddrIn = format!("{PEER}:0").parse().expect("an address");
    for _ in 0..FRAMES {
        // IPPROTO_RAW implies IP_HDRINCL. A dropped frame is told as ENOBUFS, which is no refusal to send.
        dropped(sendto(socket.as_raw_fd(), &whole[14..], &to, MsgFlags::empty()))?;
    }
    Ok(())
}

/// What a program dropped comes back as `ENOBUFS` (`NET_XMIT_DROP`).
fn dropped(result: nix::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) | Err(nix::errno::Errno::ENOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Packet {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Packet {
    fn open() -> io::Result<Self> {
        let device = std::env::var(crate::pod::DEVICE).unwrap_or_else(|_| LINK.to_owned());
        let link = nix::ifaddrs::getifaddrs()?
            .filter(|entry| entry.interface_name == device)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .ok_or_else(|| io::Error::other("the link has no address"))?;
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), Some(SockProtocol::EthAll))?;
        bind(socket.as_raw_fd(), &link)?;
        Ok(Self { socket, link })
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        for _ in 0..FRAMES {
            dropped(sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty()))?;
        }
        Ok(())
    }

    /// Through shared memory: a ring of one page with two slots.
    fn send_by_ring(&self, frame: &[u8]) -> io::Result<()> {
        sys::setsockopt(self.socket.as_fd(), SOL_PACKET, PACKET_TX_RING, &[4096_u32, 1, 2048, 2])?;
        sys::fill_ring(self.socket.as_fd(), frame)?;
        dropped(nix::sys::socket::send(self.socket.as_raw_fd(), &[], MsgFlags::empty()))
    }
}
