//! The command line of `cargo xtask e2e`.

use std::path::PathBuf;

use clap::Args;

/// Options of `e2e`.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Args)]
#[group(skip)]
pub(crate) struct Options {
    /// How to reach the cluster; without it as kubectl does by itself.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// kubectl.
    #[arg(long, value_name = "PATH", default_value = "kubectl")]
    pub(crate) kubectl: PathBuf,
    /// List the cases and end.
    #[arg(long)]
    pub(crate) list: bool,
    /// Remove what earlier runs left, and end.
    #[arg(long)]
    pub(crate) clean: bool,
    /// Run these cases only.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Also run cases that restart, stop or remove parts of the cluster.
    #[arg(long)]
    pub(crate) disruptive: bool,
    /// Image of the pods; it has sh, ip, ping and, for the pod that reaches the node, nsenter.
    #[arg(long, value_name = "IMAGE", default_value = "busybox")]
    pub(crate) image: String,
    /// The node; without it the first that is ready and runs the driver.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// The namespace of the driver's DaemonSet.
    #[arg(long, value_name = "NAME", default_value = "netferry-system")]
    pub(crate) driver_namespace: String,
    /// Write the report as JUnit XML, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// How long anything that is waited for may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) timeout: u64,
    /// How many cases that disturb nothing run at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    pub(crate) parallel: usize,
    /// Leave what the cases made.
    #[arg(long)]
    pub(crate) keep: bool,
    /// How the node is disturbed.
    #[command(flatten)]
    pub(crate) commands: Commands,
}

/// Shell commands that disturb the node. Each runs on the node, in the namespaces of its first process; with
/// `local:` before it, here.
#[derive(Args, Clone)]
#[group(skip)]
pub(crate) struct Commands {
    /// Restart the kubelet.
    #[arg(long, value_name = "CMD", default_value = "systemctl restart kubelet")]
    pub(crate) restart_kubelet: String,
    /// Kill the kubelet, and have it started again.
    #[arg(long, value_name = "CMD", default_value = "systemctl kill -s KILL kubelet")]
    pub(crate) kill_kubelet: String,
    /// Restart the container runtime.
    #[arg(long, value_name = "CMD", default_value = "systemctl restart containerd")]
    pub(crate) restart_runtime: String,
    /// Kill the container runtime, and have it started again.
    #[arg(long, value_name = "CMD", default_value = "systemctl kill -s KILL --kill-whom=main containerd")]
    pub(crate) kill_runtime: String,
    /// Stop the API server. The default is for one that is a static pod of the node.
    #[arg(
        long,
        value_name = "CMD",
        default_value = "mv /etc/kubernetes/manifests/kube-apiserver.yaml /etc/kubernetes/"
    )]
    pub(crate) stop_apiserver: String,
    /// Start the API server again.
    #[arg(
        long,
        value_name = "CMD",
        default_value = "mv /etc/kubernetes/kube-apiserver.yaml /etc/kubernetes/manifests/"
    )]
    pub(crate) start_apiserver: String,
    /// Let the node lose its power and start again.
    #[arg(long, value_name = "CMD", default_value = "echo b > /proc/sysrq-trigger")]
    pub(crate) reboot: String,
}
