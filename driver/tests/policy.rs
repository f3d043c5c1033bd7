//! Policy, limits and events on a real kernel. Needs root; skips without, and says so.
#![allow(missing_docs, reason = "a test binary")]

#[path = "policy/explained.rs"]
mod explained;
#[path = "datapath/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netferry::datapath::events::{FlowEvents, Flows};
use netferry::datapath::limits::Limits;
use netferry::datapath::policy::{
    Action, CompiledPolicy, FlatRule, Otherwise, Peers, Policy, Prefix, compile,
};
use netferry::datapath::{AyaDatapath, Datapath as _, EndpointSpec, NetworkMember};
use world::{
    LINK, PEER_V4, POD_V4, WIRE_MAC, World, able, drain, flood, ifindex, run, spec, udp, wait_until,
};

struct Nobody;

impl Peers for Nobody {
    fn network(&self, _: &str) -> Option<Vec<IpAddr>> {
        Some(Vec::new())
    }

    fn selected(&self, _: &BTreeMap<String, String>, _: Action) -> Option<Vec<IpAddr>> {
        Some(Vec::new())
    }
}

fn policy(datapath: &AyaDatapath, text: &str) -> Arc<CompiledPolicy> {
    let policy: Policy = serde_yaml_ng::from_str(text).expect("a policy");
    let room = datapath.policy_room().expect("room");
    Arc::new(CompiledPolicy::new(&policy, &Nobody, room).expect("a policy that fits"))
}

fn entries(world: &World, map: &str) -> usize {
    let dump = run(&format!("bpftool -j map dump pinned {}/maps/{map}", world.root.display()));
    let dump: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
    dump.as_array().expect("an array").len()
}

const ALLOW: &str =
    "egress: {rules: [{action: allow, peers: [{cidr: 192.0.2.0/24}], ports: [{protocol: UDP, port: 4000}]}]}";
const DENY: &str = "egress: {rules: [{action: deny, peers: [{cidr: 192.0.2.20/32}]}]}";

#[test]
fn a_switch_of_policy_cuts_open_flows_and_leaves_no_entries() {
    if !able("a_switch_of_policy_cuts_open_flows_and_leaves_no_entries") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &spec(5)).unwrap();
    world.move_link(12);
    let allow = policy(&datapath, ALLOW);
    let first = datapath.set_compiled(5, &allow).unwrap();
    datapath.set_ready(5, true).unwrap();
    let (peer, pod) = (udp(PEER_V4), world.in_pod(|| udp(POD_V4)));
    flood(&pod, PEER_V4, 20);
    assert_eq!(drain(&peer), 20);
    flood(&peer, POD_V4, 20);
    assert_eq!(drain(&pod), 20, "answers belong to the flow");
    let flows = Flows::open(&world.root).unwrap().list().unwrap();
    let flow = flows.iter().find(|flow| flow.protocol == 17).unwrap();
    assert_eq!((flow.opener.0.to_string(), flow.responder.1, flow.rule), (POD_V4.to_owned(), 4000, Some(1)));
    assert!(flow.answered && !flow.ended);

    let second = datapath.set_compiled(5, &policy(&datapath, DENY)).unwrap();
    assert!(second > first);
    flood(&pod, PEER_V4, 20);
    flood(&peer, POD_V4, 20);
    assert_eq!(drain(&peer), 0);
    let stats = datapath.stats(5).unwrap();
    assert!(stats.drops["policy_denied"] >= 20, "{stats:?}");
    assert_eq!(
        (entries(&world, "nf_peers"), entries(&world, "nf_rules")),
        (1, 1),
        "the old entries are gone"
    );

    // A new process finds the policy in force, and what was left.
    drop(datapath);
    let datapath = world.open();
    datapath.set_compiled(5, &allow).unwrap();
    assert_eq!((entries(&world, "nf_peers"), entries(&world, "nf_rules")), (1, 1));
    flood(&pod, PEER_V4, 20);
    assert_eq!(drain(&peer), 20);
    datapath.detach(5).unwrap();
    for map in ["nf_peers", "nf_rules", "nf_limits", "nf_endpoints", "nf_members"] {
        assert_eq!(entries(&world, map), 0, "{map}");
    }
}

/// Sends datagrams from the pod until told to stop; says how many were sent, and how many came.
fn traffic(world: &World, stop: &Arc<AtomicBool>) -> JoinHandle<(usize, usize)> {
    let (peer, pod) = (udp(PEER_V4), world.in_pod(|| udp(POD_V4)));
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let (mut sent, mut came) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            flood(&pod, PEER_V4, 64);
            sent += 64;
            let mut data = [0; 64];
            while peer.recv(&mut data).is_ok() {
                came += 1;
            }
        }
        (sent, came + drain(&peer))
    })
}

