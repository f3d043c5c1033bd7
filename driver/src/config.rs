//! The command line: every setting of the daemon and its sub-commands.

mod doctor;
mod guards;
mod http;
mod instance;
mod overlay;
mod ports;
mod state;
mod words;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

pub use self::doctor::DoctorArgs;
pub use self::guards::{EarlyDrop, GuardArgs};
pub use self::http::HttpAddress;
use self::http::http_address;
pub use self::instance::{InstanceArgs, ProbeArgs};
pub use self::overlay::OverlayArgs;
pub use self::ports::Ports;
pub use self::state::StateArgs;
pub use self::words::{FlowPort, PodName, protocol_name};
use crate::DRIVER_NAME;

/// Kubernetes network driver: DRA claims, NRI attach, eBPF isolation.
#[derive(Debug, Parser)]
#[command(name = "netferry", version = crate::version::long(), propagate_version = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Sub-commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node daemon.
    Run(Box<RunConfig>),
    /// What the daemon publishes from this node, who has it, and why the rest is left out.
    Devices(DevicesArgs),
    /// Which pods hold which interfaces, with their counters.
    Pods(PodsArgs),
    /// The networks this node knows, with their numbers.
    Networks(NetworksArgs),
    /// The flows that are tracked, or with `--follow` what happens to flows.
    Flows(FlowsArgs),
    /// What policy says.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Peers whose frames are dropped first of all, on links with native XDP.
    #[command(subcommand)]
    Block(BlockCommand),
    /// Check what the daemon needs from this machine.
    Doctor(DoctorArgs),
    /// Whether the daemon of this container is up: for its startup probe.
    Probe(ProbeArgs),
    /// Mount the bpf file system at `/sys/fs/bpf` if none is there.
    MountBpffs,
    /// Check configuration files: networks, interface configurations, claims, templates and classes that embed one.
    Validate(ValidateArgs),
}

/// How a sub-command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// How the daemon logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is published.
#[derive(Clone, Debug, Args)]
pub struct PublishArgs {
    /// CEL expression over `device.attributes` that says which links are published; the built-in rule leaves
    /// out links that belong to the node's own networking.
    #[arg(long, value_name = "CEL", env = "NETFERRY_PUBLISH")]
    pub publish: Option<String>,

    /// Also publish the link of the default route. A pod that claims it cuts the node off.
    #[arg(long)]
    pub allow_default_route: bool,

    /// CEL expression that says which of the published links may be allocated several times: their claims get
    /// sub-interfaces (`subInterface`), never the link itself.
    #[arg(long, value_name = "CEL", env = "NETFERRY_SHARE")]
    pub share: Option<String>,
}

/// Settings of `netferry run`.
#[derive(Clone, Debug, Args)]
pub struct RunConfig {
    /// Name of this node in the cluster; the machine's host name if not given.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,

    /// Driver name: the `driver` of slices and the domain of attributes.
    #[arg(long, default_value = DRIVER_NAME, value_parser = driver_name)]
    pub driver_name: String,

    /// Kubeconfig file; without it, the in-cluster service account.
    #[arg(long, env = "KUBECONFIG", conflicts_with = "standalone")]
    pub kubeconfig: Option<PathBuf>,

    /// Folder of YAML objects (claims, classes) in place of an API server.
    #[arg(long, value_name = "DIR")]
    pub standalone: Option<PathBuf>,

    /// Guards.
    #[command(flatten)]
    pub guards: GuardArgs,

    /// What ports of networks are made of. Those that are there stay as they are.
    #[arg(long, value_enum, default_value_t, env = "NETFERRY_PORTS")]
    pub ports: Ports,

    /// Kubelet's root folder; sockets go to `plugins` and `plugins_registry` below it.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub kubelet_root_dir: PathBuf,

    /// The runtime's NRI socket.
    #[arg(long, value_name = "PATH", default_value = "/var/run/nri/nri.sock")]
    pub nri_socket: PathBuf,

    /// Two digits that order this plugin among the runtime's other NRI plugins.
    #[arg(long, default_value = "10", value_parser = nri_index)]
    pub nri_plugin_index: String,

    /// Which instance this is.
    #[command(flatten)]
    pub instance: InstanceArgs,

    /// State.
    #[command(flatten)]
    pub state: StateArgs,

    /// Publishing.
    #[command(flatten)]
    pub publishing: PublishArgs,

    /// Tunnels.
    #[command(flatten)]
    pub overlay: OverlayArgs,

    /// Address of `/metrics`, `/healthz` and `/readyz`; `none` turns it off.
    #[arg(long, default_value = "127.0.0.1:9177", value_parser = http_address)]
    pub http_address: HttpAddress,

