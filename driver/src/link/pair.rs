//! Two links that are one: what goes in at one end comes out at the other.

use super::{MacAddr, Namespace};

/// What a pair is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PairKind {
    /// `veth`.
    #[default]
    Veth,
    /// `netkit` with Ethernet headers (mode `l2`; upstream since Linux 6.7). Both ends let nothing pass (policy
    /// `blackhole`) until the pair is opened; only the host's end can change that.
    Netkit,
}

impl PairKind {
    /// The kernel's name of the kind.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
        }
    }

    /// The kind of a link that is an end of a pair.
    #[must_use]
    pub fn of(kind: Option<&str>) -> Option<Self> {
        [Self::Veth, Self::Netkit].into_iter().find(|pair| kind == Some(pair.as_str()))
    }
}

/// A pair to make. Both ends are down at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What it is made of.
    pub kind: PairKind,
    /// Name of the end in the host's namespace.
    pub host_name: String,
    /// Where the other end is made.
    pub pod: Namespace,
    /// Its name there.
    pub pod_name: String,
    /// Its hardware address.
    pub pod_mac: MacAddr,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

/// Indices of the ends of a pair, each in its own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// In the host's namespace.
    pub host: u32,
    /// In the pod's.
    pub pod: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_of_a_pair_is_told_by_its_kind() {
        for kind in [PairKind::Veth, PairKind::Netkit] {
            assert_eq!(PairKind::of(Some(kind.as_str())), Some(kind));
        }
        assert_eq!((PairKind::of(Some("macvlan")), PairKind::of(None)), (None, None));
    }
}
