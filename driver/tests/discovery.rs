//! Discovery against real links, in a network namespace of its own.

#[path = "discovery/management.rs"]
mod management;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    future::Future,
    io::Write as _,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use netferry::{
    DRIVER_NAME,
    device::{
        Device, Inventory, MtuRange,
        discover::discover,
        keep::FILE_NAME,
        names::device_name,
        rule::{Reason, Rule, decide},
        sysfs::Sysfs,
        watch::{self, WatchOptions, Watcher},
    },
    publish::slices::slices,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tokio_util::sync::CancellationToken;

/// Run `test` on a thread with a fresh network namespace, and with a sysfs that shows it. Both go with the
/// thread, also when it panics.
fn in_netns<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces (root is needed)");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("private mounts");
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).expect("sysfs");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Run lines of `ip`, each without the leading `ip`.
fn ip(lines: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "{lines}\n{}", String::from_utf8_lossy(&output.stderr));
}

async fn inventory() -> Inventory {
    discover(&Sysfs::default()).await.expect("an inventory")
}

fn device<'a>(inventory: &'a Inventory, ifname: &str) -> &'a Device {
    inventory.devices.get(&device_name(ifname)).unwrap_or_else(|| panic!("{ifname} is in the inventory"))
}

#[test]
fn reads_links_of_every_kind() {
    in_netns(|| async {
        ip("link add nf-br type bridge
            link add nf-v0 address 02:00:00:00:00:01 mtu 1400 type veth peer name nf-v1
            link set nf-v1 master nf-br
            link add nf-p0 type veth peer name nf-p1
            link add link nf-p0 name nf-mv address 02:00:00:00:00:02 type macvlan mode bridge
            link add nf-vx type vxlan id 7 dstport 4789
            tuntap add nf-tun mode tap
            link set nf-mv alias uplink-of-rack-7
            addr add 192.0.2.7/24 dev nf-mv
            addr add 2001:db8::7/64 dev nf-mv nodad
            addr add 192.0.2.8/24 dev nf-mv
            link set nf-p0 up
            link set nf-p1 up
            link set nf-mv up
            ");
        // The kernel works out the state a little later.
        let mut inventory = inventory().await;
        let end = Instant::now() + Duration::from_secs(5);
        while device(&inventory, "nf-mv").oper_state != "up" && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
            inventory = discover(&Sysfs::default()).await.expect("an inventory");
        }
        let macvlan = device(&inventory, "nf-mv");
        assert_eq!(
            macvlan,
            &Device {
                name: "nf-mv".to_owned(),
                ifname: "nf-mv".to_owned(),
                ifindex: macvlan.ifindex,
                mtu_range: MtuRange { least: 68, greatest: 65535 },
                kind: Some("macvlan".to_owned()),
                mac: "02:00:00:00:00:02".parse().ok(),
                mtu: 1500,
                oper_state: "up".to_owned(),
                addresses: ["192.0.2.7/24", "192.0.2.8/24", "2001:db8::7/64"]
                    .map(|text| text.parse().expect("an address"))
                    .to_vec(),
                speed_mbps: macvlan.speed_mbps,
                is_virtual: true,
                alias: Some("uplink-of-rack-7".to_owned()),
                parent: Some("nf-p0".to_owned()),
                ..Device::default()
            }
        );
        let veth = device(&inventory, "nf-v0");
        assert_eq!((veth.kind.as_deref(), veth.mtu, veth.oper_state.as_str()), (Some("veth"), 1400, "down"));
        assert_eq!((veth.parent.as_deref(), veth.upper_links), (None, 0));
        assert_eq!(device(&inventory, "nf-v1").master.as_deref(), Some("nf-br"));
        assert_eq!(device(&inventory, "nf-p0").upper_links, 1);
        assert_eq!(device(&inventory, "nf-vx").kind.as_deref(), Some("vxlan"));
        assert_eq!(device(&inventory, "nf-tun").kind.as_deref(), Some("tun"));
        assert!(device(&inventory, "lo").loopback);

        let rule = Rule::standard(DRIVER_NAME, false).expect("valid");
        for (device, decision) in decide(&inventory, &rule) {
            match device.ifname.as_str() {
                "nf-mv" => assert_eq!(decision, Ok(())),
                "lo" => assert_eq!(decision, Err(Reason::Loopback)),
                name => assert!(matches!(decision, Err(Reason::NotSelected(_))), "{name}: {decision:?}"),
            }
        }
    });
}

