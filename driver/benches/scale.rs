//! One node's view of a large cluster, simulated: what its table of members costs in memory and time, and what the
//! watches behind it cost the API servers.
//!
//! `cargo xtask bench scale` runs it; the numbers are in docs/scale.md. It needs no root.

#[path = "scale/blocks.rs"]
mod blocks;
#[path = "wire/machine.rs"]
mod machine;
#[path = "scale/nodes.rs"]
mod nodes;
#[path = "scale/objects.rs"]
mod objects;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{core::v1::NodeStatus, resource::v1::ResourceClaimStatus};
use kube::core::Object;
use netferry::{
    DRIVER_NAME,
    network::{
        Network, NetworkRef,
        facts::{self, ClaimFacts, Seen},
        members::{MemberTable, Outcome},
        nodes::NodeNeed,
        scope::{Admits, Need, Scope},
        spec::{AddressSource, NetworkSpec, Overlay, Transport},
    },
};
use netferry_common::maps::MAX_MEMBERS;
use objects::{Place, Stage, namespace_name, network_name, node_name};
use serde::{Deserialize, Serialize};

const NODES: u32 = 5_000;
const CLAIMS: u32 = 100_000;
const CHANGES: u32 = 20_000;
/// Changes a second that the goal names.
const RATE: u32 = 1_000;

/// Namespaces of alike size, each with a network that takes its claims alone.
const NAMESPACES: u32 = 500;
/// Those that the networks on a node need.
const NEEDED: u32 = 8;

/// As the daemon's watch reads them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Unread {}
type Claim = Object<Unread, ResourceClaimStatus>;
type Node = Object<Unread, NodeStatus>;

/// Set for a process that simulates one cluster: another's memory must not be counted.
const NETWORKS: &str = "NETFERRY_SCALE_NETWORKS";
/// Its value for a node that watches a part of the claims.
const PART: &str = "part";
/// Its value for the elected node of a network with blocks.
const BLOCKS: &str = "blocks";

fn main() {
    if let Ok(networks) = std::env::var(NETWORKS) {
        return match networks.as_str() {
            PART => simulate_part(),
            BLOCKS => blocks::simulate(),
            number => simulate(number.parse().expect("a number of networks")),
        };
    }
    machine::print();
    println!("{NODES} nodes, {CLAIMS} claims, seen from one node");
    traffic();
    for simulated in [PART, "5000", "1000", "100", "20", BLOCKS] {
        println!();
        let this = std::env::current_exe().expect("this program");
        let status = Command::new(this).env(NETWORKS, simulated).status().expect("a process");
        assert!(status.success());
    }
}

/// Claims are spread over nodes and networks so that a node has as many networks as claims.
fn place(claim: u32, networks: u32) -> Place {
    let node = claim % NODES;
    let network = (claim / NODES + node * (CLAIMS / NODES)) % networks;
    Place { claim, node, network, host: 256 + claim % (1 << 22) }
}

fn bytes(object: &serde_json::Value) -> Vec<u8> {
    object.to_string().into_bytes()
}

fn read_claim(bytes: &[u8]) -> ClaimFacts {
    let claim: Claim = serde_json::from_slice(bytes).expect("a claim");
    facts::claim(&claim.metadata, claim.status.as_ref(), DRIVER_NAME)
}

fn simulate(networks: u32) {
    let declared = declared(networks);
    // What reading an object needs is there before.
    let _ = read_claim(&bytes(&objects::claim(place(0, networks), Stage::Told)));
    let before = resident();
    let mut table = MemberTable::new(&node_name(0));
    table.set_networks(&declared);
    table.apply(Seen::Listing);
    let (mut read, mut kept) = (Duration::ZERO, Duration::ZERO);
    for claim in 0..CLAIMS {
        let sent = bytes(&objects::claim(place(claim, networks), Stage::Told));
        let start = Instant::now();
        let facts = read_claim(&sent);
        read += start.elapsed();
        let start = Instant::now();
        table.apply(Seen::Is(facts));
        kept += start.elapsed();
    }
    table.apply(Seen::Listed);
    assert_eq!(table.claims(), CLAIMS as usize);
    let nodes = take_in_nodes(&mut table);
    let wanted = table.wanted().count();
    let kilobytes = resident().saturating_sub(before);
    println!("{networks} networks of {} ports", CLAIMS / networks);
    println!(
        "  table: {:.1} MB resident, {} bytes a claim",
        f64::from(kilobytes) / 1024.0,
        u64::from(kilobytes) * 1024 / u64::from(CLAIMS)
    );
    let fits = if wanted <= MAX_MEMBERS { "fits" } else { "DOES NOT FIT" };
    println!("  map of members: {wanted} of {MAX_MEMBERS} entries: {fits}; on {nodes} other nodes");
    println!(
        "  first list: {:.2} s to read the objects, {:.2} s to take them in",
        read.as_secs_f64(),
        kept.as_secs_f64()
    );
    churn(&mut table, networks);
}

