//! Packet sockets: what is sent from a link, and what is seen at one.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv, sendto};

/// A packet socket on a link of the thread's namespace; it stays there, wherever it is used from.
pub(crate) struct Tap {
    sockets: Vec<OwnedFd>,
    link: LinkAddr,
}

impl Tap {
    /// For sending, and for everything that is received before any program.
    pub(crate) fn new(link: &str) -> Self {
        Self::of(link, &[libc::ETH_P_ALL])
    }

    /// For what the programs of the link's ingress let through to the host: sockets for one protocol are asked after tc.
    pub(crate) fn behind_programs(link: &str) -> Self {
        Self::of(link, &[libc::ETH_P_IP, libc::ETH_P_IPV6, libc::ETH_P_ARP, libc::ETH_P_8021Q])
    }

    fn of(link: &str, protocols: &[i32]) -> Self {
        let address = nix::ifaddrs::getifaddrs()
            .expect("getifaddrs")
            .filter(|entry| entry.interface_name == link)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .expect(link);
        let open = |protocol: &i32| {
            let protocol = u16::try_from(*protocol).expect("16 bits").to_be();
            // SAFETY: no pointers in this call.
            let fd = unsafe {
                libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                    i32::from(protocol),
                )
            };
            assert!(fd >= 0, "packet socket: {}", std::io::Error::last_os_error());
            // SAFETY: the kernel has just made this descriptor for us.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            bind(socket.as_raw_fd(), &address).expect("bind to the link");
            socket
        };
        Self { sockets: protocols.iter().map(open).collect(), link: address }
    }

    /// Sends around the queueing discipline from now on.
    pub(crate) fn bypass(self) -> Self {
        let on: libc::c_int = 1;
        for socket in &self.sockets {
            // SAFETY: the option is an int that outlives the call.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_QDISC_BYPASS,
                    (&raw const on).cast(),
                    4,
                )
            };
            assert_eq!(result, 0, "PACKET_QDISC_BYPASS: {}", std::io::Error::last_os_error());
        }
        self
    }

    /// Sends a frame. `false`: the kernel dropped it, as at a program.
    pub(crate) fn send(&self, frame: &[u8]) -> bool {
        match sendto(self.sockets[0].as_raw_fd(), frame, &self.link, MsgFlags::empty()) {
            Ok(length) => {
                assert_eq!(length, frame.len());
                true
            }
            Err(nix::errno::Errno::ENOBUFS) => false,
            Err(error) => panic!("send: {error}"),
        }
    }

    /// Frames since the last call that satisfy `wanted`, those that this link itself sent left out.
    pub(crate) fn seen(&self, mut wanted: impl FnMut(&[u8]) -> bool) -> usize {
        let mut frame = [0; 2048];
        let mut count = 0;
        let own = self.link.addr().expect("a hardware address");
        for socket in &self.sockets {
            while let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                count += usize::from(length > 14 && frame[6..12] != own && wanted(&frame[..length]));
            }
        }
        count
    }
}
