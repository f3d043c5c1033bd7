//! What the pairs of ports are made of in a test.

use netferry::link::PairKind;

/// As the daemon is told, by `NETFERRY_PORTS`.
pub(crate) fn ports() -> PairKind {
    match std::env::var("NETFERRY_PORTS").as_deref() {
        Err(_) | Ok("veth") => PairKind::Veth,
        Ok("netkit") => PairKind::Netkit,
        Ok(other) => panic!("NETFERRY_PORTS={other}: veth and netkit are allowed"),
    }
}