/// Tell of the nodes that matter. Returns how many there are.
fn take_in_nodes(table: &mut MemberTable) -> usize {
    let needs = table.need_nodes();
    let number: HashMap<String, u32> = (0..NODES).map(|number| (node_name(number), number)).collect();
    for need in &needs {
        let NodeNeed::Begins(name) = need else { panic!("no such need: {need:?}") };
        let sent = bytes(&objects::node(number[&**name]));
        let node: Node = serde_json::from_slice(&sent).expect("a node");
        table.apply_node(Seen::Is(facts::node(&node.metadata, node.status.as_ref())));
    }
    needs.len()
}

/// A node with ports on as many networks as it needs namespaces.
fn simulate_part() {
    let declared = declared(NAMESPACES);
    let _ = read_claim(&bytes(&objects::claim(place(0, NAMESPACES), Stage::Told)));
    let before = resident();
    let mut table = MemberTable::new(&node_name(0));
    table.set_networks(&declared);
    let need = |network| {
        let admits = Admits::Only(BTreeSet::from([namespace_name(network)]));
        (network_name(network), Need { here: true, admits })
    };
    table.set_needs(&(0..NEEDED).map(need).collect::<BTreeMap<_, _>>());
    for network in 0..NEEDED {
        let scope = Scope::Namespace(namespace_name(network));
        table.open(&scope);
        table.apply_from(&scope, Seen::Listing);
        for place in (0..CLAIMS).map(|claim| place(claim, NAMESPACES)).filter(|it| it.network == network) {
            let sent = bytes(&objects::claim(place, Stage::Told));
            table.apply_from(&scope, Seen::Is(read_claim(&sent)));
        }
        table.apply_from(&scope, Seen::Listed);
    }
    let nodes = take_in_nodes(&mut table);
    assert!(table.is_complete());
    let kilobytes = resident().saturating_sub(before);
    println!("{NEEDED} of {NAMESPACES} namespaces");
    println!("  table: {:.1} MB resident, {} claims", f64::from(kilobytes) / 1024.0, table.claims());
    println!("  map of members: {} of {MAX_MEMBERS} entries, on {nodes} other nodes", table.wanted().count());
}

/// Claims are deleted, made, allocated and told: one event is one change.
fn churn(table: &mut MemberTable, networks: u32) {
    let mut events = Vec::new();
    for (round, next) in (0..CHANGES / 4).zip(CLAIMS..) {
        let old = (round * 7919) % CLAIMS;
        let (gone, come) = (place(old, networks), Place { claim: next, ..place(old, networks) });
        events.push((true, bytes(&objects::claim(gone, Stage::Told))));
        for stage in [Stage::Made, Stage::Allocated, Stage::Told] {
            events.push((false, bytes(&objects::claim(come, stage))));
        }
    }
    let (mut times, mut changes) = (Vec::new(), 0);
    for (gone, sent) in &events {
        let start = Instant::now();
        let facts = read_claim(sent);
        let outcome: Outcome = table.apply(if *gone { Seen::Gone(facts.uid) } else { Seen::Is(facts) });
        times.push(start.elapsed());
        changes += outcome.changes.len();
    }
    times.sort();
    let total: Duration = times.iter().sum();
    let mean = total / u32::try_from(times.len()).expect("a number");
    println!(
        "  a change, from the bytes of the object to the table: mean {:.1} µs, p50 {:.1} µs, p99 {:.1} µs, max {:.1} µs",
        micro(mean),
        micro(times[times.len() / 2]),
        micro(times[times.len() * 99 / 100]),
        micro(times[times.len() - 1])
    );
    println!(
        "  {RATE} changes: {:.1} ms, {:.2} % of a processor at {RATE} a second; {changes} writes to the map of {} changes",
        (mean * RATE).as_secs_f64() * 1e3,
        (mean * RATE).as_secs_f64() * 100.0,
        times.len()
    );
}

