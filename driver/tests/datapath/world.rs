//! A host of its own for each test: a network namespace for the test's thread, a pod's namespace, a veth
//! pair whose one end plays the wire, and a root for pins. All of it goes with the guard.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netferry::datapath::{AyaDatapath, EndpointSpec, Placement};
use netferry::link::MacAddr;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType};

#[path = "../support/skip.rs"]
mod skip;

use skip::skip;

pub(crate) const LINK: &str = "link0";
pub(crate) const WIRE: &str = "wire0";
pub(crate) const LINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0a]);
pub(crate) const WIRE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0b]);
pub(crate) const POD_V4: &str = "192.0.2.10";
pub(crate) const PEER_V4: &str = "192.0.2.20";
pub(crate) const POD_V6: &str = "2001:db8::10";
pub(crate) const PEER_V6: &str = "2001:db8::20";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A root for pins that goes with the guard.
pub(crate) struct Root(pub(crate) PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct World {
    pub(crate) root: PathBuf,
    pub(crate) pod: String,
}

/// Runs a command in the namespace of this thread; its output, or a panic with what it said.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output().expect(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for what the kernel does a moment later.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether tests can run here; says why if not.
pub(crate) fn able(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "needs root");
        return false;
    }
    let on = nix::sys::statfs::statfs("/sys/fs/bpf").expect("sysfs is mounted");
    if on.filesystem_type() != nix::sys::statfs::FsType(libc::BPF_FS_MAGIC) {
        run("mount -t bpf bpf /sys/fs/bpf");
    }
    true
}

impl World {
    /// A veth pair `link0`–`wire0` in a fresh host namespace, the wire configured as the peer.
    pub(crate) fn new() -> Self {
        let name = format!("nf-dp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
        let world = Self { root: Path::new("/sys/fs/bpf").join(&name), pod: name };
        run(&format!("ip netns add {}", world.pod));
        run("ip link set lo up");
        run(&format!("ip link add {LINK} address {LINK_MAC} type veth peer name {WIRE} address {WIRE_MAC}"));
        run(&format!("ip link set {WIRE} up"));
        run(&format!("ip addr add {PEER_V4}/24 dev {WIRE}"));
        run(&format!("ip addr add {PEER_V6}/64 dev {WIRE} nodad"));
        run(&format!("ip neigh add {POD_V4} lladdr {LINK_MAC} dev {WIRE} nud permanent"));
        run(&format!("ip neigh add {POD_V6} lladdr {LINK_MAC} dev {WIRE} nud permanent"));
        world
    }

    pub(crate) fn open(&self) -> AyaDatapath {
        AyaDatapath::open(&self.root).expect("open the datapath")
    }

    /// Another root for pins, as another driver would have.
    pub(crate) fn another_root(&self) -> Root {
        Root(PathBuf::from(format!("{}-other", self.root.display())))
    }

    /// Moves the link into the pod and configures it there; its index there is `index`.
    pub(crate) fn move_link(&self, index: u32) {
        let Self { pod, .. } = self;
        run(&format!("ip link set {LINK} netns {pod} index {index}"));
        run(&format!("ip -n {pod} addr add {POD_V4}/24 dev {LINK}"));
        run(&format!("ip -n {pod} addr add {POD_V6}/64 dev {LINK} nodad"));
        run(&format!("ip -n {pod} link set {LINK} up"));
        run(&format!("ip -n {pod} neigh add {PEER_V4} lladdr {WIRE_MAC} dev {LINK} nud permanent"));
        run(&format!("ip -n {pod} neigh add {PEER_V6} lladdr {WIRE_MAC} dev {LINK} nud permanent"));
        // The kernel notices a carrier up to a second later, and drops what is sent until then.
        let up = || {
            let shown = Command::new("ip").args(["link", "show", "dev", WIRE]).output().expect("ip");
            String::from_utf8_lossy(&shown.stdout).contains("state UP")
        };
        for _ in 0..250 {
            if up() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the wire has no carrier");
    }

    /// Runs something on a thread in the pod's namespace.
    pub(crate) fn in_pod<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn_in_pod(work).join().expect("the thread in the pod")
    }

    pub(crate) fn spawn_in_pod<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let netns = std::fs::File::open(format!("/run/netns/{}", self.pod)).expect("the pod's namespace");
        std::thread::spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
        // Made by `ip link set … xdp obj`; they stay if somebody has pins there.
        let bpffs = Path::new("/sys/fs/bpf");
        let _ = std::fs::remove_dir(bpffs.join("tc/globals"));
        if std::fs::remove_dir(bpffs.join("tc")).is_ok() {
            let _ = std::fs::remove_file(bpffs.join("xdp"));
            let _ = std::fs::remove_file(bpffs.join("ip"));
        }
        let _ = Command::new("ip").args(["netns", "del", &self.pod]).status();
    }
}

