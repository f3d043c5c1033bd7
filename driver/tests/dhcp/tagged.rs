//! A tagged wire for a machine without VLAN links: frames of one VLAN on one link are those of another without the tag.

use std::{
    io::Read as _,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::support::netns::NetNs;

/// Ends with its guard.
pub(crate) struct Tagger {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Tagger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Tagger {
    /// Between the links `tagged` and `plain` of a namespace.
    pub(crate) fn start(netns: &NetNs, tagged: &'static str, plain: &'static str, vlan: u16) -> Self {
        let (tagged, plain) = netns.run(move || (socket(tagged), socket(plain)));
        tagged.attach_filter(&only(vlan)).expect("filter");
        let (tagged, plain, stop) = (Arc::new(tagged), Arc::new(plain), Arc::new(AtomicBool::new(false)));
        let ways = [(Arc::clone(&tagged), Arc::clone(&plain), None), (plain, tagged, Some(vlan))];
        let threads = ways.map(|(from, to, tag)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || carry(&from, &to, tag, &stop))
        });
        Self { stop, threads: threads.into() }
    }
}

fn carry(mut from: &Socket, to: &Socket, tag: Option<u16>, stop: &AtomicBool) {
    let mut frame = vec![0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = from.read(&mut frame) else { continue };
        let mut whole = frame[..length].to_vec();
        if let Some(vlan) = tag {
            let [high, low] = vlan.to_be_bytes();
            whole.splice(12..12, [0x81, 0, high, low]);
        }
        let _ = to.send(&whole);
    }
}

fn socket(link: &str) -> Socket {
    let everything = u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be();
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(everything)))).expect("socket");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let mut links = getifaddrs().expect("links").filter(|it| it.interface_name == link);
    let address = links.find_map(|it| it.address?.as_link_addr().copied()).expect("the link");
    nix::sys::socket::bind(socket.as_raw_fd(), &address).expect("bind");
    socket
}

/// Frames that came in with the tag, which the kernel has taken out of them: classic BPF.
fn only(vlan: u16) -> [SockFilter; 5] {
    [
        SockFilter::new(0x20, 0, 0, 0xffff_f000 + 44),
        SockFilter::new(0x54, 0, 0, 0xfff),
        SockFilter::new(0x15, 0, 1, u32::from(vlan)),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ]
}
