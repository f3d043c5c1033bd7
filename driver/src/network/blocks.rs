//! Blocks of a network's subnets, of which nodes with ports have their own.
//!
//! A block is 64 addresses: two of them fill a slice. What is published of a block is a mask of 64 bits. Who has which
//! block says the [`ledger`].

pub mod condition;
pub mod ledger;
pub mod slices;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::window::Subnet;

/// Addresses of a block: those of an IPv4 prefix of 26 bits, of an IPv6 prefix of 122.
pub const BLOCK: u32 = 64;
/// Bits of an address that tell it from others of its block.
const BITS: u8 = 6;

/// A block, by its subnet's place in the network and its own in the subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The subnet.
    pub subnet: usize,
    /// The block's number in it, from 0.
    pub number: u128,
}

/// Addresses by block, each a bit: the lowest stands for the lowest address.
pub type Content = BTreeMap<Block, u64>;

impl Block {
    /// Where an address is: its block and its bit.
    #[must_use]
    pub fn of(subnets: &[Subnet], address: IpAddr) -> Option<(Self, u64)> {
        let place = |subnet: &Subnet| subnet.number(address);
        let (subnet, host) = subnets.iter().enumerate().find_map(|(at, it)| Some((at, place(it)?)))?;
        Some((Self { subnet, number: host >> BITS }, 1 << (host & u128::from(BLOCK - 1))))
    }

    /// The addresses that a pod can have, see [`Subnet::address`].
    #[must_use]
    pub fn usable(self, subnets: &[Subnet]) -> u64 {
        let usable = |bit: &u32| self.address(subnets, *bit).is_some();
        (0..BLOCK).filter(usable).fold(0, |mask, bit| mask | 1 << bit)
    }

    /// The addresses of a mask, lowest first.
    pub fn addresses(self, subnets: &[Subnet], mask: u64) -> impl Iterator<Item = IpAddr> + '_ {
        (0..BLOCK).filter(move |bit| mask & 1 << bit != 0).filter_map(move |bit| self.address(subnets, bit))
    }

    fn address(self, subnets: &[Subnet], bit: u32) -> Option<IpAddr> {
        subnets.get(self.subnet)?.address(self.number << BITS | u128::from(bit))
    }

    /// Its prefix.
    #[must_use]
    pub fn prefix(self, subnets: &[Subnet]) -> Option<IpNetwork> {
        let host = self.number << BITS;
        let (first, length) = match subnets.get(self.subnet)?.network.network() {
            IpAddr::V4(base) => (Ipv4Addr::from_bits(base.to_bits() | u32::try_from(host).ok()?).into(), 32),
            IpAddr::V6(base) => (Ipv6Addr::from_bits(base.to_bits() | host).into(), 128),
        };
        IpNetwork::new(first, length - BITS).ok()
    }
}

/// Blocks of a subnet.
#[must_use]
pub fn blocks(subnet: &Subnet) -> u128 {
    subnet.len() >> BITS
}

/// What claims have of a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockUse {
    /// What the scheduler allocated, by the node of the claims, as far as that is told.
    pub by: BTreeMap<Option<Arc<str>>, u64>,
    /// What claims fix.
    pub fixed: u64,
}

impl BlockUse {
    /// All that is allocated.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.by.values().fold(0, |all, mask| all | mask)
    }

    /// What is allocated to claims on a node.
    #[must_use]
    pub fn of(&self, node: &str) -> u64 {
        let of_node = |(name, _): &(&Option<Arc<str>>, &u64)| name.as_deref() == Some(node);
        self.by.iter().find(of_node).map_or(0, |(_, mask)| *mask)
    }

    /// What a node must not publish of its block: what claims fix, and what claims elsewhere have.
    fn barred(&self, node: &str) -> u64 {
        (self.fixed | self.allocated()) & !self.of(node)
    }
}

/// What claims have of a network's blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses(BTreeMap<Block, BlockUse>);

impl Uses {
    /// Note an address that the scheduler allocated to a claim on a node.
    pub fn allocate(&mut self, subnets: &[Subnet], address: IpAddr, node: Option<&Arc<str>>) {
        if let Some((block, bit)) = Block::of(subnets, address) {
            *self.0.entry(block).or_default().by.entry(node.cloned()).or_default() |= bit;
        }
    }

    /// Note an address that a claim fixes.
    pub fn fix(&mut self, subnets: &[Subnet], address: IpAddr) {
        if let Some((block, bit)) = Block::of(subnets, address) {
            self.0.entry(block).or_default().fixed |= bit;
        }
    }

    /// What claims have of one block.
    #[must_use]
    pub fn get(&self, block: Block) -> Option<&BlockUse> {
        self.0.get(&block)
    }

    /// All blocks of which claims have something.
    pub fn iter(&self) -> impl Iterator<Item = (Block, &BlockUse)> + '_ {
        self.0.iter().map(|(block, of)| (*block, of))
    }

    fn allocated(&self, block: Block) -> u64 {
        self.get(block).map_or(0, BlockUse::allocated)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn subnet(network: &str, excluded: &[&str]) -> Subnet {
        Subnet {
            network: network.parse().expect("a prefix"),
            excluded: excluded.iter().map(|address| address.parse().expect("an address")).collect(),
        }
    }

    #[test]
    fn an_address_is_one_bit_of_one_block() {
        let subnets = [subnet("10.1.0.0/16", &["10.1.0.65"]), subnet("fd00:1::/64", &[])];
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (block, bit) = Block::of(&subnets, ip("10.1.0.66")).expect("inside");
        assert_eq!((block, bit), (Block { subnet: 0, number: 1 }, 1 << 2));
        assert_eq!(block.prefix(&subnets).map(|prefix| prefix.to_string()).as_deref(), Some("10.1.0.64/26"));
        assert_eq!(block.addresses(&subnets, bit).collect::<Vec<_>>(), [ip("10.1.0.66")]);
        let (block, bit) = Block::of(&subnets, ip("fd00:1::1:7f")).expect("inside");
        assert_eq!((block, bit), (Block { subnet: 1, number: 0x401 }, 1 << 63));
        assert_eq!(
            block.prefix(&subnets).map(|prefix| prefix.to_string()).as_deref(),
            Some("fd00:1::1:40/122")
        );
        assert_eq!(Block::of(&subnets, ip("10.2.0.1")), None);
        assert_eq!((blocks(&subnets[0]), blocks(&subnets[1])), (1024, 1 << 58));
    }

    #[test]
    fn what_no_pod_can_have_is_in_no_block() {
        let subnets = [subnet("10.1.0.0/24", &["10.1.0.65"]), subnet("fd00:1::/64", &[])];
        let missing = |subnet, number| {
            let block = Block { subnet, number };
            let there: BTreeSet<IpAddr> = block.addresses(&subnets, block.usable(&subnets)).collect();
            let all = block.prefix(&subnets).expect("a prefix").iter();
            all.filter(|address| !there.contains(address)).map(|it| it.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(missing(0, 0), ["10.1.0.0"]);
        assert_eq!(missing(0, 1), ["10.1.0.65"]);
        assert_eq!(missing(0, 2), [""; 0]);
        assert_eq!(missing(0, 3), ["10.1.0.255"]);
        assert_eq!((missing(1, 0), missing(1, 1)), (vec!["fd00:1::".to_owned()], vec![]));
        assert_eq!(Block { subnet: 0, number: 4 }.usable(&subnets), 0, "beyond the subnet");
    }
}
