//! Sees to it, for as long as the daemon runs, that networks have their ways beyond the node.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Converger, Problems, Troubles, TunnelSettings, Wanted, Way, vlan, wanted};
use crate::{
    claim::store::Store,
    cluster::{Cluster, Event, EventType, Subject},
    datapath::Transport,
    device::Inventory,
    link::underlay::Underlay,
    network::{Network, Networks, follow::SharedTable},
    telemetry::chain,
};

/// How it is paced.
#[derive(Clone, Copy, Debug)]
pub struct TransportOptions {
    /// Tries again what could not be done.
    pub again: Duration,
    /// Looks at everything: in the checkpoints, of which it is told when they change, and in the kernel.
    pub repair: Duration,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self { again: Duration::from_secs(5), repair: Duration::from_secs(30) }
    }
}

/// Networks that pods of this node have ports on, or are about to.
pub struct PortsOn {
    /// Their UIDs.
    pub networks: Box<dyn Fn() -> BTreeSet<String> + Send + Sync>,
    /// Told when they may be others.
    pub changes: watch::Receiver<()>,
}

/// The same from the checkpoints.
#[must_use]
pub fn ports_on_networks(store: &Arc<Store>) -> PortsOn {
    let (changes, store) = (store.changes(), Arc::clone(store));
    let networks = move || {
        let checkpoints = store.all();
        let interfaces = checkpoints.iter().flat_map(|checkpoint| &checkpoint.interfaces);
        interfaces.filter_map(|interface| Some(interface.plan.port()?.network.uid.clone())).collect()
    };
    PortsOn { networks: Box::new(networks), changes }
}

/// See the module.
pub struct Transports<L> {
    /// What is known.
    pub networks: Arc<Networks>,
    /// Which of it is needed.
    pub ports: PortsOn,
    /// The node's links.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// Knows where nodes are reached.
    pub table: SharedTable,
    /// Who is told of problems.
    pub cluster: Arc<dyn Cluster>,
    /// The kernel.
    pub kernel: Converger<L>,
    /// Settings of tunnels; the address in it comes before the node's own.
    pub tunnels: TunnelSettings,
    /// The driver, whose attributes selectors name.
    pub driver: String,
    /// This node.
    pub node: String,
}

/// What was said, so that it is said once.
#[derive(Default)]
struct Said {
    problems: Problems,
    remarks: Problems,
    /// Problems without an Event yet.
    untold: BTreeSet<crate::network::NetworkRef>,
    rest: Option<String>,
    ways: BTreeSet<String>,
}

