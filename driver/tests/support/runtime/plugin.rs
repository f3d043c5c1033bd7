//! A plugin in its session with the stand-in runtime, and the events it is sent.

use std::{
    fs,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use netferry::nri::mux::MuxError;
use netferry_proto::nri as api;
use nix::mount::{MntFlags, umount2};
use protobuf::MessageField;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use ttrpc::{Code, r#async::Server, context};

use super::{
    Generation,
    behavior::{Behavior, Namespace},
    spec::{ContainerSpec, PodSandboxSpec},
    store::{Store, Told},
};

/// How long a refused container is tried again, and after which pause.
const PATIENCE: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(50);

/// Why an event had no success.
#[derive(Debug, PartialEq, Eq)]
pub enum EventError {
    /// The plugin's error: the sandbox or the container fails.
    Refused(String),
    /// No answer within the limit, or the connection broke: a real runtime drops the plugin and starts the pod or the
    /// container without it.
    PluginLost(String),
}

/// A plugin in its session with the runtime.
pub struct Plugin {
    /// As whom it registered.
    pub registered: api::RegisterPluginRequest,
    /// The events it subscribed: bit `event - 1`.
    pub events: i32,
    /// For calls other than those below. They do not wait for the node's lock.
    pub client: api::PluginClient,
    /// What the runtime knows.
    pub store: Store,
    pub(super) generation: Generation,
    pub(super) behavior: Behavior,
    pub(super) request_timeout: Duration,
    pub(super) tells_request_timeout: bool,
    pub(super) mux: JoinHandle<MuxError>,
    /// The lock is never taken: it makes the plugin one that tasks can share.
    pub(super) _server: Mutex<Server>,
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

    /// Tell the plugin all sandboxes, at most `part` at once. All parts have one limit, and no event comes between.
    pub async fn synchronize(&self, part: usize) -> anyhow::Result<()> {
        let _node = self.store.one_at_a_time().await;
        let pods = self.store.list(&self.behavior);
        let mut parts: Vec<_> = pods.chunks(part).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let last = parts.len() - 1;
        let sent = async {
            for (i, pods) in parts.into_iter().enumerate() {
                let request = api::SynchronizeRequest { pods, more: i < last, ..Default::default() };
                let response = self.client.synchronize(self.limit(), &request).await?;
                anyhow::ensure!(response.more == request.more, "plugin does not handle split sync requests");
            }
            Ok(())
        };
        timeout(self.request_timeout, sent).await?
    }

    /// All sandboxes that were not removed, dead ones too.
    pub fn sandboxes(&self) -> Vec<PodSandboxSpec> {
        self.store.sandboxes()
    }

    /// Send RunPodSandbox. The sandbox runs unless it is refused.
    pub async fn run_pod_sandbox(&self, sandbox: &PodSandboxSpec) -> Result<(), EventError> {
        let _node = self.store.one_at_a_time().await;
        let result = self.send(api::Event::RUN_POD_SANDBOX, sandbox.message()).await;
        if !matches!(result, Err(EventError::Refused(_))) {
            self.store.add(sandbox.clone(), Told::Run);
        }
        result
    }

    /// Send CreateContainer, by a call of its own in both generations: for an init container, a main one, an ephemeral
    /// one, and for each that is made again. The sandbox must have its pause container.
    pub async fn create_container(
        &self,
        sandbox: &PodSandboxSpec,
        container: &ContainerSpec,
    ) -> Result<(), EventError> {
        assert!(self.store.is_alive(&sandbox.id), "no container is created in sandbox {}", sandbox.id);
        let _node = self.store.one_at_a_time().await;
        if !self.subscribed(api::Event::CREATE_CONTAINER) {
            return Ok(());
        }
        let request = api::CreateContainerRequest {
            pod: MessageField::some(sandbox.message()),
            container: MessageField::some(container.message(sandbox)),
            ..Default::default()
        };
        let sent = async { self.client.create_container(self.limit(), &request).await.map(drop) };
        self.answered(sent).await
    }

    /// Start a pod as the kubelet does: its sandbox, then a container, tried again while it is refused, faster than a kubelet
    /// would. Returns the last refusal once patience has run out.
    pub async fn start_pod(&self, sandbox: &PodSandboxSpec) -> Result<(), EventError> {
        self.run_pod_sandbox(sandbox).await?;
        let container = ContainerSpec::new(sandbox, "main");
        let began = Instant::now();
        loop {
            match self.create_container(sandbox, &container).await {
                Err(EventError::Refused(_)) if began.elapsed() < PATIENCE => sleep(RETRY).await,
                answer => return answer,
            }
        }
    }

    /// Stop a sandbox, whose pause container is gone then, and send StopPodSandbox if this runtime does.
    pub async fn stop_pod_sandbox(&self, sandbox: &PodSandboxSpec) -> Result<(), EventError> {
        if self.behavior.namespace == Namespace::RemovedBeforeStop {
            remove_namespace(sandbox.netns.as_deref());
        }
        let result = {
            let _node = self.store.one_at_a_time().await;
            let told = match self.store.told(&sandbox.id) {
                Told::Nothing if !self.behavior.tells_older => Told::Nothing,
                _ => Told::Stop,
            };
            let again = self.store.told(&sandbox.id) == Told::Stop;
            self.store.stopped(&sandbox.id, told);
            if told == Told::Stop && !again {
                self.send(api::Event::STOP_POD_SANDBOX, self.behavior.dead.describe(sandbox)).await
            } else {
                Ok(())
            }
        };
        if self.behavior.namespace == Namespace::RemovedAfterStop {
            remove_namespace(sandbox.netns.as_deref());
        }
        result
    }

    /// Remove a sandbox, and send RemovePodSandbox if this runtime does.
    pub async fn remove_pod_sandbox(&self, sandbox: &PodSandboxSpec) -> Result<(), EventError> {
        let _node = self.store.one_at_a_time().await;
        let told = self.store.told(&sandbox.id);
        self.store.remove(&sandbox.id);
        if told == Told::Nothing && !self.behavior.tells_older {
            return Ok(());
        }
        self.send(api::Event::REMOVE_POD_SANDBOX, self.behavior.dead.describe(sandbox)).await
    }

    fn subscribed(&self, event: api::Event) -> bool {
        self.events & (1 << (event as i32 - 1)) != 0
    }

    async fn send(&self, event: api::Event, pod: api::PodSandbox) -> Result<(), EventError> {
        if !self.subscribed(event) {
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
        self.answered(sent).await
    }

    /// What becomes of a call: only an answer in time leaves the plugin its session (`isFatalError` in
    /// `pkg/adaptation/plugin.go` of containerd/nri).
    async fn answered(&self, sent: impl Future<Output = ttrpc::Result<()>>) -> Result<(), EventError> {
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

fn remove_namespace(path: Option<&Path>) {
    if let Some(path) = path {
        let _ = umount2(path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(path);
    }
}
