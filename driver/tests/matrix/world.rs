//! A node with pods, an uplink and a machine beyond it, each in a namespace of its own. All of it goes with the guard.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use netferry::datapath::{AyaDatapath, Datapath as _, EndpointSpec, Placement};
use netferry::link::MacAddr;

use crate::frames::Station;
use crate::host::{ifindex, run};
use crate::oracle::Destination;
use crate::tap::Tap;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Endpoint ids of the pods.
pub(crate) const SENDER: u32 = 1;
pub(crate) const MEMBER: u32 = 2;
const STRANGER: u32 = 3;

/// The node is the thread's own namespace; it forwards whatever the programs leave it.
pub(crate) struct Node {
    pub(crate) pins: PathBuf,
    tag: String,
    /// Where frames may come out.
    pub(crate) taps: Vec<(Destination, Tap)>,
}

const fn station(mac: u8, network: u8, host: u8) -> Station {
    let mut v6 = [0; 16];
    (v6[0], v6[1], v6[15]) = (0xfd, network, host);
    Station { mac: [2, 0x4e, 0x46, 0, network, mac], v4: [10, network, 0, host], v6 }
}

/// The pod that sends.
pub(crate) const POD: Station = station(1, 11, 1);
/// Another pod on its network, or for a moved link the host on its wire.
pub(crate) const PEER: Station = station(2, 11, 2);
/// Nobody's address on its network, and nobody's hardware address.
pub(crate) const NOBODY: Station = station(0x77, 11, 77);
/// A pod on another network.
const OTHER: Station = station(3, 12, 3);
/// The node, at the end of the pair that the sender's packets come out of.
const HOST: Station = station(0xfe, 10, 1);
const UPLINK: Station = station(4, 20, 2);
const OUTSIDE: Station = station(5, 30, 2);

/// Who is at a destination.
pub(crate) fn station_at(to: Destination) -> Station {
    match to {
        Destination::Same => PEER,
        Destination::Other => OTHER,
        Destination::Host => HOST,
        Destination::Uplink => UPLINK,
        Destination::Outside => OUTSIDE,
    }
}

pub(crate) fn text(station: &Station) -> (String, String, MacAddr) {
    (
        std::net::Ipv4Addr::from(station.v4).to_string(),
        std::net::Ipv6Addr::from(station.v6).to_string(),
        MacAddr(station.mac),
    )
}

pub(crate) fn spec(id: u32, placement: Placement, network: u32, station: &Station) -> EndpointSpec {
    let (v4, v6, mac) = text(station);
    let addresses = [format!("{v4}/24"), format!("{v6}/64")].map(|text| text.parse().expect("a network"));
    EndpointSpec { id, placement, network, mac, addresses: addresses.to_vec(), mtu: 1500 }
}

