//! Answers on the query socket.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::get};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    CLAIMS, DEVICES, STATUS,
    report::{Claims, Devices, Kubelet, Part, Publishing, Runtime, Source, Status},
};
use crate::{
    claim::store::Store,
    datapath::programs_digest,
    device::{Inventory, rule::Rule},
    dra::{Sockets, refusals::LastRefusal, registration::RegistrationState},
    local_socket::LocalSocket,
    network::{Networks, peers::told},
    nri::session::SessionStatus,
    publish::publisher::PublishStats,
    readiness::Readiness,
    serving::{self, Bounds},
    version,
};

/// What the answers are made of.
pub struct Sources {
    /// Name of the node.
    pub node: String,
    /// When the daemon was started.
    pub started: Timestamp,
    /// State of the parts.
    pub readiness: Arc<Readiness>,
    /// What the publisher has done.
    pub publisher: Arc<PublishStats>,
    /// Which links are published.
    pub rule: Arc<Rule>,
    /// The node's links.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// The networks.
    pub networks: Arc<Networks>,
    /// The claims.
    pub store: Arc<Store>,
    /// Where the named peers of policies are written.
    pub peers_file: PathBuf,
    /// What the kubelet said.
    pub kubelet: watch::Receiver<RegistrationState>,
    /// Where the kubelet finds and calls the driver.
    pub sockets: Sockets,
    /// Calls that were refused before they reached a service.
    pub refused: LastRefusal,
    /// The session with the runtime.
    pub runtime: watch::Receiver<SessionStatus>,
    /// The runtime's NRI socket.
    pub nri_socket: PathBuf,
}

/// A local peer is fast, and there are few.
const BOUNDS: Bounds = Bounds {
    connections: 16,
    header: Duration::from_secs(2),
    lifetime: Duration::from_secs(20),
    last_response: Duration::from_secs(5),
};

/// Answer until `stop`.
pub async fn serve(socket: LocalSocket, sources: Sources, stop: CancellationToken) {
    serving::serve(socket, router(Arc::new(sources)), BOUNDS, stop).await;
}

fn router(sources: Arc<Sources>) -> Router {
    Router::new()
        .route(STATUS, get(|State(sources): State<Arc<Sources>>| async move { Json(sources.status()) }))
        .route(DEVICES, get(|State(sources): State<Arc<Sources>>| async move { Json(sources.devices()) }))
        .route(CLAIMS, get(|State(sources): State<Arc<Sources>>| async move { Json(sources.claims()) }))
        .with_state(sources)
}

impl Sources {
    fn status(&self) -> Status {
        Status {
            version: version::VERSION.to_owned(),
            commit: version::COMMIT.to_owned(),
            programs: programs_digest(),
            pid: std::process::id(),
            started: self.started,
            node: self.node.clone(),
            driver: self.rule.driver().to_owned(),
            parts: self.readiness.reasons().into_iter().map(part).collect(),
            ended: self.readiness.alive(),
            kubelet: self.kubelet(),
            runtime: self.runtime(),
            publishing: self.publishing(),
        }
    }

    fn kubelet(&self) -> Kubelet {
        let state = self.kubelet.borrow().clone();
        Kubelet {
            registered: state == RegistrationState::Registered,
            refusal: match state {
                RegistrationState::Failed(why) => Some(why),
                RegistrationState::Waiting | RegistrationState::Registered => None,
            },
            last_refused_call: self.refused.get(),
            registration_socket: self.sockets.registration.clone(),
            plugin_socket: self.sockets.plugin.clone(),
        }
    }

    fn runtime(&self) -> Runtime {
        let SessionStatus { runtime, sessions, failures, last_error } = self.runtime.borrow().clone();
        let connected = runtime.is_some();
        let (name, version) = runtime.map(|runtime| (runtime.name, runtime.version)).unzip();
        Runtime { connected, name, version, socket: self.nri_socket.clone(), sessions, failures, last_error }
    }

    fn publishing(&self) -> Publishing {
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let stats = &self.publisher;
        let last_success = i64::try_from(read(&stats.last_success)).ok().filter(|seconds| *seconds > 0);
        Publishing {
            devices: read(&stats.devices),
            slices: read(&stats.slices),
            generation: stats.generation.load(Ordering::Relaxed),
            failures: read(&stats.failures),
            last_success: last_success.and_then(|seconds| Timestamp::from_second(seconds).ok()),
        }
    }

    fn devices(&self) -> Devices {
        let inventory = Arc::clone(&self.inventory.borrow());
        Devices::decide(Source::Daemon, &inventory, &self.networks.list(), &self.rule, &self.store.all())
    }

    fn claims(&self) -> Claims {
        Claims { claims: self.store.all(), peers: told(&self.peers_file) }
    }
}

fn part((name, reason): (&'static str, Option<String>)) -> Part {
    Part { name: name.to_owned(), ready: reason.is_none(), reason }
}
