//! The Plugin service: what the runtime calls, in both generations of the wire.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use netferry_proto::nri as api;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};
use ttrpc::{Code, Error, r#async::TtrpcContext, get_status};

use super::{PodSandbox, dispatch, dispatch::Dispatch};
use crate::claim::PodRef;

/// NRI's default limit for a request (`DefaultPluginRequestTimeout`), for runtimes that do not tell theirs (NRI
/// before 0.7).
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Sandboxes that a synchronization may list. A node runs some hundred pods; the bound is for a runtime gone mad.
const SANDBOXES_LIMIT: usize = 100_000;

/// How far a session with the runtime has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The plugin is not configured yet.
    Connected,
    /// The runtime has named itself.
    Configured(RuntimeInfo),
    /// The driver knows the runtime's sandboxes.
    Synchronized(RuntimeInfo),
    /// The driver failed to take the runtime's sandboxes.
    NotSynchronized,
    /// The runtime goes down.
    ShutDown,
}

/// The runtime on the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Its name, such as `containerd`.
    pub name: String,
    /// Its version as it tells it.
    pub version: String,
    /// Version of NRI it has, where it tells.
    pub nri_version: String,
    /// Its limit for a request.
    pub request_timeout: Duration,
}

/// Serves one session.
pub(super) struct Plugin {
    dispatch: Dispatch,
    progress: watch::Sender<Progress>,
    session: Mutex<SessionFacts>,
}

#[derive(Default)]
struct SessionFacts {
    runtime: RuntimeInfo,
    /// Parts of a synchronization that came so far.
    parts: Vec<PodSandbox>,
    /// Sandboxes in which containers have been made, by those parts.
    with_containers: BTreeSet<String>,
}

impl Plugin {
    pub(super) fn new(dispatch: Dispatch) -> (Self, watch::Receiver<Progress>) {
        let (progress, watched) = watch::channel(Progress::Connected);
        (Self { dispatch, progress, session: Mutex::default() }, watched)
    }

    fn facts(&self) -> std::sync::MutexGuard<'_, SessionFacts> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime's limit is the shorter of what it told and what the request itself carries.
    fn answer_by(&self, ctx: &TtrpcContext) -> Instant {
        let told = match self.facts().runtime.request_timeout {
            Duration::ZERO => DEFAULT_REQUEST_TIMEOUT,
            told => told,
        };
        let carried =
            u64::try_from(ctx.timeout_nano).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
        dispatch::answer_by(carried.map_or(told, |carried| carried.min(told)))
    }

    async fn run(&self, ctx: &TtrpcContext, pod: Option<api::PodSandbox>) -> ttrpc::Result<()> {
        let answer_by = self.answer_by(ctx);
        // Never refused, not even one that cannot be understood: its containers are.
        match required(pod) {
            Ok(sandbox) => self.dispatch.run(sandbox, answer_by).await,
            Err(error) => warn!(%error, "a sandbox is passed over"),
        }
        Ok(())
    }

    async fn stop(&self, ctx: &TtrpcContext, pod: Option<api::PodSandbox>) -> ttrpc::Result<()> {
        let answer_by = self.answer_by(ctx);
        self.dispatch.stop(required(pod)?, answer_by).await;
        Ok(())
    }

    async fn remove(&self, ctx: &TtrpcContext, pod: Option<api::PodSandbox>) -> ttrpc::Result<()> {
        let answer_by = self.answer_by(ctx);
        self.dispatch.remove(required(pod)?, answer_by).await;
        Ok(())
    }
}