impl Node {
    pub(crate) fn new() -> Self {
        let tag = format!("nf-mx-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
        let node = Self { pins: PathBuf::from("/sys/fs/bpf").join(&tag), tag, taps: Vec::new() };
        no_reports(None);
        for space in ["pod", "peer", "other", "uplink", "outside"] {
            run(&format!("ip netns add {}", node.space(space)));
            no_reports(Some(&node.space(space)));
        }
        run("ip link set lo up");
        let (v4, v6, _) = text(&HOST);
        run(&format!("ip addr add {v4}/32 dev lo"));
        run(&format!("ip addr add {v6}/128 dev lo nodad"));
        forward(None);
        node
    }

    pub(crate) fn space(&self, of: &str) -> String {
        format!("{}-{of}", self.tag)
    }

    pub(crate) fn datapath(&self) -> AyaDatapath {
        AyaDatapath::open(&self.pins).expect("open the datapath")
    }

    /// Runs something on a thread in a namespace.
    pub(crate) fn within<T: Send + 'static>(&self, of: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/run/netns/{}", self.space(of));
        let inside = std::thread::spawn(move || {
            let netns = std::fs::File::open(path).expect("the namespace");
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A pair: `eth0` in a namespace with a station's addresses, and a host end; the node routes to it.
    pub(crate) fn pair(&self, of: &str, station: &Station) -> String {
        let (space, host) = (self.space(of), format!("h-{of}"));
        let (v4, v6, mac) = text(station);
        run(&format!("ip link add {host} type veth peer name eth0 address {mac} netns {space}"));
        run(&format!("ip link set {host} address {}", MacAddr(HOST.mac)));
        quiet(None, &host);
        run(&format!("ip link set {host} up"));
        for (family, address) in [("-4", &v4), ("-6", &v6)] {
            run(&format!("ip {family} route add {address} dev {host}"));
            run(&format!("ip {family} neigh add {address} lladdr {mac} dev {host} nud permanent"));
        }
        self.inside(of, station, MacAddr(HOST.mac));
        host
    }

    /// Gives `eth0` its addresses, and a way to everywhere through `router`.
    pub(crate) fn inside(&self, of: &str, station: &Station, router: MacAddr) {
        let space = self.space(of);
        let (v4, v6, _) = text(station);
        quiet(Some(&space), "eth0");
        run(&format!("ip -n {space} addr add {v4}/24 dev eth0"));
        run(&format!("ip -n {space} addr add {v6}/64 dev eth0 nodad"));
        run(&format!("ip -n {space} link set eth0 up"));
        let [a, b, ..] = station.v4;
        for (family, via) in [("-4", format!("{a}.{b}.0.254")), ("-6", format!("fd{b:02x}::fe"))] {
            run(&format!("ip -n {space} {family} neigh add {via} lladdr {router} dev eth0 nud permanent"));
            run(&format!("ip -n {space} {family} route add default via {via} dev eth0"));
        }
    }

    /// The uplink with a machine on it, and one beyond.
    pub(crate) fn uplink(&self) {
        let (uplink, outside) = (self.space("uplink"), self.space("outside"));
        let ((u4, u6, u_mac), (o4, o6, o_mac)) = (text(&UPLINK), text(&OUTSIDE));
        run(&format!("ip link add up0 type veth peer name eth0 address {u_mac} netns {uplink}"));
        run(&format!(
            "ip -n {uplink} link add down0 type veth peer name eth0 address {o_mac} netns {outside}"
        ));
        for (space, link, v4, v6) in [
            (None, "up0", "10.20.0.1", "fd14::1"),
            (Some(&uplink), "eth0", u4.as_str(), u6.as_str()),
            (Some(&uplink), "down0", "10.30.0.1", "fd1e::1"),
            (Some(&outside), "eth0", o4.as_str(), o6.as_str()),
        ] {
            let ip = space.map_or_else(|| "ip".to_owned(), |space| format!("ip -n {space}"));
            quiet(space.map(String::as_str), link);
            run(&format!("{ip} addr add {v4}/24 dev {link}"));
            run(&format!("{ip} addr add {v6}/64 dev {link} nodad"));
            run(&format!("{ip} link set {link} up"));
        }
        forward(Some(&uplink));
        // Without a link-local address the kernel asks nobody.
        for (ip, link, v4, v6, mac) in
            [("ip".to_owned(), "up0", &u4, &u6, u_mac), (format!("ip -n {uplink}"), "down0", &o4, &o6, o_mac)]
        {
            run(&format!("{ip} neigh add {v4} lladdr {mac} dev {link} nud permanent"));
            run(&format!("{ip} neigh add {v6} lladdr {mac} dev {link} nud permanent"));
        }
        run("ip route add 10.30.0.0/24 via 10.20.0.2");
        run("ip -6 route add fd1e::/64 via fd14::2");
    }

    /// Taps wherever something may come out: at the pods, the machines, and on the node behind the sender's programs.
    pub(crate) fn tap(&mut self, sender: &str) {
        for (to, of) in [
            (Destination::Same, "peer"),
            (Destination::Other, "other"),
            (Destination::Uplink, "uplink"),
            (Destination::Outside, "outside"),
        ] {
            let tap = self.within(of, || Tap::new("eth0"));
            self.taps.push((to, tap));
        }
        self.taps.push((Destination::Host, Tap::behind_programs(sender)));
    }

    /// Pods on the host ends of pairs: sender and member on one network, a stranger on another. Their endpoints are
    /// attached to `datapath` and ready.
    pub(crate) fn protect(datapath: &AyaDatapath) {
        for (id, of, network, station) in
            [(SENDER, "pod", 11, &POD), (MEMBER, "peer", 11, &PEER), (STRANGER, "other", 12, &OTHER)]
        {
            datapath
                .attach(ifindex(&format!("h-{of}")), &spec(id, Placement::HostVeth, network, station))
                .expect("attach");
            datapath.set_ready(id, true).expect("ready");
        }
    }
}

/// Routes between links, and whatever source a packet says it has.
fn forward(space: Option<&str>) {
    for setting in [
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
        "net.ipv4.conf.all.rp_filter=0",
        "net.ipv4.conf.default.rp_filter=0",
    ] {
        sysctl(space, setting);
    }
}

/// A kernel reports its groups up to a second after it has joined them, and twice. No setting of a link forbids it.
fn no_reports(space: Option<&str>) {
    inside(
        space,
        "nft add table ip6 quiet ; \
         add chain ip6 quiet output { type filter hook output priority 0 ; } ; \
         add rule ip6 quiet output icmpv6 type mld2-listener-report drop",
    );
}

/// No frames of the kernel's own accord: what is counted is what the test sent.
fn quiet(space: Option<&str>, link: &str) {
    for setting in ["accept_ra=0", "autoconf=0", "router_solicitations=0", "addr_gen_mode=1"] {
        sysctl(space, &format!("net.ipv6.conf.{link}.{setting}"));
    }
}

fn sysctl(space: Option<&str>, setting: &str) {
    inside(space, &format!("sysctl -qw {setting}"));
}

/// Runs a command in a namespace, or in the node's own.
fn inside(space: Option<&str>, command: &str) {
    match space {
        Some(space) => run(&format!("ip netns exec {space} {command}")),
        None => run(command),
    };
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.pins);
        for of in ["pod", "peer", "other", "uplink", "outside"] {
            let _ = Command::new("ip").args(["netns", "del", &self.space(of)]).status();
        }
    }
}