    /// Look at all links again after this many seconds without an event.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub resync: Duration,

    /// Check links in pods, with their programs, addresses and map entries, every so many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub check_programs: Duration,

    /// How to log; what to log is set by `RUST_LOG`.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Delete this node's slices, let go of the network namespaces that are held, and end. Links that living pods hold are
    /// left alone.
    #[arg(long)]
    pub cleanup: bool,
}

/// Settings of `netferry devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
    /// Show what these settings would publish, by looking at the links, and do not ask the daemon.
    #[arg(long)]
    pub preview: bool,
    /// Publishing.
    #[command(flatten)]
    pub publishing: PublishArgs,
    /// Driver name.
    #[arg(long, default_value = DRIVER_NAME, value_parser = driver_name)]
    pub driver_name: String,
    /// Format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Settings of `netferry pods`.
#[derive(Debug, Args)]
pub struct PodsArgs {
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
    /// Format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Settings of `netferry networks`.
#[derive(Debug, Args)]
pub struct NetworksArgs {
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
    /// Format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Settings of `netferry flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
    /// Only flows of this pod.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub pod: Option<PodName>,
    /// Only frames that were dropped: the table has no flow that was not let open.
    #[arg(long, requires = "follow")]
    pub drops: bool,
    /// What happens from now on, as the daemon tells it: flows opened and closed, frames dropped.
    #[arg(short, long)]
    pub follow: bool,
    /// Format; with `--follow`, `json` is one object a line.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Sub-commands of `netferry policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// The rules and limits in force for a pod's interfaces, as its claims have them.
    Show(ShowPolicyArgs),
    /// Whether a pod may open a flow, by the maps that the programs use now.
    Explain(ExplainArgs),
}

/// Settings of `netferry policy show`.
#[derive(Debug, Args)]
pub struct ShowPolicyArgs {
    /// The pod.
    #[arg(value_name = "NAMESPACE/NAME")]
    pub pod: PodName,
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
    /// Format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Settings of `netferry policy explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
    /// The pod that would open the flow.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub from: PodName,
    /// The address it would speak to.
    #[arg(long, value_name = "ADDRESS")]
    pub to: IpAddr,
    /// Protocol and destination port, as `tcp/8080`; for `icmp`, type and code, as `icmp/8/0`.
    #[arg(long, value_name = "PROTOCOL/PORT")]
    pub port: FlowPort,
    /// Format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Sub-commands of `netferry block`.
#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// Drop what these addresses or prefixes send, from now on until they are removed or the node starts anew.
    Add(BlockArgs),
    /// Take addresses or prefixes off the list, as they were added.
    Remove(BlockArgs),
    /// Print the list.
    List(ListBlockArgs),
}

/// Settings of `netferry block add` and `remove`.
#[derive(Debug, Args)]
pub struct BlockArgs {
    /// Addresses, or prefixes as `192.0.2.0/24`.
    #[arg(required = true, value_name = "PREFIX")]
    pub prefixes: Vec<IpNetwork>,
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
}

/// Settings of `netferry block list`.
#[derive(Debug, Args)]
pub struct ListBlockArgs {
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
    /// Format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Settings of `netferry validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// YAML or JSON files; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Driver name.
    #[arg(long, default_value = DRIVER_NAME, value_parser = driver_name)]
    pub driver_name: String,
    /// Format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// A DNS subdomain of at most 63 characters, as resource.k8s.io demands of a driver name.
fn driver_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 63 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("a lower-case DNS subdomain of at most 63 characters is allowed".to_owned())
    }
}

/// NRI wants exactly two digits (containerd/nri pkg/api/plugin.go, `CheckPluginIndex`).
fn nri_index(text: &str) -> Result<String, String> {
    if text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()) {
        Ok(text.to_owned())
    } else {
        Err("two digits, 00 to 99, are allowed".to_owned())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(n @ 1..=86_400) => Ok(Duration::from_secs(n.into())),
        _ => Err("1 to 86400 is allowed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn names_and_numbers_are_checked() {
        assert!(driver_name("netferry.dev").is_ok());
        for bad in ["", "Netferry.dev", "a..b", "-a.b", "a_b"] {
            assert!(driver_name(bad).is_err(), "{bad}");
        }
        assert!(nri_index("07").is_ok());
        for bad in ["7", "007", "ab"] {
            assert!(nri_index(bad).is_err(), "{bad}");
        }
        assert_eq!(http_address("none"), Ok(HttpAddress(None)));
        assert!(http_address("9177").is_err());
        assert!(seconds("0").is_err());
    }
}
