//! Links by which the node is reached.

use std::collections::BTreeSet;

use netferry::device::{Inventory, management::Management, watch::WatchOptions};

use super::{HeldNames, in_netns, ip, until, watch};

#[test]
fn links_by_which_the_node_is_reached_are_not_movable() {
    in_netns(|| async {
        ip("link add nf-br type bridge
            link add nf-a type veth peer name nf-b
            link add nf-c type veth peer name nf-d
            link add link nf-c name nf-mv type macvlan mode bridge
            link add nf-e type veth peer name nf-f
            addr add 192.0.2.7/24 dev nf-a
            addr add 2001:db8::7/64 dev nf-mv nodad
            addr add 198.51.100.7/24 dev nf-e
            link set nf-a up
            link set nf-b up
            link set nf-c up
            link set nf-d up
            link set nf-mv up
            link set nf-e up
            link set nf-f up
            route add 203.0.113.0/24 via 198.51.100.1
            ");
        let ip_of = |text: &str| text.parse().expect("an IP address");
        let (sender, management) = tokio::sync::watch::channel(Management {
            node: [ip_of("2001:db8::7")].into(),
            api_servers: [ip_of("203.0.113.10")].into(),
            ..Management::default()
        });
        let stays = |inventory: &Inventory| -> BTreeSet<(String, &'static str)> {
            let devices = inventory.devices.values().filter(|device| device.ifname.starts_with("nf-"));
            devices.filter_map(|it| Some((it.ifname.clone(), it.not_movable?.as_str()))).collect()
        };
        let set = |pairs: &[(&str, &'static str)]| -> BTreeSet<(String, &'static str)> {
            pairs.iter().map(|(name, why)| ((*name).to_owned(), *why)).collect()
        };
        let options = WatchOptions { management, ..WatchOptions::default() };
        let (watcher, stop) = watch(options, &HeldNames::default()).await;
        let first = set(&[
            ("nf-br", "namespace-local"),
            ("nf-c", "node-address"),
            ("nf-mv", "node-address"),
            ("nf-e", "api-server"),
        ]);
        until(&watcher, "the first reasons", |inventory| stays(inventory) == first).await;
        // The kernel is asked anew when addresses move to another link, and when others are the node's.
        ip("addr del 2001:db8::7/64 dev nf-mv
            addr add 2001:db8::7/64 dev nf-a nodad
            ");
        let moved = set(&[("nf-br", "namespace-local"), ("nf-a", "node-address"), ("nf-e", "api-server")]);
        until(&watcher, "the address on another link", |inventory| stays(inventory) == moved).await;
        sender.send_replace(Management { node: [ip_of("198.51.100.7")].into(), ..Management::default() });
        let other = set(&[("nf-br", "namespace-local"), ("nf-e", "node-address")]);
        until(&watcher, "another address of the node", |inventory| stays(inventory) == other).await;
        stop.cancel();
    });
}

#[test]
fn every_next_hop_of_the_way_to_the_api_server_stays() {
    for (compat, objects) in [("1", false), ("1", true), ("0", true)] {
        in_netns(move || async move {
            ip("link add nf-a type veth peer name xa
                link add nf-b type veth peer name xb
                link add nf-c type veth peer name xc
                addr add 192.0.2.2/24 dev nf-a
                addr add 2001:db8:a::2/64 dev nf-a nodad
                addr add 198.51.100.2/24 dev nf-b
                addr add 2001:db8:b::2/64 dev nf-b nodad
                addr add 192.0.2.130/32 dev nf-c
                link set nf-a up
                link set nf-b up
                link set nf-c up
                link set xa up
                link set xb up
                link set xc up
                ");
            std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", compat).expect("sysctl");
            if objects {
                ip("nexthop add id 1 via 192.0.2.1 dev nf-a
                    nexthop add id 2 via 198.51.100.1 dev nf-b
                    nexthop add id 3 group 1/2
                    nexthop add id 4 via 2001:db8:a::1 dev nf-a
                    nexthop add id 5 via 2001:db8:b::1 dev nf-b
                    nexthop add id 6 group 4/5
                    route add 203.0.113.0/24 nhid 3
                    route add 2001:db8:f::/64 nhid 6
                    ");
            } else {
                ip("route add 203.0.113.0/24 nexthop via 192.0.2.1 dev nf-a nexthop via 198.51.100.1 dev nf-b
                    route add 2001:db8:f::/64 nexthop via 2001:db8:a::1 dev nf-a nexthop via 2001:db8:b::1 dev nf-b
                    ");
            }
            // Packets leave through nf-a, and come from the address of nf-c.
            ip("route add 203.0.114.0/24 via 192.0.2.1 dev nf-a src 192.0.2.130");
            for (server, expected) in [
                ("203.0.113.10", ["nf-a", "nf-b"]),
                ("2001:db8:f::10", ["nf-a", "nf-b"]),
                ("203.0.114.10", ["nf-a", "nf-c"]),
            ] {
                let servers = [server.parse().expect("an IP address")].into();
                let facts = netferry::device::netlink::dump(&servers).await.expect("dumped");
                let names = facts.ways.iter().map(|index| facts.links[index].name.as_str());
                assert_eq!(
                    names.collect::<Vec<_>>(),
                    expected,
                    "{server}, compat {compat}, objects {objects}"
                );
                assert!(facts.unreached.is_empty(), "{:?}", facts.unreached);
            }
            let nowhere = "203.0.115.10".parse().expect("an IP address");
            let facts = netferry::device::netlink::dump(&[nowhere].into()).await.expect("dumped");
            assert!(facts.unreached[&nowhere].contains("unreachable"), "{:?}", facts.unreached);
        });
    }
}

#[test]
fn links_with_addresses_stay_until_the_nodes_own_are_known() {
    in_netns(|| async {
        ip("link add nf-a type veth peer name xa
            link add nf-b type veth peer name xb
            link add link nf-b name nf-v type macvlan mode bridge
            link add nf-c type veth peer name xc
            link add nf-d type veth peer name xd
            addr add 192.0.2.7/24 dev nf-a
            addr add 198.51.100.7/24 dev nf-v
            link set nf-c up
            link set xc up
            route add default dev nf-c
            ");
        let (sender, management) =
            tokio::sync::watch::channel(Management { unknown: true, ..Management::default() });
        let stays = |inventory: &Inventory| -> BTreeSet<(String, &'static str)> {
            let devices = inventory.devices.values().filter(|device| device.ifname.starts_with("nf-"));
            devices.filter_map(|it| Some((it.ifname.clone(), it.not_movable?.as_str()))).collect()
        };
        let options = WatchOptions { management, ..WatchOptions::default() };
        let (watcher, stop) = watch(options, &HeldNames::default()).await;
        let first = ["nf-a", "nf-b", "nf-c", "nf-v"].map(|name| (name.to_owned(), "unknown")).into();
        assert_eq!(stays(&watcher.inventory.borrow()), first);
        sender.send_replace(Management {
            node: ["192.0.2.7".parse().expect("an IP address")].into(),
            ..Management::default()
        });
        let known = [("nf-a".to_owned(), "node-address")].into();
        until(&watcher, "the node's address", |inventory| stays(inventory) == known).await;
        stop.cancel();
    });
}
