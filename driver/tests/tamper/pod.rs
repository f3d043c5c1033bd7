//! A pod with a moved strict link, the processes in it, and the wire's other end.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use netferry::datapath::{Datapath as _, EndpointId};
use netferry::link::MacAddr;

use crate::attack::{LINK, MARK, PEER};
use crate::support::skip;
use crate::world::{MAC, World};
use crate::{attack, support::netns::NetNs};

pub(crate) const ATTACK: &str = "NETFERRY_TEST_ATTACK";
pub(crate) const DEVICE: &str = "NETFERRY_TEST_DEVICE";
pub(crate) const OWN_MAC: &str = "NETFERRY_TEST_OWN_MAC";
pub(crate) const PEER_MAC: &str = "NETFERRY_TEST_PEER_MAC";
/// Before what the hostile process says.
pub(crate) const SAID: &str = "the attack ended with ";

/// The host end of the wire is moved; this end stays.
const WIRE: &str = "far7";
/// NET_ADMIN and NET_RAW, as /proc/PID/status has it.
const CAPABILITIES: &str = "CapEff:\t0000000000003000";

/// Into the cgroup, out of sight of the host's bpf file system and cgroups, into the network namespace, and all other
/// capabilities away.
const ENTER: &str = r#"
[ -z "$CGROUP" ] || echo $$ > "$CGROUP/cgroup.procs" || exit 120
exec unshare --mount sh -c '
    mount -t tmpfs none /sys/fs/bpf && mount -t tmpfs none /sys/fs/cgroup || exit 121
    exec nsenter --net="$NETNS" /usr/bin/setpriv --no-new-privs --bounding-set=-all,+net_admin,+net_raw \
        --inh-caps=-all,+net_admin,+net_raw "$@"' sh "$@"
"#;

/// What came of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Done,
    Error(i32),
}

pub(crate) struct Pod {
    pub(crate) world: World,
    endpoint: EndpointId,
    pub(crate) peer: MacAddr,
    wire: Wire,
}

