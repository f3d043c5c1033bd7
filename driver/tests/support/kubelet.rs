//! The kubelet's side of the DRA wire: watches `plugins_registry`, registers drivers, calls them.
//!
//! It does what the kubelet does in the same order (`pkg/kubelet/pluginmanager`, `pkg/kubelet/cm/dra/plugin`):
//! GetInfo, check of type, name and versions, connect to the endpoint, NotifyRegistrationStatus; a socket that
//! was made anew is registered anew, one that is gone is forgotten. A driver may have several instances, and the one that was
//! registered last is called. It dials the registration socket as grpc-go
//! does, and the plugin socket as `localhost`.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use netferry::claim::ClaimRef;
use netferry_proto::dra::{
    health::{
        NodeWatchResourcesRequest, NodeWatchResourcesResponse,
        dra_resource_health_client::DraResourceHealthClient as HealthV1Alpha1Client,
    },
    health_v1::dra_resource_health_client::DraResourceHealthClient as HealthV1Client,
    health_v1beta1::dra_resource_health_client::DraResourceHealthClient as HealthV1Beta1Client,
    registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse},
    v1::{
        Claim, Device, NodePrepareResourcesRequest, NodeUnprepareResourcesRequest,
        dra_plugin_client::DraPluginClient as V1Client,
    },
    v1beta1::dra_plugin_client::DraPluginClient as V1Beta1Client,
};
use tokio::{sync::watch, task::JoinHandle, time};
use tonic::transport::{Channel, Endpoint, Uri};

#[path = "kubelet/grpc_go.rs"]
pub mod grpc_go;
#[path = "kubelet/pods.rs"]
pub mod pods;

/// What a kubelet from 1.34 on speaks.
pub const CURRENT: &[&str] = &["v1.DRAPlugin", "v1beta1.DRAPlugin"];
/// What a kubelet of 1.32 and 1.33 speaks.
pub const OLDER: &[&str] = &["v1beta1.DRAPlugin"];

/// Services of device health, the ones that newer kubelets prefer first.
pub const HEALTH: [&str; 3] =
    ["v1.DRAResourceHealth", "v1beta1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"];
const SCAN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_mins(1);
/// What a driver has for a call (`defaultClientCallTimeout` in `pkg/kubelet/cm/dra/plugin`).
const CALL: Duration = Duration::from_secs(45);

/// Instances of drivers by the driver's name, in the order in which they were registered.
type Drivers = BTreeMap<String, Vec<DriverHandle>>;

/// A kubelet, as far as a DRA driver can tell. Stops when dropped, and leaves the sockets alone.
pub struct Kubelet {
    drivers: watch::Receiver<Drivers>,
    watcher: JoinHandle<()>,
    claims: pods::Claims,
    resync: Duration,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Kubelet {
    /// A current kubelet with this root folder.
    pub fn new(root: &Path) -> Self {
        Self::speaking(root, CURRENT)
    }

    /// A kubelet that knows these services only.
    pub fn speaking(root: &Path, services: &'static [&'static str]) -> Self {
        let registry = root.join("plugins_registry");
        let (sender, drivers) = watch::channel(BTreeMap::new());
        Self {
            drivers,
            watcher: tokio::spawn(watch_registry(registry, services, sender)),
            claims: pods::Claims::open(root),
            resync: pods::RESYNC,
        }
    }

    /// Wait until the driver is registered.
    pub async fn wait_for_driver(&self, name: &str) -> DriverHandle {
        self.wait_for(name, |_| true).await
    }

    /// Wait until the driver is registered by another socket than `earlier` was.
    pub async fn wait_for_another(&self, earlier: &DriverHandle) -> DriverHandle {
        self.wait_for(&earlier.name, |driver| driver.socket != earlier.socket).await
    }

    async fn wait_for(&self, name: &str, wanted: impl Fn(&DriverHandle) -> bool) -> DriverHandle {
        let mut drivers = self.drivers.clone();
        let last = |drivers: &Drivers| drivers.get(name).and_then(|instances| instances.last()).cloned();
        let there = |drivers: &Drivers| last(drivers).is_some_and(|driver| wanted(&driver));
        let found = time::timeout(PATIENCE, drivers.wait_for(there)).await;
        let found = found.unwrap_or_else(|_| panic!("driver {name} did not register within {PATIENCE:?}"));
        last(&found.expect("the watcher runs")).expect("an instance")
    }

    /// Instances of a driver that are registered now, the last one last.
    pub fn instances(&self, name: &str) -> Vec<DriverHandle> {
        self.drivers.borrow().get(name).cloned().unwrap_or_default()
    }