#[async_trait]
impl api::Plugin for Plugin {
    async fn configure(
        &self,
        _: &TtrpcContext,
        request: api::ConfigureRequest,
    ) -> ttrpc::Result<api::ConfigureResponse> {
        let request_timeout = match u64::try_from(request.request_timeout) {
            Ok(millis) if millis > 0 => Duration::from_millis(millis),
            _ => DEFAULT_REQUEST_TIMEOUT,
        };
        let runtime = RuntimeInfo {
            name: request.runtime_name,
            version: request.runtime_version,
            nri_version: request.NRI_version,
            request_timeout,
        };
        info!(
            runtime = runtime.name,
            version = runtime.version,
            ?request_timeout,
            "configured by the runtime"
        );
        self.facts().runtime = runtime.clone();
        self.progress.send_replace(Progress::Configured(runtime));
        let events = [
            api::Event::RUN_POD_SANDBOX,
            api::Event::STOP_POD_SANDBOX,
            api::Event::REMOVE_POD_SANDBOX,
            api::Event::CREATE_CONTAINER,
        ];
        let events = events.into_iter().fold(0, |mask, event| mask | 1 << (event as i32 - 1));
        Ok(api::ConfigureResponse { events, ..Default::default() })
    }

    async fn synchronize(
        &self,
        ctx: &TtrpcContext,
        request: api::SynchronizeRequest,
    ) -> ttrpc::Result<api::SynchronizeResponse> {
        let answer_by = self.answer_by(ctx);
        let (runtime, sandboxes) = {
            let mut facts = self.facts();
            facts.with_containers.extend(request.containers.into_iter().map(|it| it.pod_sandbox_id));
            for pod in request.pods {
                match sandbox(pod) {
                    Ok(sandbox) => facts.parts.push(sandbox),
                    Err(why) => warn!(%why, "left out a sandbox of the runtime's list"),
                }
            }
            if facts.parts.len() > SANDBOXES_LIMIT {
                (facts.parts, facts.with_containers) = Default::default();
                let why = format!("more than {SANDBOXES_LIMIT} sandboxes in one synchronization");
                return Err(status(Code::RESOURCE_EXHAUSTED, why));
            }
            if request.more {
                return Ok(api::SynchronizeResponse { more: true, ..Default::default() });
            }
            let (mut sandboxes, with_containers) =
                (std::mem::take(&mut facts.parts), std::mem::take(&mut facts.with_containers));
            for sandbox in &mut sandboxes {
                sandbox.has_containers = with_containers.contains(&sandbox.id);
            }
            (facts.runtime.clone(), sandboxes)
        };
        info!(sandboxes = sandboxes.len(), "synchronizing with the runtime");
        let progress = self.progress.clone();
        let done = move |taken| {
            progress.send_if_modified(|progress| {
                let going = *progress != Progress::ShutDown;
                if going {
                    *progress =
                        if taken { Progress::Synchronized(runtime) } else { Progress::NotSynchronized };
                }
                going
            });
        };
        if !self.dispatch.synchronize(sandboxes, answer_by, done).await {
            info!("the synchronization goes on; containers of pods with claims wait for it");
        }
        Ok(api::SynchronizeResponse::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::Empty) -> ttrpc::Result<api::Empty> {
        self.progress.send_replace(Progress::ShutDown);
        Ok(api::Empty::default())
    }

    async fn run_pod_sandbox(
        &self,
        ctx: &TtrpcContext,
        request: api::RunPodSandboxRequest,
    ) -> ttrpc::Result<api::RunPodSandboxResponse> {
        self.run(ctx, request.pod.0.map(|pod| *pod)).await?;
        Ok(api::RunPodSandboxResponse::default())
    }

    async fn stop_pod_sandbox(
        &self,
        ctx: &TtrpcContext,
        request: api::StopPodSandboxRequest,
    ) -> ttrpc::Result<api::StopPodSandboxResponse> {
        self.stop(ctx, request.pod.0.map(|pod| *pod)).await?;
        Ok(api::StopPodSandboxResponse::default())
    }

    async fn remove_pod_sandbox(
        &self,
        ctx: &TtrpcContext,
        request: api::RemovePodSandboxRequest,
    ) -> ttrpc::Result<api::RemovePodSandboxResponse> {
        self.remove(ctx, request.pod.0.map(|pod| *pod)).await?;
        Ok(api::RemovePodSandboxResponse::default())
    }

    async fn state_change(
        &self,
        ctx: &TtrpcContext,
        event: api::StateChangeEvent,
    ) -> ttrpc::Result<api::Empty> {
        let pod = event.pod.0.map(|pod| *pod);
        match event.event.enum_value() {
            Ok(api::Event::RUN_POD_SANDBOX) => self.run(ctx, pod).await?,
            Ok(api::Event::STOP_POD_SANDBOX) => self.stop(ctx, pod).await?,
            Ok(api::Event::REMOVE_POD_SANDBOX) => self.remove(ctx, pod).await?,
            other => debug!(event = ?other, "event without interest"),
        }
        Ok(api::Empty::default())
    }

    async fn create_container(
        &self,
        ctx: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let answer_by = self.answer_by(ctx);
        let sandbox = required(request.pod.0.map(|pod| *pod))?;
        let container = request.container.0.map(|container| container.name).unwrap_or_default();
        let (pod, id) = (sandbox.pod.clone(), sandbox.id.clone());
        let made = self.dispatch.create_container(sandbox, container.clone(), answer_by).await;
        made.map_err(|why| {
            info!(%pod, sandbox = id, container, why, "a container is held back");
            status(Code::FAILED_PRECONDITION, why)
        })?;
        Ok(api::CreateContainerResponse::default())
    }

    // Not subscribed. Should a runtime call them all the same, there is nothing to change and nothing to refuse: the
    // generated default would fail the container.

    async fn update_pod_sandbox(
        &self,
        _: &TtrpcContext,
        _: api::UpdatePodSandboxRequest,
    ) -> ttrpc::Result<api::UpdatePodSandboxResponse> {
        Ok(api::UpdatePodSandboxResponse::default())
    }

    async fn post_update_pod_sandbox(
        &self,
        _: &TtrpcContext,
        _: api::PostUpdatePodSandboxRequest,
    ) -> ttrpc::Result<api::PostUpdatePodSandboxResponse> {
        Ok(api::PostUpdatePodSandboxResponse::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        _: api::UpdateContainerRequest,
    ) -> ttrpc::Result<api::UpdateContainerResponse> {
        Ok(api::UpdateContainerResponse::default())
    }

    async fn stop_container(
        &self,
        _: &TtrpcContext,
        _: api::StopContainerRequest,
    ) -> ttrpc::Result<api::StopContainerResponse> {
        Ok(api::StopContainerResponse::default())
    }
}

fn status(code: Code, why: impl Into<String>) -> Error {
    Error::RpcStatus(get_status(code, why.into()))
}

fn required(pod: Option<api::PodSandbox>) -> ttrpc::Result<PodSandbox> {
    let pod = pod.ok_or_else(|| {
        status(Code::INVALID_ARGUMENT, "netferry: pod is missing, an event of a pod needs it")
    })?;
    sandbox(pod).map_err(|why| status(Code::INVALID_ARGUMENT, why))
}

/// The runtime's description of a sandbox in the driver's terms.
///
/// # Errors
///
/// A sandbox that cannot be told from others: its id or its pod's UID, name or namespace is empty.
fn sandbox(pod: api::PodSandbox) -> Result<PodSandbox, String> {
    for (field, value) in
        [("id", &pod.id), ("uid", &pod.uid), ("name", &pod.name), ("namespace", &pod.namespace)]
    {
        if value.is_empty() {
            return Err(format!(
                "netferry: pod.{field} is empty in the runtime's event (sandbox {:?}, pod {}/{}), it must be set",
                pod.id, pod.namespace, pod.name
            ));
        }
    }
    // The kubelet writes it into every pod it starts, over whatever the pod says (pkg/kubelet/config/config.go).
    let source = pod.annotations.get("kubernetes.io/config.source").map(String::as_str);
    let is_static = matches!(source, Some("file" | "http"));
    let linux = pod.linux.0.map(|linux| *linux).unwrap_or_default();
    let netns = linux.namespaces.into_iter().find(|namespace| namespace.type_ == "network");
    Ok(PodSandbox {
        id: pod.id,
        pod: PodRef { namespace: pod.namespace, name: pod.name, uid: pod.uid },
        netns: netns.map(|netns| netns.path).filter(|path| !path.is_empty()).map(PathBuf::from),
        cgroup_parent: Some(linux.cgroup_parent).filter(|path| !path.is_empty()),
        pid: Some(pod.pid).filter(|pid| *pid != 0),
        is_static,
        has_containers: false,
    })
}
