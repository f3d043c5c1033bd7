//! `KernelLinks` on real network namespaces.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
    process::Command,
    time::Duration,
};

use netferry::link::{
    Address, Home, LinkError, LinkRef, Links, Namespace, Route, Scope,
    identity::{NetnsId, boot_id, netns_id},
    kernel::KernelLinks,
};
use serde_json::Value;
use support::{
    netns::{NetNs, Snapshot, Veth, may_make_namespaces},
    skip,
};

/// A host with one link `eth7` that has some of everything, and its peer elsewhere.
struct World {
    host: NetNs,
    peer: NetNs,
    pod: NetNs,
    links: KernelLinks,
}

fn world(test: &str) -> Option<World> {
    if !may_make_namespaces() {
        skip(test, "network namespaces cannot be made here");
        return None;
    }
    let (host, peer, pod) = (NetNs::new(), NetNs::new(), NetNs::new());
    Veth::pair(&host, "eth7", &peer, "far");
    peer.ip("link set far up");
    peer.ip("addr add 198.51.100.1/24 dev far");
    let links = KernelLinks::with_host(&host.path);
    Some(World { host, peer, pod, links })
}

impl World {
    /// Everything a home can have.
    fn furnish(&self) {
        for words in [
            "link set eth7 alias uplink-7",
            "link property add dev eth7 altname enp9s0",
            "link property add dev eth7 altname second-name",
            "link set eth7 mtu 1400 txqueuelen 777 group 42 allmulticast on",
            "addr add 198.51.100.7/24 brd + dev eth7",
            "addr add 198.51.100.8/24 dev eth7 label eth7:x",
            "addr add 203.0.113.1/32 peer 203.0.113.9/32 dev eth7 noprefixroute",
            "link set eth7 up",
            "addr add 2001:db8:7::1/64 dev eth7",
            "addr add 2001:db8:7::2/64 dev eth7 nodad",
            "addr add fd00:7::1/48 dev eth7 noprefixroute metric 300",
            "addr add fe80::77/64 dev eth7 nodad",
            "route add 192.0.2.0/24 via 198.51.100.1",
            "route add default via 198.51.100.1 metric 500",
            "route add 192.0.2.128/25 via 10.99.99.1 dev eth7 onlink table 1007 proto 99",
            "route add 10.7.0.0/16 dev eth7 scope link src 198.51.100.8",
            "-6 route add 2001:db8:99::/48 via 2001:db8:7::99 metric 77",
            "-6 route add default via fe80::1 dev eth7 table 1007",
            "neigh add 198.51.100.50 lladdr 02:00:00:00:00:50 dev eth7 nud permanent",
            "neigh add 2001:db8:7::50 lladdr 02:00:00:00:00:50 dev eth7 nud permanent",
        ] {
            self.host.ip(words);
        }
        for (name, value) in [
            ("ipv4/conf/eth7/arp_ignore", "1"),
            ("ipv4/conf/eth7/rp_filter", "2"),
            ("ipv6/conf/eth7/accept_ra", "0"),
            ("ipv4/neigh/eth7/gc_stale_time", "33"),
        ] {
            let path = format!("/proc/sys/net/{name}");
            self.host.run(move || std::fs::write(path, value).expect("sysctl"));
        }
    }

    async fn home(&self) -> Home {
        self.links.home(&Namespace::Host, self.host.ifindex("eth7")).await.expect("home")
    }

    fn pod(&self) -> Namespace {
        Namespace::at(&self.pod.path)
    }
}