#[test]
fn marks_links_of_default_routes() {
    in_netns(|| async {
        let mut lines = String::new();
        for index in 0..6 {
            let _ = writeln!(lines, "link add nf-d{index} type veth peer name nf-e{index}");
            let _ = writeln!(lines, "link set nf-e{index} up");
            let _ = writeln!(lines, "link set nf-d{index} up");
            let _ = writeln!(lines, "addr add 192.0.{index}.7/24 dev nf-d{index}");
            let _ = writeln!(lines, "addr add 2001:db8:{index}::7/64 dev nf-d{index} nodad");
        }
        lines.push_str(
            "link add link nf-d5 name nf-mv type macvlan
             link set nf-mv up
             addr add 192.0.6.7/24 dev nf-mv
             route add default nexthop via 192.0.0.1 dev nf-d0 nexthop via 192.0.1.1 dev nf-d1
             route add default via 192.0.6.1 dev nf-mv metric 900
             route add default via 192.0.3.1 dev nf-d3 table 100
             route add 10.0.0.0/8 via 192.0.4.1 dev nf-d4
             route add ::/0 via 2001:db8:2::1 dev nf-d2
            ",
        );
        ip(&lines);
        let inventory = inventory().await;
        let marked: BTreeSet<_> =
            inventory.devices.values().filter(|d| d.default_route).map(|d| d.ifname.as_str()).collect();
        // nf-d5 only carries the macvlan that has a default route.
        assert_eq!(marked, ["nf-d0", "nf-d1", "nf-d2", "nf-d3", "nf-d5", "nf-mv"].into());
        let gateways =
            |name| device(&inventory, name).gateways.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(gateways("nf-d1"), ["192.0.1.1"]);
        assert_eq!(gateways("nf-d2"), ["2001:db8:2::1"]);
        assert_eq!(gateways("nf-d5"), [""; 0]);
        let rule = Rule::new(DRIVER_NAME, "true", false).expect("valid");
        assert_eq!(rule.check(device(&inventory, "nf-d0")), Err(Reason::DefaultRoute));
    });
}

#[test]
fn takes_whatever_the_kernel_takes_as_a_name() {
    in_netns(|| async {
        let names = [
            "Eth0.100",
            "nf_under",
            "ü-nf",
            "網路",
            "-nf",
            "nf-",
            "nf...x",
            "NF-UPPERCASE-15",
            "nf@\"'\\",
            "nf-x6e",
        ];
        for name in names {
            // Not through a batch, whose own quoting would interfere.
            let status = Command::new("ip").args(["link", "add", "name", name, "type", "bridge"]).status();
            assert!(status.expect("ip runs").success(), "{name}");
        }
        let inventory = inventory().await;
        assert_eq!(inventory.devices.len(), names.len() + 1);
        for name in names {
            let device = device(&inventory, name);
            assert_eq!((device.ifname.as_str(), device.is_virtual), (name, true));
        }
    });
}

#[test]
fn a_name_that_is_not_utf8_hides_no_other_link() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    in_netns(|| async {
        for name in [&b"nf-a"[..], b"nf-\xff", b"nf-z"] {
            let mut command = Command::new("ip");
            command.args(["link", "add", "name"]).arg(OsStr::from_bytes(name)).args(["type", "bridge"]);
            assert!(command.status().expect("ip runs").success());
        }
        let inventory = inventory().await;
        assert_eq!(inventory.devices.keys().collect::<Vec<_>>(), ["lo", "nf-a", "nf-z"]);
    });
}