/// How often policies and programs are exchanged under traffic; a thousand times takes more than a minute.
fn rounds() -> usize {
    std::env::var("NETFERRY_ROUNDS").map_or(100, |rounds| rounds.parse().expect("NETFERRY_ROUNDS: a number"))
}

#[test]
fn policy_swaps_lose_and_leak_nothing() {
    if !able("policy_swaps_lose_and_leak_nothing") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &spec(5)).expect("swap");
    world.move_link(12);
    let policies = [policy(&datapath, ALLOW), policy(&datapath, "egress: {rules: [{action: allow}]}")];
    datapath.set_compiled(5, &policies[0]).expect("swap");
    datapath.set_ready(5, true).expect("swap");
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = traffic(&world, &stop);
    let before = datapath.policy_room().expect("swap");
    for nth in 0..rounds() {
        datapath.set_compiled(5, &policies[nth % 2]).expect("swap");
    }
    stop.store(true, Ordering::Relaxed);
    let (sent, came) = traffic.join().expect("swap");
    println!("{} swaps: {came} of {sent} datagrams came", rounds());
    assert!(sent > 1000);
    assert_eq!(came, sent);
    datapath.set_compiled(5, &policies[0]).expect("swap");
    assert_eq!(datapath.policy_room().expect("swap"), before);
    assert_eq!((entries(&world, "nf_peers"), entries(&world, "nf_rules")), (1, 1));
}

#[test]
fn upgrades_lose_and_leak_nothing() {
    if !able("upgrades_lose_and_leak_nothing") {
        return;
    }
    let programs = || run("bpftool prog list").matches("name link_").count();
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &spec(5)).unwrap();
    world.move_link(12);
    datapath.set_compiled(5, &policy(&datapath, ALLOW)).unwrap();
    datapath.set_ready(5, true).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = traffic(&world, &stop);
    let before = programs();
    for _ in 0..rounds() {
        let upgrade = datapath.upgrade().unwrap();
        assert!(upgrade.updated == [5] && upgrade.failed.is_empty(), "{upgrade:?}");
    }
    stop.store(true, Ordering::Relaxed);
    let (sent, came) = traffic.join().unwrap();
    println!("{} upgrades: {came} of {sent} datagrams came", rounds());
    assert!(sent > 1000);
    assert_eq!(came, sent);
    // The other tests have theirs meanwhile.
    wait_until(&format!("more programs than the {before} there were"), || programs() <= before);
}

#[test]
fn a_hundred_thousand_rules_load_quickly_or_are_refused() {
    if !able("a_hundred_thousand_rules_load_quickly_or_are_refused") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &spec(5)).unwrap();
    let rules = |count: u32| -> Vec<FlatRule> {
        let rule = |nth| FlatRule {
            rule: nth + 1,
            action: Action::Allow,
            peer: Some(Prefix::host(Ipv4Addr::from_bits(0x0a00_0000 + nth * 2).into())),
            protocol: Some(6),
            ports: 443..=443,
        };
        (0..count).map(rule).collect()
    };
    let compiled = |count| {
        let room = datapath.policy_room().unwrap();
        let from_pod = compile(&rules(count), room)?;
        let nothing = compile(&[], room)?;
        let otherwise = Otherwise::Deny;
        Ok::<_, netferry::datapath::policy::PolicyError>(Arc::new(CompiledPolicy {
            from_pod,
            from_pod_otherwise: otherwise,
            to_pod: nothing,
            to_pod_otherwise: otherwise,
        }))
    };
    let start = Instant::now();
    let policy = compiled(100_000).unwrap();
    let compiling = start.elapsed();
    let start = Instant::now();
    datapath.set_compiled(5, &policy).unwrap();
    println!("100,000 rules: compiled in {compiling:?}, loaded in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20));
    let refused = compiled(200_000).unwrap_err().to_string();
    assert!(refused.contains("are free; nothing was changed"), "{refused}");
    let before = datapath.policy_room().unwrap();
    datapath.set_compiled(5, &compiled(10).unwrap()).unwrap();
    let after = datapath.policy_room().unwrap();
    assert_eq!(after.peers - before.peers, 100_000 - 10);
}

