//! The runtime's side of NRI, for tests and the demo: takes the plugin's connection, configures and synchronizes it,
//! and sends it pod events, as `pkg/adaptation` of containerd/nri does.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use netferry::nri::mux::{self, MuxError};
use netferry_proto::nri as api;
use protobuf::MessageField;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use ttrpc::{
    Code,
    r#async::{
        Client, Server, TtrpcContext,
        transport::{Listener, Socket},
    },
    context,
};

/// How pod events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Through `StateChange`: containerd 1.7, 2.0, 2.1.
    StateChange,
    /// Each by its own call: NRI since commit bbf892d.
    OwnCalls,
}

/// A pod sandbox of the stand-in runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSandboxSpec {
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// `None`: a host-network pod.
    pub netns: Option<PathBuf>,
    pub cgroup_parent: String,
    pub annotations: HashMap<String, String>,
}

impl PodSandboxSpec {
    /// A sandbox whose id is derived from the pod's UID.
    pub fn new(namespace: &str, name: &str, uid: &str, netns: Option<&Path>) -> Self {
        Self {
            id: format!("sandbox-{uid}"),
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            netns: netns.map(Into::into),
            cgroup_parent: format!("/kubepods/pod{uid}"),
            annotations: HashMap::new(),
        }
    }

    fn message(&self) -> api::PodSandbox {
        // containerd lists all of a sandbox's namespaces, in this order.
        let others = ["pid", "ipc", "uts", "mount"].map(|kind| (kind, String::new()));
        let netns = self.netns.iter().map(|path| ("network", path.to_str().expect("UTF-8 path").to_owned()));
        let namespaces = others.into_iter().chain(netns);
        api::PodSandbox {
            id: self.id.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            annotations: self.annotations.clone(),
            linux: MessageField::some(api::LinuxPodSandbox {
                cgroup_parent: self.cgroup_parent.clone(),
                namespaces: namespaces
                    .map(|(kind, path)| api::LinuxNamespace {
                        type_: kind.into(),
                        path,
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// Why an event had no success.
#[derive(Debug, PartialEq, Eq)]
pub enum EventError {
    /// The plugin's error: the sandbox fails.
    Refused(String),
    /// No answer within the limit, or the connection broke: a real runtime drops the plugin and starts the pod
    /// without it.
    PluginLost(String),
}

type Sandboxes = Arc<Mutex<BTreeMap<String, PodSandboxSpec>>>;

/// A runtime that listens for plugins.
pub struct Runtime {
    path: PathBuf,
    listener: UnixListener,
    generation: Generation,
    sandboxes: Sandboxes,
    /// Limit for an event.
    pub request_timeout: Duration,
    /// Whether `Configure` tells it; NRI before 0.7 does not.
    pub tells_request_timeout: bool,
    /// Most sandboxes in one part of a synchronization.
    pub part: usize,
    /// Leave the network namespace out of stop events, as some versions of containerd do.
    pub forgets_netns_at_stop: bool,
}

impl Runtime {
    /// Listen at `path`, in place of a runtime that listened there before.
    pub fn listen(path: impl Into<PathBuf>, generation: Generation) -> io::Result<Self> {
        let path = path.into();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Self {
            path,
            listener,
            generation,
            sandboxes: Sandboxes::default(),
            request_timeout: Duration::from_secs(2),
            tells_request_timeout: true,
            part: usize::MAX,
            forgets_netns_at_stop: false,
        })
    }

    /// Know `sandboxes` from an earlier life.
    pub fn with_sandboxes(self, sandboxes: impl IntoIterator<Item = PodSandboxSpec>) -> Self {
        let known = sandboxes.into_iter().map(|sandbox| (sandbox.id.clone(), sandbox));
        self.sandboxes.lock().expect("sandboxes").extend(known);
        self
    }

    /// Take the next plugin: registration, configuration and synchronization.
    pub async fn accept(&self) -> anyhow::Result<Plugin> {
        let (trunk, _) = self.listener.accept().await?;
        let mut plugin = self.register(trunk).await?;
        plugin.configure().await?;
        plugin.synchronize(self.part).await?;
        Ok(plugin)
    }

    /// Take one plugin after the other, as a runtime that outlives them does: the newest is told.
    pub fn serve(self) -> (JoinHandle<()>, watch::Receiver<Option<Arc<Plugin>>>) {
        let (tell, plugin) = watch::channel(None);
        let task = tokio::spawn(async move {
            loop {
                match self.accept().await {
                    Ok(plugin) => drop(tell.send_replace(Some(Arc::new(plugin)))),
                    Err(error) => eprintln!("runtime: the plugin was lost while it connected: {error:#}"),
                }
            }
        });
        (task, plugin)
    }

    /// Take the next plugin's connection as it is.
    pub async fn accept_raw(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    /// Take the next plugin's registration, and leave it at that.
    pub async fn accept_registration(&self) -> anyhow::Result<Plugin> {
        let (trunk, _) = self.listener.accept().await?;
        self.register(trunk).await
    }

    async fn register(&self, trunk: UnixStream) -> anyhow::Result<Plugin> {
        let (mux, [plugin_end, runtime_end]) = mux::open(trunk, [mux::PLUGIN, mux::RUNTIME]);
        let mux = tokio::spawn(mux);
        let (registrations, mut registered) = mpsc::channel(1);
        let listener = Listener::new(stream::iter([Ok(runtime_end)]).chain(stream::pending()));
        let service = api::create_runtime(Arc::new(RuntimeService { registrations }));
        let mut server = Server::new().add_listener(listener).register_service(service);
        server.start().await?;
        let registered = timeout(Duration::from_secs(5), registered.recv())
            .await?
            .ok_or_else(|| anyhow::anyhow!("the plugin left without a registration"))?;
        Ok(Plugin {
            registered,
            events: 0,
            client: api::PluginClient::new(Client::new(Socket::new(plugin_end))),
            generation: self.generation,
            sandboxes: Arc::clone(&self.sandboxes),
            request_timeout: self.request_timeout,
            tells_request_timeout: self.tells_request_timeout,
            forgets_netns_at_stop: self.forgets_netns_at_stop,
            mux,
            _server: Mutex::new(server),
        })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct RuntimeService {
    registrations: mpsc::Sender<api::RegisterPluginRequest>,
}

#[async_trait]
impl api::Runtime for RuntimeService {
    async fn register_plugin(
        &self,
        _: &TtrpcContext,
        request: api::RegisterPluginRequest,
    ) -> ttrpc::Result<api::Empty> {
        let index = request.plugin_idx.as_bytes();
        if request.plugin_name.is_empty() || index.len() != 2 || !index.iter().all(u8::is_ascii_digit) {
            let why = format!("invalid plugin {:?} {:?}", request.plugin_idx, request.plugin_name);
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INVALID_ARGUMENT, why)));
        }
        let _ = self.registrations.send(request).await;
        Ok(api::Empty::default())
    }
}

/// A plugin in its session with the runtime.
pub struct Plugin {
    /// As whom it registered.
    pub registered: api::RegisterPluginRequest,
    /// The events it subscribed: bit `event - 1`.
    pub events: i32,
    /// For calls other than those below.
    pub client: api::PluginClient,
    generation: Generation,
    sandboxes: Sandboxes,
    request_timeout: Duration,
    tells_request_timeout: bool,
    forgets_netns_at_stop: bool,
    mux: JoinHandle<MuxError>,
    /// The lock is never taken: it makes the plugin one that tasks can share.
    _server: Mutex<Server>,
}

impl Plugin {
    fn limit(&self) -> context::Context {
        context::with_duration(self.request_timeout)
    }

    /// Configure the plugin and take its subscription.
    pub async fn configure(&mut self) -> anyhow::Result<()> {
        let told =
            if self.tells_request_timeout { i64::try_from(self.request_timeout.as_millis())? } else { 0 };
        let request = api::ConfigureRequest {
            runtime_name: "stand-in".into(),
            runtime_version: "v1".into(),
            registration_timeout: 5000,
            request_timeout: told,
            ..Default::default()
        };
        self.events = self.client.configure(self.limit(), &request).await?.events;
        Ok(())
    }

    /// Tell the plugin all sandboxes, at most `part` at once.
    pub async fn synchronize(&self, part: usize) -> anyhow::Result<()> {
        let pods: Vec<_> = self.sandboxes().iter().map(PodSandboxSpec::message).collect();
        let mut parts: Vec<_> = pods.chunks(part).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let last = parts.len() - 1;
        for (i, pods) in parts.into_iter().enumerate() {
            let request = api::SynchronizeRequest { pods, more: i < last, ..Default::default() };
            let response = self.client.synchronize(self.limit(), &request).await?;
            anyhow::ensure!(response.more == request.more, "plugin does not handle split sync requests");
        }
        Ok(())
    }

    /// The sandboxes that run.
    pub fn sandboxes(&self) -> Vec<PodSandboxSpec> {
        self.sandboxes.lock().expect("sandboxes").values().cloned().collect()
    }

    /// Send RunPodSandbox. The sandbox runs unless it is refused.
    pub async fn run_pod_sandbox(&self, sandbox: &PodSandboxSpec) -> Result<(), EventError> {
        let result = self.send(api::Event::RUN_POD_SANDBOX, sandbox.message()).await;
        if !matches!(result, Err(EventError::Refused(_))) {
            self.sandboxes.lock().expect("sandboxes").insert(sandbox.id.clone(), sandbox.clone());
        }
        result
    }

    /// Send StopPodSandbox.
    pub async fn stop_pod_sandbox(&self, sandbox: &PodSandboxSpec) -> Result<(), EventError> {
        let mut message = sandbox.message();
        if self.forgets_netns_at_stop {
            message.linux.mut_or_insert_default().namespaces.retain(|namespace| namespace.type_ != "network");
        }
        self.send(api::Event::STOP_POD_SANDBOX, message).await
    }

    /// Send RemovePodSandbox.
    pub async fn remove_pod_sandbox(&self, sandbox: &PodSandboxSpec) -> Result<(), EventError> {
        self.sandboxes.lock().expect("sandboxes").remove(&sandbox.id);
        self.send(api::Event::REMOVE_POD_SANDBOX, sandbox.message()).await
    }

    async fn send(&self, event: api::Event, pod: api::PodSandbox) -> Result<(), EventError> {
        if self.events & (1 << (event as i32 - 1)) == 0 {
            return Ok(());
        }
        let pod = MessageField::some(pod);
        let sent = async {
            match (self.generation, event) {
                (Generation::StateChange, _) => {
                    let request = api::StateChangeEvent { event: event.into(), pod, ..Default::default() };
                    self.client.state_change(self.limit(), &request).await.map(drop)
                }
                (Generation::OwnCalls, api::Event::RUN_POD_SANDBOX) => {
                    let request = api::RunPodSandboxRequest { pod, ..Default::default() };
                    self.client.run_pod_sandbox(self.limit(), &request).await.map(drop)
                }
                (Generation::OwnCalls, api::Event::STOP_POD_SANDBOX) => {
                    let request = api::StopPodSandboxRequest { pod, ..Default::default() };
                    self.client.stop_pod_sandbox(self.limit(), &request).await.map(drop)
                }
                (Generation::OwnCalls, api::Event::REMOVE_POD_SANDBOX) => {
                    let request = api::RemovePodSandboxRequest { pod, ..Default::default() };
                    self.client.remove_pod_sandbox(self.limit(), &request).await.map(drop)
                }
                (Generation::OwnCalls, other) => unreachable!("{other:?} is not sent"),
            }
        };
        let lost = match timeout(self.request_timeout, sent).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() != Code::DEADLINE_EXCEEDED => {
                return Err(EventError::Refused(status.message().to_owned()));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.request_timeout),
        };
        self.mux.abort();
        Err(EventError::PluginLost(lost))
    }

    /// Tell the plugin that the runtime goes down.
    pub async fn shutdown(&self) -> ttrpc::Result<()> {
        self.client.shutdown(self.limit(), &api::Empty::default()).await.map(drop)
    }

    /// Break the connection, as a crash does.
    pub fn kill(&self) {
        self.mux.abort();
    }

    /// Wait until the plugin closes the connection.
    pub async fn closed(&mut self) -> Option<MuxError> {
        (&mut self.mux).await.ok()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.mux.abort();
    }
}
