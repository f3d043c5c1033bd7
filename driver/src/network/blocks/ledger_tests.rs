use super::*;

const PACE: Pace = Pace { linger: Duration::from_mins(5), quarantine: Duration::from_mins(30) };

fn subnets(networks: &[&str]) -> Vec<Subnet> {
    let subnet = |text: &&str| Subnet { network: text.parse().expect("a prefix"), excluded: BTreeSet::new() };
    networks.iter().map(subnet).collect()
}

fn names(nodes: &[&str]) -> BTreeSet<Arc<str>> {
    nodes.iter().map(|node| Arc::from(*node)).collect()
}

/// Addresses of the only subnet by host number, with the node of the claim.
fn used(subnets: &[Subnet], hosts: impl IntoIterator<Item = u128>, node: &str) -> Uses {
    let mut uses = Uses::default();
    for host in hosts {
        let address = subnets[0].address(host).expect("an address");
        uses.allocate(subnets, address, Some(&node.into()));
    }
    uses
}

fn fresh(networks: &[&str], now: Instant) -> Ledger {
    Ledger::take_over(subnets(networks), &BTreeMap::new(), None, &Uses::default(), PACE, now)
}

/// Numbers of the first subnet's blocks that a node publishes.
fn blocks_of(step: &Step, node: &str) -> Vec<u128> {
    let content = step.content.get(node).into_iter().flatten();
    content.filter(|(block, _)| block.subnet == 0).map(|(block, _)| block.number).collect()
}

#[test]
fn each_node_has_a_block_of_each_subnet_at_once() {
    let now = Instant::now();
    let mut ledger = fresh(&["10.1.0.0/16", "fd00::/64"], now);
    let step = ledger.step(&Uses::default(), &names(&["n1", "n2"]), now);
    for (node, number) in [("n1", 0), ("n2", 1)] {
        let blocks: Vec<Block> = step.content[node].keys().copied().collect();
        assert_eq!(blocks, [0, 1].map(|subnet| Block { subnet, number }));
    }
    assert_eq!(step.content["n1"].values().map(|mask| mask.count_ones()).collect::<Vec<_>>(), [63, 63]);
    assert_eq!((step.marks.as_slice(), step.short.len()), ([2, 2].as_slice(), 0));
    assert_eq!(
        ledger.step(&Uses::default(), &names(&["n1", "n2"]), now),
        step,
        "a second look changes nothing"
    );
}

#[test]
fn a_node_that_runs_low_gets_more_and_gives_back_what_it_does_not_need() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let (subnets, ports) = (subnets(&["10.1.0.0/16"]), names(&["n1"]));
    let mut ledger = fresh(&["10.1.0.0/16"], start);
    ledger.step(&Uses::default(), &ports, start);
    let few = used(&subnets, 1..=47, "n1");
    assert_eq!(blocks_of(&ledger.step(&few, &ports, after(1)), "n1"), [0]);
    let many = used(&subnets, 1..=48, "n1");
    assert_eq!(blocks_of(&ledger.step(&many, &ports, after(2)), "n1"), [0, 1]);
    // 79 are free with both, and too few would be without.
    assert_eq!(blocks_of(&ledger.step(&few, &ports, after(1000)), "n1"), [0, 1]);
    let none = Uses::default();
    assert_eq!(blocks_of(&ledger.step(&none, &ports, after(2000)), "n1"), [0, 1]);
    assert_eq!(blocks_of(&ledger.step(&none, &ports, after(2299)), "n1"), [0, 1], "it lingers");
    assert_eq!(blocks_of(&ledger.step(&none, &ports, after(2300)), "n1"), [0]);
    // The node itself may have it again at once, and another only later.
    let both = names(&["n1", "n2"]);
    assert_eq!(blocks_of(&ledger.step(&many, &both, after(2301)), "n1"), [0, 1]);
    assert_eq!(blocks_of(&ledger.step(&none, &both, after(2302)), "n2"), [2]);
}

