//! In what runtimes with NRI differ from each other.

/// How the stand-in behaves where runtimes differ. The default is containerd 2.1, with namespaces left to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behavior {
    /// Whether StopPodSandbox and RemovePodSandbox are sent for sandboxes that are older than the runtime's start.
    /// containerd does not: `needsStopping` and `needsRemoval` in its `internal/nri/nri.go` look into a table that
    /// only RunPodSandbox fills; `syncPlugin` enters containers there, and no pods. CRI-O does: `StopPodSandbox` and
    /// `RemovePodSandbox` in its file of the same name do not ask.
    pub tells_older: bool,
    /// What becomes of the network namespace when a sandbox stops.
    pub namespace: Namespace,
    /// How a sandbox without its pause container is described, at StopPodSandbox, at RemovePodSandbox and in lists.
    pub dead: DeadSandbox,
    /// Whether a synchronization lists dead sandboxes. The runtimes do, until they are removed.
    pub lists_dead: bool,
    /// Seed for the order of lists: the runtimes keep sandboxes in hash tables.
    pub seed: u64,
}

/// What becomes of the network namespace when a sandbox stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// It is the test's own: the runtime leaves it.
    Left,
    /// Unmounted once the plugin has answered StopPodSandbox: `stopPodSandbox` in
    /// `internal/cri/server/sandbox_stop.go` of containerd.
    RemovedAfterStop,
    /// Unmounted before StopPodSandbox is sent: `stopPodSandbox` in `server/sandbox_stop_linux.go` of CRI-O calls
    /// `RemoveManagedNamespaces` first.
    RemovedBeforeStop,
}

/// How a sandbox without its pause container is described. All leave the process id out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadSandbox {
    /// No namespaces, and the kubelet's annotations only, as `nriPodSandbox` of containerd 1.7 does without a task.
    WithoutSpec,
    /// With the path of its network namespace, whether something is mounted there or not: containerd 2.1, CRI-O.
    StalePath,
    /// With the path for as long as the file is there: `GetLinuxNamespaces` of containerd from 2.3 on.
    PathWhileThere,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            tells_older: false,
            namespace: Namespace::Left,
            dead: DeadSandbox::StalePath,
            lists_dead: true,
            seed: 1,
        }
    }
}

impl Behavior {
    pub fn containerd_1_7() -> Self {
        Self { dead: DeadSandbox::WithoutSpec, ..Self::containerd_2_1() }
    }

    pub fn containerd_2_1() -> Self {
        Self { namespace: Namespace::RemovedAfterStop, ..Self::default() }
    }

    pub fn crio() -> Self {
        Self { tells_older: true, namespace: Namespace::RemovedBeforeStop, ..Self::default() }
    }
}
