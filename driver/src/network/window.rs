//! Which addresses of a subnet are published: those in use, and the first free ones.
//!
//! A subnet may have more addresses than a cluster can have devices, so a pool holds a *window*: every address that
//! is in use, and free ones with the lowest host numbers. It grows before they run out and shrinks when far too many
//! are free. Between the two limits it stays as it is, so that a pod that comes or goes writes nothing. There is no
//! state beside the published addresses themselves: another leader goes on from what it finds.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

/// Free addresses there are at least, unless the subnet or the pool has no more.
pub const MIN_FREE: usize = 64;
/// Of the addresses in use, one in this many is wanted free at least: a large network also grows faster.
const SHARE_FREE: usize = 16;

/// A subnet, and what in it is nobody's to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The prefix.
    pub network: IpNetwork,
    /// Addresses that are never published: gateways.
    pub excluded: BTreeSet<IpAddr>,
}

/// Addresses of a subnet that somebody has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Allocated by the scheduler: they stay published.
    pub allocated: BTreeSet<IpAddr>,
    /// Fixed by claims: the scheduler must not give them to others, so they are not published.
    pub fixed: BTreeSet<IpAddr>,
}

/// What is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// How many of them are free.
    pub free: usize,
    /// Whether the subnet has free addresses beyond the window.
    pub more: bool,
}

impl Subnet {
    /// Addresses of the prefix, or `u128::MAX` for `::/0`.
    #[must_use]
    pub fn len(&self) -> u128 {
        let bits = if self.network.is_ipv4() { 32 } else { 128 } - u32::from(self.network.prefix());
        1_u128.checked_shl(bits).unwrap_or(u128::MAX)
    }

    /// Never: a prefix has at least one address.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The address of a host number, if a pod can have it: not the network's own (IPv6: the routers' anycast address,
    /// RFC 4291, section 2.6.1), not the broadcast address of IPv4, and not excluded. Prefixes for two or one
    /// addresses (RFC 3021, RFC 6164) have neither.
    #[must_use]
    pub fn address(&self, number: u128) -> Option<IpAddr> {
        let len = self.len();
        let small = len <= 2;
        let broadcast = self.network.is_ipv4() && number + 1 == len;
        if number >= len || (!small && (number == 0 || broadcast)) {
            return None;
        }
        let address = match self.network.network() {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() | u32::try_from(number).ok()?).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() | number).into(),
        };
        (!self.excluded.contains(&address)).then_some(address)
    }

    /// The host number of an address of the prefix.
    #[must_use]
    pub fn number(&self, address: IpAddr) -> Option<u128> {
        if !self.network.contains(address) {
            return None;
        }
        Some(match (address, self.network.network()) {
            (IpAddr::V4(address), IpAddr::V4(base)) => u128::from(address.to_bits() ^ base.to_bits()),
            (IpAddr::V6(address), IpAddr::V6(base)) => address.to_bits() ^ base.to_bits(),
            _ => return None,
        })
    }
}

/// The window that follows `published`, of at most `room` addresses. An address in use stays in it, whatever `room`
/// says.
#[must_use]
pub fn next(subnet: &Subnet, in_use: &InUse, published: &BTreeSet<IpAddr>, room: usize) -> Window {
    let taken = |address: &IpAddr| in_use.allocated.contains(address) || in_use.fixed.contains(address);
    let mut addresses: BTreeSet<IpAddr> =
        in_use.allocated.iter().filter(|address| subnet.network.contains(**address)).copied().collect();

    let room = room.saturating_sub(addresses.len());
    let least = MIN_FREE.max(addresses.len() / SHARE_FREE).min(room);
    let (wanted, most) = ((2 * least).min(room), (6 * least).min(room));
    // Free addresses are published in the order of their numbers, so the last of them is the end of the window.
    let end = published
        .iter()
        .filter(|address| !taken(address))
        .filter_map(|address| subnet.number(*address))
        .max()
        .map_or(0, |last| last.saturating_add(1));

    // One more than may stay tells that there are too many, and whether there is more beyond the window.
    let free: Vec<(u128, IpAddr)> =
        numbers(subnet).filter(|(_, address)| !taken(address)).take(most.max(wanted) + 1).collect();
    let inside = free.iter().take_while(|(number, _)| *number < end).count();
    let keep = if inside < least || inside > most { wanted } else { inside };
    let kept = keep.min(free.len());
    addresses.extend(free[..kept].iter().map(|(_, address)| *address));
    Window { addresses, free: kept, more: free.len() > kept }
}

