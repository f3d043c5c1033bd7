//! The runtime's side of NRI, for tests and the demo: takes the plugin's connection, configures and synchronizes it,
//! and sends it the events of pods and containers, as `pkg/adaptation` of containerd/nri does, no kinder.

mod behavior;
mod plugin;
mod spec;
mod store;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use netferry::nri::mux;
use netferry_proto::nri as api;
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
};

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub use self::{
    behavior::{Behavior, DeadSandbox, Namespace},
    plugin::{EventError, Plugin},
    spec::{ContainerSpec, PodSandboxSpec},
    store::Store,
};
use store::Told;

/// How pod events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Through `StateChange`: containerd 1.7, 2.0, 2.1.
    StateChange,
    /// Each by its own call: NRI since commit bbf892d.
    OwnCalls,
}

/// A runtime that listens for plugins.
pub struct Runtime {
    path: PathBuf,
    listener: UnixListener,
    generation: Generation,
    /// What it knows; shared with its plugins, and to be handed to the runtime that comes after it.
    pub store: Store,
    /// In what it is like one runtime and not like another.
    pub behavior: Behavior,
    /// Limit for an event.
    pub request_timeout: Duration,
    /// Whether `Configure` tells it; NRI before 0.7 does not.
    pub tells_request_timeout: bool,
    /// Most sandboxes in one part of a synchronization.
    pub part: usize,
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
            store: Store::default(),
            behavior: Behavior::default(),
            request_timeout: Duration::from_secs(2),
            tells_request_timeout: true,
            part: usize::MAX,
        })
    }

    /// Know `sandboxes` from an earlier life: they run, and are older than this start.
    pub fn with_sandboxes(self, sandboxes: impl IntoIterator<Item = PodSandboxSpec>) -> Self {
        for sandbox in sandboxes {
            self.store.add(sandbox, Told::Nothing);
        }
        self
    }

    /// Know what another runtime knew, dead sandboxes too: all are older than this start. A runtime that is not taken
    /// down for it is restarted in its place by [`Store::restart`], also while it is served.
    pub fn after(mut self, earlier: &Store) -> Self {
        earlier.restart();
        self.store = earlier.clone();
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
        self.store.connected(mux.abort_handle());
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
            store: self.store.clone(),
            behavior: self.behavior,
            request_timeout: self.request_timeout,
            tells_request_timeout: self.tells_request_timeout,
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
