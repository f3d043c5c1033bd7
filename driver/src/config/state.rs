//! Where the daemon keeps what outlives it, and where it is asked.

use std::path::PathBuf;

use clap::Args;

/// Where the daemon keeps what must survive it.
#[derive(Clone, Debug, Args)]
pub struct StateArgs {
    /// Folder of the checkpoints.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/netferry")]
    pub state_dir: PathBuf,

    /// Folder of what a reboot takes away: below it the network namespaces of pods are held. It must be on a shared mount of
    /// the host.
    #[arg(long, value_name = "DIR", default_value = "/run/netferry")]
    pub run_dir: PathBuf,

    /// Folder for pins, on a bpf file system.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/netferry")]
    pub bpffs: PathBuf,
}

impl StateArgs {
    /// Where this version of the map layout is pinned. Another layout gets another folder.
    #[must_use]
    pub fn pin_root(&self) -> PathBuf {
        self.bpffs.join("v1")
    }

    /// Where network namespaces of pods are held.
    #[must_use]
    pub fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// Where the daemon tells flow events.
    #[must_use]
    pub fn flows_socket(&self) -> PathBuf {
        self.state_dir.join("flows.sock")
    }

    /// Where the daemon answers questions about itself.
    #[must_use]
    pub fn query_socket(&self) -> PathBuf {
        self.state_dir.join("query.sock")
    }

    /// Where the checkpoints are.
    #[must_use]
    pub fn claims_dir(&self) -> PathBuf {
        self.state_dir.join("claims")
    }

    /// Where it is written which hardware was given up, and has yet to be put right if it comes home.
    #[must_use]
    pub fn strays_file(&self) -> PathBuf {
        self.state_dir.join("strays.json")
    }

    /// Where it is written by which addresses the node was reached last.
    #[must_use]
    pub fn management_file(&self) -> PathBuf {
        self.state_dir.join("management.json")
    }

    /// Where it is written which links were made promiscuous.
    #[must_use]
    pub fn promiscuous_file(&self) -> PathBuf {
        self.state_dir.join("promiscuous.json")
    }

    /// Where the numbers of networks are.
    #[must_use]
    pub fn networks_file(&self) -> PathBuf {
        self.state_dir.join("networks.json")
    }

    /// Where the daemon tells who the peers with names in policies are.
    #[must_use]
    pub fn peers_file(&self) -> PathBuf {
        self.state_dir.join("peers.json")
    }
}
