//! `netferry run`: put the parts together, run until a signal, drain.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

mod cleanup;
mod connection;
mod descriptors;
mod foreign;
mod handover;
mod lock;
mod management;
mod parts;
mod parts_ready;
pub mod runtime_note;
mod tasks;
mod upgrade;

use foreign::has_foreign_programs;
use handover::{Handover, Stop, stop_on_signal};
use parts::Parts;
use parts_ready::{tell_kubelet, tell_publisher, tell_runtime};
use tasks::Tasks;

use crate::{
    attach::Attacher,
    claim::{Checkpoint, service::Claims, store::Store, wait::LONGEST},
    cluster::{
        Cluster,
        watch::{SlicesOf, Watch},
    },
    config::{EarlyDrop, RunConfig},
    counted::counts,
    datapath::sweep::FlowSweeper,
    device::{
        management::Management,
        rule::Rule,
        watch::{WatchOptions, Watcher},
    },
    dhcp::{keep::Keeper, leases::DhcpLeases},
    dra::{health::Health, switch::Active},
    drift::{DriftWatch, Tell},
    findings::Findings,
    flow_log::{self, FlowLog},
    follow::PortFollow,
    http,
    link::kernel::KernelLinks,
    local_socket::LocalSocket,
    measured::Measured,
    netns::KernelNamespaces,
    network::{
        NetworkRef,
        demand::ports_here,
        follow::SharedTable,
        members::MemberTable,
        offer::Offers,
        peers::PolicyPeers,
        share::Sharing,
        transport::{
            Converger,
            task::{TransportOptions, Transports, ports_on_networks},
        },
        watch::{Held, NetworkWatch},
    },
    nri::session::{NriConfig, SessionStatus},
    publish::publisher::{self, PublishOptions},
    query::server as query,
    repair::{self, PodEvents, RepairWatch},
    sandbox::Sandboxes,
    status::{Backoff, Reporter},
};

/// How long a stopping daemon writes what it still has to say.
const DRAIN: Duration = Duration::from_secs(5);

/// The same if another instance waits for the state folder: it writes what is left.
const DRAIN_FOR_SUCCESSOR: Duration = Duration::from_millis(500);

/// How long attaches and returns that are under way may take at the stop.
const IN_PROGRESS: Duration = Duration::from_secs(2);

/// One of the cluster's nodes writes what all of them find out about a network; it comes forward within this time.
const NETWORK_STATUS_SPREAD: Duration = Duration::from_secs(3);

/// How long ports that are in use wait at the start for what their networks say now, before anything is served.
const NETWORKS_WAIT: Duration = Duration::from_secs(2);

/// Run the daemon until SIGTERM or SIGINT. Links stay in their pods, protected by what is pinned.
pub async fn run(config: RunConfig) -> Result<()> {
    let node = match &config.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
    };
    let rule = Rule::choose(
        &config.driver_name,
        config.publishing.publish.as_deref(),
        config.publishing.allow_default_route,
    )
    .context("--publish")?
    .sharing(config.publishing.share.as_deref())
    .context("--share")?;
    let cluster = connection::cluster(&config, &node).await?;
    if config.cleanup {
        return cleanup::run(&cluster, &config.state).await;
    }
    descriptors::raise_limit();
    let stop = stop_on_signal(&config)?;
    let Some(handover) = Handover::begin(&config, &stop).await? else { return Ok(()) };
    let parts = Parts::open(&config, cluster)?;
    parts.run(&config, &node, rule, handover, stop).await
}