impl Pod {
    /// `None`, and the reason printed, where the machine cannot.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let mut world = World::new(test)?;
        world.claim();
        // Down when it is claimed: so it gets the early drop, which the pod is to be kept from taking off. This is its home
        // then: without the routes and IPv6 addresses that it loses when it goes down.
        world.host.ip("link set eth7 down");
        world.before = world.host.snapshot();
        let attacher = world.places.attacher();
        attacher.protect("c7").await;
        let outcome = attacher.attach(&world.places.sandbox()).await.expect("attach");
        let endpoint = outcome.attached.iter().find_map(|it| it.endpoint).expect("an endpoint");
        let address = world.peer.link(WIRE).expect("the wire")["address"].as_str().expect("MAC").to_owned();
        let wire = Wire::listen(&world.peer);
        let pod = Self { world, endpoint, peer: address.parse().expect("a hardware address"), wire };
        // Resolved, so that a raw socket's packets are sent at once.
        pod.world.pod.ip(&format!("neigh replace {PEER} lladdr {address} dev {LINK} nud permanent"));
        let status = pod.exec(&["cat", "/proc/self/status"]);
        assert!(status.contains(CAPABILITIES), "the process in the pod has other capabilities: {status}");
        Some(pod)
    }

    /// Likewise, where pods are guarded too.
    pub(crate) async fn guarded(test: &str) -> Option<Self> {
        let pod = Self::new(test).await?;
        if pod.world.places.cgroup_folder().is_none() {
            skip(test, "no cgroup v2 on this machine");
            return None;
        }
        assert!(pod.guards().contains(&"cgroup/setsockopt".to_owned()), "{:?}", pod.guards());
        Some(pod)
    }

    /// Runs a program in the pod.
    pub(crate) fn process(&self, words: &[&str]) -> Output {
        let places = &self.world.places;
        Command::new("sh")
            .args(["-c", ENTER, "sh"])
            .args(words)
            .env("CGROUP", places.cgroup_folder().unwrap_or_default())
            .env("NETNS", &places.pod)
            .env(OWN_MAC, MAC.to_string())
            .env(PEER_MAC, self.peer.to_string())
            .output()
            .expect("sh")
    }

    /// Its output, or a panic with what it said.
    pub(crate) fn exec(&self, words: &[&str]) -> String {
        let output = self.process(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {} {stderr}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs an attack as a process in the pod.
    pub(crate) fn attack(&self, name: &str) -> Said {
        self.attack_on(LINK, name)
    }

    /// Likewise by another device of the pod.
    pub(crate) fn attack_on(&self, device: &str, name: &str) -> Said {
        let binary = std::env::current_exe().expect("this binary");
        let variable = format!("{ATTACK}={name}");
        let binary = binary.to_str().expect("UTF-8 path");
        let device = format!("{DEVICE}={device}");
        let words = ["env", &variable, &device, binary, "--exact", "process_in_the_pod", "--nocapture"];
        let output = self.exec(&words);
        // The test harness writes before it, on the same line.
        let said = output.lines().find_map(|line| line.split_once(SAID)).expect(&output).1;
        if said.starts_with("done") {
            Said::Done
        } else {
            Said::Error(said.trim().parse().expect("a number"))
        }
    }

    /// Drops of the endpoint for a reason.
    pub(crate) fn drops(&self, reason: &str) -> u64 {
        let stats = self.world.places.datapath().stats(self.endpoint).expect("stats");
        stats.drops.get(reason).copied().unwrap_or(0)
    }

    /// The guards in force.
    pub(crate) fn guards(&self) -> Vec<String> {
        let guards = self.world.places.datapath().guards(self.endpoint).expect("guards");
        guards.into_iter().map(|guard| guard.hook).collect()
    }

    /// As somebody with the host's bpf file system could.
    pub(crate) fn remove_guards(&self) {
        for guard in self.world.places.datapath().guards(self.endpoint).expect("guards") {
            std::fs::remove_file(guard.pin).expect("unpin");
        }
        // The kernel detaches a moment after the last reference is gone.
        let pins = self.world.places.pins.join("links").join(self.endpoint.to_string());
        assert!(pins.join("egress").exists() && !pins.join("sockopt").exists());
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Frames with the mark that came out of the wire since the last call, exactly so many.
    #[track_caller]
    pub(crate) fn expect_arrived(&self, frames: usize, what: &str) {
        let (end, mut seen) = (Instant::now() + Duration::from_secs(5), 0);
        while seen < frames && Instant::now() < end {
            seen += self.wire.marked();
        }
        // None too many: what was sent is over the wire when the sender returns.
        std::thread::sleep(Duration::from_millis(30));
        seen += self.wire.marked();
        assert_eq!(seen, frames, "{what}");
    }

    /// The programs are on the link and first, the pod is heard, and the link comes home as it was.
    pub(crate) async fn assert_unharmed(self, when: &str) {
        self.assert_protected(when);
        let returned = self.world.places.attacher().give_back("s1").await;
        assert_eq!(returned.problems, [], "{when}");
        self.world.assert_home(when);
    }

    /// The programs are on the link, and first.
    #[track_caller]
    pub(crate) fn assert_protected(&self, when: &str) {
        let datapath = self.world.places.datapath();
        let index = datapath.attached_ifindex(self.endpoint).expect("pins").expect("a device");
        let verified = self.world.pod.run({
            let (pins, endpoint) = (self.world.places.pins.clone(), self.endpoint);
            move || {
                let datapath = netferry::datapath::AyaDatapath::open(&pins).expect("datapath");
                datapath.verify_inside(endpoint, index)
            }
        });
        assert_eq!(verified.expect(when).len(), 2, "{when}");
        assert_eq!(self.attack("packet honest"), Said::Done, "{when}");
        self.expect_arrived(attack::FRAMES, when);
    }
}

/// Listens at the far end for frames with the mark.
struct Wire(std::os::fd::OwnedFd);

impl Wire {
    fn listen(peer: &NetNs) -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, socket};
        use std::os::fd::AsRawFd as _;
        peer.run(|| {
            let address = nix::ifaddrs::getifaddrs()
                .expect("getifaddrs")
                .filter(|entry| entry.interface_name == WIRE)
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .expect(WIRE);
            let flags = SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
                .expect("packet socket");
            bind(socket.as_raw_fd(), &address).expect("bind");
            Self(socket)
        })
    }

    /// Frames with the mark, other than errors about one.
    fn marked(&self) -> usize {
        use std::os::fd::AsRawFd as _;
        let mut frame = [0; 2048];
        let mut count = 0;
        let none = nix::sys::socket::MsgFlags::empty();
        while let Ok(length) = nix::sys::socket::recv(self.0.as_raw_fd(), &mut frame, none) {
            let frame = &frame[..length];
            // The peer's answer to a datagram nobody takes has the datagram in it.
            let is_error = frame.len() > 23 && frame[12..14] == [8, 0] && frame[23] == 1;
            count += usize::from(!is_error && frame.windows(MARK.len()).any(|window| window == MARK));
        }
        count
    }
}

/// Whether the kernel asks BPF as a security module, told by a security file system of our own.
pub(crate) fn bpf_is_a_security_module() -> bool {
    let place = tempfile::tempdir().expect("folder");
    let script = r#"mount -t securityfs none "$1" && cat "$1/lsm""#;
    let place: &Path = place.path();
    let place = place.to_str().expect("UTF-8 path");
    let output = Command::new("unshare").args(["--mount", "sh", "-c", script, "sh", place]).output();
    let modules = String::from_utf8(output.expect("unshare").stdout).expect("UTF-8");
    modules.trim().split(',').any(|name| name == "bpf")
}
