//! The part of a daemon that sees to transports, on a thread in its node's namespace. It can be killed at any moment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use netferry::DRIVER_NAME;
use netferry::cluster::standalone::Standalone;
use netferry::config::OverlayArgs;
use netferry::device::sysfs::Sysfs;
use netferry::device::watch::{WatchOptions, start};
use netferry::link::kernel::KernelLinks;
use netferry::network::facts::{NodeFacts, Seen};
use netferry::network::members::MemberTable;
use netferry::network::transport::task::{PortsOn, TransportOptions, Transports};
use netferry::network::transport::{Converger, Headers, VXLAN_PORT};
use netferry::network::validate::parse;
use netferry::network::{Network, NetworkRef, Networks};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{ENDS, ENDS_V6, world::Node};

/// Gateways of all networks.
pub(crate) const GATEWAYS: [&str; 2] = ["10.9.0.254", "fd09::fe"];

/// A network as one node knows it.
#[derive(Clone)]
pub(crate) struct Net {
    pub(crate) id: u32,
    pub(crate) name: &'static str,
    pub(crate) transport: Value,
}

pub(crate) struct Task {
    networks: Arc<Networks>,
    ports: Arc<Mutex<BTreeSet<String>>>,
    /// Tells that they are others.
    told: watch::Sender<()>,
    /// Times that it asked for the ports: one run is over when the next begins.
    asked: Arc<AtomicUsize>,
    kill: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    folder: Arc<TempDir>,
}

pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1200 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("not within a minute: {what}");
}

impl Task {
    /// With ports on all of these networks. An IPv6 address is given as `--overlay-address`.
    pub(crate) fn start(node: &Node, name: &'static str, address: &str, nets: &[Net]) -> Self {
        let folder = tempfile::Builder::new().prefix("nf-").tempdir().expect("a folder");
        Self::start_on(node, name, address, nets, Arc::new(folder))
    }

    /// The same with the state that another has left.
    pub(crate) fn start_on(
        node: &Node,
        name: &'static str,
        address: &str,
        nets: &[Net],
        folder: Arc<TempDir>,
    ) -> Self {
        let short = Duration::from_millis(200);
        let options = TransportOptions { again: short, repair: Duration::from_secs(1) };
        Self::start_with(node, name, address, nets, (folder, options, Headers::Programs))
    }

    /// With `--overlay-headers kernel`.
    pub(crate) fn start_with_device(node: &Node, name: &'static str, address: &str, nets: &[Net]) -> Self {
        let folder = tempfile::Builder::new().prefix("nf-").tempdir().expect("a folder");
        let options = TransportOptions::default();
        Self::start_with(node, name, address, nets, (Arc::new(folder), options, Headers::Kernel))
    }

    /// With no ports, and nobody looks again without being told.
    pub(crate) fn start_idle(node: &Node, name: &'static str, address: &str, nets: &[Net]) -> Self {
        let never = Duration::from_hours(9);
        let options = TransportOptions { again: never, repair: never };
        let folder = tempfile::Builder::new().prefix("nf-").tempdir().expect("a folder");
        let task =
            Self::start_with(node, name, address, nets, (Arc::new(folder), options, Headers::Programs));
        task.set_ports(&[]);
        task
    }