#[tokio::test]
async fn a_link_comes_back_byte_for_byte() {
    let Some(world) = world("a_link_comes_back_byte_for_byte") else { return };
    world.furnish();
    let before = world.host.snapshot();
    let home = world.home().await;
    assert_eq!(home.settings.alias.as_deref(), Some("uplink-7"));
    assert_eq!(home.link.alt_names.len(), 2);
    assert_eq!(home.routes.len(), 6, "{:#?}", home.routes);
    assert_eq!(home.neighbours.len(), 2);
    assert_eq!(home.sysctls.get("ipv4/arp_ignore").map(String::as_str), Some("1"));
    assert_eq!(home.sysctls.get("ipv4/neigh/gc_stale_time").map(String::as_str), Some("33"));

    let there = world.links.move_to(&Namespace::Host, home.link.ifindex, &world.pod(), "net1", None).await;
    let there = there.expect("move");
    assert_eq!(world.host.links(), Vec::<String>::new());
    assert_eq!(world.pod.links(), ["net1"]);
    // A pod with NET_ADMIN spoils what it can.
    for words in [
        "link set net1 address 02:aa:bb:cc:dd:ee mtu 1300 txqueuelen 5 alias spoilt",
        // The last one: alternative names are a set, and the kernel lists one that is added again last.
        "link property del dev net1 altname second-name",
        "link property add dev net1 altname spoilt-name",
        "link set net1 up promisc on allmulticast off",
        "addr add 9.9.9.9/8 dev net1",
    ] {
        world.pod.ip(words);
    }
    let back = world
        .links
        .move_to(&world.pod(), there, &Namespace::Host, "eth7", Some(home.link.ifindex))
        .await
        .expect("move back");
    assert_eq!(back, home.link.ifindex, "the index is as before");
    world.links.restore(back, &home).await.expect("restore");
    before.assert_same(&world.host.snapshot_like(&before), "after the round trip");
    assert_eq!(world.home().await, home);
    // A restore that finds everything in place changes nothing.
    world.links.restore(back, &home).await.expect("restore again");
    before.assert_same(&world.host.snapshot_like(&before), "after a second restore");
    drop(world.peer);
}

#[tokio::test]
async fn an_address_older_than_the_link_local_one_stays_behind_it() {
    let Some(world) = world("an_address_older_than_the_link_local_one_stays_behind_it") else { return };
    for words in
        ["addr add fe80::77/64 dev eth7 nodad", "link set eth7 up", "addr add fe80::78/64 dev eth7 nodad"]
    {
        world.host.ip(words);
    }
    let before = world.host.snapshot();
    let home = world.home().await;
    let there = world.links.move_to(&Namespace::Host, home.link.ifindex, &world.pod(), "net1", None).await;
    let back = world
        .links
        .move_to(&world.pod(), there.expect("move"), &Namespace::Host, "eth7", Some(home.link.ifindex))
        .await
        .expect("move back");
    world.links.restore(back, &home).await.expect("restore");
    before.assert_same(&world.host.snapshot_like(&before), "after the round trip");
    assert_eq!(world.home().await, home);
}

#[tokio::test]
async fn a_link_that_was_down_stays_down() {
    let Some(world) = world("a_link_that_was_down_stays_down") else { return };
    world.host.ip("addr add 198.51.100.7/24 dev eth7");
    let before = world.host.snapshot();
    let home = world.home().await;
    let there = world.links.move_to(&Namespace::Host, home.link.ifindex, &world.pod(), "net1", None).await;
    let from = world.pod();
    let back = world
        .links
        .move_to(&from, there.expect("move"), &Namespace::Host, "eth7", Some(home.link.ifindex))
        .await;
    world.links.restore(back.expect("move back"), &home).await.expect("restore");
    before.assert_same(&world.host.snapshot_like(&before), "after the round trip");
}

