//! Nodes with pods, each in a network namespace of its own, and the wire between them. All of it goes with its guards.

#[path = "../support/ports.rs"]
mod ports;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netferry::datapath::policy::Policy;
use netferry::datapath::{AyaDatapath, Datapath as _, EndpointSpec, NetworkMember, NetworkUplink, Placement};
use netferry::link::kernel::KernelLinks;
use netferry::link::{Links as _, MacAddr, Namespace, Pair};

use crate::netns::{NetNs, unique};
use ports::ports;

/// The link of a node that leads to the others.
pub(crate) const UPLINK: &str = "u0";

/// A node: its host's namespace, and the programs on it.
pub(crate) struct Node {
    pub(crate) host: NetNs,
    pub(crate) datapath: Arc<AyaDatapath>,
    root: PathBuf,
}

/// A pod on a node. The namespace goes with it.
pub(crate) struct Pod {
    pub(crate) netns: NetNs,
    pub(crate) id: u32,
    mac: MacAddr,
    addresses: Vec<IpAddr>,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

impl Node {
    pub(crate) fn new() -> Self {
        let root = Path::new("/sys/fs/bpf").join(unique("u"));
        let datapath = Arc::new(AyaDatapath::open(&root).expect("open the datapath"));
        Self { host: NetNs::new(), datapath, root }
    }

    /// The same, as found again by another process.
    pub(crate) fn open_again(&self) -> AyaDatapath {
        AyaDatapath::open(&self.root).expect("open the datapath again")
    }

    /// Runs something with the datapath in the host's namespace.
    pub(crate) fn with<T: Send + 'static>(&self, work: impl FnOnce(&AyaDatapath) -> T + Send + 'static) -> T {
        let datapath = Arc::clone(&self.datapath);
        self.host.run(move || work(&datapath))
    }

    /// Sets the way of a network beyond the node over a link, and attaches the program for what comes back.
    pub(crate) fn uplink(&self, network: u32, link: &str, uplink: NetworkUplink) {
        let ifindex = self.host.ifindex(link);
        let uplink = NetworkUplink { ifindex, ..uplink };
        let overlay = matches!(uplink.transport, netferry::datapath::Transport::Overlay { .. });
        self.with(move |datapath| {
            datapath.set_uplink(network, &uplink).expect("set the uplink");
            if overlay { datapath.attach_overlay(ifindex) } else { datapath.attach_uplink(ifindex) }
                .expect("attach the program");
        });
    }

    /// A pod with addresses `10.9.0.<last>/24` and `fd09::<last>/64`, ready.
    pub(crate) fn pod(&self, id: u32, network: u32, last: u8, mtu: u32) -> Pod {
        let netns = NetNs::new();
        let (outer, mac) =
            (format!("p{id}"), MacAddr([2, 0x4e, 0x46, 0, u8::try_from(network).unwrap(), last]));
        let kind = ports();
        let links = KernelLinks::with_host(&self.host.path);
        let pair = Pair {
            kind,
            host_name: outer.clone(),
            pod: Namespace::at(&netns.path),
            pod_name: "eth0".to_owned(),
            pod_mac: mac,
            mtu,
        };
        let wait = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        wait.block_on(links.make_pair(&pair)).expect("a pair");
        netns.ip(&format!("addr add 10.9.0.{last}/24 dev eth0"));
        netns.ip(&format!("addr add fd09::{last:x}/64 dev eth0 nodad"));
        let spec = EndpointSpec {
            id,
            placement: Placement::HostVeth,
            network,
            mac,
            addresses: [format!("10.9.0.{last}/24"), format!("fd09::{last:x}/64")]
                .map(|text| text.parse().expect("a network"))
                .to_vec(),
            mtu,
        };
        let addresses = spec.addresses.iter().map(ipnetwork::IpNetwork::ip).collect();
        let ifindex = self.host.ifindex(&outer);
        self.with(move |datapath| {
            datapath.attach(ifindex, &spec).expect("attach");
            datapath.set_ready(id, true).expect("ready");
        });
        wait.block_on(links.open_pair(ifindex, kind)).expect("open the pair");
        self.host.ip(&format!("link set {outer} up"));
        netns.ip("link set eth0 up");
        Pod { netns, id, mac, addresses }
    }

    /// Tells the node of a pod on another node, with the end of the tunnel there. The network has its own number here.
    pub(crate) fn knows(&self, network: u32, pod: &Pod, node: Option<&str>) {
        let node = node.map(|text| text.parse().expect("an address"));
        let link_local = netferry_common::Addr::link_local(pod.mac.0).into();
        for address in pod.addresses.iter().copied().chain([link_local]) {
            let member = NetworkMember { network, address, endpoint: None, node, mac: pod.mac };
            self.datapath.set_member(&member).expect("set the member");
        }
    }

    pub(crate) fn policy(&self, pod: &Pod, text: &str) {
        let policy: Policy = serde_yaml_ng::from_str(text).expect("a policy");
        self.datapath.set_policy(pod.id, &policy).expect("set the policy");
    }

    /// Frames of a pod that took each way, both directions: uplink, tunnel.
    pub(crate) fn beyond(&self, pod: &Pod) -> [u64; 2] {
        let stats = self.datapath.stats(pod.id).expect("counters");
        [stats.from_pod.uplink + stats.to_pod.uplink, stats.from_pod.overlay + stats.to_pod.overlay]
    }
}

/// Two hosts on a wire, with `10.77.0.<n>/24` and `fd77::<n>/64`.
pub(crate) fn wire(one: &NetNs, other: &NetNs) {
    one.ip(&format!("link add {UPLINK} type veth peer name {UPLINK} netns {}", other.name));
    for (host, last) in [(one, 1), (other, 2)] {
        host.ip(&format!("addr add 10.77.0.{last}/24 dev {UPLINK}"));
        host.ip(&format!("addr add fd77::{last}/64 dev {UPLINK} nodad"));
        host.ip(&format!("link set {UPLINK} up"));
    }
    for host in [one, other] {
        host.settle();
    }
}

impl Pod {
    pub(crate) fn address(&self, v4: bool) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv4() == v4).expect("one of each family")
    }
}

/// What `ping` says to one echo request, if it is answered or refused.
pub(crate) fn ping(from: &NetNs, options: &str, to: impl std::fmt::Display) -> Result<String, String> {
    from.try_exec(&format!("ping -n -c 1 -W 5 {options} {to}"))
}

/// Whether an echo request is answered, within so many tries of a second each.
pub(crate) fn answers(from: &NetNs, options: &str, to: impl std::fmt::Display) -> bool {
    (0..5).any(|_| from.try_exec(&format!("ping -n -c 1 -W 1 {options} {to}")).is_ok())
}

/// Whether echo requests are left without an answer.
pub(crate) fn silent(from: &NetNs, options: &str, to: impl std::fmt::Display) -> bool {
    from.try_exec(&format!("ping -n -c 2 -i 0.2 -W 1 {options} {to}")).is_err()
}

/// Sends that many bytes over TCP, and counts what arrived.
pub(crate) fn stream(from: &NetNs, to: &NetNs, address: IpAddr, bytes: usize) -> usize {
    let listener = to.run(move || TcpListener::bind(SocketAddr::new(address, 0)).expect("listen"));
    let port = listener.local_addr().expect("bound").port();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("read to the end");
        received.len()
    });
    from.run(move || {
        let mut stream = TcpStream::connect((address, port)).expect("connect");
        stream.write_all(&vec![0x5a; bytes]).expect("write");
    });
    reader.join().expect("the reader")
}
