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

    /// An address as four words that hold its bytes in memory order: how programs read a header.
    #[must_use]
    #[inline]
    pub fn from_words(words: [u32; 4]) -> Self {
        bytemuck::cast(words)
    }

    /// An IPv4 address as the word that holds its bytes in memory order.
    #[must_use]
    #[inline]
    pub fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, 0xffff_u32.to_be(), word])
    }

    /// Whether it is a multicast address of either family.
    #[must_use]
    #[inline]
    pub const fn is_multicast(&self) -> bool {
        self.bytes[0] == 0xff || (self.bytes[12] & 0xf0 == 0xe0 && self.as_v4().is_some())
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
    fn words_are_bytes_in_memory_order() {
        assert_eq!(Addr::from_v4_word(u32::from_ne_bytes([192, 0, 2, 1])), Addr::v4([192, 0, 2, 1]));
    }

    #[test]
    fn multicast_of_either_family() {
        assert!(Addr::v4([224, 0, 0, 1]).is_multicast());
        assert!(!Addr::v4([223, 0, 0, 1]).is_multicast());
        assert!(Addr::v6([0xff; 16]).is_multicast());
        let mut global = [0; 16];
        global[0] = 0x20;
        global[12] = 0xe0;
        assert!(!Addr::v6(global).is_multicast());
    }

    #[test]
    fn v4_is_mapped_and_back() {
        assert_eq!(Addr::v4([192, 0, 2, 1]).as_v4(), Some([192, 0, 2, 1]));
        assert_eq!(Addr::link_local([2; 6]).as_v4(), None);
    }
}