/// An object file with an XDP program that lets everything pass.
pub(crate) fn xdp_object() -> tempfile::NamedTempFile {
    object_with("xdp", 2)
}

/// An object file with a program that has one answer for every frame.
pub(crate) fn object_with(section: &str, answer: u8) -> tempfile::NamedTempFile {
    use object::write::{Object, StandardSegment, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};
    // r0 = answer; exit
    let code = [0xb7, 0, 0, 0, answer, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut elf = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let text = elf.segment_name(StandardSegment::Text).to_vec();
    let section = elf.add_section(text, section.as_bytes().to_vec(), SectionKind::Text);
    elf.append_section_data(section, &code, 8);
    elf.add_symbol(Symbol {
        name: b"passes".to_vec(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    let data = elf.segment_name(StandardSegment::Data).to_vec();
    let license = elf.add_section(data, b"license".to_vec(), SectionKind::Data);
    elf.append_section_data(license, b"GPL\0", 1);
    let file = tempfile::Builder::new().prefix("nf-xdp").suffix(".o").tempfile().expect("a file");
    std::fs::write(&file, elf.write().expect("an ELF file")).expect("write");
    file
}

pub(crate) fn spec(id: u32) -> EndpointSpec {
    EndpointSpec {
        id,
        placement: Placement::MovedLink,
        network: 0,
        mac: LINK_MAC,
        addresses: [format!("{POD_V4}/24"), format!("{POD_V6}/64")]
            .map(|text| text.parse().expect("a network"))
            .to_vec(),
        mtu: 1500,
    }
}

pub(crate) fn ifindex(link: &str) -> u32 {
    nix::net::if_::if_nametoindex(link).expect(link)
}

/// A raw packet socket on a link of this thread's namespace.
pub(crate) struct Raw {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Raw {
    pub(crate) fn new(link: &str) -> Self {
        let address = nix::ifaddrs::getifaddrs()
            .expect("getifaddrs")
            .filter(|entry| entry.interface_name == link)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .expect(link);
        let socket = nix::sys::socket::socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )
        .expect("packet socket");
        nix::sys::socket::bind(socket.as_raw_fd(), &address).expect("bind to the link");
        Self { socket, link: address }
    }

    /// Sends one frame; a full queue or a link that is down is no failure of the test.
    pub(crate) fn send(&self, frame: &[u8]) {
        let _ = nix::sys::socket::sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty());
    }

    /// Frames that have come in and satisfy `wanted`.
    pub(crate) fn received(&self, wanted: impl Fn(&[u8]) -> bool) -> usize {
        let mut frame = [0; 2048];
        let mut count = 0;
        while let Ok(length) = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty())
        {
            count += usize::from(wanted(&frame[..length]));
        }
        count
    }
}

/// An Ethernet frame with an IPv4 UDP packet of 4 bytes of data, without UDP checksum.
pub(crate) fn udp_frame(source_mac: MacAddr, dest_mac: MacAddr, source: &str, dest: &str) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("an IPv4 address").octets();
    let builder = etherparse::PacketBuilder::ethernet2(source_mac.0, dest_mac.0)
        .ipv4(octets(source), octets(dest), 64)
        .udp(4000, 4000);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"nfry").expect("a frame");
    frame
}

pub(crate) fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address, 4000)).expect("bind");
    socket.set_nonblocking(true).expect("nonblocking");
    socket
}

/// Sends `count` datagrams; a route or neighbour that is not there is no failure of the test.
pub(crate) fn flood(from: &UdpSocket, to: &str, count: usize) {
    for nth in 0..count {
        let _ = from.send_to(&nth.to_be_bytes(), (to, 4000));
        if nth % 64 == 63 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

pub(crate) fn drain(socket: &UdpSocket) -> usize {
    std::thread::sleep(Duration::from_millis(20));
    let mut data = [0; 64];
    let mut count = 0;
    while socket.recv(&mut data).is_ok() {
        count += 1;
    }
    count
}