/// Usable addresses with their numbers, lowest first. Of 2^64 nobody walks more than are taken.
fn numbers(subnet: &Subnet) -> impl Iterator<Item = (u128, IpAddr)> + '_ {
    (0..subnet.len()).filter_map(|number| subnet.address(number).map(|address| (number, address)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(network: &str, excluded: &[&str]) -> Subnet {
        Subnet {
            network: network.parse().expect("a prefix"),
            excluded: excluded.iter().map(|address| address.parse().expect("an address")).collect(),
        }
    }

    fn all(subnet: &Subnet) -> Vec<String> {
        numbers(subnet).map(|(_, address)| address.to_string()).collect()
    }

    #[test]
    fn nobody_gets_network_broadcast_or_gateway() {
        assert_eq!(
            all(&subnet("10.0.0.8/29", &["10.0.0.9"])),
            ["10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"]
        );
        assert_eq!(all(&subnet("10.0.0.8/31", &[])), ["10.0.0.8", "10.0.0.9"]);
        assert_eq!(all(&subnet("10.0.0.8/32", &[])), ["10.0.0.8"]);
        assert_eq!(all(&subnet("fd00::/126", &["fd00::1"])), ["fd00::2", "fd00::3"]);
        assert_eq!(all(&subnet("fd00::/127", &[])), ["fd00::", "fd00::1"]);
        let whole = subnet("::/0", &[]);
        assert_eq!(whole.address(5), Some("::5".parse().expect("an address")));
    }

    #[test]
    fn a_large_subnet_opens_as_it_is_used() {
        let subnet = subnet("fd00:1::/64", &["fd00:1::1"]);
        let (mut in_use, mut published) = (InUse::default(), BTreeSet::new());
        let first = next(&subnet, &in_use, &published, 4096);
        assert_eq!((first.free, first.more), (128, true));
        assert_eq!(first.addresses.first().map(ToString::to_string).as_deref(), Some("fd00:1::2"));
        published = first.addresses;
        // Use within the window changes nothing …
        in_use.allocated = published.iter().take(64).copied().collect();
        let second = next(&subnet, &in_use, &published, 4096);
        assert_eq!((second.free, &second.addresses), (64, &published));
        // … until too few are free.
        in_use.allocated = published.iter().take(65).copied().collect();
        let third = next(&subnet, &in_use, &published, 4096);
        assert_eq!((third.free, third.addresses.len()), (128, 193));
        // All of them are released but the last: it stays, and the window closes behind the others.
        let last = *third.addresses.last().expect("an address");
        let wide =
            next(&subnet, &InUse::default(), &numbers(&subnet).take(1000).map(|(_, a)| a).collect(), 4096);
        assert_eq!(wide.free, 128);
        in_use.allocated = BTreeSet::from([last]);
        let fourth = next(&subnet, &in_use, &third.addresses, 4096);
        assert!(fourth.addresses.contains(&last));
    }

    #[test]
    fn the_end_of_subnet_and_pool_are_told_apart() {
        let subnet = subnet("10.0.0.0/28", &["10.0.0.1"]);
        let all: BTreeSet<IpAddr> = numbers(&subnet).map(|(_, address)| address).collect();
        let in_use = InUse { allocated: all.clone(), fixed: BTreeSet::new() };
        let full = next(&subnet, &in_use, &all, 4096);
        assert_eq!((full.free, full.more, full.addresses.len()), (0, false, 13));
        let crowded = InUse { allocated: all.iter().take(4).copied().collect(), fixed: BTreeSet::new() };
        let limited = next(&subnet, &crowded, &all, 4);
        assert_eq!((limited.free, limited.more, limited.addresses.len()), (0, true, 4));
    }

    proptest! {
        /// Whatever is in use and published: what is in use and was published stays, what is fixed or excluded is
        /// not there, enough is free, the pool is bounded, and a second look changes nothing.
        #[test]
        fn the_window_holds_its_promises(
            prefix in 16_u8..=30,
            allocated in proptest::collection::btree_set(0_u128..3000, 0..200),
            dense in 0_u128..1500,
            fixed in proptest::collection::btree_set(0_u128..3000, 0..50),
            published in proptest::collection::btree_set(0_u128..3000, 0..300),
            room in 0_usize..2000,
        ) {
            let subnet = Subnet {
                network: IpNetwork::new(Ipv4Addr::new(10, 1, 0, 0).into(), prefix).expect("a prefix"),
                excluded: BTreeSet::from([Ipv4Addr::new(10, 1, 0, 1).into()]),
            };
            let pick = |numbers: &mut dyn Iterator<Item = u128>| -> BTreeSet<IpAddr> {
                numbers.filter_map(|number| subnet.address(number)).collect()
            };
            let allocated = pick(&mut allocated.into_iter().chain(0..dense));
            let fixed: BTreeSet<IpAddr> =
                pick(&mut fixed.into_iter()).difference(&allocated).copied().collect();
            let published = &pick(&mut published.into_iter()) | &allocated;
            let in_use = InUse { allocated, fixed };
            let window = next(&subnet, &in_use, &published, room);

            prop_assert!(window.addresses.is_superset(&in_use.allocated));
            prop_assert!(window.addresses.is_disjoint(&in_use.fixed));
            prop_assert!(window.addresses.is_disjoint(&subnet.excluded));
            let usable_ones = |address: &IpAddr| {
                subnet.number(*address).and_then(|number| subnet.address(number)) == Some(*address)
            };
            prop_assert!(window.addresses.iter().all(usable_ones));
            prop_assert_eq!(window.free, window.addresses.len() - in_use.allocated.len());
            prop_assert!(window.addresses.len() <= room.max(in_use.allocated.len()));
            let usable = numbers(&subnet).map(|(_, address)| address).collect::<BTreeSet<_>>();
            let left = usable.len() - in_use.allocated.len() - in_use.fixed.len();
            prop_assert_eq!(window.more, left > window.free);
            let room_left = room.saturating_sub(in_use.allocated.len());
            prop_assert!(window.free >= MIN_FREE.min(left).min(room_left));
            prop_assert_eq!(next(&subnet, &in_use, &window.addresses, room), window);
        }
    }
}