fn declared(networks: u32) -> Vec<Arc<Network>> {
    let network = |number: u32| {
        Arc::new(Network {
            reference: NetworkRef { name: network_name(number), uid: format!("u-{number}") },
            id: number + 1,
            spec: NetworkSpec {
                subnets: vec!["10.0.0.0/8".parse().expect("a prefix")],
                gateways: vec![],
                mtu: None,
                addresses: AddressSource::Allocated,
                transport: Transport { overlay: Some(Overlay { vni: number + 1 }), ..Transport::default() },
                namespace_selector: None,
                policy: None,
                limits: None,
            },
        })
    };
    (0..networks).map(network).collect()
}

/// A watch sends each object in an envelope: `{"type":"MODIFIED","object":…}` and a line's end.
fn event(object: &serde_json::Value) -> usize {
    bytes(&serde_json::json!({"type": "MODIFIED", "object": object})).len() + 1
}

fn traffic() {
    let place = place(4_711, 1_000);
    let [made, allocated, told] =
        [Stage::Made, Stage::Allocated, Stage::Told].map(|stage| event(&objects::claim(place, stage)));
    println!("an event of a claim, in bytes: made {made}, allocated {allocated}, told {told}");
    // Made; finalizer; allocated and reserved; told; no longer reserved; no longer allocated; deleted.
    let life = made + made + allocated + 4 * told;
    let mean = life / 7;
    println!("a claim's life: 7 events, {life} bytes, {mean} bytes an event");
    let rate = |bytes: usize| bytes_a_second(bytes * RATE as usize);
    println!(
        "{RATE} events a second: {} to one node, {} to all {NODES}",
        rate(mean),
        rate(mean * NODES as usize)
    );
    println!(
        "{} pods a second, each with one claim: {} to one node, {} to all {NODES}",
        10,
        bytes_a_second(life * 10),
        bytes_a_second(life * 10 * NODES as usize)
    );
    println!(
        "first list of claims: {} to one node, {} to all {NODES}",
        size(told * CLAIMS as usize),
        size(told * CLAIMS as usize * NODES as usize)
    );
    traffic_of_part(life, told);
    nodes::traffic();
}

/// The same for nodes that watch the namespaces they need, by the bytes of a claim's life and of one event.
fn traffic_of_part(life: usize, told: usize) {
    let (nodes, namespaces, needed) = (NODES as usize, NAMESPACES as usize, NEEDED as usize);
    let namespace = bytes(&objects::namespace(4_711)).len();
    println!();
    println!("{namespaces} namespaces of alike size, of which the networks on a node need {needed}:");
    let both = |what: String, all: usize| {
        let one = all * needed / namespaces;
        println!(
            "{what}: {} to one node, {} to all {NODES}, {} of it to the elected one",
            bytes_a_second(one),
            bytes_a_second(one * nodes + all),
            bytes_a_second(all)
        );
    };
    both(format!("{RATE} events a second"), life / 7 * RATE as usize);
    both("10 pods a second, each with one claim".to_owned(), life * 10);
    let claims = told * CLAIMS as usize;
    let one = claims * needed / namespaces + namespace * namespaces;
    println!(
        "first list: {} of claims and {} of namespaces to one node, {} to all {NODES}",
        size(claims * needed / namespaces),
        size(namespace * namespaces),
        size(one * nodes + claims)
    );
    println!("watches: {} of claims by all nodes, a connection each", needed * nodes + 1);
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn size(bytes: usize) -> String {
    let bytes = bytes as f64;
    if bytes < 1e6 {
        format!("{:.1} kB", bytes / 1e3)
    } else if bytes < 1e9 {
        format!("{:.1} MB", bytes / 1e6)
    } else {
        format!("{:.1} GB", bytes / 1e9)
    }
}

fn bytes_a_second(bytes: usize) -> String {
    format!("{}/s", size(bytes))
}

fn micro(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Resident memory of this process in KiB (`VmRSS` of proc_pid_status(5)).
fn resident() -> u32 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
