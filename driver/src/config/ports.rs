//! What ports of networks are made of.

use std::io;

use clap::ValueEnum;

use crate::link::{PairKind, kernel::can_make};

/// The setting `--ports`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Ports {
    /// veth pairs, which every kernel makes.
    #[default]
    Veth,
    /// netkit pairs; the daemon does not start where the kernel makes none (upstream since Linux 6.7).
    Netkit,
    /// netkit pairs where the kernel makes them, veth pairs elsewhere.
    Auto,
}

impl Ports {
    /// What the ports of this machine are made of, by trying. [`Ports::Veth`] is not tried: without it there are no ports,
    /// but links of the host can be claimed all the same.
    pub fn choose(self) -> io::Result<PairKind> {
        self.choose_by(can_make)
    }

    fn choose_by(self, can_make: impl Fn(PairKind) -> io::Result<()>) -> io::Result<PairKind> {
        match self {
            Self::Veth => Ok(PairKind::Veth),
            Self::Netkit => can_make(PairKind::Netkit).map(|()| PairKind::Netkit),
            Self::Auto => Ok(can_make(PairKind::Netkit).map_or(PairKind::Veth, |()| PairKind::Netkit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_is_chosen_by_nobody() {
        let lacking = |kind| match kind {
            PairKind::Veth => Ok(()),
            PairKind::Netkit => Err(io::ErrorKind::Unsupported.into()),
        };
        let chosen = |ports: Ports| ports.choose_by(lacking).ok();
        assert_eq!(chosen(Ports::Veth), Some(PairKind::Veth));
        assert_eq!(chosen(Ports::Auto), Some(PairKind::Veth));
        assert_eq!(chosen(Ports::Netkit), None);
        for ports in [Ports::Netkit, Ports::Auto] {
            assert_eq!(ports.choose_by(|_| Ok(())).ok(), Some(PairKind::Netkit));
        }
    }
}