#[test]
fn members_come_and_go_with_their_endpoint() {
    if !able("members_come_and_go_with_their_endpoint") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &EndpointSpec { network: 7, ..spec(5) }).unwrap();
    let own = datapath.members().unwrap();
    assert_eq!(own.len(), 3, "two addresses and the link-local one: {own:?}");
    assert!(own.iter().all(|member| member.network == 7 && member.endpoint == Some(5)));
    let remote = NetworkMember {
        network: 7,
        address: PEER_V4.parse().unwrap(),
        endpoint: None,
        node: None,
        mac: WIRE_MAC,
    };
    datapath.set_member(&remote).unwrap();
    datapath.detach(5).unwrap();
    assert_eq!(datapath.members().unwrap(), [remote]);
    datapath.remove_member(7, remote.address).unwrap();
    datapath.remove_member(7, remote.address).unwrap();
    assert_eq!(datapath.members().unwrap(), []);
}

#[test]
fn events_tell_of_flows_and_drops() {
    if !able("events_tell_of_flows_and_drops") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &spec(5)).unwrap();
    world.move_link(12);
    datapath.set_compiled(5, &policy(&datapath, ALLOW)).unwrap();
    datapath.set_ready(5, true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut events = FlowEvents::open(&world.root).unwrap();
        let (peer, pod) = (udp(PEER_V4), world.in_pod(|| udp(POD_V4)));
        flood(&pod, PEER_V4, 5);
        assert_eq!(drain(&peer), 5);
        let _ = pod.send_to(b"x", (PEER_V4, 4001));
        let (mut opened, mut denied) = (false, false);
        while !opened || !denied {
            let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap();
            if event.protocol != 17 || event.source != Some(POD_V4.parse().unwrap()) {
                continue;
            }
            assert_eq!((event.endpoint, event.direction), (5, "from_pod"));
            opened |= event.kind == "open" && event.destination_port == 4000 && event.rule == Some(1);
            denied |= event.kind == "deny"
                && event.destination_port == 4001
                && event.reason == Some("policy_default");
        }
        assert_eq!(events.lost().unwrap(), 0);
    });
}

#[test]
fn explain_says_which_rule_decides() {
    if !able("explain_says_which_rule_decides") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &spec(5)).unwrap();
    let (pod, peer): (IpAddr, IpAddr) = (POD_V4.parse().unwrap(), PEER_V4.parse().unwrap());
    let ask = |from, to, port| {
        let said = datapath.explain_flow(None, from, to, 17, port).unwrap();
        assert_eq!((said.len(), said[0].endpoint), (1, 5));
        (said[0].direction, said[0].rule, said[0].denied)
    };
    assert_eq!(ask(pod, peer, 4000), ("from_pod", None, Some("not_ready")));
    datapath.set_ready(5, true).unwrap();
    assert_eq!(ask(pod, peer, 4000), ("from_pod", None, None));
    datapath.set_compiled(5, &policy(&datapath, ALLOW)).unwrap();
    assert_eq!(ask(pod, peer, 4000), ("from_pod", Some(1), None));
    assert_eq!(ask(pod, peer, 4001), ("from_pod", None, Some("policy_default")));
    assert_eq!(ask(peer, pod, 4001), ("to_pod", None, None));
    datapath.set_compiled(5, &policy(&datapath, DENY)).unwrap();
    assert_eq!(ask(pod, peer, 4000), ("from_pod", Some(1), Some("policy_denied")));
    assert_eq!(ask(pod, "192.0.2.21".parse().unwrap(), 4000), ("from_pod", None, None));

    datapath.attach(ifindex(LINK), &EndpointSpec { network: 7, ..spec(5) }).unwrap();
    datapath.set_ready(5, true).unwrap();
    assert_eq!(ask(pod, peer, 4000), ("from_pod", None, Some("not_member")));
    datapath
        .set_member(&NetworkMember { network: 7, address: peer, endpoint: None, node: None, mac: WIRE_MAC })
        .unwrap();
    assert_eq!(ask(pod, peer, 4000), ("from_pod", None, None));
}

#[test]
fn a_limit_is_written_and_taken_back() {
    if !able("a_limit_is_written_and_taken_back") {
        return;
    }
    let world = World::new();
    let datapath = world.open();
    datapath.attach(ifindex(LINK), &spec(5)).unwrap();
    assert_eq!(entries(&world, "nf_limits"), 4, "new flows and told drops are limited");
    let limits: Limits = serde_yaml_ng::from_str("egress: {bitsPerSecond: 8000000}").unwrap();
    datapath.set_limits(5, &limits).unwrap();
    assert_eq!(entries(&world, "nf_limits"), 5);
    datapath.set_limits(5, &Limits::default()).unwrap();
    assert_eq!(entries(&world, "nf_limits"), 4);
    datapath.set_limits(6, &limits).unwrap_err();
}