impl Parts {
    #[expect(clippy::too_many_lines, reason = "one list of parts, in the order in which they start")]
    async fn run(
        self,
        config: &RunConfig,
        node: &str,
        rule: Rule,
        mut handover: Handover,
        stopping: Stop,
    ) -> Result<()> {
        let stop = stopping.now.clone();
        let Self {
            cluster,
            store,
            datapath,
            readiness,
            metrics,
            published,
            followed,
            networks,
            identities,
            registry,
        } = self;
        let mut tasks = Tasks { readiness: Arc::clone(&readiness), set: JoinSet::new() };

        let table: SharedTable = Arc::new(Mutex::new(MemberTable::new(node)));
        let sharing = Sharing {
            cluster: Arc::clone(&cluster),
            networks: Arc::clone(&networks),
            table: Arc::clone(&table),
            members: Arc::clone(&datapath) as _,
            ports: ports_here(&store),
            stats: followed,
            driver: config.driver_name.clone(),
            node: node.to_owned(),
        };
        let parts = sharing.parts(&stop);
        tasks.spawn("members", parts.follow);
        tasks.spawn("election", parts.election);
        tasks.spawn("addresses", parts.addresses);
        tasks.spawn("blocks", parts.blocks);
        tasks.spawn("networks in use", parts.in_use);
        tasks.spawn("network reports", parts.report);

        let whole = Arc::clone(&cluster);
        let watching: Arc<dyn Watch> = Arc::clone(&cluster) as _;
        let cluster: Arc<dyn Cluster> = cluster;
        let (reporter, writer) = Reporter::start(
            Arc::clone(&cluster),
            Arc::clone(&store) as _,
            &config.driver_name,
            Backoff::default(),
        );
        let namespaces = Arc::new(KernelNamespaces::new(config.state.netns_dir()));
        let attacher = Attacher::new(
            Arc::new(KernelLinks::new()),
            namespaces,
            Arc::clone(&datapath) as _,
            Arc::clone(&store),
        );
        let peers = Arc::new(PolicyPeers::new(
            Arc::clone(&table),
            Arc::clone(&store),
            Arc::clone(&datapath) as _,
            config.state.peers_file(),
        ));
        let made_of = config
            .ports
            .choose()
            .context("--ports netkit: no such pair can be made here; allowed are veth and auto")?;
        let attacher = Arc::new(
            attacher
                .guarding(config.guards.pod_guard())
                .dropping_early(config.guards.early_drop == EarlyDrop::On)
                .knowing(Arc::clone(&peers))
                .making(made_of)
                .remembering(&config.state.strays_file()),
        );
        tasks.spawn("policy peers", peers.run(Arc::clone(&watching), stop.clone()));
        let (overlay, file) = (config.overlay.overlay_address, config.state.management_file());
        let at_start = management::at_start(whole.api_servers_by_configuration(), overlay, &file);
        let (reached, management) = watch::channel(at_start);
        tasks.spawn("node addresses", {
            let own = table.lock().unwrap_or_else(PoisonError::into_inner).own_address_changes();
            management::follow(whole, overlay, own, reached, file, stop.clone())
        });
        management::first_answer(&management).await;
        let watcher = discover(config, &store, management, stop.clone()).await?;
        let sandboxes = Arc::new(Sandboxes {
            attacher: Arc::clone(&attacher),
            store: Arc::clone(&store),
            cluster: Arc::clone(&cluster),
            reporter: reporter.clone(),
            metrics: Arc::clone(&metrics),
            registry: Arc::clone(&registry),
            wake: Arc::default(),
        });

        if let Some(address) = config.http_address.0 {
            let listener = http::bind(address).await.with_context(|| format!("--http-address {address}"))?;
            let exposed = http::Exposed { metrics: Arc::clone(&metrics), readiness: Arc::clone(&readiness) };
            tasks.spawn("http", async move {
                http::serve(listener, exposed, CancellationToken::new()).await;
            });
        }

        tokio::spawn(tell_publisher(Arc::clone(&readiness), Arc::clone(&published)));
        let inventory = watcher.inventory.clone();
        let rule = Arc::new(rule);
        let options = PublishOptions::default();
        tasks.spawn(
            "publisher",
            publisher::run(
                Arc::clone(&cluster),
                Arc::clone(&watching).slice_versions(SlicesOf::ThisNode),
                inventory,
                Arc::clone(&networks),
                Arc::clone(&rule),
                has_foreign_programs(&store, &datapath),
                options,
                Arc::clone(&published),
                stop.clone(),
            ),
        );
        let watch = NetworkWatch {
            cluster: Arc::clone(&cluster),
            networks: Arc::clone(&networks),
            identities,
            held: has_ports(&store),
            counts: counts(config.standalone.is_some(), &store, &table, parts.leading),
            addresses: parts.conditions,
            spread: NETWORK_STATUS_SPREAD,
        };
        tasks.spawn("network watch", watch.run(stop.clone()));
        let file = config.state.promiscuous_file();
        let kernel = Converger::open(KernelLinks::new(), Arc::clone(&datapath), &file);
        let transports = Transports {
            networks: Arc::clone(&networks),
            ports: ports_on_networks(&store),
            inventory: watcher.inventory.clone(),
            table: Arc::clone(&table),
            cluster: Arc::clone(&cluster),
            kernel: kernel.context("cannot tell which links were made promiscuous")?,
            tunnels: config.overlay.settings(),
            driver: config.driver_name.clone(),
            node: node.to_owned(),
        };
        tasks.spawn("transports", transports.run(TransportOptions::default(), stop.clone()));

        let follow = PortFollow {
            attacher: Arc::clone(&attacher),
            networks: Arc::clone(&networks),
            checkpoints: store.changes(),
        };
        follow.catch_up(NETWORKS_WAIT).await;
        tasks.spawn("port follow", follow.run(stop.clone()));

        let (runtime, status) = watch::channel(SessionStatus::default());
        tokio::spawn(tell_runtime(Arc::clone(&readiness), status.clone(), config.state.run_dir.clone()));
        let nri = NriConfig {
            socket: config.nri_socket.clone(),
            plugin_index: config.nri_plugin_index.clone(),
            ..NriConfig::default()
        };
        tasks.spawn("nri", crate::nri::session::run(nri, Arc::clone(&sandboxes) as _, runtime, stop.clone()));

        tasks.spawn("sweep", Arc::clone(&sandboxes).sweep_until(stop.clone()));
        let inventory = watcher.inventory.clone();
        tasks.spawn("attach again", Arc::clone(&sandboxes).retry_until(inventory, stop.clone()));

        let (pins, socket) = (config.state.pin_root(), config.state.flows_socket());
        let flow_log =
            FlowLog::open(&pins, &socket, Arc::clone(&store), Arc::clone(&datapath), Arc::clone(&metrics));
        tasks.spawn("flow log", flow_log.context("cannot tell flow events")?.run(stop.clone()));
        let sweeper = FlowSweeper::open(&datapath).context("cannot load the sweep of the flow table")?;
        tasks.spawn("flow cleaner", flow_log::clean_until(sweeper, Arc::clone(&metrics), stop.clone()));
        let findings = Arc::new(Findings::new(Arc::clone(&store)));
        let told = Tell::new(
            reporter.clone(),
            Arc::clone(&metrics),
            Arc::clone(&findings),
            Arc::clone(&sandboxes) as _,
        );
        let drift = DriftWatch { links: KernelLinks::new(), datapath, store: Arc::clone(&store), told };
        tasks.spawn("drift watch", drift.watch(config.check_programs, stop.clone()));
        let told = repair::Tell::new(reporter.clone(), Arc::clone(&metrics), Arc::clone(&findings));
        let (changed, pods) = mpsc::channel(1);
        let pod_events = PodEvents { links: KernelLinks::new(), store: Arc::clone(&store) };
        tasks.spawn("pod events", pod_events.watch(changed, stop.clone()));
        let repair = RepairWatch { attacher: Arc::clone(&attacher), events: watcher.settled(), pods, told };
        tasks.spawn("repair", repair.watch(config.check_programs, stop.clone()));

        tokio::spawn(tell_kubelet(Arc::clone(&readiness), handover.registered.clone()));
        let answers = query::Sources {
            node: node.to_owned(),
            started: jiff::Timestamp::now(),
            readiness,
            publisher: published,
            rule,
            inventory: watcher.inventory.clone(),
            networks: Arc::clone(&networks),
            store: Arc::clone(&store),
            peers_file: config.state.peers_file(),
            kubelet: handover.registered.clone(),
            sockets: handover.sockets.clone(),
            refused: handover.refused.clone(),
            runtime: status,
            nri_socket: config.nri_socket.clone(),
        };
        let socket = LocalSocket::bind(&config.state.query_socket()).context("cannot answer questions")?;
        tasks.spawn("query", query::serve(socket, answers, stop.clone()));
        let offers = Offers {
            networks: Arc::clone(&networks),
            cluster: Arc::clone(&cluster),
            inventory: watcher.inventory.clone(),
            members: table,
            demand: parts.demand,
            driver: config.driver_name.clone(),
        };
        let leases = DhcpLeases::open(config, &networks, &watcher.inventory, &metrics)
            .context("cannot read which addresses are leased")?;
        tasks.spawn("leases", Keeper::new(&leases, &store, &attacher, &reporter).run(stop.clone()));
        let claims = Claims {
            driver: config.driver_name.clone(),
            pool: node.to_owned(),
            cluster,
            store: Arc::clone(&store),
            inventory: watcher.inventory.clone(),
            networks: Arc::new(offers),
            leases,
            release: Arc::clone(&sandboxes) as _,
            reporter: Arc::new(reporter.clone()),
            planning: Arc::default(),
            wait: LONGEST,
        };
        let active = Active {
            claims: Arc::new(Measured { claims, metrics, attacher, watcher: watcher.clone() }),
            health: Health {
                pool: node.to_owned(),
                inventory: watcher.inventory,
                store,
                sandboxes: registry,
                findings,
                networks,
            },
        };
        tasks.spawn("dra", handover.activate(active, &stopping));

        info!(node, driver = config.driver_name, ports = made_of.as_str(), "running");
        let result = tasks.until(&stop).await;
        sandboxes.drain(IN_PROGRESS).await;
        let successor = lock::others_wait(&config.state.state_dir);
        reporter.shutdown(writer, if successor { DRAIN_FOR_SUCCESSOR } else { DRAIN }).await;
        result
    }
}

async fn discover(
    config: &RunConfig,
    store: &Arc<Store>,
    management: watch::Receiver<Management>,
    stop: CancellationToken,
) -> Result<Watcher> {
    let options = WatchOptions {
        management,
        resync: config.resync,
        state_dir: Some(config.state.state_dir.clone()),
        ..WatchOptions::default()
    };
    let store = Arc::clone(store);
    let held = move || store.held_devices().into_keys().collect();
    crate::device::watch::start(options, Arc::new(held), stop).await.context("cannot read this node's links")
}

/// Whether a claim that is prepared has a port on a network.
fn has_ports(store: &Arc<Store>) -> Held {
    let store = Arc::clone(store);
    Box::new(move |network| store.all().iter().any(|checkpoint| ports_on(checkpoint, network) > 0))
}

pub(crate) fn ports_on(checkpoint: &Checkpoint, network: &NetworkRef) -> usize {
    checkpoint
        .interfaces
        .iter()
        .filter(|interface| interface.plan.port().is_some_and(|port| port.network == *network))
        .count()
}
