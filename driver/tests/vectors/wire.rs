//! Two pods on an isolated network, on real veth pairs: what test runs cannot show, as they redirect nowhere.

use std::path::PathBuf;
use std::process::{Command, Output};

use aya::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use netferry_common::endpoint::{ADDR_OWN, READY};
use netferry_common::{
    Addr, Address, AddressKey, CounterKey, Direction, ENDPOINT_GLOBAL, Endpoint, Fast, Member, MemberKey,
    Slot, Traffic, maps, slot,
};

use super::bench::object;

const NETWORK: u32 = 11;

/// Two namespaces with a veth pair each, and the programs on the host ends.
struct Wire {
    tag: String,
    pins: PathBuf,
    pods: Vec<Ebpf>,
}

fn ip(arguments: &str) -> Output {
    Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed")
}

fn must(arguments: &str) {
    let output = ip(arguments);
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mac(pod: u8) -> [u8; 6] {
    [2, 0x4e, 0x46, 0, 0, pod]
}

fn addresses(pod: u8) -> [Addr; 3] {
    let mut v6 = [0; 16];
    v6[..2].copy_from_slice(&[0xfd, 0x4e]);
    v6[15] = pod;
    [Addr::v4([10, 111, 0, pod]), Addr::v6(v6), Addr::link_local(mac(pod))]
}

impl Wire {
    fn new() -> Self {
        let tag = format!("nf-w{}", std::process::id());
        let pins = PathBuf::from("/sys/fs/bpf").join(&tag);
        std::fs::create_dir_all(&pins).expect("bpffs is mounted");
        let mut wire = Self { tag, pins, pods: Vec::new() };
        for pod in [1, 2] {
            wire.add(pod);
        }
        wire
    }

    fn host_end(&self, pod: u8) -> String {
        format!("{}h{pod}", self.tag)
    }

    fn add(&mut self, pod: u8) {
        let (space, host, inside) =
            (format!("{}-{pod}", self.tag), self.host_end(pod), format!("{}p{pod}", self.tag));
        let [.., e] = mac(pod);
        must(&format!("netns add {space}"));
        must(&format!("link add {host} type veth peer name {inside} address 02:4e:46:00:00:{e:02x}"));
        must(&format!("link set {inside} netns {space}"));
        must(&format!("-n {space} link set {inside} name eth0"));
        must(&format!("-n {space} addr add 10.111.0.{pod}/24 dev eth0"));
        must(&format!("-n {space} addr add fd4e::{pod}/64 dev eth0 nodad"));
        let index =
            std::fs::read_to_string(format!("/sys/class/net/{host}/ifindex")).expect("the link is there");
        let mut loader = EbpfLoader::new();
        let id = u32::from(pod);
        loader.override_global(ENDPOINT_GLOBAL, &id, true);
        for name in maps::ALL {
            loader.map_pin_path(name, self.pins.join(name));
        }
        let mut ebpf = loader.load_file(object()).expect("the object loads");
        // Where there is no tcx, aya attaches to this.
        aya::programs::tc::qdisc_add_clsact(&host).expect("a clsact qdisc");
        for (name, hook) in [("from_pod", TcAttachType::Ingress), ("to_pod", TcAttachType::Egress)] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().expect("the verifier agrees");
            program.attach(&host, hook).expect("attach");
        }
        self.pods.push(ebpf);
        for addr in addresses(pod) {
            let mut own = HashMap::<_, AddressKey, Address>::try_from(self.map(maps::ADDRESSES)).unwrap();
            own.insert(AddressKey { endpoint: id, addr }, Address { flags: ADDR_OWN, prefix: 24 }, 0)
                .unwrap();
            let mut members = HashMap::<_, MemberKey, Member>::try_from(self.map(maps::MEMBERS)).unwrap();
            let member = Member::new(id, mac(pod));
            members.insert(MemberKey { network: NETWORK, addr }, member, 0).unwrap();
        }
        self.set(pod, 0, index.trim().parse().expect("a number"));
        must(&format!("link set {host} up"));
        must(&format!("-n {space} link set eth0 up"));
    }

    fn map(&mut self, name: &str) -> &mut aya::maps::Map {
        self.pods.last_mut().unwrap().map_mut(name).unwrap()
    }

    fn set(&mut self, pod: u8, flags: u32, ifindex: u32) {
        let mut map = HashMap::<_, u32, Endpoint>::try_from(self.map(maps::ENDPOINTS)).unwrap();
        let id = u32::from(pod);
        let ifindex = if ifindex == 0 { map.get(&id, 0).unwrap().ifindex } else { ifindex };
        let endpoint =
            Endpoint { flags, network: NETWORK, mtu: 1500, policy: 0, ifindex, mac: mac(pod), pad: [0; 2] };
        map.insert(id, endpoint, 0).unwrap();
        let mut slots = Array::<_, Slot>::try_from(self.map(maps::SLOTS)).unwrap();
        slots.set(slot::of(id), Slot::new(id, &endpoint), 0).unwrap();
    }

    fn traffic(&mut self, pod: u8, direction: Direction) -> u64 {
        let fast = PerCpuArray::<_, Fast>::try_from(self.map(maps::FAST)).unwrap();
        let fast: u64 = fast
            .get(&slot::of(pod.into()), 0)
            .unwrap()
            .iter()
            .map(|one| if matches!(direction, Direction::FromPod) { one.sent } else { one.received })
            .sum();
        let map = PerCpuHashMap::<_, CounterKey, Traffic>::try_from(self.map(maps::TRAFFIC)).unwrap();
        let key = CounterKey { endpoint: pod.into(), direction: direction.number() };
        fast + map.get(&key, 0).map_or(0, |values| values.iter().map(|one| one.packets).sum::<u64>())
    }

    fn ping(&self, from: u8, options: &str, to: &str) -> bool {
        ip(&format!("netns exec {}-{from} ping {options} -i 0.02 -W 1 {to}", self.tag)).status.success()
    }

    /// Frames the host end was given to send into the pod.
    fn sent_through_host_end(&self, pod: u8) -> u64 {
        let path = format!("/sys/class/net/{}/statistics/tx_packets", self.host_end(pod));
        std::fs::read_to_string(path).expect("the link is there").trim().parse().expect("a number")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for pod in [1, 2] {
            ip(&format!("link del {}", self.host_end(pod)));
            ip(&format!("netns del {}-{pod}", self.tag));
        }
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

#[test]
fn two_pods_reach_each_other_and_only_when_ready() {
    let mut wire = Wire::new();
    assert!(!wire.ping(1, "-c 2", "10.111.0.2"), "neither is ready");
    wire.set(1, READY, 0);
    assert!(!wire.ping(1, "-c 2", "10.111.0.2"), "the receiver is not ready");
    wire.set(2, READY, 0);
    assert!(wire.ping(1, "-c 5", "10.111.0.2"), "IPv4");
    assert!(wire.ping(2, "-c 5", "fd4e::1"), "IPv6");
    assert!(wire.ping(1, "-c 3 -s 4000", "10.111.0.2"), "IPv4 in fragments");
    assert!(wire.ping(1, "-c 3 -s 4000", "fd4e::2"), "IPv6 in fragments");

    let (counted, through_host) = (wire.traffic(2, Direction::ToPod), wire.sent_through_host_end(2));
    assert!(wire.ping(1, "-c 50", "10.111.0.2"));
    assert!(wire.traffic(2, Direction::ToPod) >= counted + 50, "each frame is counted for the receiver");
    let through_host = wire.sent_through_host_end(2) - through_host;
    assert!(through_host < 10, "{through_host} of 50 frames went through the host end: not the fast path");

    wire.set(2, 0, 0);
    assert!(!wire.ping(1, "-c 2", "10.111.0.2"), "the gate of the receiver is closed again");
}