    /// Wait until a driver has so many instances.
    pub async fn wait_for_instances(&self, name: &str, count: usize) {
        let mut drivers = self.drivers.clone();
        let there = |drivers: &Drivers| drivers.get(name).map_or(0, Vec::len) == count;
        let found = time::timeout(PATIENCE, drivers.wait_for(there)).await;
        found.unwrap_or_else(|_| panic!("driver {name} does not have {count} instances")).expect("runs");
    }

    /// Wait until the driver is not registered.
    pub async fn wait_until_gone(&self, name: &str) {
        let mut drivers = self.drivers.clone();
        let gone = time::timeout(PATIENCE, drivers.wait_for(|drivers| !drivers.contains_key(name))).await;
        gone.unwrap_or_else(|_| panic!("driver {name} is still there after {PATIENCE:?}")).expect("runs");
    }
}

async fn watch_registry(
    registry: PathBuf,
    services: &'static [&'static str],
    drivers: watch::Sender<Drivers>,
) {
    let mut seen: BTreeMap<PathBuf, (u64, i64, i64)> = BTreeMap::new();
    fs::create_dir_all(&registry).expect("plugins_registry");
    loop {
        // Not its parent, which is gone once the test is over.
        let _ = fs::create_dir(&registry);
        let found = sockets(&registry);
        seen.retain(|path, identity| {
            let stays = found.get(path) == Some(identity);
            if !stays {
                drivers.send_modify(|drivers| {
                    drivers.retain(|_, instances| {
                        instances.retain(|driver| driver.socket.0 != *path);
                        !instances.is_empty()
                    });
                });
            }
            stays
        });
        for (path, identity) in found {
            if seen.insert(path.clone(), identity).is_some() {
                continue;
            }
            match register(&path, identity, services).await {
                Ok(Ok(driver)) => drivers.send_modify(|drivers| {
                    drivers.entry(driver.name.clone()).or_default().push(driver);
                }),
                Ok(Err(refused)) => eprintln!("kubelet: {}: {refused:#}", path.display()),
                // Nobody is told, so it is tried again: the file is there a moment before its owner listens.
                Err(_) => drop(seen.remove(&path)),
            }
        }
        time::sleep(SCAN).await;
    }
}

/// Sockets whose names do not start with a dot, by inode and time of birth: a new socket can get the inode of
/// the one before.
fn sockets(registry: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let Ok(entries) = fs::read_dir(registry) else { return BTreeMap::new() };
    let socket = |entry: fs::DirEntry| {
        let found = entry.metadata().ok()?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let identity = (found.ino(), found.mtime(), found.mtime_nsec());
        (found.file_type().is_socket() && !hidden).then(|| (entry.path(), identity))
    };
    entries.flatten().filter_map(socket).collect()
}

async fn connect(path: &Path) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))?;
    // It dials `unix:PATH`, which grpc-go knows for a socket of the host.
    let endpoint = endpoint.origin(Uri::from_static("http://localhost"));
    endpoint.connect().await.with_context(|| format!("connect to {}", path.display()))
}

/// The outer error is that of a socket nobody answers on, the inner one the reason the driver was told.
async fn register(
    socket: &Path,
    identity: (u64, i64, i64),
    services: &[&'static str],
) -> anyhow::Result<anyhow::Result<DriverHandle>> {
    let mut connection = grpc_go::Connection::dial(socket).await?;
    // The kubelet gives GetInfo one second, and the notification five.
    let method = "/pluginregistration.Registration/GetInfo";
    let info: PluginInfo = connection.unary(method, &InfoRequest {}, Duration::from_secs(1)).await?;
    let outcome = check(&info, socket, identity, services).await;
    let error = outcome.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: outcome.is_ok(), error };
    let method = "/pluginregistration.Registration/NotifyRegistrationStatus";
    let _: RegistrationStatusResponse = connection.unary(method, &status, Duration::from_secs(5)).await?;
    Ok(outcome)
}

async fn check(
    info: &PluginInfo,
    socket: &Path,
    identity: (u64, i64, i64),
    services: &[&'static str],
) -> anyhow::Result<DriverHandle> {
    ensure!(info.r#type == "DRAPlugin", "no handler for plugin type {:?}", info.r#type);
    ensure!(!info.name.is_empty(), "the name is empty");
    let announced = |service: &&&'static str| info.supported_versions.iter().any(|name| name == **service);
    // The first of the driver's list that we know.
    let chosen = info
        .supported_versions
        .iter()
        .find_map(|name| services.iter().find(|service| *service == name))
        .with_context(|| format!("none of {:?} is supported by the kubelet", info.supported_versions))?;
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) };
    Ok(DriverHandle {
        name: info.name.clone(),
        service: chosen,
        health: HEALTH.iter().filter(|it| announced(it)).copied().collect(),
        channel: connect(&endpoint).await?,
        socket: Arc::new((socket.to_owned(), identity)),
    })
}

