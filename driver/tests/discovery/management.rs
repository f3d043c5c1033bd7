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