    fn start_with(
        node: &Node,
        name: &'static str,
        address: &str,
        nets: &[Net],
        (folder, options, headers): (Arc<TempDir>, TransportOptions, Headers),
    ) -> Self {
        let networks = Arc::new(Networks::default());
        networks.replace(nets.iter().map(|net| {
            Network {
                reference: NetworkRef { name: net.name.to_owned(), uid: format!("uid-{}", net.name) },
                id: net.id,
                spec: parse(&json!({
                    "subnets": ["10.9.0.0/24", "fd09::/64"], "gateways": GATEWAYS, "transport": net.transport,
                }))
                .expect("a spec"),
            }
        }));
        let mut table = MemberTable::new(name);
        // The node's own object has its IPv4 address; the setting comes before it.
        let setting: Option<IpAddr> = address.parse().ok().filter(IpAddr::is_ipv6);
        let own = if setting.is_some() {
            ENDS[ENDS_V6.iter().position(|end| *end == address).unwrap()]
        } else {
            address
        };
        let others =
            [("other-1", ENDS[0]), ("other-2", ENDS[1]), ("other-3", ENDS_V6[0]), ("other-4", ENDS_V6[1])];
        for (name, address) in others.into_iter().chain([(name, own)]) {
            table.apply_node(Seen::Is(NodeFacts { name: name.to_owned(), address: address.parse().ok() }));
        }
        let mut task = Self {
            networks: Arc::clone(&networks),
            ports: Arc::default(),
            told: watch::Sender::new(()),
            asked: Arc::default(),
            kill: None,
            thread: None,
            folder: Arc::clone(&folder),
        };
        task.set_ports(&nets.iter().map(|net| net.name).collect::<Vec<_>>());
        let (kill, killed) = oneshot::channel();
        let (datapath, host) = (Arc::new(node.open_again()), node.host.path.clone());
        let (ports, asked) = (Arc::clone(&task.ports), Arc::clone(&task.asked));
        let changes = task.told.subscribe();
        let part = async move {
            let stop = CancellationToken::new();
            let watch = WatchOptions {
                sysfs: Sysfs::at(folder.path().join("no-sysfs")),
                resync: Duration::from_secs(1),
                ..WatchOptions::default()
            };
            let watcher = start(watch, Arc::new(BTreeSet::new), stop.clone()).await.expect("an inventory");
            let transports = Transports {
                networks,
                ports: PortsOn {
                    networks: Box::new(move || {
                        asked.fetch_add(1, Ordering::SeqCst);
                        ports.lock().expect("ports").clone()
                    }),
                    changes,
                },
                inventory: watcher.inventory,
                table: Arc::new(Mutex::new(table)),
                cluster: Arc::new(Standalone::open(folder.path(), DRIVER_NAME, name).expect("a folder")),
                kernel: Converger::open(
                    KernelLinks::new(),
                    datapath,
                    &folder.path().join("state/promiscuous.json"),
                )
                .expect("the state"),
                tunnels: OverlayArgs {
                    overlay_port: VXLAN_PORT,
                    overlay_address: setting,
                    overlay_headers: headers,
                }
                .settings(),
                driver: DRIVER_NAME.to_owned(),
                node: name.to_owned(),
            };
            transports.run(options, stop).await;
        };
        let thread = std::thread::spawn(move || {
            let host = std::fs::File::open(host).expect("the node's namespace");
            nix::sched::setns(host, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = part => panic!("it ended by itself"),
                    _ = killed => {}
                }
            });
        });
        (task.kill, task.thread) = (Some(kill), Some(thread));
        task
    }

    /// The networks that pods of the node have ports on, from now on.
    pub(crate) fn set_ports(&self, names: &[&str]) {
        *self.ports.lock().expect("ports") = names.iter().map(|name| format!("uid-{name}")).collect();
        self.told.send_replace(());
    }

    /// What is said to be wrong with a network.
    pub(crate) fn trouble(&self, name: &str) -> Option<String> {
        let troubles = self.networks.troubles();
        let troubles = troubles.borrow();
        troubles.problems.iter().find(|(network, _)| network.name == name).map(|(_, said)| said.clone())
    }

    /// Runs that are over.
    pub(crate) fn runs(&self) -> usize {
        self.asked.load(Ordering::SeqCst).saturating_sub(1)
    }

    /// The Events that were recorded, as YAML.
    pub(crate) fn events(&self) -> String {
        let files = std::fs::read_dir(self.folder.path()).expect("the folder").flatten();
        let nested = files.flat_map(|file| match std::fs::read_dir(file.path()) {
            Ok(inner) => inner.flatten().map(|file| file.path()).collect(),
            Err(_) => vec![file.path()],
        });
        nested.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
    }

    /// End it wherever it is. Returns its folder.
    pub(crate) fn kill(mut self) -> Arc<TempDir> {
        self.end();
        Arc::clone(&self.folder)
    }

    fn end(&mut self) {
        drop(self.kill.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the task panicked");
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.end();
    }
}
