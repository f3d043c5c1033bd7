//! What this kernel can make, found by trying where nobody sees it.

use std::{io, thread};

use nix::sched::{CloneFlags, unshare};

use super::KernelLinks;
use crate::{
    link::{LinkError, Links as _, MacAddr, Namespace, Pair, PairKind},
    telemetry::chain,
};

/// The namespace of the thread: `/proc/self` is that of the process.
const OWN: &str = "/proc/thread-self/ns/net";

/// Make a pair and open it, in a network namespace that is there for this alone: no other link has its name, nobody is
/// told of it, and whatever becomes of this process it is gone afterwards. Needs CAP_SYS_ADMIN. `EOPNOTSUPP` is a kernel
/// that does not know the kind.
pub fn can_make(kind: PairKind) -> io::Result<()> {
    let tried = thread::Builder::new().name("probe".to_owned()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(make(kind)).map_err(|error| match error {
            LinkError::Kernel { source, .. } => source,
            other => io::Error::other(chain(&other)),
        })
    });
    tried?.join().unwrap_or_else(|_| Err(io::Error::other("the thread that tried it panicked")))
}

async fn make(kind: PairKind) -> Result<(), LinkError> {
    let links = KernelLinks::with_host(OWN);
    let pair = Pair {
        kind,
        host_name: "nf-probe".to_owned(),
        pod: Namespace::at(OWN),
        pod_name: "nf-probed".to_owned(),
        // A locally administered address.
        pod_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    };
    let ends = links.make_pair(&pair).await?;
    links.open_pair(ends.host, kind).await
}

#[cfg(test)]
#[path = "../../../tests/support/skip.rs"]
mod skip;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_is_not_seen() {
        if unshare_is_refused() {
            skip::skip("what_is_tried_is_not_seen", "network namespaces cannot be made here");
            return;
        }
        let names = || std::fs::read_to_string("/proc/net/dev").expect("the links of this thread");
        can_make(PairKind::Veth).expect("every kernel of ours makes these");
        assert!(!names().contains("nf-probe"), "{}", names());
    }

    fn unshare_is_refused() -> bool {
        thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_err()).join().expect("a thread")
    }
}