#[test]
fn three_hundred_links_make_three_slices() {
    in_netns(|| async {
        let mut lines = String::new();
        for index in 0..150 {
            let _ = writeln!(lines, "link add nf-a{index} type veth peer name nf-b{index}");
        }
        ip(&lines);
        let inventory = inventory().await;
        let rule = Rule::new(DRIVER_NAME, r#"device.attributes["netferry.dev"].kind == "veth""#, false)
            .expect("valid");
        let decisions = decide(&inventory, &rule);
        let published = decisions.iter().filter(|(_, decision)| decision.is_ok()).map(|(device, _)| device);
        let sizes: Vec<_> = slices(published, "node-1", DRIVER_NAME)
            .iter()
            .map(|spec| spec.devices.as_ref().map_or(0, Vec::len))
            .collect();
        assert_eq!(sizes, [128, 128, 44]);
    });
}

type HeldNames = Arc<Mutex<BTreeSet<String>>>;

async fn watch(options: WatchOptions, held: &HeldNames) -> (Watcher, CancellationToken) {
    let (held, shutdown) = (Arc::clone(held), CancellationToken::new());
    let held = Arc::new(move || held.lock().expect("not poisoned").clone());
    let watcher = watch::start(options, held, shutdown.clone()).await.expect("a watch");
    (watcher, shutdown)
}

async fn until(watcher: &Watcher, what: &str, condition: impl Fn(&Inventory) -> bool) -> Duration {
    let start = Instant::now();
    let mut inventory = watcher.inventory.clone();
    let seen = tokio::time::timeout(Duration::from_secs(10), inventory.wait_for(|now| condition(now))).await;
    assert!(matches!(seen, Ok(Ok(_))), "{what}: not within 10 s");
    start.elapsed()
}

#[test]
fn follows_changes_without_a_rebuild_for_each() {
    in_netns(|| async {
        let held = HeldNames::default();
        let (watcher, shutdown) = watch(WatchOptions::default(), &held).await;
        assert_eq!(watcher.inventory.borrow().devices.len(), 1, "loopback only");
        ip("link add nf-v0 type veth peer name nf-v1");
        let took = until(&watcher, "a new link", |now| now.devices.contains_key("nf-v0")).await;
        assert!(took < Duration::from_millis(1500), "{took:?}");
        ip("link set nf-v0 up
            link set nf-v1 up
            addr add 192.0.2.7/24 dev nf-v0
            route add default via 192.0.2.1");
        until(&watcher, "a default route", |now| now.devices["nf-v0"].default_route).await;

        // A burst: the socket is read meanwhile, as `ip` runs on a thread of its own.
        let (events, rebuilds) =
            (watcher.stats.events.load(Ordering::Relaxed), watcher.stats.rebuilds.load(Ordering::Relaxed));
        let burst = tokio::task::spawn_blocking(|| {
            let mut lines = String::new();
            for turn in 0..500 {
                let _ =
                    writeln!(lines, "link set nf-v0 mtu {}\nlink set nf-v1 mtu {}", 1000 + turn, 1000 + turn);
            }
            ip(&lines);
        });
        burst.await.expect("no panic");
        until(&watcher, "the last MTU", |now| now.devices["nf-v0"].mtu == 1499).await;
        let events = watcher.stats.events.load(Ordering::Relaxed) - events;
        let rebuilds = watcher.stats.rebuilds.load(Ordering::Relaxed) - rebuilds;
        assert!(events > 500 || watcher.stats.overruns.load(Ordering::Relaxed) > 0, "{events} events");
        assert!(rebuilds <= 5, "{rebuilds} rebuilds for {events} events");

        // Routes that are no default routes do not count at all.
        let rebuilds = watcher.stats.rebuilds.load(Ordering::Relaxed);
        let mut lines = String::new();
        for index in 0..200 {
            let _ = writeln!(lines, "route add 10.{index}.0.0/16 via 192.0.2.1");
        }
        ip(&lines);
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(watcher.stats.rebuilds.load(Ordering::Relaxed), rebuilds);
        shutdown.cancel();
    });
}

#[test]
fn lost_events_lead_to_a_full_resync() {
    in_netns(|| async {
        let held = HeldNames::default();
        ip("link add nf-v0 type veth peer name nf-v1");
        let (watcher, shutdown) = watch(WatchOptions::default(), &held).await;
        // This blocks the only thread of the runtime, so nobody reads the socket.
        let mut lines = String::new();
        for turn in 0..3000 {
            let _ = writeln!(lines, "link set nf-v0 mtu {}", 1000 + turn % 400);
        }
        lines.push_str("link set nf-v0 mtu 1450\n");
        ip(&lines);
        until(&watcher, "the last MTU", |now| now.devices["nf-v0"].mtu == 1450).await;
        assert!(watcher.stats.overruns.load(Ordering::Relaxed) > 0, "the socket was to overrun");
        shutdown.cancel();
    });
}

#[test]
fn a_resync_finds_what_sends_no_event() {
    in_netns(|| async {
        let held = HeldNames::default();
        let tree = tempfile::tempdir().expect("a directory");
        let net = tree.path().join("class/net/lo");
        std::fs::create_dir_all(&net).expect("a tree");
        let options = WatchOptions {
            sysfs: Sysfs::at(tree.path()),
            resync: Duration::from_millis(100),
            ..WatchOptions::default()
        };
        let (watcher, shutdown) = watch(options, &held).await;
        assert_eq!(watcher.inventory.borrow().devices["lo"].speed_mbps, None);
        std::fs::write(net.join("speed"), "100\n").expect("a speed");
        until(&watcher, "a speed", |now| now.devices["lo"].speed_mbps == Some(100)).await;
        shutdown.cancel();
    });
}

/// A process that keeps a network namespace alive.
struct Pod(Child);

impl Pod {
    fn start() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().expect("unshare runs");
        let path = format!("/proc/{}/ns/net", child.id());
        let ours = std::fs::read_link("/proc/thread-self/ns/net").expect("our namespace");
        let end = Instant::now() + Duration::from_secs(5);
        while std::fs::read_link(&path).is_ok_and(|theirs| theirs == ours) {
            assert!(Instant::now() < end, "no namespace within 5 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(child)
    }

    fn ip(&self, args: &str) {
        let status = Command::new("nsenter")
            .args(["--net", "--target", &self.0.id().to_string(), "ip"])
            .args(args.split_whitespace())
            .status();
        assert!(status.expect("nsenter runs").success(), "{args}");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_held_device_stays_while_it_is_away_and_over_a_restart() {
    in_netns(|| async {
        let (held, state) = (HeldNames::default(), tempfile::tempdir().expect("a directory"));
        let options = WatchOptions { state_dir: Some(state.path().to_owned()), ..WatchOptions::default() };
        let home = Pod::start();
        ip("link add nf-v0 type veth peer name nf-v1
            link add link nf-v0 name nf-mv type macvlan
            link add link nf-v0 name nf-mv2 type macvlan
            link set nf-v0 up
            link set nf-mv up
            addr add 192.0.2.7/24 dev nf-mv");
        let (watcher, shutdown) = watch(options.clone(), &held).await;
        let before = watcher.inventory.borrow().devices["nf-mv"].clone();
        held.lock().expect("not poisoned").insert("nf-mv".to_owned());

        let pod = home.0.id();
        ip(&format!("link set nf-mv netns {pod}\nlink set nf-mv2 netns {pod}"));
        until(&watcher, "departure", |now| !now.devices.contains_key("nf-mv2")).await;
        assert_eq!(watcher.inventory.borrow().devices["nf-mv"], before);
        shutdown.cancel();
        drop(watcher);

        let saved = std::fs::read_to_string(state.path().join(FILE_NAME)).expect("saved");
        assert!(saved.contains("192.0.2.7/24"), "{saved}");
        let (watcher, shutdown) = watch(options, &held).await;
        assert_eq!(watcher.inventory.borrow().devices["nf-mv"], before);

        // It comes home without its address, which shows when it is released.
        home.ip(&format!("link set nf-mv netns {}", nix::unistd::gettid()));
        let rebuilds = watcher.stats.rebuilds.load(Ordering::Relaxed);
        let end = Instant::now() + Duration::from_secs(10);
        while watcher.stats.rebuilds.load(Ordering::Relaxed) == rebuilds && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let frozen = watcher.inventory.borrow().devices["nf-mv"].clone();
        assert_eq!(frozen, Device { ifindex: frozen.ifindex, ..before });
        held.lock().expect("not poisoned").clear();
        watcher.refresh();
        until(&watcher, "release", |now| now.devices["nf-mv"].addresses.is_empty()).await;
        shutdown.cancel();
    });
}

#[test]
fn a_released_device_shows_as_it_is() {
    in_netns(|| async {
        let held = HeldNames::default();
        let pod = Pod::start();
        ip("link add nf-v0 type veth peer name nf-v1
            addr add 192.0.2.7/24 dev nf-v0");
        let (watcher, shutdown) = watch(WatchOptions::default(), &held).await;
        held.lock().expect("not poisoned").insert("nf-v0".to_owned());
        ip(&format!("link set nf-v0 netns {}", pod.0.id()));
        until(&watcher, "the peer's state", |now| now.devices["nf-v1"].ifindex > 0).await;
        held.lock().expect("not poisoned").clear();
        watcher.refresh();
        until(&watcher, "release", |now| !now.devices.contains_key("nf-v0")).await;
        shutdown.cancel();
    });
}
