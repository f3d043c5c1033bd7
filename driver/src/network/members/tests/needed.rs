//! Nodes that are told one by one, to a table that says which of them matter.

use super::*;
use crate::network::scope::{Need, Scope};

/// Who asks, and what it was answered.
#[derive(Default)]
struct Asker {
    needed: BTreeSet<String>,
    news: Vec<String>,
    /// What is told of the nodes that are needed.
    told: BTreeMap<u8, Option<NodeFacts>>,
}

fn number(node: &str) -> u8 {
    node[1..].parse().expect("a node of these tests")
}

impl Asker {
    fn hear(&mut self, outcome: &Outcome) {
        for need in &outcome.nodes {
            match need {
                NodeNeed::Begins(name) => {
                    assert!(self.needed.insert(name.to_string()), "{name} begins twice");
                }
                NodeNeed::News(name) => {
                    assert!(self.needed.contains(&**name), "{name} is not needed");
                    self.news.push(name.to_string());
                }
                NodeNeed::Ends(name) => {
                    assert!(self.needed.remove(&**name), "{name} ends twice");
                    self.told.remove(&number(name));
                }
            }
        }
    }

    fn present(&self) -> BTreeMap<u8, NodeFacts> {
        self.told.iter().filter_map(|(number, facts)| Some((*number, facts.clone()?))).collect()
    }
}

fn begins(names: &[u8]) -> Vec<NodeNeed> {
    names.iter().map(|number| NodeNeed::Begins(format!("n{number}").into())).collect()
}

#[test]
fn a_node_matters_from_its_first_member_to_its_last() {
    let mut table = MemberTable::new(HERE);
    assert_eq!(table.need_nodes(), []);
    table.set_networks(&[network(0, 5)]);
    let nobody = table.apply(Seen::Is(claim(1, 0, 1, &[7], &[7]))).nodes;
    assert_eq!(nobody, [], "the network has no port here");
    assert_eq!(table.apply(Seen::Is(claim(2, 0, 0, &[], &[]))).nodes, begins(&[1]));
    assert_eq!(table.need_nodes(), begins(&[1]));
    // What it says again is no news; that it has another address is.
    assert_eq!(table.apply(Seen::Is(claim(1, 0, 1, &[7], &[7]))).nodes, []);
    let news = [NodeNeed::News("n1".into())];
    assert_eq!(table.apply(Seen::Is(claim(1, 0, 1, &[7, 8], &[7]))).nodes, news);
    assert_eq!(table.apply(Seen::Is(claim(3, 0, 1, &[9], &[]))).nodes, news);
    assert_eq!(table.apply(Seen::Gone(uid(1))).nodes, []);
    // Allocated again, on another node.
    let moved = table.apply(Seen::Is(claim(3, 0, 2, &[9], &[]))).nodes;
    assert_eq!(moved, [NodeNeed::Ends("n1".into()), NodeNeed::Begins("n2".into())]);
    assert_eq!(table.apply(Seen::Gone(uid(3))).nodes, [NodeNeed::Ends("n2".into())]);
    assert_eq!(table.need_nodes(), []);
}

#[test]
fn a_network_is_ready_when_the_nodes_of_its_members_are_told() {
    let mut table = MemberTable::new(HERE);
    table.need_nodes();
    table.set_networks(&[network(0, 5), network(1, 6)]);
    let need = |here| BTreeMap::from([("net0".to_owned(), Need { here, admits: Admits::All })]);
    // Asked for by a prepare: there is no port yet.
    assert_eq!(table.set_needs(&need(false)).nodes, []);
    table.open(&Scope::Cluster);
    table.apply(Seen::Listing);
    assert_eq!(table.apply(Seen::Is(claim(1, 0, 1, &[7], &[]))).nodes, begins(&[1]));
    assert_eq!(table.apply(Seen::Is(claim(2, 0, 2, &[8], &[]))).nodes, begins(&[2]));
    assert_eq!(table.apply(Seen::Is(claim(3, 1, 3, &[8], &[]))).nodes, [], "a network that nobody needs");
    table.apply(Seen::Listed);
    assert!(!table.is_ready("net0") && !table.is_complete() && table.has_members());
    let waits: BTreeSet<MacAddr> = table.awaited().map(|(_, _, mac)| mac).collect();
    assert_eq!(waits, BTreeSet::from([mac(1), mac(2)]));
    table.apply_node(Seen::Is(node(1, Some(1))));
    assert!(!table.is_ready("net0"));
    // That it is not there is an answer, too.
    table.apply_node(Seen::Gone("n2".to_owned()));
    assert!(table.is_ready("net0") && table.is_complete());
    assert_eq!(table.wanted().count(), 0);

    let mut map = Map::default();
    let outcome = table.set_needs(&need(true));
    assert_eq!(outcome.nodes, [], "nobody has to ask again");
    map.write(outcome);
    assert_eq!(map.0[&(5, ip(7))], (mac(1), Some(IpAddr::from([192, 0, 2, 1]))));
    assert!(!map.0.contains_key(&(5, ip(8))));
    let outcome = table.set_needs(&BTreeMap::new());
    assert_eq!(outcome.nodes, ["n1", "n2"].map(|name| NodeNeed::Ends(name.into())));
    map.write(outcome);
    assert_eq!(map.0.len(), 0);
}

