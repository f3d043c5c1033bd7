//! What this kernel can do, found by trying. Versions are never compared: vendors backport.

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use serde::Serialize;

use super::sys::{self, Hook};

/// Kernel features the datapath uses or can do without.
#[allow(clippy::struct_excessive_bools, reason = "each is there or not, independent of the others")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    /// tcx bpf links on a device (upstream since Linux 6.6). They travel with a moved link, and the pod cannot
    /// detach them.
    pub tcx: bool,
    /// `bpf_redirect_peer`: into the other end of a veth pair without a second queue (upstream since 5.10).
    pub redirect_peer: bool,
    /// `bpf_redirect_neigh`: out of a link with its neighbour resolved (upstream since 5.10).
    pub redirect_neigh: bool,
    /// The ring buffer that flow events go through (upstream since 5.8).
    pub ring_buffer: bool,
    /// `bpf_ktime_get_coarse_ns`, the clock of the programs (upstream since 5.11). They do not load without it.
    pub coarse_clock: bool,
    /// Type information of the kernel itself.
    pub kernel_btf: bool,
}

impl Features {
    /// Tries each. Needs CAP_BPF and CAP_NET_ADMIN; what cannot be tried counts as missing.
    #[must_use]
    pub fn probe() -> Self {
        let helper = |helper| is_helper_supported(ProgramType::SchedClassifier, helper).unwrap_or(false);
        Self {
            // Every namespace has its loopback as 1; a kernel without tcx does not know the attach type.
            tcx: sys::query(1, Hook::Ingress).is_ok(),
            redirect_peer: helper(BpfHelper::BPF_FUNC_redirect_peer),
            redirect_neigh: helper(BpfHelper::BPF_FUNC_redirect_neigh),
            ring_buffer: is_map_supported(aya::maps::MapType::RingBuf).unwrap_or(false),
            coarse_clock: helper(BpfHelper::BPF_FUNC_ktime_get_coarse_ns),
            kernel_btf: std::path::Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }

    /// Name, whether it is there, and what is lost without it.
    #[must_use]
    pub fn each(&self) -> [(&'static str, bool, &'static str); 6] {
        [
            ("tcx", self.tcx, "strict isolation of moved links is refused"),
            ("coarse clock", self.coarse_clock, "the programs do not load"),
            ("redirect_peer", self.redirect_peer, "pods of a node talk through a slower redirect"),
            ("redirect_neigh", self.redirect_neigh, "traffic to the uplink goes through the host's stack"),
            ("ring buffer", self.ring_buffer, "there are no flow events"),
            ("kernel BTF", self.kernel_btf, "maps print without names on this kernel"),
        ]
    }
}
