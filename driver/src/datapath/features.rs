//! What this kernel can do, found by trying. Versions are never compared: vendors backport.

use std::{error::Error, io};

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use serde::Serialize;

use super::DatapathError;
use super::sys::{self, Hook};

/// What a probe found, or whether this process was refused the trial itself.
fn found<E: Error + 'static>(probed: Result<bool, E>, refused: &mut bool) -> bool {
    probed.unwrap_or_else(|error| {
        *refused |= is_not_permitted(&error);
        false
    })
}

/// Whether an error is the kernel's answer to missing rights (EPERM or EACCES), whatever it is wrapped in.
#[must_use]
pub fn is_not_permitted(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|it| it.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

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
    /// Whether this process may try: CAP_BPF and CAP_NET_ADMIN. If not, the others say nothing about the kernel.
    pub permitted: bool,
}

impl Features {
    /// Tries each.
    #[must_use]
    pub fn probe() -> Self {
        let mut refused = false;
        let mut helper =
            |helper| found(is_helper_supported(ProgramType::SchedClassifier, helper), &mut refused);
        let redirect_peer = helper(BpfHelper::BPF_FUNC_redirect_peer);
        let redirect_neigh = helper(BpfHelper::BPF_FUNC_redirect_neigh);
        let coarse_clock = helper(BpfHelper::BPF_FUNC_ktime_get_coarse_ns);
        let ring_buffer = found(is_map_supported(aya::maps::MapType::RingBuf), &mut refused);
        // Every namespace has its loopback as 1; a kernel without tcx does not know the attach type.
        let tcx = found(sys::query(1, Hook::Ingress).map(|_| true), &mut refused);
        Self {
            tcx,
            redirect_peer,
            redirect_neigh,
            ring_buffer,
            coarse_clock,
            kernel_btf: std::path::Path::new("/sys/kernel/btf/vmlinux").exists(),
            permitted: !refused,
        }
    }

    /// Fails where no program of ours loads.
    pub(super) fn require(self) -> Result<(), DatapathError> {
        if !self.permitted {
            return Err(DatapathError::NotPermitted);
        }
        if !self.coarse_clock {
            return Err(DatapathError::Unsupported {
                feature: "bpf_ktime_get_coarse_ns (upstream since Linux 5.11)",
                consequence: "the programs do not load; use Linux 5.15 or later",
            });
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_are_no_missing_feature() {
        #[derive(Debug, thiserror::Error)]
        #[error("`bpf_prog_load` failed")]
        struct Wrapped(#[source] io::Error);
        let mut refused = false;
        assert!(found::<Wrapped>(Ok(true), &mut refused) && !refused);
        for (number, expected) in [(libc::EINVAL, false), (libc::EPERM, true), (libc::EACCES, true)] {
            let mut refused = false;
            let error = Wrapped(io::Error::from_raw_os_error(number));
            assert!(!found(Err(error), &mut refused));
            assert_eq!(refused, expected, "{number}");
        }
    }
}