#[test]
fn what_was_taken_back_is_kept_from_others_for_a_while() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut ledger = fresh(&["10.1.0.0/24"], start);
    let four = ["n1", "n2", "n3", "n4"];
    ledger.step(&Uses::default(), &names(&four), start);
    let five = ledger.step(&Uses::default(), &names(&["n1", "n2", "n3", "n4", "n5"]), after(1));
    assert_eq!(five.short, [Short { node: "n5".into(), subnet: 0 }]);
    // n4 is gone. Its block lingers, waits, and is n5's.
    let ports = names(&["n1", "n2", "n3", "n5"]);
    for seconds in [10, 310, 2109] {
        let step = ledger.step(&Uses::default(), &ports, after(seconds));
        assert_eq!(blocks_of(&step, "n5"), [0; 0], "after {seconds} s");
        assert_eq!(step.counts, [if seconds == 10 { (4, 0) } else { (3, 1) }]);
    }
    let step = ledger.step(&Uses::default(), &ports, after(2110));
    assert_eq!((blocks_of(&step, "n5"), step.short.len()), (vec![3], 0));
}

#[test]
fn an_address_that_was_given_from_an_old_view_brings_its_block_back() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let subnets = subnets(&["10.1.0.0/24"]);
    let mut ledger = fresh(&["10.1.0.0/24"], start);
    ledger.step(&Uses::default(), &names(&["n1"]), start);
    ledger.step(&Uses::default(), &names(&[]), after(1));
    assert_eq!(ledger.step(&Uses::default(), &names(&[]), after(400)).content, BTreeMap::new());
    let late = used(&subnets, [7], "n1");
    assert_eq!(blocks_of(&ledger.step(&late, &names(&["n1"]), after(500)), "n1"), [0]);
    assert_eq!(blocks_of(&ledger.step(&late, &names(&[]), after(10_000)), "n1"), [0], "it is in use");
}

#[test]
fn who_takes_over_gives_on_nothing_that_may_have_been_somebodys() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut first = fresh(&["10.1.0.0/24"], start);
    let step = first.step(&Uses::default(), &names(&["n1", "n2", "n3"]), start);
    assert_eq!(step.marks, [3]);
    // The slices of n2 are gone, whoever took them.
    let mut published = step.content.clone();
    published.remove("n2");
    let take_over = || {
        let none = Uses::default();
        Ledger::take_over(subnets(&["10.1.0.0/24"]), &published, Some(&step.marks), &none, PACE, after(100))
    };
    let mut second = take_over();
    let ports = names(&["n1", "n3", "n4", "n5"]);
    let step = second.step(&Uses::default(), &ports, after(100));
    assert_eq!((blocks_of(&step, "n4"), blocks_of(&step, "n5")), (vec![3], vec![]), "only what never was");
    let step = second.step(&Uses::default(), &ports, after(1899));
    assert_eq!(step.short, [Short { node: "n5".into(), subnet: 0 }]);
    assert_eq!(blocks_of(&second.step(&Uses::default(), &ports, after(1900)), "n5"), [1]);
}

#[test]
fn a_fixed_address_and_one_of_another_node_are_not_published() {
    let start = Instant::now();
    let subnets = subnets(&["10.1.0.0/24"]);
    let mut ledger = fresh(&["10.1.0.0/24"], start);
    let mut uses = used(&subnets, [5], "n1");
    uses.allocate(&subnets, subnets[0].address(6).expect("an address"), Some(&"n2".into()));
    uses.fix(&subnets, subnets[0].address(7).expect("an address"));
    uses.fix(&subnets, subnets[0].address(100).expect("an address"));
    let step = ledger.step(&uses, &names(&["n1", "n2"]), start);
    let mask = |node: &str| step.content[node].values().copied().collect::<Vec<_>>();
    assert_eq!(mask("n1"), [!(1 | 1 << 6 | 1 << 7)]);
    assert_eq!(mask("n2"), [!(1 << (100 - 64))]);
}

#[test]
fn an_address_of_nobody_knows_which_node_keeps_its_block_from_all() {
    let start = Instant::now();
    let subnets = subnets(&["10.1.0.0/24"]);
    let mut ledger = fresh(&["10.1.0.0/24"], start);
    let mut uses = Uses::default();
    uses.allocate(&subnets, subnets[0].address(5).expect("an address"), None);
    assert_eq!(blocks_of(&ledger.step(&uses, &names(&["n1"]), start), "n1"), [1]);
    let later = start + Duration::from_hours(2);
    let step = ledger.step(&uses, &names(&["n1", "n2", "n3", "n4"]), later);
    assert_eq!(step.short, [Short { node: "n4".into(), subnet: 0 }]);
    assert_eq!(blocks_of(&ledger.step(&Uses::default(), &names(&["n4"]), later), "n4"), [0]);
}
