//! Containers of pods, made as the kubelet makes them.

use std::collections::HashMap;

use anyhow::ensure;
use netferry_proto::cri;

use super::{
    Containerd, image,
    pods::{PodSpec, RunningPod, namespaces_of},
};

/// A container of busybox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    pub name: String,
    /// How many containers of this name the pod's sandbox had before.
    pub attempt: u32,
    pub command: Vec<String>,
}

impl ContainerSpec {
    /// A container that runs until it is stopped.
    pub fn sleeping(name: &str) -> Self {
        Self::running(name, &image::ENTRYPOINT)
    }

    /// A container that runs a shell's script.
    pub fn shell(name: &str, script: &str) -> Self {
        Self::running(name, &["/bin/sh", "-c", script])
    }

    fn running(name: &str, command: &[&str]) -> Self {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.into(), attempt: 0, command }
    }

    /// The next container, after this one ended.
    pub fn again(&self) -> Self {
        Self { attempt: self.attempt + 1, ..self.clone() }
    }

    /// `newContainerLabels` and `newContainerAnnotations` of the kubelet.
    fn config(&self, pod: &PodSpec) -> cri::ContainerConfig {
        let labels = [
            ("io.kubernetes.container.name", &self.name),
            ("io.kubernetes.pod.name", &pod.name),
            ("io.kubernetes.pod.namespace", &pod.namespace),
            ("io.kubernetes.pod.uid", &pod.uid),
        ];
        let restarts = self.attempt.to_string();
        let annotations = [
            ("io.kubernetes.container.hash", "5eedf00d"),
            ("io.kubernetes.container.restartCount", restarts.as_str()),
            ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
            ("io.kubernetes.container.terminationMessagePolicy", "File"),
            ("io.kubernetes.pod.terminationGracePeriod", "30"),
        ];
        let owned = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: self.name.clone(), attempt: self.attempt }),
            image: Some(cri::ImageSpec { image: image::PAUSE.into() }),
            command: self.command.clone(),
            labels: labels.map(|(key, value)| owned(key, value)).into(),
            annotations: HashMap::from(annotations.map(|(key, value)| owned(key, value))),
            log_path: format!("{}-{}-{}.log", pod.uid, self.name, self.attempt),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces_of(pod)),
                }),
            }),
            ..Default::default()
        }
    }
}

impl Containerd {
    /// Make a container in a sandbox; its id.
    pub async fn create_container(
        &self,
        pod: &RunningPod,
        container: &ContainerSpec,
    ) -> anyhow::Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(container.config(&pod.spec)),
            sandbox_config: Some(self.config_of(&pod.spec)),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    /// Start a container that was made.
    pub async fn start_container(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::StartContainerRequest { container_id: id.into() };
        self.runtime.clone().start_container(request).await?;
        Ok(())
    }

    /// Stop a container. `grace` seconds pass between SIGTERM and SIGKILL.
    pub async fn stop_container(&self, id: &str, grace: i64) -> anyhow::Result<()> {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout: grace };
        self.runtime.clone().stop_container(request).await?;
        Ok(())
    }

    /// Remove a container, whatever its state.
    pub async fn remove_container(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.runtime.clone().remove_container(request).await?;
        Ok(())
    }

    /// The containers of a sandbox that run.
    pub async fn running_containers(&self, pod: &RunningPod) -> anyhow::Result<Vec<String>> {
        let request = cri::ListContainersRequest::default();
        let containers = self.runtime.clone().list_containers(request).await?.into_inner().containers;
        let running = containers.into_iter().filter(|container| {
            container.pod_sandbox_id == pod.id && container.state() == cri::ContainerState::ContainerRunning
        });
        Ok(running.map(|container| container.id).collect())
    }

    /// Run a command in a container; what it printed.
    pub async fn exec(&self, id: &str, command: &[&str]) -> anyhow::Result<String> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: 10 };
        let ended = self.runtime.clone().exec_sync(request).await?.into_inner();
        let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.exit_code == 0, "{command:?} ended with {}: {printed}{complaint}", ended.exit_code);
        Ok(printed)
    }
}
