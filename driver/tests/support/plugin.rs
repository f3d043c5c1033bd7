//! A bare NRI plugin: records what a runtime sends, as it came, and answers as a test wants. It knows nothing of the
//! driver.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use netferry::nri::mux::{self, MuxError};
use netferry_proto::nri as api;
use tokio::{
    net::UnixStream,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use ttrpc::{
    Code, Error,
    r#async::{
        Client, Server, TtrpcContext,
        transport::{Listener, Socket},
    },
    context, get_status,
};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What a runtime sent.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a test has few, and matches them by their fields")]
pub enum Received {
    /// All parts of a synchronization.
    Synchronize(Vec<api::PodSandbox>, Vec<api::Container>),
    Pod(api::Event, api::PodSandbox),
    CreateContainer(api::PodSandbox, api::Container),
}

/// How an event is answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// After this time.
    pub after: Duration,
    /// With this error, if any.
    pub refusal: Option<String>,
}

/// A plugin in its session.
pub struct BarePlugin {
    state: Arc<State>,
    mux: JoinHandle<MuxError>,
    /// Dropped, both close their connection, and the session ends.
    _ends: (Mutex<Server>, api::RuntimeClient),
}

impl BarePlugin {
    /// Connect, register under `name`, and take the runtime's synchronization.
    pub async fn connect(socket: &Path, name: &str, events: &[api::Event]) -> anyhow::Result<Self> {
        let trunk = UnixStream::connect(socket).await?;
        let (mux, [plugin_end, runtime_end]) = mux::open(trunk, [mux::PLUGIN, mux::RUNTIME]);
        let mux = tokio::spawn(mux);
        let (synchronized, mut watched) = watch::channel(false);
        let state = Arc::new(State {
            events: events.iter().fold(0, |mask, event| mask | 1 << (*event as i32 - 1)),
            received: Mutex::default(),
            parts: Mutex::default(),
            answers: Mutex::default(),
            synchronized,
        });
        let listener = Listener::new(stream::iter([Ok(plugin_end)]).chain(stream::pending()));
        let service = api::create_plugin(Arc::new(Service(Arc::clone(&state))));
        let mut server = Server::new().add_listener(listener).register_service(service);
        server.start().await?;
        let runtime = api::RuntimeClient::new(Client::new(Socket::new(runtime_end)));
        let request = api::RegisterPluginRequest {
            plugin_name: name.into(),
            plugin_idx: "50".into(),
            ..Default::default()
        };
        runtime.register_plugin(context::with_duration(CONNECT_LIMIT), &request).await?;
        timeout(CONNECT_LIMIT, watched.wait_for(|synchronized| *synchronized)).await??;
        Ok(Self { state, mux, _ends: (Mutex::new(server), runtime) })
    }

    /// Answer an event in this way from now on.
    pub fn answer(&self, event: api::Event, answer: Answer) {
        lock(&self.state.answers).insert(event as i32, answer);
    }

    /// What came since the last call.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut *lock(&self.state.received))
    }

    /// Wait until the runtime ends the session.
    pub async fn closed(&self) {
        while self.is_connected() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the runtime keeps the session.
    pub fn is_connected(&self) -> bool {
        !self.mux.is_finished()
    }
}

impl Drop for BarePlugin {
    fn drop(&mut self) {
        self.mux.abort();
    }
}

struct State {
    events: i32,
    received: Mutex<Vec<Received>>,
    parts: Mutex<(Vec<api::PodSandbox>, Vec<api::Container>)>,
    answers: Mutex<HashMap<i32, Answer>>,
    synchronized: watch::Sender<bool>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Service(Arc<State>);

impl Service {
    async fn event(&self, event: api::Event, received: Received) -> ttrpc::Result<()> {
        lock(&self.0.received).push(received);
        let answer = lock(&self.0.answers).get(&(event as i32)).cloned().unwrap_or_default();
        sleep(answer.after).await;
        answer.refusal.map_or(Ok(()), |why| Err(Error::RpcStatus(get_status(Code::ABORTED, why))))
    }

    async fn pod_event(&self, event: api::Event, pod: Option<api::PodSandbox>) -> ttrpc::Result<()> {
        self.event(event, Received::Pod(event, pod.unwrap_or_default())).await
    }
}

#[async_trait]
impl api::Plugin for Service {
    async fn configure(
        &self,
        _: &TtrpcContext,
        _: api::ConfigureRequest,
    ) -> ttrpc::Result<api::ConfigureResponse> {
        Ok(api::ConfigureResponse { events: self.0.events, ..Default::default() })
    }

    async fn synchronize(
        &self,
        _: &TtrpcContext,
        request: api::SynchronizeRequest,
    ) -> ttrpc::Result<api::SynchronizeResponse> {
        let mut parts = lock(&self.0.parts);
        parts.0.extend(request.pods);
        parts.1.extend(request.containers);
        if !request.more {
            let (pods, containers) = std::mem::take(&mut *parts);
            lock(&self.0.received).push(Received::Synchronize(pods, containers));
            self.0.synchronized.send_replace(true);
        }
        Ok(api::SynchronizeResponse { more: request.more, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::Empty) -> ttrpc::Result<api::Empty> {
        Ok(api::Empty::default())
    }

    async fn state_change(
        &self,
        _: &TtrpcContext,
        event: api::StateChangeEvent,
    ) -> ttrpc::Result<api::Empty> {
        let kind = event.event.enum_value_or_default();
        self.pod_event(kind, event.pod.0.map(|pod| *pod)).await?;
        Ok(api::Empty::default())
    }

    async fn run_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::RunPodSandboxRequest,
    ) -> ttrpc::Result<api::RunPodSandboxResponse> {
        self.pod_event(api::Event::RUN_POD_SANDBOX, request.pod.0.map(|pod| *pod)).await?;
        Ok(api::RunPodSandboxResponse::default())
    }

    async fn stop_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopPodSandboxRequest,
    ) -> ttrpc::Result<api::StopPodSandboxResponse> {
        self.pod_event(api::Event::STOP_POD_SANDBOX, request.pod.0.map(|pod| *pod)).await?;
        Ok(api::StopPodSandboxResponse::default())
    }

    async fn remove_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::RemovePodSandboxRequest,
    ) -> ttrpc::Result<api::RemovePodSandboxResponse> {
        self.pod_event(api::Event::REMOVE_POD_SANDBOX, request.pod.0.map(|pod| *pod)).await?;
        Ok(api::RemovePodSandboxResponse::default())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let pod = request.pod.0.map(|pod| *pod).unwrap_or_default();
        let container = request.container.0.map(|container| *container).unwrap_or_default();
        let received = Received::CreateContainer(pod, container);
        self.event(api::Event::CREATE_CONTAINER, received).await?;
        Ok(api::CreateContainerResponse::default())
    }
}
