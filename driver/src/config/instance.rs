//! Settings of an instance of the driver, where two may be on a node while one is replaced by the other.

use std::path::{Path, PathBuf};

use clap::Args;

use super::StateArgs;

/// Which instance this is.
#[derive(Clone, Debug, Default, Args)]
pub struct InstanceArgs {
    /// Name of this instance among those of the node, such as the UID of its pod: it gets sockets of its own, so that the
    /// next one can register with the kubelet (1.33 or later) before this one ends.
    #[arg(long = "instance", value_name = "NAME", env = "NETFERRY_INSTANCE", value_parser = instance_name)]
    pub name: Option<String>,
}

impl InstanceArgs {
    /// Where the instance says whether it is up; `None` for one without a name.
    #[must_use]
    pub fn probe_socket(&self, run_dir: &Path) -> Option<PathBuf> {
        self.name.as_ref().map(|name| run_dir.join(format!("instance-{name}.sock")))
    }
}

/// Settings of `netferry probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The instance.
    #[command(flatten)]
    pub instance: InstanceArgs,
    /// State.
    #[command(flatten)]
    pub state: StateArgs,
}

/// A part of a socket's file name, which the kernel limits to 107 bytes with its folder.
fn instance_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.is_empty() && text.len() <= 36 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("1 to 36 lower-case letters, digits and '-' are allowed".to_owned())
    }
}
