mod needed;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::network::{
    NetworkRef,
    facts::{ClaimFacts, NodeFacts, PortFacts, Seen},
    spec::{AddressSource, Local, NetworkSpec, Overlay, Transport, UplinkTransport},
};

const HERE: &str = "n0";

/// Networks 0, 1 and 2: overlay, uplink, local.
fn network(number: u8, id: NetworkId) -> Arc<Network> {
    let transport = match number {
        0 => Transport { overlay: Some(Overlay { vni: 7 }), ..Transport::default() },
        1 => {
            let uplink = UplinkTransport { selector: "true".to_owned(), ..UplinkTransport::default() };
            Transport { uplink: Some(uplink), ..Transport::default() }
        }
        _ => Transport { local: Some(Local {}), ..Transport::default() },
    };
    Arc::new(Network {
        reference: NetworkRef { name: format!("net{number}"), uid: format!("u{number}") },
        id,
        spec: NetworkSpec {
            subnets: vec!["10.0.0.0/28".parse().expect("a prefix")],
            gateways: vec![],
            mtu: None,
            addresses: AddressSource::Allocated,
            transport,
            namespace_selector: None,
            policy: None,
            limits: None,
        },
    })
}

fn ip(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

fn uid(number: u8) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// Claim `number` with a port of network `net` on `node` that has told `hosts`, of which it has `allocated` from the
/// scheduler.
fn claim(number: u8, net: u8, node: u8, hosts: &[u8], allocated: &[u8]) -> ClaimFacts {
    let network = format!("net{net}");
    ClaimFacts {
        pod: None,
        uid: uid(number),
        name: format!("a/c{number}"),
        version: 0,
        since: i64::from(number % 3),
        block_node: None,
        addresses: allocated.iter().map(|host| (network.clone(), ip(*host))).collect(),
        ports: vec![PortFacts {
            network,
            node: format!("n{node}"),
            told: (!hosts.is_empty()).then(|| (mac(number), hosts.iter().map(|host| ip(*host)).collect())),
        }],
    }
}

fn node(number: u8, address: Option<u8>) -> NodeFacts {
    NodeFacts { name: format!("n{number}"), address: address.map(|last| IpAddr::from([192, 0, 2, last])) }
}

/// Whether the scheduler did not give it, since when, claim, node, hardware address.
type Said<'a> = (bool, i64, &'a str, &'a str, MacAddr);
type Members = BTreeMap<(NetworkId, IpAddr), (MacAddr, Option<IpAddr>)>;

/// The same answer, from scratch and by the letter.
fn members(
    claims: &BTreeMap<u8, ClaimFacts>,
    nodes: &BTreeMap<u8, NodeFacts>,
    networks: &[Arc<Network>],
) -> Members {
    let mut members = Members::new();
    for network in networks.iter().filter(|network| network.spec.transport.local.is_none()) {
        let name = &network.reference.name;
        let ports = || {
            claims
                .values()
                .flat_map(|claim| claim.ports.iter().map(move |port| (claim, port)))
                .filter(|(_, port)| port.network == *name)
        };
        if !ports().any(|(_, port)| port.node == HERE) {
            continue;
        }
        let mut says: BTreeMap<IpAddr, Vec<Said<'_>>> = BTreeMap::new();
        for (claim, port) in ports() {
            let Some((mac, addresses)) = &port.told else { continue };
            let link_local = IpAddr::from(Addr::link_local(mac.0));
            let inside = addresses.iter().filter(|address| network.spec.subnets[0].contains(**address));
            for address in inside.chain([&link_local]) {
                let fixed = !claim.addresses.contains(&(name.clone(), *address));
                says.entry(*address).or_default().push((fixed, claim.since, &claim.uid, &port.node, *mac));
            }
        }
        for (address, mut says) in says {
            says.sort();
            let here = says.iter().any(|(_, _, _, node, _)| *node == HERE);
            let (_, _, _, holder, mac) = says[0];
            let Some(node) = nodes.values().find(|node| node.name == holder && !here) else { continue };
            let tunnelled = network.spec.transport.overlay.is_some();
            if tunnelled && node.address.is_none() {
                continue;
            }
            members.insert((network.id, address), (mac, node.address.filter(|_| tunnelled)));
        }
    }
    members
}

/// The node's map, as the changes make it.
#[derive(Default)]
struct Map(Members);

impl Map {
    fn write(&mut self, outcome: Outcome) {
        for change in outcome.changes {
            let key = (change.network, change.address);
            let before = match change.member {
                Some(remote) => self.0.insert(key, (remote.mac, remote.node)),
                None => self.0.remove(&key),
            };
            assert_ne!(
                before,
                change.member.map(|remote| (remote.mac, remote.node)),
                "a change changes something"
            );
        }
    }
}

fn complete(table: &mut MemberTable, map: &mut Map) {
    map.write(table.apply(Seen::Listing));
    map.write(table.apply(Seen::Listed));
    map.write(table.apply_node(Seen::Listing));
    map.write(table.apply_node(Seen::Listed));
}

#[test]
fn a_member_comes_with_claim_node_and_local_port_and_goes_with_each() {
    let (mut table, mut map) = (MemberTable::new(HERE), Map::default());
    complete(&mut table, &mut map);
    map.write(table.set_networks(&[network(0, 5)]));
    map.write(table.apply_node(Seen::Is(node(1, Some(1)))));
    map.write(table.apply(Seen::Is(claim(1, 0, 1, &[7], &[7]))));
    assert_eq!(map.0.len(), 0, "the network has no port here");
    // A port that was allocated here and is not attached yet is enough.
    map.write(table.apply(Seen::Is(claim(2, 0, 0, &[], &[]))));
    let reached = (mac(1), Some(IpAddr::from([192, 0, 2, 1])));
    let link_local = IpAddr::from(Addr::link_local(mac(1).0));
    let whole = Members::from([((5, ip(7)), reached), ((5, link_local), reached)]);
    assert_eq!(map.0, whole);

    for (gone, back) in [
        (table_event(Seen::Gone(uid(1))), table_event(Seen::Is(claim(1, 0, 1, &[7], &[7])))),
        (table_event(Seen::Gone(uid(2))), table_event(Seen::Is(claim(2, 0, 0, &[], &[])))),
        // Deallocated: the claim is still there.
        (
            table_event(Seen::Is(ClaimFacts {
                pod: None,
                ports: vec![],
                addresses: vec![],
                ..claim(1, 0, 1, &[], &[])
            })),
            table_event(Seen::Is(claim(1, 0, 1, &[7], &[7]))),
        ),
    ] {
        map.write(gone(&mut table));
        assert_eq!(map.0.len(), 0);
        map.write(back(&mut table));
        assert_eq!(map.0, whole);
    }
    map.write(table.apply_node(Seen::Gone("n1".to_owned())));
    assert_eq!(map.0.len(), 0, "a node that is gone loses its members");
    map.write(table.apply_node(Seen::Is(node(1, Some(2)))));
    assert_eq!(map.0[&(5, ip(7))].1, Some(IpAddr::from([192, 0, 2, 2])));
    map.write(table.set_networks(&[network(0, 6)]));
    assert!(map.0.keys().all(|(id, _)| *id == 6), "another network under the same name: {:?}", map.0);
}

#[test]
fn ports_of_a_deleted_network_are_no_members_of_another_of_its_name() {
    let (mut table, mut map) = (MemberTable::new(HERE), Map::default());
    complete(&mut table, &mut map);
    let at = |since, claim: ClaimFacts| Seen::Is(ClaimFacts { since, ..claim });
    map.write(table.apply_node(Seen::Is(node(1, Some(1)))));
    map.write(table.apply(at(100, claim(1, 0, 1, &[7], &[7]))));
    map.write(table.apply(at(300, claim(2, 0, 0, &[], &[]))));
    map.write(table.apply(at(300, claim(3, 0, 1, &[8], &[8]))));
    map.write(table.set_networks(&[network(0, 5)]));
    assert!(map.0.contains_key(&(5, ip(7))) && map.0.contains_key(&(5, ip(8))));
    // Deleted, and made again at 200 with another UID.
    let made = BTreeMap::from([("u0".to_owned(), 200)]);
    map.write(table.set_networks_made(&[network(0, 6)], &made));
    assert!(map.0.contains_key(&(6, ip(8))), "{:?}", map.0);
    assert!(!map.0.contains_key(&(6, ip(7))) && map.0.keys().all(|(id, _)| *id == 6), "{:?}", map.0);
    assert_eq!(table.addresses("net0", false).expect("known"), [ip(8)], "nor is it a peer of policies");
    let in_use = table.in_use(["net0"]).remove("net0").expect("net0");
    assert!(in_use.allocated.contains(&ip(7)), "its address is not given to another, though");
}

fn table_event(seen: Seen<ClaimFacts, String>) -> impl Fn(&mut MemberTable) -> Outcome {
    move |table| table.apply(seen.clone())
}

#[test]
fn what_a_list_does_not_have_any_more_is_gone() {
    let (mut table, mut map) = (MemberTable::new(HERE), Map::default());
    map.write(table.set_networks(&[network(1, 5)]));
    for number in 0..3 {
        map.write(table.apply_node(Seen::Is(node(number, None))));
        map.write(table.apply(Seen::Is(claim(number, 1, number, &[number + 2], &[]))));
    }
    assert!(!table.is_complete());
    assert_eq!(map.0.len(), 4);
    map.write(table.apply(Seen::Listing));
    map.write(table.apply(Seen::Is(claim(0, 1, 0, &[2], &[]))));
    map.write(table.apply(Seen::Is(claim(2, 1, 2, &[4], &[]))));
    assert_eq!(map.0.len(), 4, "nothing goes before the list is whole");
    map.write(table.apply(Seen::Listed));
    assert!(map.0.contains_key(&(5, ip(4))) && !map.0.contains_key(&(5, ip(3))));
    map.write(table.apply_node(Seen::Listing));
    map.write(table.apply_node(Seen::Listed));
    assert_eq!(map.0.len(), 0);
}

#[test]
fn of_two_claims_of_one_address_the_scheduler_s_wins_and_it_is_told() {
    let (mut table, mut map) = (MemberTable::new(HERE), Map::default());
    complete(&mut table, &mut map);
    map.write(table.set_networks(&[network(0, 5)]));
    for number in 1..4 {
        map.write(table.apply_node(Seen::Is(node(number, Some(number)))));
    }
    map.write(table.apply(Seen::Is(claim(0, 0, 0, &[9], &[9]))));
    map.write(table.apply(Seen::Is(claim(3, 0, 1, &[7], &[]))));
    let outcome = table.apply(Seen::Is(claim(5, 0, 2, &[7], &[7])));
    let conflict = |kept, refused| Conflict {
        network: "net0".to_owned(),
        address: ip(7),
        kept: uid(kept),
        refused: uid(refused),
    };
    assert_eq!(outcome.conflicts, [conflict(5, 3)]);
    map.write(outcome);
    assert_eq!(map.0[&(5, ip(7))].0, mac(5));
    // What only repeats itself is told once.
    assert_eq!(table.apply(Seen::Is(claim(5, 0, 2, &[7], &[7]))), Outcome::default());
    map.write(table.apply(Seen::Gone(uid(5))));
    assert_eq!(map.0[&(5, ip(7))].0, mac(3));
    // An address of this node's own port is nobody else's.
    let outcome = table.apply(Seen::Is(claim(7, 0, 3, &[9], &[])));
    assert_eq!(outcome.conflicts.len(), 1);
    map.write(outcome);
    assert!(!map.0.contains_key(&(5, ip(9))));
}

#[test]
fn addresses_in_use_are_told_apart() {
    let mut table = MemberTable::new(HERE);
    table.apply(Seen::Is(claim(1, 0, 1, &[7, 8], &[7])));
    table.apply(Seen::Is(claim(2, 0, 2, &[], &[9])));
    table.apply(Seen::Is(claim(3, 1, 2, &[10], &[10])));
    let known = table.in_use(["net0", "other"]);
    let in_use = &known["net0"];
    assert_eq!(in_use.allocated, BTreeSet::from([ip(7), ip(9)]));
    assert_eq!(in_use.fixed, BTreeSet::from([ip(8)]));
    assert_eq!(known["other"], InUse::default());
}

#[derive(Clone, Debug)]
enum Event {
    Claim(u8, u8, u8, Vec<u8>, Vec<u8>),
    Deallocate(u8),
    Delete(u8),
    Node(u8, Option<u8>),
    Lose(u8),
    Networks([Option<u32>; 3]),
    Relist,
}

fn event() -> impl Strategy<Value = Event> {
    let hosts = || proptest::collection::vec(1_u8..6, 0..3);
    prop_oneof![
        12 => (0_u8..12, 0_u8..3, 0_u8..4, hosts(), hosts())
            .prop_map(|(number, net, node, hosts, allocated)| Event::Claim(number, net, node, hosts, allocated)),
        2 => (0_u8..12).prop_map(Event::Deallocate),
        4 => (0_u8..12).prop_map(Event::Delete),
        4 => (0_u8..4, proptest::option::of(1_u8..9)).prop_map(|(node, address)| Event::Node(node, address)),
        2 => (0_u8..4).prop_map(Event::Lose),
        2 => proptest::array::uniform3(proptest::option::of(0_u32..2)).prop_map(Event::Networks),
        1 => Just(Event::Relist),
    ]
}

proptest! {
    /// After any events, in any order, the map is what the claims, nodes and networks at that moment say.
    #[test]
    fn the_map_is_what_claims_and_nodes_say(events in proptest::collection::vec(event(), 1..80)) {
        let (mut table, mut map) = (MemberTable::new(HERE), Map::default());
        let (mut claims, mut nodes, mut networks) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        complete(&mut table, &mut map);
        for event in events {
            match event {
                Event::Claim(number, net, node, hosts, allocated) => {
                    let facts = claim(number, net, node, &hosts, &allocated);
                    claims.insert(number, facts.clone());
                    map.write(table.apply(Seen::Is(facts)));
                }
                Event::Deallocate(number) => if let Some(facts) = claims.get_mut(&number) {
                    facts.ports.clear();
                    facts.addresses.clear();
                    map.write(table.apply(Seen::Is(facts.clone())));
                },
                Event::Delete(number) => {
                    claims.remove(&number);
                    map.write(table.apply(Seen::Gone(uid(number))));
                }
                Event::Node(number, address) => {
                    nodes.insert(number, node(number, address));
                    map.write(table.apply_node(Seen::Is(node(number, address))));
                }
                Event::Lose(number) => {
                    nodes.remove(&number);
                    map.write(table.apply_node(Seen::Gone(format!("n{number}"))));
                }
                Event::Networks(versions) => {
                    let numbered = |(number, version): (u8, Option<u32>)| {
                        version.map(|version| network(number, u32::from(number) * 2 + version + 1))
                    };
                    networks = (0..).zip(versions).filter_map(numbered).collect();
                    map.write(table.set_networks(&networks));
                }
                Event::Relist => {
                    map.write(table.apply(Seen::Listing));
                    for facts in claims.values() {
                        map.write(table.apply(Seen::Is(facts.clone())));
                    }
                    map.write(table.apply(Seen::Listed));
                }
            }
            prop_assert_eq!(&map.0, &members(&claims, &nodes, &networks));
            let wanted: Members = table.wanted().filter_map(|wanted| {
                wanted.member.map(|remote| ((wanted.network, wanted.address), (remote.mac, remote.node)))
            }).collect();
            prop_assert_eq!(&map.0, &wanted);
        }
    }
}
