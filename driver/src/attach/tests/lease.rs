//! Addresses that a port loses, and has again.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    port::{claim_ref, port},
    *,
};
use crate::link::Address;

fn key() -> crate::claim::InterfaceKey {
    port("c1", "s1", "net1").key()
}

fn port_in(world: &World, sandbox: &str) -> FakeLink {
    world.links.links_in(&inside(sandbox)).into_iter().find(|link| link.home.link.name == "net1").unwrap()
}

const LOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

fn ready(world: &World) -> bool {
    let record = world.store.get("c1").unwrap().interfaces.remove(0);
    world.datapath.endpoint(record.attachment.unwrap().endpoint.unwrap()).unwrap().ready
}

#[tokio::test]
async fn a_port_without_its_address_is_closed_until_it_has_it_again() {
    let mut world = World::new();
    world.claim("c1", "web", vec![port("c1", "s1", "net1")]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    assert!(ready(&world) && port_in(&world, "s1").home.link.up);
    let addresses = |world: &World| -> Vec<IpAddr> {
        let all = port_in(world, "s1").home.addresses;
        all.iter().map(|it| it.address.ip()).filter(IpAddr::is_ipv4).collect()
    };
    assert_eq!(addresses(&world), [LOST]);
    // What the pod has added stays.
    let added = Address::plain("198.51.100.9/32".parse().unwrap());
    let ifindex = port_in(&world, "s1").home.link.ifindex;
    world.links.add_address(&inside("s1"), ifindex, &added).await.unwrap();
    for again in [false, true] {
        if again {
            // As a daemon leaves it that is killed before it comes to the address.
            let lost = Address::plain("192.0.2.7/24".parse().unwrap());
            world.links.add_address(&inside("s1"), ifindex, &lost).await.unwrap();
        }
        world.attacher.take_addresses(&claim_ref("c1"), &key(), LOST).await.unwrap();
        assert_eq!(addresses(&world), [added.address.ip()]);
        assert!(world.store.get("c1").unwrap().interfaces[0].plan.lacks_address());
        assert!(!ready(&world) && !port_in(&world, "s1").home.link.up);
        // Nothing opens it by itself.
        assert_eq!(world.attacher.repair(Extent::Everywhere).await, []);
        assert!(!ready(&world));
        world.restart();
        world.attacher.recover(&[sandbox("s1", "web")]).await;
        assert!(!ready(&world));
    }
    let address = "192.0.2.7/24".parse().unwrap();
    world.attacher.give_address(&claim_ref("c1"), &key(), address).await.unwrap();
    assert_eq!(world.store.get("c1").unwrap().interfaces[0].plan.addresses, [address]);
    assert!(ready(&world));
    let link = port_in(&world, "s1");
    assert!(link.home.link.up);
    assert_eq!(link.home.routes.len(), 1);
    assert_eq!(addresses(&world), [added.address.ip(), LOST]);
}

#[tokio::test]
async fn a_port_without_an_address_is_not_attached() {
    let world = World::new();
    world.claim("c1", "web", vec![port("c1", "s1", "net1")]);
    let before = world.links.links_in(&Namespace::Host);
    world.attacher.take_addresses(&claim_ref("c1"), &key(), LOST).await.unwrap();
    let failed = world.attacher.attach(&sandbox("s1", "web")).await.unwrap_err();
    assert!(failed.to_string().contains("network blue has lost its address"), "{failed}");
    assert_eq!(world.links.links_in(&Namespace::Host), before);
    assert_eq!(world.links.links_in(&inside("s1")), []);
    let none = key();
    let other = crate::claim::InterfaceKey { request: "other".into(), ..none };
    world.attacher.take_addresses(&claim_ref("c1"), &other, LOST).await.unwrap();
    assert!(world.attacher.take_addresses(&claim_ref("c9"), &other, LOST).await.is_err(), "no such claim");
}

#[tokio::test]
async fn a_port_is_closed_also_if_that_cannot_be_written_down() {
    let world = World::new();
    world.claim("c1", "web", vec![port("c1", "s1", "net1")]);
    world.attacher.attach(&sandbox("s1", "web")).await.unwrap();
    std::fs::remove_dir_all(world.dir.path()).unwrap();
    assert!(world.attacher.take_addresses(&claim_ref("c1"), &key(), LOST).await.is_err());
    assert!(!ready(&world));
}
