//! Prefixes of both families in one space, as [`netferry_common::Addr`] has them: IPv4 is `::ffff:0:0/96`.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// An address prefix. IPv4 lengths count from 96.
///
/// Ordered so that a prefix comes before those it covers, and these follow it directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    bits: u128,
    length: u8,
}

impl Prefix {
    /// Every IPv4 address.
    pub const V4: Self = Self { bits: 0xffff_0000_0000, length: 96 };
    /// Every address, IPv4 included.
    pub const ALL: Self = Self { bits: 0, length: 0 };

    /// One address.
    #[must_use]
    pub fn host(ip: IpAddr) -> Self {
        Self { bits: number(ip), length: 128 }
    }

    /// Leading bits that are fixed, of 128.
    #[must_use]
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Whether it is every address.
    #[must_use]
    pub const fn is_all(self) -> bool {
        self.length == 0
    }

    /// Its first address, in network byte order.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        self.bits.to_be_bytes()
    }

    /// Whether it is IPv4.
    #[must_use]
    pub const fn is_v4(self) -> bool {
        Self::V4.covers(self)
    }

    /// Whether every address of the other is one of its own. Families are not told apart here.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.length <= other.length && (self.bits ^ other.bits) & mask(self.length) == 0
    }

    /// Whether an address is in it. `::/0` has no IPv4 address.
    #[must_use]
    pub fn contains(self, ip: IpAddr) -> bool {
        self.is_v4() == ip.is_ipv4() && self.covers(Self::host(ip))
    }

    /// The other half of the prefix one bit shorter, and that prefix. `None` for every address.
    #[must_use]
    pub const fn sibling(self) -> Option<(Self, Self)> {
        if self.length == 0 {
            return None;
        }
        let sibling = Self { bits: self.bits ^ (1 << (128 - self.length)), length: self.length };
        let parent = Self { bits: self.bits & mask(self.length - 1), length: self.length - 1 };
        Some((sibling, parent))
    }
}

const fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len) }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl From<IpNetwork> for Prefix {
    fn from(network: IpNetwork) -> Self {
        let length = network.prefix() + if network.is_ipv4() { 96 } else { 0 };
        Self { bits: number(network.network()), length }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ip = Ipv6Addr::from_bits(self.bits);
        match ip.to_ipv4_mapped() {
            Some(v4) if self.is_v4() => write!(f, "{v4}/{}", self.length - 96),
            _ => write!(f, "{ip}/{}", self.length),
        }
    }
}