/// A registered driver.
#[derive(Clone, Debug)]
pub struct DriverHandle {
    /// Its name.
    pub name: String,
    /// The service that calls go to.
    pub service: &'static str,
    /// The services of device health that it announced.
    pub health: Vec<&'static str>,
    channel: Channel,
    socket: Arc<(PathBuf, (u64, i64, i64))>,
}

/// What came of each claim, by UID.
pub type Outcomes<T> = BTreeMap<String, Result<T, String>>;

fn on_wire(claims: &[ClaimRef]) -> Vec<Claim> {
    let claim = |claim: &ClaimRef| Claim {
        namespace: claim.namespace.clone(),
        uid: claim.uid.clone(),
        name: claim.name.clone(),
    };
    claims.iter().map(claim).collect()
}

/// The kubelet takes a claim without an answer for an error.
fn complete<T>(claims: &[ClaimRef], outcomes: Outcomes<T>) -> anyhow::Result<Outcomes<T>> {
    for claim in claims {
        ensure!(outcomes.contains_key(&claim.uid), "the driver did not answer for claim {claim}");
    }
    Ok(outcomes)
}

impl DriverHandle {
    /// NodePrepareResources.
    pub async fn prepare(&self, claims: &[ClaimRef]) -> anyhow::Result<Outcomes<Vec<Device>>> {
        let (request, channel) =
            (NodePrepareResourcesRequest { claims: on_wire(claims) }, self.channel.clone());
        let response = match self.service {
            "v1.DRAPlugin" => {
                time::timeout(CALL, V1Client::new(channel).node_prepare_resources(request)).await??
            }
            "v1beta1.DRAPlugin" => {
                time::timeout(CALL, V1Beta1Client::new(channel).node_prepare_resources(request)).await??
            }
            other => bail!("no client for {other}"),
        };
        let outcome = |answer: netferry_proto::dra::v1::NodePrepareResourceResponse| {
            if answer.error.is_empty() { Ok(answer.devices) } else { Err(answer.error) }
        };
        let answers = response.into_inner().claims.into_iter();
        complete(claims, answers.map(|(uid, answer)| (uid, outcome(answer))).collect())
    }

    /// NodeUnprepareResources.
    pub async fn unprepare(&self, claims: &[ClaimRef]) -> anyhow::Result<Outcomes<()>> {
        let (request, channel) =
            (NodeUnprepareResourcesRequest { claims: on_wire(claims) }, self.channel.clone());
        let response = match self.service {
            "v1.DRAPlugin" => {
                time::timeout(CALL, V1Client::new(channel).node_unprepare_resources(request)).await??
            }
            "v1beta1.DRAPlugin" => {
                time::timeout(CALL, V1Beta1Client::new(channel).node_unprepare_resources(request)).await??
            }
            other => bail!("no client for {other}"),
        };
        let outcome = |error: String| if error.is_empty() { Ok(()) } else { Err(error) };
        let answers = response.into_inner().claims.into_iter();
        complete(claims, answers.map(|(uid, answer)| (uid, outcome(answer.error))).collect())
    }

    /// NodeWatchResources as the newest kubelet calls it, if the driver announced it.
    pub async fn watch_health(&self) -> anyhow::Result<tonic::Streaming<NodeWatchResourcesResponse>> {
        self.watch_health_by(HEALTH[0]).await
    }

    /// NodeWatchResources of one service, if the driver announced it.
    pub async fn watch_health_by(
        &self,
        service: &str,
    ) -> anyhow::Result<tonic::Streaming<NodeWatchResourcesResponse>> {
        ensure!(self.health.contains(&service), "driver {} did not announce {service}", self.name);
        let (channel, request) = (self.channel.clone(), NodeWatchResourcesRequest {});
        let answer = match service {
            "v1.DRAResourceHealth" => HealthV1Client::new(channel).node_watch_resources(request).await?,
            "v1beta1.DRAResourceHealth" => {
                HealthV1Beta1Client::new(channel).node_watch_resources(request).await?
            }
            _ => HealthV1Alpha1Client::new(channel).node_watch_resources(request).await?,
        };
        Ok(answer.into_inner())
    }
}
