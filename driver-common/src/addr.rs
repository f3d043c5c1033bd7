//! One address type for IPv4 and IPv6, so that one map serves both.

use bytemuck::{Pod, Zeroable};

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d`, in network byte order.
///
/// Bytes make `bpftool map dump` readable; the alignment of 4 lets the BPF back end copy it by words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Addr {
    /// The 16 bytes of the address.
    pub bytes: [u8; 16],
}

const _: () = assert!(size_of::<Addr>() == 16);

impl Addr {
    /// `::`, or no address.
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };

    /// An IPv4 address, mapped.
    #[must_use]
    #[inline]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self { bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] }
    }

    /// An IPv6 address.
    #[must_use]
    #[inline]
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self { bytes: octets }
    }

    /// The link-local address Linux derives from a hardware address (EUI-64, RFC 4291 appendix A).
    #[must_use]
    pub const fn link_local(mac: [u8; 6]) -> Self {
        Self {
            bytes: [
                0xfe,
                0x80,
                0,
                0,
                0,
                0,
                0,
                0,
                mac[0] ^ 2,
                mac[1],
                mac[2],
                0xff,
                0xfe,
                mac[3],
                mac[4],
                mac[5],
            ],
        }
    }

    /// The IPv4 octets, if it is a mapped IPv4 address.
    #[must_use]
    pub const fn as_v4(&self) -> Option<[u8; 4]> {
        match self.bytes {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }
}

#[cfg(feature = "user")]
impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

#[cfg(feature = "user")]
impl From<Addr> for core::net::IpAddr {
    fn from(addr: Addr) -> Self {
        match addr.as_v4() {
            Some(octets) => core::net::Ipv4Addr::from(octets).into(),
            None => core::net::Ipv6Addr::from(addr.bytes).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_follows_rfc_4291() {
        let ll = Addr::link_local([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
        assert_eq!(ll.bytes, [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x36, 0x56, 0x78, 0xff, 0xfe, 0x9a, 0xbc, 0xde]);
    }

    #[test]
    fn v4_is_mapped_and_back() {
        assert_eq!(Addr::v4([192, 0, 2, 1]).as_v4(), Some([192, 0, 2, 1]));
        assert_eq!(Addr::link_local([2; 6]).as_v4(), None);
    }
}
