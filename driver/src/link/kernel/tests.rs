//! What is written down comes back as it was: encode, then decode, without a kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{Emitable as _, Parseable as _};
use netlink_packet_route::{address::AddressMessage, neighbour::NeighbourMessage, route::RouteMessage};
use proptest::prelude::*;

use super::{
    decode::{self, Found},
    encode, sysctl,
};
use crate::link::{Address, MacAddr, Neighbour, Route, Scope};

fn ip() -> impl Strategy<Value = IpAddr> {
    // The unspecified address stands for no destination, and is no gateway or address of a link.
    prop_oneof![
        (1_u32..).prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        (1_u128..).prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

fn same_family(like: IpAddr) -> impl Strategy<Value = IpAddr> {
    ip().prop_map(move |other| match (like, other) {
        (IpAddr::V4(_), IpAddr::V6(six)) => {
            let [.., a, b, c, d] = six.octets();
            IpAddr::from([1, b, c, a ^ d])
        }
        (IpAddr::V6(_), IpAddr::V4(four)) => IpAddr::V6(four.to_ipv6_mapped()),
        _ => other,
    })
}

fn network() -> impl Strategy<Value = IpNetwork> {
    (ip(), any::<u8>()).prop_map(|(ip, length)| {
        let most = if ip.is_ipv6() { 128 } else { 32 };
        IpNetwork::new(ip, length % (most + 1)).expect("prefix in range")
    })
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::Universe), Just(Scope::Site), Just(Scope::Link), Just(Scope::Host)]
}

fn address() -> impl Strategy<Value = Address> {
    let flags = prop::sample::subsequence(vec![0x02_u32, 0x10, 0x100, 0x200, 0x400], 0..=5);
    (network(), scope(), flags, any::<bool>(), any::<u8>(), any::<u32>(), "[a-z]{1,8}").prop_flat_map(
        |(network, scope, flags, lives, protocol, metric, label)| {
            let peer = prop::option::of(same_family(network.ip()));
            peer.prop_map(move |peer| Address {
                address: network,
                peer: peer.filter(|peer| *peer != network.ip()),
                broadcast: network.is_ipv4().then_some(IpAddr::V4(Ipv4Addr::BROADCAST)),
                label: network.is_ipv4().then(|| label.clone()),
                scope,
                flags: flags.iter().sum(),
                lifetime: lives.then_some((3600, 1800)),
                protocol,
                metric,
            })
        },
    )
}

fn route() -> impl Strategy<Value = Route> {
    (
        network(),
        scope(),
        1_u32..,
        prop_oneof![Just(1_u8), Just(3), Just(4), Just(99)],
        any::<u32>(),
        any::<bool>(),
    )
        .prop_flat_map(|(network, scope, table, protocol, metric, onlink)| {
            let address = || prop::option::of(same_family(network.ip()));
            (address(), address()).prop_map(move |(gateway, source)| Route {
                destination: IpNetwork::new(network.network(), network.prefix()).expect("network"),
                gateway,
                source,
                scope,
                table,
                protocol,
                metric,
                onlink,
            })
        })
}

proptest! {
    #[test]
    fn addresses_come_back(address in address()) {
        let message = encode::address(7, &address);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let read = AddressMessage::parse(&bytes[..]).expect("message");
        prop_assert_eq!(read.header.index, 7);
        prop_assert_eq!(decode::address(&read), Some(address));
    }

    #[test]
    fn routes_come_back(route in route()) {
        let message = encode::route(7, &route);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let read = RouteMessage::parse(&bytes[..]).expect("message");
        prop_assert_eq!(decode::route(&read, 7), Found::Through(route));
        prop_assert_eq!(decode::route(&read, 8), Found::Remade);
    }

    #[test]
    fn neighbours_come_back(address in ip(), mac in any::<[u8; 6]>()) {
        let neighbour = Neighbour { address, mac: MacAddr(mac) };
        let message = encode::neighbour(7, &neighbour);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let read = NeighbourMessage::parse(&bytes[..]).expect("message");
        prop_assert_eq!(decode::neighbour(&read, 7), Some(neighbour));
        prop_assert_eq!(decode::neighbour(&read, 8), None);
    }
}

#[test]
fn privacy_addresses_are_left_to_the_kernel() {
    let mut address = Address::plain("2001:db8::1/64".parse().expect("address"));
    address.flags = 0x01;
    assert_eq!(decode::address(&encode::address(7, &address)), None);
}

#[test]
fn loopback_has_no_sysctl_of_its_own_that_is_derived() {
    let changed = sysctl::changed("lo");
    assert!(!changed.contains_key("ipv6/mtu"), "{changed:?}");
    assert!(sysctl::changed("no-such-link").is_empty());
    sysctl::write("no-such-link", &changed).expect("nothing to write is no error");
}