impl<L: Underlay> Transports<L> {
    /// Run until `stop`. What is set up stays: traffic goes on without a daemon.
    pub async fn run(mut self, options: TransportOptions, stop: CancellationToken) {
        let mut changes = self.networks.changes();
        let mut inventory = self.inventory.clone();
        let mut ports = self.ports.changes.clone();
        let mut address = self.own_address_changes();
        let (mut done, mut due): (Option<Wanted>, _) = (None, Instant::now());
        let mut said = Said::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = changes.next() => changes.mark_seen(),
                Ok(()) = inventory.changed() => {}
                Ok(()) = ports.changed() => {}
                Ok(()) = address.changed() => {}
                () = sleep_until(due) => {}
            }
            let wanted = self.wanted(&Arc::clone(&inventory.borrow_and_update()));
            if done.as_ref() == Some(&wanted) && Instant::now() < due {
                continue;
            }
            let mut outcome = self.kernel.converge(&wanted).await;
            self.check_source(&wanted, &mut outcome.problems);
            let well = outcome.problems.is_empty() && outcome.rest.is_none();
            due = Instant::now() + if well { options.repair } else { options.again };
            say(&mut said, &wanted, &outcome.problems, outcome.rest);
            let troubles = Troubles { node: self.node.clone(), problems: outcome.problems };
            self.networks.set_troubles(troubles);
            self.tell(&mut said).await;
            done = Some(wanted);
        }
    }

    fn wanted(&self, inventory: &Inventory) -> Wanted {
        let networks: Vec<Arc<Network>> =
            (self.ports.networks)().iter().filter_map(|uid| self.networks.of_uid(uid)).collect();
        wanted(&networks, inventory, TunnelSettings { address: self.address(), ..self.tunnels }, &self.driver)
    }

    fn own_address_changes(&self) -> watch::Receiver<Option<IpAddr>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).own_address_changes()
    }

    fn address(&self) -> Option<IpAddr> {
        self.tunnels
            .address
            .or_else(|| self.table.lock().unwrap_or_else(PoisonError::into_inner).own_address())
    }

    /// Whether the host's routes let tunnels leave from the address that other nodes expect. They drop what comes from
    /// another one.
    fn check_source(&self, wanted: &Wanted, problems: &mut Problems) {
        let (Some(_), Some(own)) = (wanted.tunnel, self.address()) else { return };
        let others: Vec<IpAddr> = {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            table.other_nodes().filter(|other| other.is_ipv4() == own.is_ipv4() && *other != own).collect()
        };
        let wrong =
            others.iter().find_map(|other| Some((other, leaves_from(*other).filter(|from| *from != own)?)));
        let Some((other, from)) = wrong else { return };
        let problem = format!(
            "tunnels to the node at {other} leave from {from}, and it expects them from {own}; needed: a route whose \
             source is {own}"
        );
        for (network, way) in wanted.ways.values() {
            if matches!(way, Way::Overlay { .. }) {
                problems.entry(network.clone()).or_insert_with(|| problem.clone());
            }
        }
    }

    /// An Event for each problem that is new.
    async fn tell(&self, said: &mut Said) {
        for network in said.untold.clone() {
            let Some(problem) = said.problems.get(&network) else { continue };
            let event = Event {
                subject: Subject::Network(network.clone()),
                event_type: EventType::Warning,
                reason: "TransportFailed",
                action: "SetUpTransport",
                note: format!("node {}: {problem}", self.node),
            };
            match self.cluster.event(&event).await {
                Ok(()) => {
                    said.untold.remove(&network);
                }
                Err(error) => warn!(network = network.name, "cannot record an Event: {}", chain(&error)),
            }
        }
    }
}

/// The source that the host's routes choose towards an address: connecting a UDP socket sends nothing.
fn leaves_from(to: IpAddr) -> Option<IpAddr> {
    let any =
        if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, super::VXLAN_PORT)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Logs what is new.
fn say(said: &mut Said, wanted: &Wanted, problems: &Problems, rest: Option<String>) {
    for (network, problem) in problems {
        if said.problems.get(network) != Some(problem) {
            warn!(network = network.name, "does not go on beyond this node as it is to: {problem}");
            said.untold.insert(network.clone());
        }
    }
    for network in said.problems.keys().filter(|network| !problems.contains_key(*network)) {
        info!(network = network.name, "goes on beyond this node again, or is not needed");
    }
    said.untold.retain(|network| problems.contains_key(network));
    said.problems.clone_from(problems);
    for (network, remark) in &wanted.remarks {
        if said.remarks.get(network) != Some(remark) {
            warn!(network = network.name, "{remark}");
        }
    }
    said.remarks.clone_from(&wanted.remarks);
    if let Some(rest) = rest.as_ref().filter(|rest| said.rest.as_ref() != Some(*rest)) {
        warn!("not everything between nodes is as it is to be: {rest}");
    }
    said.rest = rest;
    let now: BTreeSet<String> = wanted
        .ways
        .values()
        .filter(|(network, _)| !problems.contains_key(network))
        .map(|(network, way)| match way {
            Way::Overlay { vni } => {
                format!("network {} goes on through tunnels with VNI {vni}", network.name)
            }
            Way::Uplink { ifname, how: Transport::Routed { .. }, .. } => {
                format!("network {} goes on over {ifname} by the routes of the host", network.name)
            }
            Way::Uplink { ifname, how, .. } => {
                format!("network {} goes on over {ifname}, VLAN {}", network.name, vlan(how))
            }
        })
        .collect();
    for line in now.difference(&said.ways) {
        info!("{line}");
    }
    said.ways = now;
}
