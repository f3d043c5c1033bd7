//! Pods and containers of the stand-in runtime, and how it describes them to plugins.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use netferry_proto::nri as api;
use protobuf::MessageField;

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
    /// Of the pause container; 0: the runtime does not tell it.
    pub pid: u32,
    /// From a file on the node (`kubernetes.io/config.source: file`), not from the API server (`api`).
    pub is_static: bool,
    /// Beside the kubelet's and the runtime's.
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
            pid: 0,
            is_static: false,
            annotations: HashMap::new(),
        }
    }

    /// A later sandbox of the same pod: another id and another namespace.
    pub fn again(&self, attempt: u32, netns: Option<&Path>) -> Self {
        let id = format!("sandbox-{}-{attempt}", self.uid);
        Self { id, netns: netns.map(Into::into), pid: 0, ..self.clone() }
    }

    /// The annotations of kubelet and runtime, and the pod's own.
    fn all_annotations(&self) -> HashMap<String, String> {
        let source = if self.is_static { "file" } else { "api" };
        let others = [
            ("kubernetes.io/config.seen", "2026-01-01T00:00:00Z"),
            ("kubernetes.io/config.source", source),
            ("io.kubernetes.cri.container-type", "sandbox"),
            ("io.kubernetes.cri.sandbox-id", &self.id),
            ("io.kubernetes.cri.sandbox-name", &self.name),
            ("io.kubernetes.cri.sandbox-namespace", &self.namespace),
            ("io.kubernetes.cri.sandbox-uid", &self.uid),
        ];
        let mut all: HashMap<_, _> = others.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        all.extend(self.annotations.clone());
        all
    }

    /// How a runtime describes the sandbox while its pause container runs.
    pub(crate) fn message(&self) -> api::PodSandbox {
        // containerd lists all of a sandbox's namespaces, in this order.
        let others = ["pid", "ipc", "uts", "mount"].map(|kind| (kind, String::new()));
        let netns = self.netns.iter().map(|path| ("network", path.to_str().expect("UTF-8 path").to_owned()));
        let namespaces = others.into_iter().chain(netns);
        let labels = [
            ("io.kubernetes.pod.name", &self.name),
            ("io.kubernetes.pod.namespace", &self.namespace),
            ("io.kubernetes.pod.uid", &self.uid),
        ];
        api::PodSandbox {
            id: self.id.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.clone())).into(),
            annotations: self.all_annotations(),
            pid: self.pid,
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

/// A container of the stand-in runtime. Nothing in it tells an init container or an ephemeral one from a main one: the
/// kubelet does not say which it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    pub id: String,
    pub name: String,
    /// How many containers of this name the sandbox had before.
    pub attempt: u32,
    pub args: Vec<String>,
    /// Beside the kubelet's and the runtime's.
    pub labels: HashMap<String, String>,
    /// Beside the kubelet's and the runtime's.
    pub annotations: HashMap<String, String>,
}

impl ContainerSpec {
    /// The first container of this name: an init container, a main one, or an ephemeral one.
    pub fn new(sandbox: &PodSandboxSpec, name: &str) -> Self {
        Self {
            id: format!("{name}-0-{}", sandbox.id),
            name: name.into(),
            args: vec!["/bin/sh".into()],
            ..Self::default()
        }
    }

    /// The next container of this name, after this one ended or was refused.
    pub fn again(&self) -> Self {
        let attempt = self.attempt + 1;
        let old = format!("{}-{}-", self.name, self.attempt);
        Self { id: self.id.replacen(&old, &format!("{}-{attempt}-", self.name), 1), attempt, ..self.clone() }
    }

    pub(super) fn message(&self, sandbox: &PodSandboxSpec) -> api::Container {
        let attempt = self.attempt.to_string();
        let labels = [
            ("io.cri-containerd.kind", "container"),
            ("io.kubernetes.container.name", &self.name),
            ("io.kubernetes.pod.name", &sandbox.name),
            ("io.kubernetes.pod.namespace", &sandbox.namespace),
            ("io.kubernetes.pod.uid", &sandbox.uid),
        ];
        let annotations = [
            ("io.kubernetes.container.hash", "5eedf00d"),
            ("io.kubernetes.container.restartCount", &attempt),
            ("io.kubernetes.cri.container-name", &self.name),
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.sandbox-id", &sandbox.id),
            ("io.kubernetes.cri.sandbox-name", &sandbox.name),
            ("io.kubernetes.cri.sandbox-namespace", &sandbox.namespace),
            ("io.kubernetes.cri.sandbox-uid", &sandbox.uid),
        ];
        let with = |fixed: &[(&str, &str)], own: &HashMap<String, String>| {
            let fixed = fixed.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
            fixed.chain(own.clone()).collect()
        };
        api::Container {
            id: self.id.clone(),
            pod_sandbox_id: sandbox.id.clone(),
            name: self.name.clone(),
            // Not created yet: a runtime asks before it creates.
            state: api::ContainerState::CONTAINER_UNKNOWN.into(),
            labels: with(&labels, &self.labels),
            annotations: with(&annotations, &self.annotations),
            args: self.args.clone(),
            ..Default::default()
        }
    }
}
