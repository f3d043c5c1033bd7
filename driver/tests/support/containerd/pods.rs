//! Pods' sandboxes, made as the kubelet makes them.

use std::{collections::HashMap, path::PathBuf, time::Instant};

use anyhow::{Context as _, bail};
use netferry_proto::cri;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Duration, sleep};

use super::{Containerd, START_LIMIT};

/// A pod, as far as its sandbox is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    pub host_network: bool,
    /// From a file on the node, not from the API server.
    pub is_static: bool,
    /// Beside those of the kubelet.
    pub labels: HashMap<String, String>,
    /// Beside those of the kubelet.
    pub annotations: HashMap<String, String>,
}

impl PodSpec {
    /// A pod of the API server, with a network of its own, and its first sandbox.
    pub fn new(namespace: &str, name: &str, uid: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into(), uid: uid.into(), ..Self::default() }
    }

    /// The pod's next sandbox, after this one died.
    pub fn again(&self) -> Self {
        Self { attempt: self.attempt + 1, ..self.clone() }
    }

    /// `newPodLabels` of the kubelet, and the pod's own.
    fn labels(&self) -> HashMap<String, String> {
        let kubelet = [
            ("io.kubernetes.pod.name", &self.name),
            ("io.kubernetes.pod.namespace", &self.namespace),
            ("io.kubernetes.pod.uid", &self.uid),
        ];
        let kubelet = kubelet.map(|(key, value)| (key.to_owned(), value.clone()));
        self.labels.clone().into_iter().chain(kubelet).collect()
    }

    /// The kubelet's, and the pod's own.
    fn annotations(&self) -> HashMap<String, String> {
        let source = if self.is_static { "file" } else { "api" };
        let kubelet =
            [("kubernetes.io/config.seen", "2026-01-01T00:00:00Z"), ("kubernetes.io/config.source", source)];
        let kubelet = kubelet.map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.annotations.clone().into_iter().chain(kubelet).collect()
    }
}

/// A pod sandbox that was made.
#[derive(Clone, Debug)]
pub struct RunningPod {
    /// The runtime's id.
    pub id: String,
    /// `None` for a host-network pod.
    pub netns: Option<PathBuf>,
    /// Of the sandbox's first process.
    pub pid: u32,
    /// What was asked for.
    pub spec: PodSpec,
}

/// A sandbox in the runtime's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPod {
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub attempt: u32,
    /// Its pause container runs.
    pub ready: bool,
}

impl Containerd {
    /// Make the first sandbox of a pod.
    pub async fn run_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        host_network: bool,
    ) -> anyhow::Result<RunningPod> {
        self.run(&PodSpec { host_network, ..PodSpec::new(namespace, name, uid) }).await
    }

    /// Make a pod's sandbox.
    pub async fn run(&self, pod: &PodSpec) -> anyhow::Result<RunningPod> {
        let request = cri::RunPodSandboxRequest { config: Some(self.config_of(pod)), ..Default::default() };
        let id = self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
        let status = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        let info: serde_json::Value = serde_json::from_str(status.info.get("info").context("no info")?)?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("no namespaces")?;
        let netns = namespaces.iter().find(|namespace| namespace["type"] == "network");
        let netns = netns.and_then(|netns| netns["path"].as_str()).map(PathBuf::from);
        let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("no pid")?;
        Ok(RunningPod { id, netns, pid, spec: pod.clone() })
    }

    /// The sandbox's configuration, which the kubelet also sends with each container.
    pub(super) fn config_of(&self, pod: &PodSpec) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                namespace: pod.namespace.clone(),
                attempt: pod.attempt,
            }),
            hostname: if pod.host_network { String::new() } else { pod.name.clone() },
            log_directory: self.dir.path().join("pods").display().to_string(),
            labels: pod.labels(),
            annotations: pod.annotations(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod{}", self.cgroup(), pod.uid),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces_of(pod)),
                }),
            }),
        }
    }

    /// Stop a pod's sandbox with its containers; its netns goes.
    pub async fn stop_pod(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().stop_pod_sandbox(request).await?;
        Ok(())
    }

    /// Remove a pod's sandbox with its containers.
    pub async fn remove_pod(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().remove_pod_sandbox(request).await?;
        Ok(())
    }

    /// All sandboxes that containerd knows, dead ones too.
    pub async fn list_pods(&self) -> anyhow::Result<Vec<ListedPod>> {
        let request = cri::ListPodSandboxRequest::default();
        let items = self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items;
        let listed = items.into_iter().map(|pod| {
            let ready = pod.state() == cri::PodSandboxState::SandboxReady;
            let metadata = pod.metadata.unwrap_or_default();
            ListedPod {
                id: pod.id,
                namespace: metadata.namespace,
                name: metadata.name,
                uid: metadata.uid,
                attempt: metadata.attempt,
                ready,
            }
        });
        Ok(listed.collect())
    }

    /// Kill a pod's pause container, as the kernel does at a lack of memory, and wait until containerd has seen it:
    /// the sandbox is dead, and in its list still.
    pub async fn kill_pause(&self, pod: &RunningPod) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(pod.pid)?), Signal::SIGKILL)?;
        let started = Instant::now();
        while self.list_pods().await?.iter().any(|listed| listed.id == pod.id && listed.ready) {
            if started.elapsed() > START_LIMIT {
                bail!("sandbox {} is ready after its pause container was killed\n{}", pod.id, self.log());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// The kubelet's defaults: the containers of a pod share all but process ids.
pub(super) fn namespaces_of(pod: &PodSpec) -> cri::NamespaceOption {
    let network = if pod.host_network { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
    cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
    }
}