#[tokio::test]
async fn what_could_not_be_put_back_does_not_leave() {
    let Some(world) = world("what_could_not_be_put_back_does_not_leave") else { return };
    let index = world.host.ifindex("eth7");
    world.host.ip("link set eth7 up");
    world.host.ip("addr add 198.51.100.7/24 dev eth7");
    let refused = async |what: &str| {
        let error = world.links.home(&Namespace::Host, index).await.expect_err(what);
        assert!(matches!(error, LinkError::CannotLeave { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    };
    world
        .host
        .ip("route add 192.0.2.0/24 nexthop via 198.51.100.1 dev eth7 nexthop via 198.51.100.2 dev eth7");
    refused("several next hops").await;
    world.host.ip("route del 192.0.2.0/24");
    world.host.ip("route add 192.0.2.0/24 via 198.51.100.1 mtu 1280");
    refused("route to 192.0.2.0/24 in table 254 has metrics").await;
    world.host.ip("route del 192.0.2.0/24");
    world.host.ip("nexthop add id 7 via 198.51.100.1 dev eth7");
    world.host.ip("route add 192.0.2.0/24 nhid 7");
    refused("a nexthop object").await;
    world.host.ip("route del 192.0.2.0/24");
    world.host.ip("link add br7 type bridge");
    world.host.ip("link set eth7 master br7");
    refused("it is a port of br7").await;
    world.host.ip("link set eth7 nomaster");
    world.links.home(&Namespace::Host, index).await.expect("free again");
}

#[tokio::test]
async fn verbs_repeat_and_name_what_is_wrong() {
    let Some(world) = world("verbs_repeat_and_name_what_is_wrong") else { return };
    let (links, host) = (&world.links, Namespace::Host);
    let index = world.host.ifindex("eth7");
    let address = Address::plain("198.51.100.7/24".parse().expect("address"));
    let route = Route {
        destination: "192.0.2.0/24".parse().expect("network"),
        gateway: Some("198.51.100.1".parse().expect("address")),
        source: None,
        scope: Scope::Universe,
        table: 254,
        protocol: 4,
        metric: 0,
        onlink: false,
    };
    for _ in 0..2 {
        links.set_up(&host, index, true).await.expect("up");
        links.add_address(&host, index, &address).await.expect("address");
        links.add_routes(&host, index, std::slice::from_ref(&route)).await.expect("route");
        let sysctls = BTreeMap::from([("ipv6/accept_ra".to_owned(), "0".to_owned())]);
        links.set_sysctls(&host, index, &sysctls).await.expect("sysctl");
    }
    let text = links.set_mtu(&host, index, 70_000).await.expect_err("too big").to_string();
    assert!(text.contains("set the MTU to 70000 (the link takes 68 to 65535)"), "{text}");

    world.pod.ip("link add net1 type veth peer name other");
    let taken = links.move_to(&host, index, &world.pod(), "net1", None).await.expect_err("taken");
    assert!(matches!(&taken, LinkError::NameTaken { name, .. } if name == "net1"), "{taken}");
    assert_eq!(links.get(&host, &LinkRef::Name("eth7".to_owned())).await.expect("still here").ifindex, index);

    let missing = links.get(&host, &LinkRef::Name("nothing".to_owned())).await.expect_err("no such link");
    assert!(matches!(missing, LinkError::NotFound { .. }), "{missing}");
    let missing = links.set_up(&host, 9999, true).await.expect_err("no such link");
    assert!(matches!(missing, LinkError::NotFound { .. }), "{missing}");
    let gone = Namespace::at("/run/netns/nf-there-is-none");
    assert!(matches!(links.list(&gone).await, Err(LinkError::NamespaceGone { .. })));
    let not_one = Namespace::at("/etc/hostname");
    assert!(matches!(links.list(&not_one).await, Err(LinkError::NamespaceGone { .. })));
}

fn id(path: impl AsRef<Path>) -> NetnsId {
    netns_id(&File::open(path).expect("a namespace")).expect("its identity")
}

#[test]
fn a_namespace_is_the_same_by_every_path() {
    if !may_make_namespaces() {
        skip("a_namespace_is_the_same_by_every_path", "network namespaces cannot be made here");
        return;
    }
    let (one, other) = (NetNs::new(), NetNs::new());
    let mut process = one.run(|| Command::new("sleep").arg("60").spawn().expect("a process inside"));
    let by_process = id(format!("/proc/{}/ns/net", process.id()));
    assert_eq!(id(&one.path), by_process);
    assert_eq!(by_process.boot_id, boot_id());
    process.kill().and_then(|()| process.wait()).expect("end it");

    let host = id("/proc/self/ns/net");
    assert_eq!(host, id("/proc/thread-self/ns/net"), "no thread of the caller has moved");
    let ids = [id(&one.path), id(&other.path), host];
    let different = |of: fn(&NetnsId) -> u64| ids.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!((different(|id| id.cookie), different(|id| id.ino)), (3, 3), "{ids:?}");
    assert!(ids.iter().all(|id| id.cookie != 0), "{ids:?}");

    // A handle that outlives the path is still that namespace.
    let (kept, before) = (File::open(&one.path).expect("a namespace"), id(&one.path));
    drop(one);
    assert_eq!(netns_id(&kept).expect("its identity"), before);
}

/// Lets a link of the host die in a pod, as if with it, and makes it anew.
async fn die_and_remake(world: &World, name: &str) -> (Home, Result<u32, LinkError>) {
    let index = world.host.ifindex(name);
    let home = world.links.home(&Namespace::Host, index).await.expect("home");
    let pod = NetNs::new();
    world
        .links
        .move_to(&Namespace::Host, index, &Namespace::at(&pod.path), "net1", None)
        .await
        .expect("move");
    pod.ip("link set net1 up");
    // Seen from the pod its parent is elsewhere.
    let inside = world.links.home(&Namespace::at(&pod.path), pod.ifindex("net1")).await.expect("home");
    assert_eq!(inside.recipe, None, "{name}");
    pod.ip("link del net1");
    let remade = world.links.remake(&home).await;
    (home, remade)
}

/// Which of several links has the first route to fe80::/64 is chance where both ends of a pair get their carrier at once.
fn unordered(mut snapshot: Snapshot) -> Snapshot {
    let routes = snapshot.0.get_mut("ip -j -6 route show table all").expect("the routes");
    let mut list: Vec<Value> = serde_json::from_str(routes).expect("JSON of ip");
    list.sort_by_key(Value::to_string);
    *routes = Value::from(list).to_string();
    snapshot
}

#[tokio::test]
async fn a_link_that_died_is_made_anew() {
    let Some(world) = world("a_link_that_died_is_made_anew") else { return };
    // Duplicate address detection takes a second for each look at the host.
    let scopes = ["all", "default"].map(|scope| format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"));
    world.host.run(move || scopes.map(|path| std::fs::write(path, "0").expect("sysctl")));
    world.host.ip("link set eth7 up");
    for (links, made) in [
        (
            &["mv1"][..],
            &[
                "link add link eth7 name mv1 address 02:00:00:00:0a:01 mtu 1400 type macvlan mode private",
                "link property add dev mv1 altname mv1-other",
            ][..],
        ),
        (
            &["mv2"],
            &[
                "link add link eth7 name mv2 type macvlan mode source bcqueuelen 2000",
                "link set mv2 type macvlan macaddr set 02:00:00:00:0b:01 02:00:00:00:0b:02",
            ],
        ),
        (&["mt3"], &["link add link eth7 name mt3 type macvtap mode vepa"]),
        (
            &["left", "right"],
            &[
                "link add left type veth peer name right address 02:00:00:00:0d:01",
                "link set left addrgenmode none mtu 1300 alias one-end",
                "link set right mtu 1290 alias other-end",
            ],
        ),
    ] {
        for words in made {
            world.host.ip(words);
        }
        for (number, link) in links.iter().enumerate() {
            world.host.ip(&format!("addr add 10.7.{number}.1/24 dev {link}"));
            world.host.ip(&format!("link set {link} up"));
            world.host.ip(&format!("addr add 2001:db8:{number}::1/64 dev {link} nodad"));
        }
        for number in 0..links.len() {
            world.host.ip(&format!("route add 10.8.{number}.0/24 via 10.7.{number}.9"));
        }
        world.host.settle();
        let (name, before) = (links[0], unordered(world.host.snapshot()));
        let (home, remade) = die_and_remake(&world, name).await;
        let remade = remade.expect(name);
        assert_eq!(remade, home.link.ifindex, "{name}");
        let down = world.links.get(&Namespace::Host, &LinkRef::Index(remade)).await.expect(name);
        assert!(!down.up, "{name}");
        world.links.restore(remade, &home).await.expect(name);
        let mut after = unordered(world.host.snapshot());
        for _ in 0..60 {
            if after == before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            after = unordered(world.host.snapshot());
        }
        before.assert_same(&after, name);
        assert_eq!(world.links.home(&Namespace::Host, remade).await.expect("home"), home, "{name}");
        world.host.ip(&format!("link del {name}"));
    }
}

#[tokio::test]
async fn the_other_end_of_a_pair_is_a_port_again() {
    let Some(world) = world("the_other_end_of_a_pair_is_a_port_again") else { return };
    for words in [
        "link add br7 type bridge",
        "link add ve4 type veth peer name ve4-peer",
        "link set ve4-peer master br7 up",
    ] {
        world.host.ip(words);
    }
    let (_, remade) = die_and_remake(&world, "ve4").await;
    remade.expect("made anew");
    let peer = world.host.link("ve4-peer").expect("the other end");
    assert_eq!(peer["master"], "br7");
    assert!(peer["flags"].as_array().expect("flags").iter().any(|flag| flag == "UP"), "{peer}");
}

#[tokio::test]
async fn a_link_is_made_anew_only_on_its_parent_and_under_its_name() {
    let Some(world) = world("a_link_is_made_anew_only_on_its_parent_and_under_its_name") else { return };
    let add = "link add link eth7 name mv1 address 02:00:00:00:0a:01 type macvlan mode bridge";
    world.host.ip(add);
    let (home, remade) = die_and_remake(&world, "mv1").await;
    let taken = world.links.remake(&home).await.expect_err("it is there again");
    assert!(matches!(&taken, LinkError::NameTaken { name, .. } if name == "mv1"), "{taken}");
    world.links.remove(&Namespace::Host, remade.expect("made anew")).await.expect("delete");

    // The index is another link's: it gets the next one.
    world.host.ip(&format!("link add br7 index {} type bridge", home.link.ifindex));
    let other = world.links.remake(&home).await.expect("with another index");
    assert_ne!(other, home.link.ifindex);
    world.links.remove(&Namespace::Host, other).await.expect("delete");

    // The parent has shrunk: that is no reason to lose the link.
    world.host.ip("link set eth7 mtu 1300");
    let small = world.links.remake(&home).await.expect("with the parent's MTU");
    assert_eq!(world.host.link("mv1").expect("mv1")["mtu"], 1300);
    world.links.remove(&Namespace::Host, small).await.expect("delete");

    let mac =
        home.recipe.clone().and_then(|recipe| recipe.parent).and_then(|parent| parent.mac).expect("a MAC");
    world.host.ip("link set eth7 address 02:00:00:00:77:77");
    let replaced = world.links.remake(&home).await.expect_err("another parent").to_string();
    assert_eq!(
        replaced,
        format!(
            "link mv1 was made on eth7 ({mac}), whose name is that of another link now: eth7 (02:00:00:00:77:77)"
        )
    );
    world.host.ip("link set eth7 name eth9");
    let gone = world.links.remake(&home).await.expect_err("no parent");
    assert!(matches!(&gone, LinkError::ParentGone { .. }), "{gone}");
    let index = world.host.ifindex("eth9");
    let with_peer_elsewhere = world.links.home(&Namespace::Host, index).await.expect("home");
    assert_eq!(with_peer_elsewhere.recipe, None);
    let none = world.links.remake(&with_peer_elsewhere).await.expect_err("no recipe");
    assert!(matches!(&none, LinkError::NoRecipe { .. }), "{none}");
    assert_eq!(world.host.links(), ["eth9", "br7"]);
}