#[test]
fn the_own_address_is_followed_though_nobody_is_on_the_node() {
    let mut table = MemberTable::new(HERE);
    table.need_nodes();
    let mut changes = table.own_address_changes();
    table.apply_node(Seen::Is(node(0, Some(9))));
    assert_eq!(table.own_address(), Some(IpAddr::from([192, 0, 2, 9])));
    assert!(changes.has_changed().expect("a table"));
    changes.mark_unchanged();
    table.apply_node(Seen::Is(node(0, Some(9))));
    assert!(!changes.has_changed().expect("a table"));
    assert_eq!(table.other_nodes().count(), 0);
    table.apply_node(Seen::Gone(HERE.to_owned()));
    assert_eq!(*changes.borrow_and_update(), None);
    table.apply_node(Seen::Is(node(0, Some(9))));
    table.close_nodes();
    assert_eq!(table.own_address(), None);
}

#[derive(Clone, Debug)]
enum Step {
    Cluster(Event),
    /// A node that is needed is told as it is; another one's answer comes too late.
    Answer(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![3 => event().prop_map(Step::Cluster), 2 => (0_u8..4).prop_map(Step::Answer)]
}

proptest! {
    /// After any events, in any order: the nodes that matter are those with members; the map has the members on nodes
    /// that were told, as they were told; the others are waited for.
    #[test]
    fn nodes_with_members_matter_and_no_others(steps in proptest::collection::vec(step(), 1..120)) {
        let (mut table, mut map, mut asker) = (MemberTable::new(HERE), Map::default(), Asker::default());
        let (mut claims, mut nodes, mut networks) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        table.need_nodes();
        for step in steps {
            let mut outcomes = Vec::new();
            match step {
                Step::Cluster(Event::Claim(number, net, node, hosts, allocated)) => {
                    let facts = claim(number, net, node, &hosts, &allocated);
                    claims.insert(number, facts.clone());
                    outcomes.push(table.apply(Seen::Is(facts)));
                }
                Step::Cluster(Event::Deallocate(number)) => if let Some(facts) = claims.get_mut(&number) {
                    facts.ports.clear();
                    facts.addresses.clear();
                    outcomes.push(table.apply(Seen::Is(facts.clone())));
                },
                Step::Cluster(Event::Delete(number)) => {
                    claims.remove(&number);
                    outcomes.push(table.apply(Seen::Gone(uid(number))));
                }
                Step::Cluster(Event::Node(number, address)) => drop(nodes.insert(number, node(number, address))),
                Step::Cluster(Event::Lose(number)) => drop(nodes.remove(&number)),
                Step::Cluster(Event::Networks(versions)) => {
                    let numbered = |(number, version): (u8, Option<u32>)| {
                        version.map(|version| network(number, u32::from(number) * 2 + version + 1))
                    };
                    networks = (0..).zip(versions).filter_map(numbered).collect();
                    outcomes.push(table.set_networks(&networks));
                }
                Step::Cluster(Event::Relist) => {
                    outcomes.push(table.apply(Seen::Listing));
                    outcomes.extend(claims.values().map(|facts| table.apply(Seen::Is(facts.clone()))));
                    outcomes.push(table.apply(Seen::Listed));
                }
                Step::Answer(number) => {
                    let (name, facts) = (format!("n{number}"), nodes.get(&number).cloned());
                    if asker.needed.contains(&name) {
                        asker.told.insert(number, facts.clone());
                    }
                    outcomes.push(table.apply_node(facts.map_or(Seen::Gone(name), Seen::Is)));
                }
            }
            for outcome in outcomes {
                asker.hear(&outcome);
                map.write(outcome);
            }
            prop_assert_eq!(&map.0, &members(&claims, &asker.present(), &networks));

            let everywhere = (1..4).map(|number| (number, node(number, Some(number)))).collect();
            let all = members(&claims, &everywhere, &networks);
            let on = |mac: MacAddr| number(&claims[&mac.0[5]].ports[0].node);
            let matter: BTreeSet<String> = all.values().map(|(mac, _)| format!("n{}", on(*mac))).collect();
            prop_assert_eq!(&asker.needed, &matter);
            let waits: BTreeSet<_> = table.awaited().collect();
            let expected: BTreeSet<_> = all
                .iter()
                .filter(|(_, (mac, _))| !asker.told.contains_key(&on(*mac)))
                .map(|((network, address), (mac, _))| (*network, *address, *mac))
                .collect();
            prop_assert_eq!(table.is_complete(), table.has_members() && expected.is_empty());
            prop_assert_eq!(waits, expected);
        }
    }
}
